"""Pages of results, measurements and answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from batchscale import plots, scaling
from batchscale.audit import Audit
from batchscale.confirmation import Confirmation
from batchscale.display import words
from batchscale.files import local_path, replacing
from batchscale.measurement import Measurement
from batchscale.metrics import Goal
from batchscale.numeric import short
from batchscale.plots.asked import check_reads
from batchscale.plots.common import new_axes
from batchscale.report import page
from batchscale.report.page import Page, Section

_STEPS = {
    "batch_size": "Batch size",
    "steps": "Steps to target",
    "low": "90% interval, from",
    "high": "to",
    "best_of_n": "Best of N",
    "missed": "Share that missed",
}
_BY = (
    "Medians over seeds, of where between two evaluations the goal is reached. Found by: "
    '"model", one of the trials of all batch sizes together, checked under fresh seeds; '
    '"search", 32 settings at this batch size alone, where the model was doubted; "doubted", the '
    "model, though something speaks against it."
)
_CITE = """\
batchscale: what batch size does to neural-network training. Version {version}.
C. J. Shallue, J. Lee, J. Antognini, J. Sohl-Dickstein, R. Frostig and G. E. Dahl. Measuring the
Effects of Data Parallelism on Neural Network Training. Journal of Machine Learning Research,
20(112):1-49, 2019. https://jmlr.org/papers/v20/18-789.html"""


@runtime_checkable
class _Answer(Protocol):
    """What one call has found."""

    measurement: Measurement
    pilot: Any

    def sentence(self) -> str:
        """In a few words."""
        ...


class _Result(Protocol):
    """What is read of the result of a study."""

    name: str
    goal: Goal
    space: Any
    folder: Path

    def steps_to_target(self) -> pd.DataFrame: ...
    def optima(self) -> pd.DataFrame: ...
    def scaling(self) -> scaling.Fit: ...
    def audit(self) -> Audit: ...
    def recommend(self) -> scaling.Recommendation: ...
    def frontier(self) -> pd.DataFrame: ...
    def confirmed(self) -> Confirmation | None: ...
    def runs(self) -> list[Any]: ...


