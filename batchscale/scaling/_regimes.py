"""The three regimes: by the fitted curve, or, without one, read off the table itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from batchscale import columns, given, numeric
from batchscale.scaling.curve import Interval, check_begun, points, whole
from batchscale.scaling.fitted import Fit
from batchscale.scaling.pace import Pace, paced

_NOTHING = Interval(math.nan, math.nan)
columns.declare("overhead", "batch_size", "steps", "examples", "overhead")


@dataclasses.dataclass(frozen=True)
class Regimes:
    """Where perfect scaling ends and the plateau begins.

    By a fitted curve where there is one; read off the table, among the measured batch sizes,
    otherwise. What is read off hangs on single batch sizes, the smallest most of all: of simulated
    studies it is two octaves off or more in a fifth to two fifths.

    Attributes:
      tolerance: the share by which steps may be off and still count as the same.
      perfect_until: the largest batch size up to which all need at most (1 + tolerance) times the
        examples of the smallest; NaN if the smallest misses the goal, or the fitted curve has it
        below the batch sizes that were measured; the largest of them at most.
      plateau_from: the smallest batch size from which no larger one takes off more than the
        tolerance; NaN if that is the largest, or lies beyond it, for then no plateau has been seen,
        and where the plateau is the schedule's doing.
      useful_until: the smallest batch size whose steps are at most (1 + tolerance) times the fewest
        of all: a larger one is of no use; NaN where the plateau is the schedule's doing.
      fewest_steps: of all batch sizes.
      perfect_interval: of `perfect_until`, at the confidence of the fit; NaN without one.
      plateau_interval: of `plateau_from`, likewise.
      by: `fit` or `table`.
    """

    tolerance: float
    perfect_until: float
    plateau_from: float
    useful_until: float
    fewest_steps: float
    perfect_interval: Interval = _NOTHING
    plateau_interval: Interval = _NOTHING
    by: Literal["fit", "table"] = "table"


def overhead(steps: pd.DataFrame) -> pd.DataFrame:
    """Examples to target against those of perfect scaling from the smallest batch size.

    Args:
      steps: the table of `metrics.steps_to_target`.

    Returns:
      One row a batch size: `batch_size`, `steps`, `examples` (their product), `overhead`: examples
      over those of the smallest batch size, minus 1. Steps are minima over trials, and scatter, so
      that an overhead may be a little below 0; it is left as it is. A miss has inf.

    Raises:
      ValueError: the table is not as above, or the goal held before the first step.

    >>> table = pd.DataFrame({"batch_size": [1, 4, 16], "steps": [1000, 240, 120]})
    >>> overhead(table)["overhead"].round(2).tolist()
    [0.0, -0.04, 0.92]
    """
    table = points(steps)
    check_begun(table)
    examples = table["batch_size"] * table["steps"]
    first = examples.iloc[0] if len(examples) else math.nan
    table = table[["batch_size", "steps"]].assign(
        examples=examples, overhead=examples / first - 1 if math.isfinite(first) else math.nan
    )
    return table.assign(batch_size=whole(table["batch_size"]))


def regimes(
    steps: pd.DataFrame,
    *,
    tolerance: float = 0.2,
    paces: Mapping[int, Pace] | None = None,
    fit: Fit | None = None,
) -> Regimes:
    """Perfect scaling, diminishing returns and plateau (Shallue et al. 2019, section 4.1).

    With a tolerance of 0.2, `perfect_until` is the critical batch size of Zhang et al. (2024). With
    a fit that quotes B_crit it is where examples are (1 + tolerance) times the fewest of the curve,
    and `plateau_from` and `useful_until` where steps are; without, all are read off the table, the
    smallest batch size for reference.

    Args:
      steps: the table of `metrics.steps_to_target`.
      tolerance: above 0.
      paces: as for `fit`.
      fit: of `scaling.fit`, to the same steps.

    Raises:
      ValueError: the table or the tolerance is not as above.

    >>> table = pd.DataFrame(
    ...     {"batch_size": [1, 2, 4, 8, 16, 32], "steps": [800, 410, 210, 130, 100, 98]}
    ... )
    >>> found = regimes(table)
    >>> found.perfect_until, found.plateau_from, found.useful_until
    (4.0, 16.0, 16.0)
    """
    numeric.above("tolerance", tolerance, 0, "a share above 0, such as 0.2")
    if fit is not None:
        given.instance("fit", fit, Fit, "what scaling.fit returns")
    table = overhead(steps)
    sizes, count = table["batch_size"].to_numpy(float), table["steps"].to_numpy(float)
    if not np.isfinite(count).any():
        return Regimes(tolerance, math.nan, math.nan, math.nan, math.inf)
    over = table["overhead"].to_numpy(float) > tolerance
    perfect = math.nan
    if math.isfinite(count[0]):
        perfect = sizes[int(np.argmax(over)) - 1] if over.any() else sizes[-1]
    fewest = float(count.min())
    # From here on, the fewest steps of all larger batch sizes are no better than tolerated.
    later = np.minimum.accumulate(count[::-1])[::-1]
    flat = np.isfinite(count) & (count <= (1 + tolerance) * later)
    tail = len(flat) - int(np.argmin(flat[::-1])) if not flat.all() else 0
    plateau = sizes[tail] if tail < len(sizes) - 1 else math.nan
    useful = sizes[int(np.argmax(count <= (1 + tolerance) * fewest))]
    if paced(steps, {} if paces is None else paces).plateau:
        plateau = useful = math.nan
    if fit is not None and not fit.refused:
        perfect, found = fit.batch_size_at_overhead(tolerance), fit.batch_size_at_excess(tolerance)
        perfect = min(perfect, float(sizes[-1])) if perfect >= sizes[0] else math.nan
        found = max(found, float(sizes[0])) if found <= sizes[-1] else math.nan
        return Regimes(
            tolerance,
            perfect,
            found,
            found,
            fewest,
            fit.overhead_interval(tolerance),
            fit.excess_interval(tolerance),
            by="fit",
        )
    return Regimes(tolerance, float(perfect), float(plateau), float(useful), fewest)
