"""Checks of the search: was every batch size tuned, as widely and as hard as the others?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from batchscale.audit.checks import Check, Evidence, Verdict, sizes
from batchscale.tuner import Choice, Distribution, crowded_edges

# Choices.
_FEWEST = 3  # trials that reached the goal, below which nothing is told of edges
_TRIALS = {1: 8, 2: 64}  # by the number of hyperparameters
_MORE = 2  # times as many for each further one
_INFEASIBLE = 0.8
_WIDEN = "A better setting may lie outside: widen the range there, in a new study (another folder)."
_NARROW = 4.0  # a range whose ends are nearer than this factor is hardly a search


def edges(evidence: Evidence) -> Check:
    """Whether the leading trials crowd an edge of the search space.

    By `tuner.crowded_edges`.
    """
    name = "optimum inside the search space"
    beyond = _beyond(evidence)
    if beyond:
        return Check(name, Verdict.FAIL, f"the confirmed setting is beyond {beyond}", _WIDEN)
    searched = evidence.plain()
    found = crowded_edges(searched, evidence.spaces)
    unseen = found.unseen
    if found.edges:
        return Check(name, Verdict.FAIL, str(found), f"{_WIDEN} {_further(evidence)}")
    if 2 * len(unseen) > searched["batch_size"].nunique():
        return Check(
            name,
            Verdict.UNKNOWN,
            f"fewer than {_FEWEST} trials reached the goal at {sizes(unseen)}",
            _reach(evidence, unseen),
        )
    if not found.looked_at:
        return Check(name, Verdict.UNKNOWN, "no hyperparameter was searched over a range")
    rest = f"; not known at {sizes(unseen)}" if unseen else ""
    return Check(name, Verdict.PASS, f"no edge is crowded by the leading trials{rest}")


def _further(evidence: Evidence) -> str:
    """Which call says more."""
    if evidence.refined is None or evidence.refined.empty:
        return "study.refine(folder) tells whether it is worth it."
    return "study.confirm(folder) compares what study.refine has found beyond it."


def _beyond(evidence: Evidence) -> str:
    """Which edges a confirmed setting lies beyond, in words; empty if none."""
    if evidence.confirmation is None:
        return ""
    found: dict[str, list[int]] = {}
    for row in evidence.confirmation.table.to_dict("records"):
        size = int(row["batch_size"])
        for name, dimension in evidence.spaces.get(size, {}).items():
            if not isinstance(dimension, Distribution) or isinstance(dimension, Choice):
                continue
            low, high = dimension.value(np.array([0.0, 1.0])).tolist()
            value = float(row.get(name, np.nan))
            edge = "low" if value < low else "high" if value > high else ""
            if edge:
                found.setdefault(f"the {edge} edge of {name}", []).append(size)
    return "; ".join(f"{edge} at {sizes(where)}" for edge, where in found.items())


def _reach(evidence: Evidence, unseen: list[int]) -> str:
    """What makes more trials reach the goal."""
    steps = evidence.steps.set_index("batch_size")["steps"].reindex(unseen)
    if np.isinf(steps).all():
        return "Choose an easier goal, or a longer budget: study.extend(folder, max_steps=...)."
    return (
        "Train on past the first crossing: study.extend(folder, stop=3.0), or a larger factor than "
        "before."
    )


def tuned(evidence: Evidence) -> Check:
    """Whether the learning rate was searched at every batch size, not tied to it by a rule."""
    name = "learning rate tuned at every batch size"
    fixed: dict[int, float] = {}
    narrow, without = [], []
    for batch_size, space in evidence.spaces.items():
        dimension = dict(space.items()).get("learning_rate")
        if dimension is None:
            without.append(batch_size)
        elif isinstance(dimension, int | float):
            fixed[batch_size] = float(dimension)
        elif isinstance(dimension, Distribution):
            if isinstance(dimension, Choice):
                values = [float(value) for value in dimension.to_json()["values"]]
            else:
                values = dimension.value(np.array([0.0, 1.0])).tolist()
            low, high = min(values), max(values)
            if low > 0 and high / low < _NARROW:
                narrow.append(batch_size)
    remedy = "Give learning_rate a range, the same or wider at every batch size, and search it."
    if fixed:
        rule = _rule(fixed)
        return Check(name, Verdict.FAIL, f"{rule} at {sizes(fixed)}: no search", remedy)
    if narrow:
        found = f"its range spans less than a factor of {_NARROW:g} at {sizes(narrow)}"
        return Check(name, Verdict.WARN, found, remedy)
    if without:
        return Check(name, Verdict.UNKNOWN, "there is no hyperparameter learning_rate", "")
    return Check(name, Verdict.PASS, "searched over a range at every batch size")


def _rule(fixed: dict[int, float]) -> str:
    """The rule that fixed learning rates follow, in words."""
    if len(set(fixed.values())) == 1:
        return f"the same learning rate, {next(iter(fixed.values())):g},"
    if len(fixed) > 1:
        slope = np.polyfit(np.log(list(fixed)), np.log(list(fixed.values())), 1)[0]
        for rule, exponent in (("linear", 1.0), ("square-root", 0.5)):
            if abs(slope - exponent) < 0.05:
                return f"a learning rate by the {rule} rule"
    return "a fixed learning rate"


def enough(evidence: Evidence) -> Check:
    """Whether there are enough feasible trials for the number of hyperparameters."""
    name = "enough feasible trials"
    plain = evidence.plain()
    counts = evidence.feasible().groupby("batch_size").size()
    wanted = {
        int(size): trials_wanted(len(evidence.spaces[int(size)].searched))
        for size in plain["batch_size"].unique()
    }
    if counts.empty:
        return Check(name, Verdict.UNKNOWN, "no trial has been trained without diverging")
    few = [size for size, least in wanted.items() if counts.get(size, 0) < least]
    if few:
        least = min(int(counts.get(size, 0)) for size in few)
        return Check(
            name,
            Verdict.WARN,
            f"{least} feasible trials at {sizes(few)}, fewer than "
            f"{' or '.join(map(str, sorted({wanted[size] for size in few})))}, of which the best "
            "setting is likely to be within a twentieth of the optimum",
            "study.extend(folder, trials=...).",
        )
    share = 1 - counts / plain.groupby("batch_size").size()
    many = share.index[share > _INFEASIBLE]
    if len(many):
        return Check(
            name,
            Verdict.WARN,
            f"more than {_INFEASIBLE:.0%} of the trials diverged at {sizes(many)}",
            "Search where training is stable: most of the range is not.",
        )
    return Check(name, Verdict.PASS, f"at least {counts.min()} at every batch size")


def trials_wanted(hyperparameters: int) -> int:
    """How many trials a search needs, whose settings are to come near enough to the optimum.

    The best of N settings misses a parabola's optimum in d hyperparameters by about N^(-2 / d) of
    what the range spans: 8 trials of one and 64 of two come equally near. For three that would be
    512; only twice as many are asked for as for two.

    >>> trials_wanted(1), trials_wanted(2), trials_wanted(3)
    (8, 64, 128)
    """
    known = max(_TRIALS)
    if hyperparameters <= known:
        return _TRIALS[max(hyperparameters, 1)]
    return _TRIALS[known] * _MORE ** (hyperparameters - known)


def effort(evidence: Evidence) -> Check:
    """Whether every batch size was tuned with the same number of feasible trials."""
    name = "equal tuning effort"
    counts = evidence.feasible().groupby("batch_size").size()
    counts = counts.reindex(pd.Index(evidence.plain()["batch_size"].unique()), fill_value=0)
    if counts.empty:
        return Check(name, Verdict.UNKNOWN, "no trial has been trained")
    if counts.min() < counts.max():
        least, most = int(counts.min()), int(counts.max())
        return Check(
            name,
            Verdict.FAIL,
            f"between {least} ({sizes(counts.index[counts == least])}) and {most} feasible trials: "
            "a minimum over more of them is lower",
            f"study.extend(folder, trials={most}), or compare the first {least} of each.",
        )
    refined = _refined(evidence, counts.index)
    if refined.min() < refined.max():
        least, most = int(refined.min()), int(refined.max())
        return Check(
            name,
            Verdict.WARN,
            f"between {least} ({sizes(refined.index[refined == least])}) and {most} refined trials "
            "beside them: confirmed settings are those of unequal searches",
            "study.refine(folder) gives all of them as many rounds; then study.confirm(folder).",
        )
    more = f", and {int(refined.iloc[0])} refined ones" if refined.iloc[0] else ""
    return Check(
        name, Verdict.PASS, f"{int(counts.iloc[0])} feasible trials at every batch size{more}"
    )


def _refined(evidence: Evidence, batch_sizes: pd.Index) -> pd.Series:
    """How many refined trials each batch size has, of those that reached the goal at all."""
    steps = evidence.steps.set_index("batch_size")["steps"]
    reached = batch_sizes[np.isin(batch_sizes, steps.index[np.isfinite(steps)])]
    wanted = reached if len(reached) else batch_sizes
    if evidence.refined is None:
        return pd.Series(0, wanted)
    counts = evidence.refined.groupby(level="batch_size").size()
    return counts.reindex(wanted, fill_value=0)
