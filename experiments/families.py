"""One small study of each family of models: a CNN, a ResNet, a Transformer and an LSTM.

Three batch sizes each, a handful of trials, a goal that minutes on a CPU reach. It shows that each
family trains, is tuned and gets there at every batch size; three sizes and so few trials say
nothing of where perfect scaling ends.

    python -m experiments.families                     # all of them
    python -m experiments.families --only tiny_shakespeare/lstm_tiny

It goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import batchscale as bs
from batchscale.files import local_path
from experiments.publish import publish


@dataclasses.dataclass(frozen=True)
class Family:
    """A study of a workload.

    Attributes:
      goal: what is to be reached.
      optimizer: the update.
      space: of the hyperparameters.
      batch_sizes: in examples; of text in sequences.
      max_epochs: the budget.
    """

    goal: bs.Goal
    optimizer: str
    space: bs.SearchSpace
    batch_sizes: tuple[int, ...]
    max_epochs: float


_NESTEROV = bs.SearchSpace(learning_rate=bs.LogUniform(3e-3, 0.3), momentum=0.9)
_ADAM = bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 3e-2), b1=0.9, b2=0.999)
FAMILIES = {
    "fashion_mnist/simple_cnn_base": Family(
        bs.Goal("validation/error", 0.15), "nesterov", _NESTEROV, (32, 128, 512), 6
    ),
    "cifar10/resnet_8": Family(
        bs.Goal("validation/error", 0.5), "nesterov", _NESTEROV, (32, 128, 512), 10
    ),
    "tiny_shakespeare/transformer_tiny": Family(
        bs.Goal("validation/loss", 2.4), "adam", _ADAM, (16, 64, 256), 12
    ),
    "tiny_shakespeare/lstm_tiny": Family(
        bs.Goal("validation/loss", 2.4), "adam", _ADAM, (16, 64, 256), 12
    ),
}


def study(name: str, *, trials: int = 4, seed: int = 0) -> bs.Study:
    """The study of a workload.

    >>> study("tiny_shakespeare/lstm_tiny").resolved_batch_sizes()
    [16, 64, 256]
    """
    family = FAMILIES[name]
    return bs.Study(
        workload=bs.workloads.get(name),
        optimizer=family.optimizer,
        space=family.space,
        batch_sizes=list(family.batch_sizes),
        goal=family.goal,
        trials=trials,
        max_epochs=family.max_epochs,
        seed=seed,
    )


def main() -> None:
    """Runs the studies and publishes each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=FAMILIES, action="append", help="may be repeated")
    parser.add_argument("--trials", type=int, default=4, help="feasible trials a batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/families", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results/families")
    arguments = parser.parse_args()
    for name in arguments.only or FAMILIES:
        began = time.monotonic()
        some = study(name, trials=arguments.trials, seed=arguments.seed)
        stem = name.replace("/", "_")
        result = some.run(arguments.runs / stem)
        publish({stem: result}, arguments.output, stem=stem, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