def write(found: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a page of what was found.

    Args:
      found: a result, a measurement or an answer.
      path: of the page; one that is there is replaced.

    Returns:
      The path, absolute.
    """
    wanted = "a result, a measurement or an answer"
    check_reads("found", found, wanted, "report")
    where = local_path(path, "path")
    # Of a path in an encoding that the environment does not name, the bytes that it has.
    content = page.html(pages(found)).encode(errors="surrogateescape")
    with replacing(where) as file:
        file.write(content)
    return where


def pages(found: Any) -> Page:
    """What stands on the page of a result, a measurement or an answer."""
    if isinstance(found, Measurement):
        return _of_measurement(found, _sentence(found.recommend(), found.scaling()), [])
    if isinstance(found, _Answer):
        reasons = found.pilot.reasons
        before = Section(
            "How it was chosen what to measure",
            ["Short runs came first: a pilot, whose choices these are."],
            pairs=[(name.replace("_", " "), why) for name, why in reasons.items()],
        )
        also = [("minutes of the pilot", words(found.pilot.seconds / 60))]
        return _of_measurement(found.measurement, found.sentence(), [before], also)
    return _of_result(found)


def _of_measurement(
    found: Measurement,
    answer: str,
    before: Sequence[Section],
    also: Sequence[tuple[str, str]] = (),
) -> Page:
    names = _searched_first([name for name in found.space_names if name in found.table], found)
    heads = {
        **{name: _STEPS[name] for name in ("batch_size", "steps", "low", "high")},
        **{name: name.replace("_", " ").capitalize() for name in names},
        "by": "Found by",
    }
    checked = {
        "batch_size": "Batch size",
        "predicted": "Predicted steps",
        "predicted_low": "Their median is expected from",
        "predicted_high": "to",
        "seen": "Median of fresh seeds",
        "seeds": "Seeds",
        "deviations": "Standard deviations off",
        "agrees": "Fewer than three",
    }
    cost = found.cost
    sections = [
        Section(
            "Steps to target",
            figure=page.figure(
                plots.measurement(found),
                f"Steps to {found.goal} of each batch size's best setting, with 90% intervals.",
            ),
            table=page.table(found.table, heads, _BY),
        ),
        Section("What follows", found.recommend().sentences),
        _cost(found.steps_to_target()),
        _measured_rates(found),
        Section("Can it be believed?", checks=_checks(found.audit())),
        Section(
            "Predictions beside what came",
            table=page.table(
                found.calibration,
                checked,
                "The seeds took no part in predicting. Where their median is expected, at 90%, is "
                "by the prediction's error, their own, and what the model is off by at all batch "
                "sizes. From three standard deviations on the model is not believed there.",
            ),
        ),
        *_measured_trials(found),
        *before,
        Section(
            "What it cost",
            pairs=[
                ("trials", words(cost["trials"])),
                ("steps", words(cost["steps"])),
                ("examples", words(cost["examples"])),
                ("minutes", words(cost["seconds"] / 60)),
                *also,
                ("ended by", found.ended or "an interruption: it goes on with the same call"),
            ],
        ),
        *_made_by(found.runs),
    ]
    return Page(f"{found.name}: batch size and {found.goal}", answer, sections)


def _of_result(found: _Result) -> Page:
    confirmed = found.confirmed()
    names = _searched_first(list(found.space.names), found)
    if confirmed is None:
        table, shown = found.optima(), "the best of N trials at each batch size"
        recommended, fit = found.recommend(), found.scaling()
        drawn: Axes = plots.steps_to_target(found)  # pyright: ignore[reportArgumentType]
    else:
        table = confirmed.table
        shown = "the median of the tuned setting under fresh seeds"
        recommended, fit = confirmed.recommend(), confirmed.scaling()
        drawn = plots.confirmation(found)  # pyright: ignore[reportArgumentType]
    heads = {**_STEPS, **{name: name.replace("_", " ").capitalize() for name in names}}
    caption = f"Steps to {found.goal}: {shown}."
    sections = [
        Section(
            "Steps to target", figure=page.figure(drawn, caption),
            table=page.table(table, heads, caption),
        ),
        Section("What follows", recommended.sentences),
        _cost(found.steps_to_target() if confirmed is None else confirmed.steps_to_target()),
        *_rates(found),
        Section("Can it be believed?", checks=_checks(found.audit())),
        *_made_by(found.runs()),
    ]  # fmt: skip
    title = f"{found.name}: batch size and {found.goal}"
    return Page(title, _sentence(recommended, fit), sections)


def _sentence(recommended: scaling.Recommendation, fit: scaling.Fit) -> str:
    if not np.isfinite(recommended.knee):
        return "No batch size reached the goal."
    knee = f"Batch size {recommended.knee:,.0f} is the knee of time against cost."
    if fit.refused:
        return f"{knee} No critical batch size is quoted: {fit.refused}."
    low, high = fit.b_crit_interval
    found = (
        f"Critical batch size {short(fit.b_crit)} ({fit.confidence:.0%} interval {short(low)} to "
    )
    return f"{knee} {found}{short(high)})."


def _searched_first(names: Sequence[str], found: Any) -> list[str]:
    """Hyperparameters, those that are the same in all trials last."""
    return sorted(names, key=lambda name: found.trials[name].nunique() < 2)


def _cost(steps: pd.DataFrame) -> Section:
    heads = {"batch_size": "Batch size", "steps": "Steps (time)", "examples": "Examples (cost)"}
    caption = "Steps are time on ideal hardware, examples are what is paid for."
    return Section("Time against cost", table=page.table(scaling.frontier(steps), heads, caption))


def _rates(found: Any) -> list[Section]:
    try:
        drawn = plots.learning_rates(found, ax=new_axes())
    except ValueError as refused:  # trials were stopped too early, which it says
        return [Section("Learning rates", [str(refused)])]
    caption = "The best effective learning rate of each batch size, by all trials."
    return [Section("Learning rates", figure=page.figure(drawn, caption))]


def _measured_rates(found: Measurement) -> Section:
    effective = "momentum" in found.trials or "one_minus_momentum" in found.trials
    what = "effective learning rate" if effective else "learning rate"
    caption = (
        f"The best {what} of each batch size, with 90% intervals, and two rules from the first."
    )
    of = "Effective: the learning rate over one minus the momentum." if effective else ""
    heads = {
        "batch_size": "Batch size",
        "centre": f"Best {what}",
        "low": "90% interval, from",
        "high": "to",
    }
    return Section(
        "Learning rates",
        figure=page.figure(
            plots.learning_rates(found, ax=new_axes()),  # pyright: ignore[reportArgumentType]
            caption,
        ),
        table=page.table(found.learning_rates(), heads, of),
    )


def _measured_trials(found: Measurement) -> list[Section]:
    if "learning_rate" not in found.table:
        return []
    caption = "Every trial that reached the goal, by its learning rate and its batch size."
    return [Section("All trials", figure=page.figure(plots.measured_trials(found), caption))]


def _checks(audit: Audit) -> list[dict[str, str]]:
    return [
        {
            "verdict": str(check.verdict),
            "name": check.name,
            "evidence": check.evidence,
            "remedy": check.remedy,
        }
        for check in audit
    ]


def _made_by(runs: Sequence[Mapping[str, Any]]) -> list[Section]:
    cite = Section("How to cite", code=_CITE.format(version=version("batchscale")))
    if not runs:
        return [cite]
    last = runs[-1]
    versions: Mapping[str, Any] = last.get("versions") or {}
    devices = last.get("devices") or []
    git = last.get("git") or {}
    pairs = [
        ("command", str(last.get("command", ""))),
        ("date", str(last.get("date", ""))),
        ("devices", ", ".join(f"{one.get('count')} {one.get('kind')}" for one in devices)),
        ("processor", str(last.get("processor", ""))),
        ("versions", ", ".join(f"{name} {of}" for name, of in versions.items())),
        ("revision", _revision(git)),
        ("calls that trained", str(len(runs))),
    ]
    return [Section("How it was made", pairs=[(k, v) for k, v in pairs if v]), cite]


def _revision(git: Mapping[str, Any]) -> str:
    """Of the code that was run, in words.

    >>> _revision({"revision": "1b6", "dirty": True}), _revision({})
    ('1b6, and changes that are in no commit', '')
    """
    commit = str(git.get("revision") or "")
    return f"{commit}, and changes that are in no commit" if commit and git.get("dirty") else commit
