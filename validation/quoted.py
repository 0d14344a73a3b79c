"""What a measurement quotes, against other seeds of the very settings that it quotes.

    python -m validation.quoted --study digits --repetitions 2

Of each measurement every quoted setting is run under 101 seeds that it has not seen. Printed are
the share of 90% intervals that hold their median, and how far the quoted steps are from it, in
logs: the mean and the root mean square.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from validation.against_search import PRESETS, SEEDS, between, runs_of_setting, study

_SEED = 5000


def quoted(name: str, seed: int) -> tuple[list[bool], list[float]]:
    """Whether intervals of a measurement hold the medians, and the logs of steps over these."""
    one = study(name, trials=32, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        table = one.measure(folder, progress=False).table
    held, off = [], []
    for row in table.to_dict("records"):
        setting = {key: float(row[key]) for key in one.space.names}
        median = between(
            runs_of_setting(name, int(row["batch_size"]), setting, seeds=SEEDS, seed=_SEED)
        )
        held.append(bool(row["low"] <= median <= row["high"]))
        off.append(float(np.log(row["steps"] / median)))
    return held, off


def main() -> None:
    """Prints what it comes to after each measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=sorted(PRESETS), default="digits")
    parser.add_argument("--repetitions", type=int, default=2)
    given = parser.parse_args()
    held: list[bool] = []
    off: list[float] = []
    for seed in range(given.repetitions):
        more = quoted(given.study, seed)
        held, off = held + more[0], off + more[1]
        print(
            f"{sum(held)} of {len(held)} intervals hold the median; off by {np.mean(off):.3f} in "
            f"the mean, {np.sqrt(np.mean(np.square(off))):.3f} root mean square",
            flush=True,
        )


if __name__ == "__main__":
    main()
