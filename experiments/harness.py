"""What the figures share: the command line, the studies that are run once, and what is written.

A figure names studies of the paper. They are run as its preset has them, each in a folder of its
own that other figures find again, confirmed under fresh seeds where that is shown, or read from the
paper's archive.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.layout_engine import ConstrainedLayoutEngine

import batchscale as bs
from batchscale import records
from batchscale.files import local_path
from experiments import catalogue
from experiments.catalogue import Entry

CONFIRMED: Mapping[str, dict[str, Any]] = {
    "small": {"settings": 3, "selection_seeds": 5, "seeds": 11},
    "paper": {"settings": 6, "selection_seeds": 7, "seeds": 21},
}
"""How the settings of a preset are confirmed; as of `paper` where it is not here."""
_BYTES_A_ROW = 12  # of an evaluation on disk, as parquet, measured on digits and MNIST


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that a figure has.

    Attributes:
      name: the paper's.
      label: what a legend calls it.
      title: what a panel of its own calls it.
      result: its tables.
      goals: nearby goals besides its own.
      folder: where it was run; None of an archive.
    """

    name: str
    label: str
    title: str
    result: bs.Result
    goals: tuple[float, ...] = ()
    folder: Path | None = None


Studies = Mapping[str, Study]
Draw = Callable[[Studies, bool], Mapping[str, pd.DataFrame]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the paper.

    Attributes:
      number: the paper's.
      studies: their names, of all presets.
      draw: draws into a new figure what there is, and returns the tables behind it, by name; told
        whether medians of tuned settings are shown, and not minima.
      tuned: whether there is a version of medians: where the paper has minima over trials.
      goals: what an archive is read at, by study; the goals of the paper's main figures otherwise.
    """

    number: int
    studies: tuple[str, ...]
    draw: Draw
    tuned: bool = True
    goals: Mapping[str, bs.Goal] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As folders call it.

        >>> Figure(3, (), lambda studies, tuned: {}).name
        'figure03'
        """
        return f"figure{self.number:02d}"


def main(figure: Figure, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Runs or reads what a figure shows, draws it, and writes it with its tables.

    Args:
      figure: of the paper.
      description: of the module, for its help.
      arguments: of the command line; those of this process if not given.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--preset", choices=catalogue.PRESETS, default="small")
    parser.add_argument(
        "--archive", type=local_path, help="the paper's archive, to be read instead"
    )
    parser.add_argument("--trials", type=int, help="feasible trials a batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/studies", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    if given.archive is not None:
        kind, studies = "archive", read(figure, given.archive)
    else:
        kind = given.preset
        studies = run(figure, kind, given.runs / kind, trials=given.trials, seed=given.seed)
    if not studies:
        sys.exit(
            f"{figure.name}: the preset {kind!r} has none of its studies. "
            f"Presets that have: {', '.join(having(figure))}."
            if given.archive is None
            else f"{figure.name}: none of its studies is in {given.archive}."
        )
    output = given.output / figure.name / kind
    output.mkdir(parents=True, exist_ok=True)
    versions = (False, True) if figure.tuned and given.archive is None else (False,)
    files = []
    with matplotlib.rc_context({"backend": "agg"}):
        for tuned in versions:
            stem = f"{figure.name}_tuned" if tuned else figure.name
            tables = figure.draw(studies, tuned)
            files += bs.plots.save(plt.gcf(), output / stem, ["png"])
            plt.close("all")
            for name, table in tables.items():
                table.to_csv(output / f"{name}.csv", index=False, float_format="%.6g")
    about = {
        "seconds": round(time.monotonic() - began, 1),
        "seed": given.seed,
        "studies": {name: one.title for name, one in studies.items()},
        "made_by": records.provenance(),
    }
    (output / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    missing = [name for name in figure.studies if name not in studies]
    if missing:
        print(f"not in {kind}, and left out: {', '.join(missing)}")
    print(
        f"{about['seconds']:.0f} s; wrote {', '.join(map(str, files))} and the tables beside them"
    )


def having(figure: Figure) -> list[str]:
    """The presets that train something for a figure."""
    return [name for name in catalogue.PRESETS if catalogue.entries(name, figure.studies)]


def run(
    figure: Figure, preset: str, runs: Path, *, trials: int | None = None, seed: int = 0
) -> dict[str, Study]:
    """Runs what a figure shows; what has been run is read.

    Args:
      figure: of the paper.
      preset: its name.
      runs: the folder of the preset's studies.
      trials: feasible ones at every batch size; the preset's if not given.
      seed: of every study.
    """
    found = catalogue.entries(preset, figure.studies)
    todo = [name for name in found if not _finished(runs / _folder(name), figure.tuned)]
    if todo:
        print(price({name: found[name] for name in todo}, trials=trials, seed=seed), flush=True)
    studies = {}
    for name, entry in found.items():
        folder = runs / _folder(name)
        one(entry, folder, preset, confirm=figure.tuned, trials=trials, seed=seed)
        studies[name] = Study(name, entry.label, entry.title, bs.load(folder), entry.goals, folder)
    return studies


def one(
    entry: Entry, folder: Path, preset: str, *, confirm: bool, trials: int | None, seed: int
) -> None:
    """Runs a study, and confirms its settings; nothing that has been run is run again.

    Args:
      entry: of the catalogue.
      folder: of the study.
      preset: that it is of, which says how settings are confirmed.
      confirm: whether to.
      trials: feasible ones at every batch size; the preset's if not given.
      seed: of the study.
    """
    study = entry.study(trials=trials, seed=seed)
    study.run(folder)
    if confirm and study.stop not in ("first", "all"):
        study.confirm(folder, **CONFIRMED.get(preset, CONFIRMED["paper"]))


def _folder(name: str) -> str:
    return name.replace("/", "-").replace(", ", "-")


def _finished(folder: Path, confirmed: bool) -> bool:
    """Whether a study has been run; what its folder says is checked when it is run again."""
    return (folder / "plan.json").exists() and (not confirmed or (folder / "confirm").exists())


def price(found: Mapping[str, Entry], *, trials: int | None = None, seed: int = 0) -> str:
    """What studies cost at most, in words: training, memory and disk.

    Args:
      found: of the catalogue.
      trials: feasible ones at every batch size; the preset's if not given.
      seed: of every study.
    """
    lines = []
    flops = memory = disk = 0.0
    for entry in found.values():
        study = entry.study(trials=trials, seed=seed)
        table = study.estimate()
        flops += float(table["flops"].sum() + table["evaluation_flops"].sum())
        definition = study.definition()
        rows = sum(len(definition.grid(size)) for size in definition.batch_sizes)
        disk += rows * definition.trials * _BYTES_A_ROW
        data = sum(x.nbytes for split in study.workload.splits().values() for x in split.values())
        weights = _weights(study.workload)
        memory = max(memory, data + 4 * weights * definition.trials)
        lines.append(
            f"  {entry.title}: {len(table)} batch sizes, {definition.trials} trials each, at most "
            f"{table['flops'].sum():.2g} operations of training"
        )
    total = (
        f"{len(found)} studies; at most {flops:.2g} operations with evaluations, which is "
        f"{_time(flops / _OPERATIONS)} at {_OPERATIONS:.0e} a second, though most studies end long "
        f"before; up to {memory / 1e6:,.0f} MB of memory, and {disk / 1e6:,.1f} MB on disk"
    )
    return "\n".join([total, *lines])


_OPERATIONS = 5e10  # a second, of two CPU cores


def _time(seconds: float) -> str:
    """A duration in words.

    >>> _time(90), _time(8000)
    ('2 min', '2 h')
    """
    return f"{seconds / 3600:.0f} h" if seconds > 5400 else f"{max(seconds / 60, 1):.0f} min"


def _weights(workload: bs.Workload) -> int:
    import jax

    from batchscale import keys

    shapes = jax.eval_shape(workload.init, keys.shape())[0]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def read(figure: Figure, archive: Path) -> dict[str, Study]:
    """What a figure shows, from the paper's archive: the first 100 complete trials, or all of them.

    Args:
      figure: of the paper.
      archive: the folder of all studies.
    """
    studies = {}
    for name in figure.studies:
        folder = archive / name
        if not folder.is_dir():
            continue
        result = bs.load_archive(
            folder, goal=figure.goals.get(name), train_examples=_examples(name)
        )
        label, title = catalogue.words(name)
        studies[name] = Study(name, label, title, result)
    return studies


def _examples(name: str) -> int | None:
    """The size of a training set that the paper does not say for certain: a choice.

    It marks full batches, and counts epochs.
    """
    known = {
        "imagenet/": 1_281_167,
        "imagenet_half": 640_583,
        "open_images_v4/": 4_500_000,
        "common_crawl/": 25_800_000_000,
    }
    at = name.removeprefix("imagenet_subsets/")
    return next((size for start, size in known.items() if at.startswith(start)), None)


def present(studies: Studies, names: Collection[str]) -> list[Study]:
    """Those of the names that there are studies of, in their order."""
    return [studies[name] for name in names if name in studies]


def grid(panels: int, *, columns: int = 3, width: float = 4.4) -> list[Any]:
    """Axes of a new figure, one a panel, at the aspect of the paper's.

    Args:
      panels: how many.
      columns: at most so many beside each other.
      width: of a panel, in inches.
    """
    across = min(panels, columns)
    rows = -(-panels // across)
    _, axes = plt.subplots(
        rows,
        across,
        figsize=(width * across, width * 7 / 8 * rows),
        squeeze=False,
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12),
    )
    for spare in axes.flat[panels:]:
        spare.remove()
    return list(np.asarray(axes).flat[:panels])
