"""Figure 1 of Shallue et al. (2019): steps to a goal against batch size.

    python -m experiments.figure01 --preset mnist

The preset `mnist` is not one of the figure's nine panels but the smallest workload of the paper
that has its shape: the perceptron 128-128-128 with plain SGD, goal 3% validation error.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import batchscale as bs
from batchscale.files import local_path
from experiments.publish import publish


@dataclasses.dataclass(frozen=True)
class Preset:
    """A panel: what is trained, from where hyperparameters are drawn, until when.

    Attributes:
      workload: its name.
      optimizer: its name.
      space: of the hyperparameters.
      batch_sizes: of the sweep.
      goal: the validation error to be reached.
      max_steps: the budget of a trial.
      trials: feasible trials a batch size, by default; the paper has 100.
    """

    workload: str
    optimizer: str
    space: bs.SearchSpace
    batch_sizes: Sequence[int]
    goal: float
    max_steps: int
    trials: int


PRESETS = {
    "mnist": Preset(
        workload="mnist/fc_128_128_128",
        optimizer="sgd",
        # Two and a half decades everywhere; at small batch sizes larger rates only diverge.
        space=bs.SearchSpace(
            learning_rate=lambda batch_size: (
                bs.LogUniform(1e-3, 0.3) if batch_size < 32 else bs.LogUniform(1e-2, 3)
            )
        ),
        batch_sizes=bs.powers_of_two(1, 4096),
        goal=0.03,
        max_steps=200_000,
        trials=32,
    ),
}


def study(
    preset: str, *, trials: int | None = None, largest: int | None = None, seed: int = 0
) -> bs.Study:
    """The study of a preset, up to a largest batch size; the batch sizes do not depend on another.

    >>> study("mnist").trials
    32
    """
    chosen = PRESETS[preset]
    return bs.Study(
        workload=bs.workloads.get(chosen.workload),
        optimizer=chosen.optimizer,
        space=chosen.space,
        batch_sizes=[size for size in chosen.batch_sizes if size <= (largest or size)],
        goal=bs.Goal("validation/error", chosen.goal),
        trials=trials or chosen.trials,
        max_steps=chosen.max_steps,
        seed=seed,
    )


def main() -> None:
    """Runs a preset and publishes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="mnist")
    parser.add_argument("--trials", type=int, help="feasible trials a batch size")
    parser.add_argument("--largest", type=int, help="leave out larger batch sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/figure01", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results/figure01")
    arguments = parser.parse_args()
    began = time.monotonic()
    some = study(
        arguments.preset,
        trials=arguments.trials,
        largest=arguments.largest,
        seed=arguments.seed,
    )
    result = some.run(arguments.runs / arguments.preset)
    publish(
        {arguments.preset: result},
        arguments.output / arguments.preset,
        stem="steps_to_target",
        seconds=time.monotonic() - began,
    )


if __name__ == "__main__":
    main()
