"""Figure 2 of Shallue et al. (2019): does the choice of the goal matter?

    python -m experiments.figure02 --preset small
    python -m experiments.figure02 --archive FOLDER

The claim: nearby goals shift a curve vertically, and barely move where scaling ends.
"""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from experiments import harness, steps_panels
from experiments.catalogue import GOALS
from experiments.harness import Figure, Studies, Study
from experiments.steps_panels import Panel

OTHERS = ("digits/fc_64/nesterov_momentum", "mnist/fc_128_128_128/sgd")


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each study that has several goals."""
    panels, rows = [], []
    for name, one in studies.items():
        own = tuple(dict.fromkeys((one.result.goal.value, *one.goals)))
        goals = GOALS.get(name, ()) if one.folder is None else own
        if len(goals) > 1:
            panels.append(Panel(one.title, (name,), goals={name: goals}, perfect_scaling=False))
            rows += [_critical(one, value, tuned) for value in goals]
    tables = steps_panels.draw(panels, studies, tuned)
    if tables:
        tables[f"scaling_{'medians' if tuned else 'minima'}"] = pd.DataFrame(rows)
    return tables


def _critical(study: Study, value: float, tuned: bool) -> dict[str, object]:
    """Where scaling ends, at one goal; NaN where that is not quoted, and why."""
    goal = dataclasses.replace(study.result.goal, value=value)
    fit = study.result.confirmation(goal).scaling() if tuned else study.result.scaling(goal)
    low, high = (math.nan, math.nan) if fit.refused else fit.b_crit_interval
    return {
        "panel": study.title,
        "goal": str(goal),
        "b_crit": math.nan if fit.refused else fit.b_crit,
        "low": low,
        "high": high,
        "refused": str(fit.refused),
    }


FIGURE = Figure(2, (*GOALS, *OTHERS), draw, usable=lambda entry: bool(entry.goals))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
