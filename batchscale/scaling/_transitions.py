"""How far the transition points move when steps to target are defined otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from batchscale import columns, numeric
from batchscale.scaling._regimes import regimes
from batchscale.scaling.averaging import LUCK, lucky
from batchscale.scaling.curve import check_table, points
from batchscale.scaling.fitting import fit
from batchscale.scaling.pace import Pace

_POINTS = ("perfect_until", "plateau_from", "b_crit")
columns.declare(
    "transitions", "variant", *_POINTS, "low", "high", "refused", *(f"{p}_ratio" for p in _POINTS)
)


def transitions(
    variants: pd.DataFrame,
    *,
    reference: str | None = None,
    tolerance: float = 0.2,
    paces: Mapping[int, Pace] | None = None,
    luck: float | Mapping[str, float] = LUCK,
) -> pd.DataFrame:
    """Where perfect scaling ends and the plateau begins, under each definition of steps to target.

    Shallue et al. (2019, section 4.1) find that other goals shift the curve and barely move its
    transitions. Here that is measured: each point over that of the reference.

    Args:
      variants: the table of `metrics.variants`, or any with `variant`, `batch_size`, `steps` and
        perhaps `previous_evaluation`, and `why` a variant has no steps.
      reference: a variant; if not given, the first.
      tolerance: as for `regimes`.
      paces: as for `fit`.
      luck: as for `fit`, of all variants, or by the names of those that have any: steps that are no
        minima over trials have none. Those whose `log_deviation` is known are medians, without it.

    Returns:
      One row a variant: `variant`; `perfect_until` and `plateau_from` of `regimes`; `b_crit` of
      `fit`, the ends `low` and `high` of its interval, and why it is `refused`, else empty; and
      `perfect_until_ratio`, `plateau_from_ratio` and `b_crit_ratio`, each to the reference's. What
      is not known is NaN.

    Raises:
      TypeError: `variants` is no table.
      ValueError: there is no such reference, or the table is not as above.

    >>> steps = pd.Series([800, 410, 210, 130, 100, 98])
    >>> table = pd.DataFrame({"batch_size": [1, 2, 4, 8, 16, 32]})
    >>> found = transitions(
    ...     pd.concat(
    ...         [
    ...             table.assign(variant="error < 0.1", steps=steps),
    ...             table.assign(variant="error < 0.05", steps=2 * steps),
    ...         ]
    ...     ),
    ...     luck=0,
    ... )
    >>> found[["variant", "perfect_until", "plateau_from", "b_crit_ratio"]].round(2)
            variant  perfect_until  plateau_from  b_crit_ratio
    0   error < 0.1            6...          1...           1.0
    1  error < 0.05            6...          1...           1.0
    """
    check_table("variants", variants, "the table of metrics.variants")
    numeric.above("tolerance", tolerance, 0, "a share above 0, such as 0.2")
    if "variant" not in variants:
        raise ValueError(
            "variants: no column 'variant'; wanted the table of metrics.variants, got "
            f"{', '.join(map(str, variants.columns)) or 'none'}."
        )
    names = variants["variant"].unique().tolist()
    if not names:
        raise ValueError("variants: the table has no rows; wanted that of metrics.variants.")
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise ValueError(
            f"reference: got {reference!r}, wanted one of {', '.join(map(repr, names))}."
        )
    rows = []
    for name in names:
        steps = variants[variants["variant"] == name]
        own = luck.get(name, 0.0) if isinstance(luck, Mapping) else luck
        rows.append({"variant": name, **_points(steps, tolerance, paces, lucky(steps, own))})
    table = pd.DataFrame(rows).set_index("variant")
    for point in _POINTS:
        table[f"{point}_ratio"] = table[point] / table[point].to_dict()[reference]
    return table.reset_index()


def _points(
    steps: pd.DataFrame, tolerance: float, paces: Mapping[int, Pace] | None, luck: float
) -> dict[str, Any]:
    """The transition points of one variant."""
    nothing = dict.fromkeys((*_POINTS, "low", "high"), math.nan)
    why = next((why for why in steps.get("why", []) if isinstance(why, str) and why), "")
    if why:
        return {**nothing, "refused": why}
    if (points(steps)["steps"] == 0).any():
        return {**nothing, "refused": "the goal holds before the first step"}
    fitted = fit(steps, form="averaged", paces=paces, luck=luck)
    found = regimes(steps, tolerance=tolerance, paces=paces, fit=fitted)
    read = {"perfect_until": found.perfect_until, "plateau_from": found.plateau_from}
    low, high = fitted.b_crit_interval
    return {**read, "b_crit": fitted.b_crit, "low": low, "high": high, "refused": fitted.refused}
