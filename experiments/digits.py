"""Steps to target against batch size on 8x8 handwritten digits: the whole of it in a minute.

A perceptron with one hidden layer of 64 units, SGD and Nesterov momentum, batch sizes 1 to the full
training set of 1,100 images, 64 trials each; the goal is a validation error below 5%.

    python -m experiments.digits
"""

from __future__ import annotations

import argparse
import time

import batchscale as bs
from batchscale.files import local_path
from experiments.publish import publish

SPACES = {
    "sgd": bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 10)),
    "nesterov": bs.SearchSpace(
        learning_rate=bs.LogUniform(1e-3, 10), momentum=bs.ReverseLogUniform(0.5, 0.99)
    ),
}


def study(optimizer: str, *, trials: int = 64, seed: int = 0) -> bs.Study:
    """The study of one optimizer.

    >>> study("sgd").resolved_batch_sizes()[-2:]
    [1024, 1100]
    """
    return bs.Study(
        workload=bs.workloads.get("digits/fc_64"),
        optimizer=optimizer,
        space=SPACES[optimizer],
        batch_sizes=[*bs.powers_of_two(1, 1024), "full"],
        goal=bs.Goal("validation/error", 0.05),
        trials=trials,
        max_steps=20_000,
        seed=seed,
    )


def main() -> None:
    """Runs both studies and publishes them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=64, help="feasible trials a batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/digits", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results/digits")
    arguments = parser.parse_args()
    began = time.monotonic()
    results = {
        optimizer: study(optimizer, trials=arguments.trials, seed=arguments.seed).run(
            arguments.runs / optimizer
        )
        for optimizer in SPACES
    }
    publish(results, arguments.output, stem="digits", seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
