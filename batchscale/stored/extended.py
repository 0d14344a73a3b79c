"""Trials that were trained for a whole budget which has grown since."""

from __future__ import annotations

import numpy as np
import pandas as pd

from batchscale.plan import Definition
from batchscale.records import Status, StopReason
from batchscale.stopping import StopRule


def as_extended(trials: pd.DataFrame, definition: Definition) -> pd.DataFrame:
    """The trials, of which none says that it was trained for a budget that it was not.

    One that ended at an earlier budget ended where the study's rule ends it, if the rule is
    satisfied there, and is to go on if it is not.

    Args:
      trials: of a study.
      definition: as it is now.
    """
    sizes = trials.index.get_level_values("batch_size").to_numpy()
    steps = trials["steps_trained"].to_numpy(float)
    budgets = np.array([definition.max_steps.get(size, 0) for size in sizes.tolist()], float)
    early = (trials["stop_reason"] == StopReason.BUDGET).to_numpy() & (steps < budgets)
    if not early.any():
        return trials
    rule = StopRule.of(definition.stop)
    reason, status = (trials[name].to_numpy(object).copy() for name in ("stop_reason", "status"))
    crossings = trials["first_crossing"].to_numpy(float)
    for size in np.unique(sizes[early]).tolist():
        here = early & (sizes == size)
        step = int(steps[here].max())
        done = rule.is_satisfied(
            step,
            crossings[sizes == size].min(initial=np.inf),
            crossings[here].tolist(),
            definition.grid(size),
        )
        reason[here] = rule.reason if done else StopReason.INTERRUPTED
        status[here] = Status.COMPLETE if done else Status.INCOMPLETE
    found = trials.assign(stop_reason=reason, status=status)
    return found.astype({name: trials[name].dtype for name in ("stop_reason", "status")})
