"""Steps to target against batch size on MNIST: the smallest workload of the paper, in minutes.

A perceptron 128-128-128 with plain SGD, batch sizes 1 to 4,096, goal 3% validation error, with 32
trials at each where the paper has 100.

    python -m experiments.mnist
"""

from __future__ import annotations

import argparse
import time

import batchscale as bs
from batchscale.files import local_path
from experiments.publish import publish


def rates(batch_size: int) -> bs.LogUniform:
    """Two and a half decades everywhere; at small batch sizes larger rates only diverge.

    >>> rates(16).high, rates(32).high
    (0.3, 3)
    """
    return bs.LogUniform(1e-3, 0.3) if batch_size < 32 else bs.LogUniform(1e-2, 3)


def study(*, trials: int = 32, largest: int = 4096, seed: int = 0) -> bs.Study:
    """The study, up to a largest batch size; what comes of one does not depend on another.

    >>> study(largest=64).resolved_batch_sizes()
    [1, 2, 4, 8, 16, 32, 64]
    """
    return bs.Study(
        workload=bs.workloads.get("mnist/fc_128_128_128"),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=rates),
        batch_sizes=bs.powers_of_two(1, largest),
        goal=bs.Goal("validation/error", 0.03),
        trials=trials,
        max_steps=200_000,
        seed=seed,
    )


def main() -> None:
    """Runs the study and publishes it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=32, help="feasible trials a batch size")
    parser.add_argument("--largest", type=int, default=4096, help="leave out larger batch sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/mnist", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results/mnist")
    given = parser.parse_args()
    began = time.monotonic()
    some = study(trials=given.trials, largest=given.largest, seed=given.seed)
    result = some.run(given.runs)
    seconds = time.monotonic() - began
    publish({"mnist": result}, given.output, stem="steps_to_target", seconds=seconds)


if __name__ == "__main__":
    main()
