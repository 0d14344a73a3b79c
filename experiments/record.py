"""Runs the studies of the figures in order of priority, in slices of time, and draws the figures.

    python -m experiments.record --minutes 60
    python -m experiments.record --minutes 10 --data FOLDER
    python -m experiments.record --only mnist --study mnist/fc_1024/sgd --largest 1024
    python -m experiments.record --list

A slice ends after so many minutes, wherever it is; the next goes on from there. A figure is drawn
as soon as all of its studies are done; with `--study` only those studies run and nothing is drawn,
so that several processes can share the work. `--data` names a folder of `<data set>.npz`, as
`datasets.to_npz` writes them, for machines without internet or tensorflow-datasets.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import batchscale as bs
from batchscale.files import local_path
from experiments import harness
from experiments.catalogue import Entry
from experiments.harness import Figure

ORDER: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("small", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
    ("mnist", (2, 3, 8, 4, 6, 9, 11, 1, 5)),
    ("text", (4, 1, 3)),
    ("cifar", (4, 1)),
)
"""What is recorded: presets, and of each its figures, in order of priority."""
_TOLD_EVERY = 30.0  # seconds


class SliceOverError(Exception):
    """The slice of time is over."""


class Task(NamedTuple):
    """A study to be run.

    Attributes:
      preset: that it is of.
      name: the paper's.
      entry: what is trained.
      confirm: whether its settings are confirmed.
      folder: of its tables.
    """

    preset: str
    name: str
    entry: Entry
    confirm: bool
    folder: Path


def figure(number: int) -> Figure:
    """A figure of the paper.

    >>> figure(9).name
    'figure09'
    """
    return importlib.import_module(f"experiments.figure{number:02d}").FIGURE


def tasks(
    preset: str, number: int, runs: Path, largest: int | None = None, *, minima: bool = False
) -> list[Task]:
    """The studies of a figure, in its order, up to a batch size; confirmed unless `minima` says no.

    >>> [task.folder.name for task in tasks("cifar", 4, Path("runs"))]
    ['cifar_10-resnet_8-sgd', 'cifar_10-resnet_8-nesterov_momentum']
    """
    one = figure(number)
    return [
        Task(
            preset,
            name,
            entry,
            one.tuned and not minima,
            harness.folder_of(runs / preset, name, entry),
        )
        for name, entry in one.entries(preset, largest).items()
    ]


def planned(
    runs: Path, largest: int | None = None, *, minima: bool = False
) -> Iterator[tuple[str, int, list[Task]]]:
    """Every preset and figure with its studies, in order of priority."""
    for preset, numbers in ORDER:
        for number in numbers:
            yield preset, number, tasks(preset, number, runs, largest, minima=minima)


def state(task: Task) -> str:
    """How far a study is: `done`, `3 of 14 batch sizes`, `to be confirmed` or `not begun`."""
    if not (task.folder / "plan.json").exists():
        return "not begun"
    result = bs.load(task.folder)
    sizes = result.trials.index.get_level_values("batch_size")
    open_ = set(sizes[(result.trials["status"] == "incomplete").to_numpy()])
    done = set(sizes) - open_
    wanted = max(len(result.definition.batch_sizes), len(task.entry.arguments["batch_sizes"]))
    if len(done) < wanted:
        return f"{len(done)} of {wanted} batch sizes"
    if not (task.confirm and harness.can_be_confirmed(task.entry)):
        return "done"
    confirmed = all(_confirmed(result, value) for value in (result.goal.value, *task.entry.goals))
    return "done" if confirmed else "to be confirmed"


def _confirmed(result: bs.Result, value: float) -> bool:
    """Whether there is a median at every batch size, for a goal of this value."""
    try:
        table = result.confirmation(dataclasses.replace(result.goal, value=value)).table
    except (FileNotFoundError, ValueError):  # none, or one that stopped at another goal
        return False
    return bool(table["steps"].notna().all())


def table(runs: Path, largest: int | None = None, *, minima: bool = False) -> pd.DataFrame:
    """What there is to record, and how far each study is."""
    rows, known = [], {}
    for preset, number, studies in planned(runs, largest, minima=minima):
        for task in studies:
            key = (task.folder, task.confirm)
            if key not in known:
                known[key] = state(task)
            rows.append((preset, number, task.entry.words.title, task.name, known[key]))
    return pd.DataFrame(rows, columns=["preset", "figure", "study", "name", "state"])


def main() -> None:
    """Goes on for so many minutes, and says what is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of this slice, at most")
    parser.add_argument("--only", choices=[preset for preset, _ in ORDER], action="append")
    parser.add_argument("--figure", type=int, action="append", help="these alone")
    parser.add_argument("--study", action="append", help="these alone, by the paper's names")
    parser.add_argument(
        "--largest", type=int, help="batch size; without it a later call adds the others"
    )
    parser.add_argument("--minima", action="store_true", help="confirm in a later call")
    parser.add_argument("--list", action="store_true", help="say what is left, and run nothing")
    parser.add_argument("--data", type=local_path, help="a folder of <data set>.npz")
    parser.add_argument("--runs", type=local_path, default="runs/studies", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results")
    given = parser.parse_args()
    if given.data is not None:
        os.environ["TFDS_DATA_DIR"] = str(given.data)
    ends = time.monotonic() + 60 * given.minutes
    _check_studies(parser, given.study)
    if not given.list:
        try:
            for preset, number, studies in planned(given.runs, given.largest, minima=given.minima):
                others = given.only and preset not in given.only
                if others or (given.figure and number not in given.figure):
                    continue
                for task in studies:
                    if not given.study or task.name in given.study:
                        _run(task, ends)
                if given.study:
                    continue
                _draw(preset, number, given.runs, given.output, given.largest, given.minima)
        except SliceOverError:
            print(f"{given.minutes:g} minutes are over; the same command goes on.")
    print(table(given.runs, given.largest, minima=given.minima).to_string(index=False))


def _check_studies(parser: argparse.ArgumentParser, names: list[str] | None) -> None:
    """Stops at a name that no figure has."""
    known = sorted({task.name for _, _, studies in planned(Path("runs")) for task in studies})
    for name in names or ():
        if name not in known:
            parser.error(f"--study: got {name!r}, wanted one of {', '.join(known)}")


def _run(task: Task, ends: float) -> None:
    if state(task) == "done":
        return
    print(f"{task.preset}: {task.entry.words.title} ({task.name})", flush=True)
    told = 0.0

    def tell(progress: bs.Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now > ends:
            raise SliceOverError
        if now - told > _TOLD_EVERY:
            told = now
            print(f"  batch size {progress.batch_size}, step {progress.step}", flush=True)

    if time.monotonic() > ends:
        raise SliceOverError
    harness.one(task.entry, task.folder, task.preset, confirm=task.confirm, progress=tell)


def _draw(
    preset: str, number: int, runs: Path, output: Path, largest: int | None, minima: bool
) -> None:
    about = output / f"figure{number:02d}" / preset / "about.json"
    if about.exists():
        drawn, tuned = json.loads(about.read_text()), figure(number).tuned and not minima
        if minima and drawn.get("tuned", figure(number).tuned):
            return  # medians are more
        if drawn.get("largest") == largest and drawn.get("tuned", tuned) >= tuned:
            return
    module = importlib.import_module(f"experiments.figure{number:02d}")
    arguments = ["--preset", preset, "--runs", str(runs), "--output", str(output)]
    arguments += [] if largest is None else ["--largest", str(largest)]
    arguments += ["--minima"] if minima else []
    harness.main(module.FIGURE, module.__doc__, arguments)


if __name__ == "__main__":
    main()
