"""Figure 2 of Shallue et al. (2019): does the choice of the goal matter?

    python -m experiments.figure02 --preset small
    python -m experiments.figure02 --archive FOLDER

The claim: nearby goals shift a curve vertically, and barely move where scaling ends.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.catalogue import GOALS
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

OTHERS = ("digits/fc_64/nesterov_momentum", "mnist/fc_128_128_128/sgd")


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each study that has several goals."""
    panels = []
    for name, one in studies.items():
        own = tuple(dict.fromkeys((one.result.goal.value, *one.goals)))
        goals = GOALS.get(name, ()) if one.folder is None else own
        if len(goals) > 1:
            panels.append(Panel(one.title, (name,), goals={name: goals}, perfect_scaling=False))
    return steps_panels.draw(panels, studies, tuned)


FIGURE = Figure(2, (*GOALS, *OTHERS), draw, usable=lambda entry: bool(entry.goals))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
