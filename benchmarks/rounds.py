"""Where a measurement's time goes, with programs that batch sizes share and without.

    python -m benchmarks.rounds                  # digits; three measurements each, in turns
    python -m benchmarks.rounds --study mnist

Each is a process of its own with an empty compilation cache. Of every measurement: seconds of wall
time in all, of training, of evaluation, and of waiting for compilation, as the folder's provenance
has them; what is left is the design's own, files, and the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

PARTS = ("total", "training", "evaluation", "compilation")


def measured(name: str, seed: int, *, shared: bool) -> dict[str, float]:
    """Seconds by part of one measurement, in this process."""
    import batchscale as bs
    from batchscale.runner import planning
    from validation import against_search

    with tempfile.TemporaryDirectory() as folder:
        study = against_search.study(name, trials=32, seed=seed)
        began = time.monotonic()
        never = mock.patch.object(planning, "worth_sharing", return_value=False)
        with contextlib.nullcontext() if shared else never:
            study.measure(folder, progress=False)
        wall = time.monotonic() - began
        seconds = bs.load(folder).measurement().runs[-1]["seconds"]
    return {**{part: float(seconds.get(part, 0.0)) for part in PARTS}, "wall": wall}


def apart(name: str, seed: int, *, shared: bool) -> dict[str, float]:
    """The same in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rounds", "--study", name, "--one", str(seed)]
            + ["--shared"] * shared,
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "BATCHSCALE_CACHE": cache},
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures in turns, prints the table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, help="one measurement under this seed, here")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measured(given.study, given.one, shared=given.shared)))
        return
    ways = {"each batch size its own": False, "shared": True}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed in range(given.rounds):
        for way, shared in ways.items():
            found[way].append(apart(given.study, seed, shared=shared))
            print(way, found[way][-1], flush=True)
    parts = ["wall", *PARTS[1:]]
    median = {
        way: {part: round(statistics.median(one[part] for one in runs), 1) for part in parts}
        for way, runs in found.items()
    }
    print("| programs | " + " | ".join(parts) + " |\n" + "|--" * (len(parts) + 1) + "|")
    for way, values in median.items():
        print(f"| {way} | " + " | ".join(f"{values[part]:.1f}" for part in parts) + " |")
    from batchscale.records import provenance

    path = given.output / f"rounds_{given.study}.json"
    text = json.dumps({"median": median, "runs": found, "machine": provenance()}, indent=1)
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()
