"""Five families of models in one picture: each with its own critical batch size, all on one curve.

A perceptron, a CNN and a residual network on 8x8 digits, a Transformer and an LSTM on tiny
Shakespeare. Each is answered by `batchscale.recommend`, which finds the ranges itself, and measures
within the minutes. Goals and batch sizes are given: those that a pilot finds are what the minutes
pay for, which depends on the machine. In the picture batch sizes are in units of the critical one,
and steps in units of the fewest.

    python -m experiments.regimes                              # all of them, within the minutes
    python -m experiments.regimes --only digits/fc_64 --minutes 3

What was answered before stays, and is drawn beside; what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import batchscale as bs
from batchscale import records
from batchscale.files import local_path, replacing
from batchscale.plots import common, marks, scales


class Family(NamedTuple):
    """A model that is measured.

    Attributes:
      words: for the picture.
      optimizer: by name.
      goal: of its steps.
      batch_sizes: that are measured; both ends of the curve lie among them.
    """

    words: str
    optimizer: str
    goal: bs.Goal
    batch_sizes: list[int]


FAMILIES = {
    "digits/fc_64": Family(
        "perceptron, digits", "sgd", bs.Goal("validation/error", 0.02), bs.powers_of_two(1, 512)
    ),
    "digits/simple_cnn_base": Family(
        "CNN, digits", "momentum", bs.Goal("validation/error", 0.05), bs.powers_of_two(8, 512)
    ),
    "digits/resnet_8": Family(
        "ResNet-8, digits", "momentum", bs.Goal("validation/error", 0.05), bs.powers_of_two(8, 512)
    ),
    "tiny_shakespeare/transformer_tiny": Family(
        "Transformer, tiny Shakespeare", "adam",
        bs.Goal("validation/loss", 2.4), bs.powers_of_two(1, 256),
    ),
    "tiny_shakespeare/lstm_tiny": Family(
        "LSTM, tiny Shakespeare", "adam",
        bs.Goal("validation/loss", 2.24), bs.powers_of_two(1, 256),
    ),
}  # fmt: skip


def main() -> None:
    """Answers what is asked for, and draws all that is answered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=FAMILIES, action="append", help="may be repeated")
    parser.add_argument("--minutes", type=float, default=20, help="of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/regimes", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results/regimes")
    given = parser.parse_args()
    for name in given.only or FAMILIES:
        family = FAMILIES[name]
        answer = bs.recommend(
            bs.workloads.get(name),
            family.optimizer,
            goal=family.goal,
            batch_sizes=family.batch_sizes,
            folder=given.runs / name.replace("/", "_"),
            minutes=given.minutes,
            seed=given.seed,
        )
        print(answer)
        publish(name, answer, given.output)
    found = {name: read(name, given.output) for name in FAMILIES}
    known = {name: one for name, one in found.items() if one is not None}
    if not any(about["b_crit"] for _, about in known.values()):
        print(f"wrote tables into {given.output}; no critical batch size is quoted, to draw")
        return
    with matplotlib.rc_context({"backend": "agg"}):
        files = bs.plots.save(draw(known), given.output / "regimes", ["png"])
    print(f"wrote {', '.join(map(str, files))} and the tables beside them")


def publish(name: str, answer: bs.Answer, folder: Path) -> None:
    """Writes the table of a family, and what else its picture needs."""
    fit, measured = answer.scaling(), answer.measurement
    stem = name.replace("/", "_")
    with replacing(folder / f"{stem}.csv") as file:
        file.write(measured.table.to_csv(index=False).encode())
    about = {
        "goal": str(measured.goal),
        "answer": answer.sentence(),
        "b_crit": fit.b_crit if not fit.refused else None,
        "b_crit_interval": [float(end) for end in fit.b_crit_interval],
        "s_min": fit.s_min,
        "refused": fit.refused,
        "pilot": dict(answer.pilot.reasons),
        "pilot_seconds": round(answer.pilot.seconds, 1),
        "cost": {key: float(value) for key, value in measured.cost.items()},
        "ended": measured.ended,
        "made_by": records.provenance(),
    }
    text = json.dumps(without_infinities(about), indent=1, default=str, allow_nan=False)
    with replacing(folder / f"{stem}.json") as file:
        file.write(text.encode() + b"\n")


def without_infinities(value: Any) -> Any:
    """What JSON can say: a number that is not finite, such as an open end, is None.

    >>> without_infinities({"interval": [3.0, math.inf], "note": "Infinity"})
    {'interval': [3.0, None], 'note': 'Infinity'}
    """
    if isinstance(value, Mapping):
        return {key: without_infinities(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(name: str, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """What was published of a family; None if nothing was."""
    path = folder / f"{name.replace('/', '_')}.json"
    if not path.exists():
        return None
    return pd.read_csv(path.with_suffix(".csv")), json.loads(path.read_text())


def draw(
    found: Mapping[str, tuple[pd.DataFrame, dict[str, Any]]], *, title: str | None = None
) -> Axes:
    """All families whose critical batch size is quoted, on one curve.

    Families are told apart by colour and by marker, of which every other is open.

    Args:
      found: by name, the table and what else was published, as `read` has them.
      title: instead of the figure's own words; an empty one is none.

    Raises:
      ValueError: no critical batch size is quoted.
    """
    quoted = {name: one for name, one in found.items() if one[1]["b_crit"] is not None}
    if not quoted:
        raise ValueError("regimes: no critical batch size is quoted; there is nothing to draw.")
    ax = common.new_axes()
    scales.log2_axis(ax, "x")
    scales.log2_axis(ax, "y")
    families, ends = [], []
    for place, (name, (table, about)) in enumerate(quoted.items()):
        color = marks.COLORS[place]
        size = table["batch_size"] / about["b_crit"]
        steps, low, high = (table[key] / about["s_min"] for key in ("steps", "low", "high"))
        families.append(
            marks.bars(
                ax, size, steps, low, high, marker=marks.MARKERS[place], color=color,
                markerfacecolor="white" if place % 2 else color, zorder=3,
                label=f"{FAMILIES[name].words}: {about['b_crit']:.3g}",
            )
        )  # fmt: skip
        ends += [size.min(), size.max()]
    at = np.geomspace(min(ends) / 1.5, max(ends) * 1.5, 1000)
    line = marks.sized({"color": "0.3", "linewidth": 1.2})
    label = "1 + critical batch size / batch size"
    handles = ax.plot(at, 1 + 1 / at, "-", label=label, zorder=1.5, **line)
    label = "perfect scaling, and the fewest steps"
    handles += ax.plot(at, np.maximum(1 / at, 1), "--", label=label, zorder=1.4, **line)
    ax.set_xlabel("Batch size, in units of the critical batch size")
    ax.set_ylabel("Steps to the goal, in units of the fewest")
    common.frame(ax)
    words = f"{_counted(len(quoted))}, each with its critical batch size"
    common.head(ax, words, [*families, *handles], title=title)
    return ax


def _counted(number: int) -> str:
    words = ("One", "Two", "Three", "Four", "Five")
    return "One family" if number == 1 else f"{words[number - 1]} families"


if __name__ == "__main__":
    main()
