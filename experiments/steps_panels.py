"""Panels of steps against batch size: figures 1 to 6 of the paper, and half of 7."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

import batchscale as bs
from experiments import shown
from experiments.catalogue import Part
from experiments.harness import Studies, Study, grid, present
from experiments.shown import Shown


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of lines.

    Attributes:
      title: its; of a panel of one study the study's, if this is empty.
      names: of its studies, as the paper has them.
      anchor: the batch size whose steps the others are divided by; None for none. Where a line
        has no steps there, the smallest at which all have is taken.
      goals: by study, the goals that it is shown at; its own if it is not here.
      perfect_scaling: whether its lines are drawn.
    """

    title: str
    names: tuple[str, ...]
    anchor: int | None = None
    goals: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    perfect_scaling: bool = True


def draw(
    panels: Sequence[Panel],
    studies: Studies,
    tuned: bool,
    *,
    by: Part = "model",
    columns: int = 3,
) -> dict[str, pd.DataFrame]:
    """Draws those panels that there are studies of; returns the steps of all lines.

    Args:
      panels: of the figure.
      studies: that there are.
      tuned: whether medians of tuned settings are shown, and not minima.
      by: what differs within a panel.
      columns: panels beside each other.
    """
    lines = {}
    for panel in panels:
        found = _lines(panel, present(studies, panel.names), tuned, by)
        if found:
            title = panel.title
            if not title and len(present(studies, panel.names)) == 1:
                title = present(studies, panel.names)[0].title
            lines[title] = (panel, found)
    if not lines:
        return {}
    tables = []
    for ax, (title, (panel, found)) in zip(
        grid(len(lines), columns=columns), lines.items(), strict=True
    ):
        _panel(ax, panel, found, title)
        tables += [
            one.steps_to_target().assign(panel=title, line=label, goal=str(one.goal))
            for label, one in found.items()
        ]
    what = "medians" if tuned else "minima"
    return {f"steps_{what}": _ordered(pd.concat(tables, ignore_index=True))}


def compared(
    panels: Sequence[Panel], studies: Studies, tuned: bool, *, by: Part = "model"
) -> dict[str, pd.DataFrame]:
    """Draws those panels of which there are two lines at least, each called by what differs.

    Args:
      panels: of the figure.
      studies: that there are.
      tuned: as for `draw`.
      by: what differs within a panel.
    """
    # Goals of panels are the paper's, which stand-ins have not.
    own = {name for name, one in studies.items() if one.stands_in}
    chosen = [
        dataclasses.replace(
            panel, goals={name: goals for name, goals in panel.goals.items() if name not in own}
        )
        for panel in panels
        if len(present(studies, panel.names)) > 1
    ]
    return draw(chosen, studies, tuned, by=by)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    first = ["panel", "line", "goal", "batch_size", "steps"]
    return table[[*first, *(name for name in table if name not in first)]]


def _lines(panel: Panel, studies: Sequence[Study], tuned: bool, by: Part) -> dict[str, Shown]:
    found = {}
    for study in studies:
        values = panel.goals.get(study.name, ())
        goals = [dataclasses.replace(study.result.goal, value=value) for value in values]
        for goal in goals or [study.result.goal]:
            label = f"{goal.value:g}" if len(values) > 1 else study.words.label(by)
            if not tuned:
                found[label] = shown.minima(study.result, goal, name=study.title)
            elif study.result.definition.stop not in ("first", "all"):
                found[label] = shown.medians(study.result, goal, name=study.title)
    for label in [label for label, one in found.items() if not _reached(one)]:
        one = found.pop(label)
        print(f"{one.name}, {label}: no trial is ever {one.goal}; this line is left out.")
    return found


def _reached(one: Shown) -> list[int]:
    table = one.steps_to_target()
    return table.loc[table["steps"].map(math.isfinite), "batch_size"].astype(int).tolist()


def _panel(ax: Axes, panel: Panel, found: Mapping[str, Shown], title: str) -> None:
    anchor = panel.anchor
    if anchor is not None:
        common = set.intersection(*(set(_reached(one)) for one in found.values()))
        if not common:
            raise ValueError(
                f"{panel.title}: there is no batch size at which all lines have steps."
            )
        anchor = anchor if anchor in common else min(common)
    bs.plots.steps_to_target(
        dict(found),
        ax=ax,
        normalize_at=anchor,
        perfect_scaling=panel.perfect_scaling,
        title=title,
    )
    if len(found) == 1 and not panel.goals:  # its title says what it is
        handles = ax.get_legend_handles_labels()[0]
        ax.legend(handles=handles[:1], labels=["perfect scaling"], fontsize=9)
