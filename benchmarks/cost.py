"""What an answer costs: a whole study as it is, against the plain protocol.

    python -m benchmarks.cost --study digits

The plain protocol trains every trial to three times the steps to target of its batch size, and
evaluates it in full on the same grid. It runs on the same engine, with the same plan, so that the
steps to target and the best trials of both have to be the same: the script says whether they are.
Both start in new processes with a compilation cache that is empty, and take turns. `examples` are
those trained on; seconds are those that the run waited for training, evaluation and compilation,
and the rest is the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batchscale as bs
from experiments import digits, figure01

STUDIES: dict[str, Callable[[], bs.Study]] = {
    "digits": lambda: digits.study("sgd"),
    "mnist": lambda: figure01.study("mnist", largest=1024),
}
WAYS: dict[str, dict[str, Any]] = {
    "batchscale": {},
    "plain protocol": {"stop": 3.0, "curves": "exact"},
}


def run(study: str, way: str) -> dict[str, Any]:
    """Runs a study one way, in a process of its own, with a cold cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        code = (
            "import dataclasses, sys; from benchmarks import cost; "
            "some = dataclasses.replace(cost.STUDIES[sys.argv[1]](), **cost.WAYS[sys.argv[2]]); "
            "some.run(sys.argv[3], progress=False)"
        )
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", code, study, way, f"{folder}/study"], check=True, env=environment
        )
        wall = time.monotonic() - began
        result = bs.load(f"{folder}/study")
        made = json.loads(Path(folder, "study/provenance.json").read_text())["runs"][-1]
    sizes = result.trials.index.get_level_values("batch_size").to_numpy()
    seconds = made.pop("seconds")
    seconds["host"] = round(2 * seconds["total"] - sum(seconds.values()), 1)
    table = result.steps_to_target()
    return {
        "wall": round(wall, 1),
        "examples": int((sizes * result.trials["steps_trained"].to_numpy()).sum()),
        "seconds": seconds,
        "answer": table[["batch_size", "steps", "trial"]].astype(float).values.tolist(),
        "machine": made,
    }


def main() -> None:
    """Runs both ways in turns, prints their costs and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=STUDIES, default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, found in runs.items():
            found.append(run(arguments.study, way))
            print(way, {name: found[-1][name] for name in ("wall", "examples", "seconds")})
    answers = [found["answer"] for some in runs.values() for found in some]
    ours, plain = (statistics.median(found["wall"] for found in some) for some in runs.values())
    summary = {
        "study": arguments.study,
        "same_answer": all(answer == answers[0] for answer in answers),
        "share_of_examples": round(
            runs["batchscale"][0]["examples"] / runs["plain protocol"][0]["examples"], 3
        ),
        "median_wall": {"batchscale": ours, "plain protocol": plain},
        "times_faster": round(plain / ours, 2),
    }
    print(summary)
    output = arguments.output or Path(f"benchmarks/results/cost_{arguments.study}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(summary | {"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
