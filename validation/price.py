"""What a measurement costs a batch size, as seeds differ: by simulation, for a pilot's estimate.

    python -m validation.price

Of hyperbolas over six and over eight octaves of batch sizes, in packs of four trials, to 0.15:
printed are the runs of the steps to the goal that a measurement costs a batch size, by what they
cost in seconds, beside what `piloting.pricing.runs_of` says of that scatter.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import pandas as pd

from batchscale.metrics import Goal
from batchscale.piloting.pricing import runs_of
from validation.measure import measured
from validation.worlds import World

_LANES = 4


def world(octaves: int, deviation: float) -> World:
    """A hyperbola whose bend is in the middle of the batch sizes.

    >>> world(6, 0.1).batch_sizes[-1]
    64.0
    """
    sizes = tuple(2.0**k for k in range(octaves + 1))
    found = World(
        batch_sizes=sizes, b_crit=2 ** (octaves / 2), scatter=(deviation, deviation), rate=0.01,
        low=1e-3, high=10.0,
    )  # fmt: skip
    longest = math.ceil(6 * math.exp(found.log_steps(1.0)))
    return World(**{**vars(found), "max_steps": longest})


def runs(of: World, seed: int) -> float:
    """Of a study, a batch size: its cost over that of one run at each of them."""
    sizes = np.array(of.batch_sizes)
    seconds = sizes + sizes.max() / 4
    _, cost, _, _ = measured(of, seed, examples=math.inf, precision=0.15, lanes=_LANES)
    once = sum(
        math.exp(of.log_steps(size)) * each for size, each in zip(sizes, seconds, strict=True)
    )
    return (cost.examples + cost.steps * sizes.max() / 4) / once


def said(octaves: int, deviation: float) -> float:
    """What a pilot says where five seeds are as far apart as is expected of five."""
    ends = [0.0, 1000.0, 1000 * math.exp(2.33 * deviation), 1e6]
    rerun = pd.DataFrame({"step": ends, "low": [9, 1, 1, 1], "high": [9, 9, 1, 1]})
    return runs_of(rerun, Goal("validation/loss", 2.0), octaves)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=10)
    given = parser.parse_args()
    for octaves in (6, 8):
        for deviation in (0.03, 0.1, 0.2, 0.3, 0.4):
            of = world(octaves, deviation)
            found = [runs(of, seed) for seed in range(given.studies)]
            low, middle, high = np.quantile(found, [0.1, 0.5, 0.9])
            print(
                f"{octaves} octaves, scatter {deviation:.0%}: {middle:.0f} runs a batch size "
                f"({low:.0f} to {high:.0f}); said: {said(octaves, deviation):.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
