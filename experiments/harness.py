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
from batchscale.archive import studies as archived
from batchscale.files import local_path
from batchscale.records import Status
from experiments import catalogue
from experiments.catalogue import Entry, Words

CONFIRMED: Mapping[str, dict[str, Any]] = {
    "small": {"settings": 2, "selection_seeds": 3, "seeds": 5},
    "paper": {"settings": 6, "selection_seeds": 7, "seeds": 21},
}
"""How the settings of a preset are confirmed; as of `paper` where it is not here."""
_BYTES_A_ROW = 12  # of an evaluation on disk, as parquet, measured on digits and MNIST


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that a figure has.

    Attributes:
      name: the paper's.
      words: what figures call it.
      result: its tables.
      goals: nearby goals besides its own.
      folder: where it was run; None of an archive.
      stands_in: whether something else is trained for the paper's, to goals of its own.
    """

    name: str
    words: Words
    result: bs.Result
    goals: tuple[float, ...] = ()
    folder: Path | None = None
    stands_in: bool = False

    @property
    def title(self) -> str:
        """What a panel of its own calls it."""
        return self.words.title


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
      panels: of a figure that compares, the studies of each panel, of which it needs two.
      usable: which studies of a preset it can show.
      every_trial: whether it shows all trials of an archive, and not as many at every batch size.
    """

    number: int
    studies: tuple[str, ...]
    draw: Draw
    tuned: bool = True
    goals: Mapping[str, bs.Goal] = dataclasses.field(default_factory=dict)
    panels: tuple[tuple[str, ...], ...] = ()
    usable: Callable[[Entry], bool] = lambda _: True
    every_trial: bool = False

    def needed(self, known: Collection[str]) -> list[str]:
        """Those of its studies that are shown where some are known.

        >>> panels = (("a", "b"), ("c", "d"))
        >>> Figure(4, ("a", "b", "c", "d"), lambda *_: {}, panels=panels).needed(["a", "b", "c"])
        ['a', 'b']
        """
        panels = self.panels or tuple((name,) for name in self.studies)
        least = 2 if self.panels else 1
        shown = [[name for name in panel if name in known] for panel in panels]
        names = {name for panel in shown if len(panel) >= least for name in panel}
        return [name for name in self.studies if name in names]

    def entries(self, preset: str, largest: int | None = None) -> dict[str, Entry]:
        """The studies of a preset that it shows, up to a batch size."""
        known = catalogue.entries(preset, self.studies)
        known = {name: one.up_to(largest) for name, one in known.items() if self.usable(one)}
        return {name: known[name] for name in self.needed(known)}

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
    parser.add_argument("--trials", type=int, help="feasible trials a batch size, at most")
    parser.add_argument(
        "--largest", type=int, help="batch size; without it a later call adds the others"
    )
    parser.add_argument("--minima", action="store_true", help="no medians of tuned settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=local_path, default="runs/studies", help="raw tables")
    parser.add_argument("--output", type=local_path, default="results")
    given = parser.parse_args(arguments)
    if given.minima or given.archive is not None:
        figure = dataclasses.replace(figure, tuned=False)
    began = time.monotonic()
    if given.archive is not None:
        kind, studies = "archive", read(figure, given.archive)
    else:
        kind = given.preset
        folder, largest = given.runs / kind, given.largest
        studies = run(figure, kind, folder, trials=given.trials, seed=given.seed, largest=largest)
    if not studies:
        sys.exit(
            f"{figure.name}: the preset {kind!r} has none of its studies. "
            f"Presets that have: {', '.join(having(figure))}."
            if given.archive is None
            else f"{figure.name}: none of its studies is in {given.archive}."
        )
    output = given.output / figure.name / kind
    output.mkdir(parents=True, exist_ok=True)
    versions = (False, True) if figure.tuned else (False,)
    files = []
    with matplotlib.rc_context({"backend": "agg"}):
        for tuned in versions:
            stem = f"{figure.name}_tuned" if tuned else figure.name
            tables = figure.draw(studies, tuned)
            if not tables:
                print(f"{stem}: nothing to show; medians need trials beyond the first crossing.")
                continue
            files += bs.plots.save(plt.gcf(), output / stem, ["png"])
            plt.close("all")
            for name, table in tables.items():
                files.append(output / f"{name}.csv")
                table.to_csv(files[-1], index=False, float_format="%.6g")
    _withdraw(output, files)
    about = {
        "seconds": round(time.monotonic() - began, 1),
        "seconds_of_studies": round(sum(_seconds(one) for one in studies.values()), 1),
        "seed": given.seed,
        "largest": given.largest,
        "tuned": figure.tuned,
        "studies": {name: one.title for name, one in studies.items()},
        "files": [path.name for path in files],
        "made_by": records.provenance(),
    }
    (output / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    missing = [name for name in figure.studies if name not in studies]
    if missing:
        print(f"not in {kind}, and left out: {', '.join(missing)}")
    print(
        f"{about['seconds']:.0f} s; wrote {', '.join(str(p) for p in files if p.suffix == '.png')} "
        "and the tables beside them"
    )


def _withdraw(output: Path, files: Collection[Path]) -> None:
    """Deletes what an earlier call wrote and this one did not: it would seem to be of this one."""
    about = output / "about.json"
    before = json.loads(about.read_text()).get("files", []) if about.exists() else []
    for name in set(before) - {path.name for path in files}:
        (output / Path(name).name).unlink(missing_ok=True)


def _seconds(study: Study) -> float:
    """What all runs of a study took, whichever figure began them; nothing of an archive."""
    if study.folder is None:
        return 0.0
    runs = json.loads((study.folder / "provenance.json").read_text())["runs"]
    seconds = [run["seconds"] for run in runs if "seconds" in run]
    # Others have but read it; of workers the total alone is noted.
    return sum(one["total"] for one in seconds if one.get("training", one["total"]))


def having(figure: Figure) -> list[str]:
    """The presets that train something for a figure."""
    return [name for name in catalogue.PRESETS if figure.entries(name)]


def run(
    figure: Figure,
    preset: str,
    runs: Path,
    *,
    trials: int | None = None,
    seed: int = 0,
    largest: int | None = None,
) -> dict[str, Study]:
    """Runs what a figure shows; what has been run is read.

    Args:
      figure: of the paper.
      preset: its name.
      runs: the folder of the preset's studies.
      trials: feasible ones at every batch size; the preset's if not given.
      seed: of every study.
      largest: batch size; all of them if None.
    """
    found = figure.entries(preset, largest)
    todo = [
        name
        for name, entry in found.items()
        if not _finished(folder_of(runs, name, entry), figure.tuned)
    ]
    if todo:
        print(price({name: found[name] for name in todo}, trials=trials, seed=seed), flush=True)
    studies = {}
    for name, entry in found.items():
        folder = folder_of(runs, name, entry)
        one(entry, folder, preset, confirm=figure.tuned, trials=trials, seed=seed)
        studies[name] = Study(
            name, entry.words, bs.load(folder), entry.goals, folder, stands_in=preset != "paper"
        )
    return studies


def one(
    entry: Entry,
    folder: Path,
    preset: str,
    *,
    confirm: bool,
    trials: int | None = None,
    seed: int = 0,
    progress: bool | Callable[[bs.Progress], None] = True,
) -> None:
    """Runs a study, and confirms its settings; nothing that has been run is run again.

    A folder that holds fewer batch sizes gets the others.

    Args:
      entry: of the catalogue.
      folder: of the study.
      preset: that it is of, which says how settings are confirmed.
      confirm: whether to.
      trials: feasible ones at every batch size; the preset's if not given.
      seed: of the study.
      progress: as in `Study.run`.
    """
    study = entry.study(trials=trials, seed=seed)
    if (folder / "plan.json").exists() and batch_sizes_of(folder) < set(
        study.resolved_batch_sizes()
    ):
        study.extend(folder, progress=progress)
    else:
        study.run(folder, progress=progress)
    if confirm and can_be_confirmed(entry):
        seeds = CONFIRMED.get(preset, CONFIRMED["paper"])
        study.confirm(folder, progress=progress, **seeds)


def batch_sizes_of(folder: Path) -> set[int]:
    """Those of the study in a folder."""
    return set(bs.load(folder).definition.batch_sizes)


def trained_on(entry: Entry) -> bool:
    """Whether trials are trained to three times the first crossing, or to their budget."""
    stop = entry.arguments.get("stop", "first")
    return stop == "budget" or (not isinstance(stop, str) and stop >= 3)


def trained_whole(entry: Entry) -> bool:
    """Whether every trial is trained to the end of its budget."""
    return entry.arguments.get("stop") == "budget"


def can_be_confirmed(entry: Entry) -> bool:
    """Whether trials go on after the first crossing, so that it is known which settings lead."""
    return entry.arguments.get("stop", "first") not in ("first", "all")


def folder_of(runs: Path, name: str, entry: Entry) -> Path:
    """Where a study of a preset is.

    Args:
      runs: the folder of the preset's studies.
      name: the paper's.
      entry: what is trained for it.
    """
    return runs / (entry.place or name).replace("/", "-").replace(", ", "-")


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
            f"  {entry.words.title}, {entry.words.optimizer}: {len(table)} batch sizes, "
            f"{definition.trials} trials each, at most "
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
    """What a figure shows, from the paper's archive.

    The fewest steps over more trials are fewer, so that minima are of the first so many complete
    trials of every batch size, as many as the paper has: 100, of some studies 50.

    Args:
      figure: of the paper.
      archive: the folder of all studies.
    """
    studies = {}
    for name in figure.needed([name for name in figure.studies if (archive / name).is_dir()]):
        goal, examples = figure.goals.get(name), _examples(name)
        trials = None if figure.every_trial else _compared(archive / name, name)
        result = bs.load_archive(archive / name, goal=goal, train_examples=examples, trials=trials)
        studies[name] = Study(name, catalogue.words(name), result)
    return studies


def _compared(folder: Path, name: str) -> int:
    """How many complete trials of every batch size the paper compares, or all have."""
    wanted = catalogue.trials_of_paper(name)
    complete = {
        one.batch_size: sum(trial.status == Status.COMPLETE for trial in archived.trials(one))
        for one in archived.studies(folder)
    }
    fewest = min(complete, key=lambda size: complete[size])
    if not complete[fewest]:
        raise ValueError(f"{folder}: batch size {fewest:,} has no complete trial.")
    if complete[fewest] < wanted:
        print(
            f"{name}: {complete[fewest]} complete trials of every batch size, for batch size "
            f"{fewest:,} has no more; the paper has {wanted}."
        )
    return min(wanted, complete[fewest])


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
    across = 2 if panels == 4 else min(panels, columns)
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


def one_legend(axes: Sequence[Any], *, pad: float = 6) -> None:
    """One legend above all panels in the place of theirs.

    Args:
      axes: of the panels.
      pad: between a panel and its title, in points.
    """
    handles = {}
    for ax in axes:
        legend = ax.get_legend()
        names = [text.get_text() for text in legend.get_texts()]
        handles |= dict(zip(names, legend.legend_handles, strict=True))
        drawn, labels = ax.get_legend_handles_labels()
        own = dict(zip(labels, drawn, strict=True))  # of error bars with their markers
        handles |= {name: own[name] for name in names if name in own}
        legend.remove()
        ax.set_title(ax.get_title(), fontsize=10, pad=pad)
    figure = axes[0].figure
    figure.legend(
        handles=list(handles.values()),
        labels=list(handles),
        loc="outside upper center",
        ncols=min(len(handles), 4 if figure.get_figwidth() > 8 else 2),
        fontsize=9,
        frameon=False,
    )
