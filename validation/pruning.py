"""What dropping hopeless trials early would save, and how often the answer would be lost.

    python -m validation.pruning runs/digits/sgd runs/digits/nesterov

On the exact curves of finished studies, as a run could do it, not knowing when the goal will be
reached: at each doubling of the steps, from a first step on, the trials are dropped that are not
better than the best of all was at a quarter (half, eighth) of these steps. Printed are the share of
the steps of all trials that this saves, and at how many batch sizes the trial that is first at the
goal is dropped before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import batchscale as bs
from batchscale.stopping import part_of_grid

FIRST = (16, 32, 64)
FACTORS = (2, 4, 8)


def effect(result: bs.Result, first: int, factor: int) -> list[tuple[float, bool]]:
    """For every batch size: the share of steps saved, and whether no trial is left at the goal."""
    found = []
    sign = 1 if result.goal.mode == "min" else -1
    answers = result.steps_to_target()
    for size, target in answers[["batch_size", "steps"]].to_numpy().tolist():
        curves = result.measurements[result.goal.metric].loc[int(size)].dropna()
        table = sign * curves.droplevel("replicate").unstack("step")  # a row a trial
        doublings = sorted(part_of_grid(list(table), ratio=2))
        until: dict[Any, float] = {trial: target for trial in table.index}  # noqa: C420
        for step in doublings:
            before = [earlier for earlier in doublings if earlier <= step / factor]
            if first <= step < target and before:
                worse = table.index[~(table[step] < table[before[-1]].min())]
                until |= {trial: step for trial in worse if until[trial] == target}
        left = [trial for trial, end in until.items() if end == target]
        lost = not result.goal.reached(sign * table.loc[left, target].to_numpy()).any()
        found.append((1 - float(np.mean(list(until.values()))) / target, lost))
    return found


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("validation/results/pruning.json"))
    arguments = parser.parse_args()
    results = [bs.load(folder) for folder in arguments.folders]
    rows = []
    for first in FIRST:
        for factor in FACTORS:
            effects = [pair for result in results for pair in effect(result, first, factor)]
            rows.append(
                {
                    "first": first,
                    "factor": factor,
                    "saved": round(float(np.mean([saved for saved, _ in effects])), 3),
                    "lost": sum(lost for _, lost in effects),
                    "batch_sizes": len(effects),
                }
            )
            print(rows[-1])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"studies": [result.name for result in results], "rows": rows}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
