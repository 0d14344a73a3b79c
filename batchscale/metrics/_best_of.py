"""What another search would have reported: the best of n trials, and how far it varies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from batchscale import columns, numeric
from batchscale.metrics import _tables
from batchscale.metrics.goal import Goal, check_goal
from batchscale.metrics.ranks import largest_drop, ranks_of
from batchscale.metrics.steps import first_crossings
from batchscale.records import (
    MEASUREMENT_INDEX,
    TRIAL_INDEX,
    Origin,
    Status,
    StopReason,
    check_index,
)

# Choices.
_SHARE = 3  # of N trials, the best of at most N / 3
_FASTEST = 4  # crossings from which is extrapolated to faster ones

_COLUMNS = columns.declare(
    "tuning curve", "batch_size", "trials", "n", "median", "low", "high", "mean", "share_reaching"
)
columns.declare("searches", "cut")


def best_of(
    measurements: pd.DataFrame,
    goal: Goal,
    *,
    trials: pd.DataFrame,
    n: int,
    confidence: float = 0.9,
) -> pd.DataFrame:
    """The steps to target that a new search with n trials would report.

    Steps to target are a minimum over trials, and partly luck. The N trials of a search tell what
    the minimum of fewer, n, would be. `median`, `mean` and `share_reaching` are those of the
    minimum over a random subset of n of the N, without replacement and exactly:
    P(minimum > x) = C(#{crossings > x}, n) / C(N, n), a U-statistic (Hoeffding 1948) and so
    unbiased, other than a bootstrap (Dodge et al. 2019, arXiv:1909.03004, have tuning curves).

    `low` and `high` are a prediction interval. Its estimand is what is reported by a new search:
    n fresh trials, drawn from the same space, trained and evaluated in the same way. The N trials
    are a sample as well, which makes it wider than the quantiles of subsets: those leave out a
    new search in four at n = N / 3. It holds whatever the distribution: the new minimum is above
    the k-th of the N crossings with probability C(N + n - k, n) / C(N + n, n) (David and Nagaraja
    2003, chapter 7). But it is below all N with probability n / (N + n), and where that is more
    than may be left out, `low` is below what was seen. It is then extrapolated as if the steps of
    the fastest trials followed a power law (Weissman 1978): the heaviest tail to be expected, so
    that the interval is rather too wide than too narrow. `high` takes trials that were cut for
    slower than all others, and is inf where that decides. Last, `low` is an evaluation before, as
    crossings are known to lie between two: more than `low`, at most `high` steps are predicted.
    In simulations (`validation/coverage.py`) intervals at 90% hold 88% to 98% of new searches, and
    up to 99% where `high` is inf, so that only `low` can be passed.

    The trials are those of the plan and in place of diverged ones, no reruns or refinements, and
    of these the ones that did not diverge as far as they were trained. They are taken for
    independent draws; quasi-random ones vary less.

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: the trials that may count, with their `origin`. They must have been trained past the
        first crossing of their batch size, by `stop=3.0` or `stop="all"`.
      n: the trials of the new search, at most a third of those at any batch size.
      confidence: the probability that the interval holds what a new search reports.

    Returns:
      One row a batch size: `batch_size`; `trials`, N; `n`; and in steps `median`, `low`, `high`
      and `mean`. A miss is inf, so that `mean` is inf if all of a subset may miss, and `high` if
      a new search may (or N is too few for any other bound). `mean` is NaN where trials that have
      part in it were cut before their crossing. `share_reaching` is the probability that a subset
      reaches the goal, at least, if trials were cut.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: an argument is not as above; an evaluation that matters was cut short; or a trial
        was cut that may have crossed before the median.

    >>> index = pd.MultiIndex.from_product([[8], range(24), [0]], names=TRIAL_INDEX)
    >>> trials = pd.DataFrame(
    ...     {"origin": "plan", "status": "complete", "steps_trained": 99, "stop_reason": "budget"},
    ...     index,
    ... )
    >>> rows = [(8, t, 0, s) for t in range(24) for s in (10 + t, 11 + t)]
    >>> measurements = pd.DataFrame(
    ...     {"validation/error": [0.5, 0.1] * 24},
    ...     pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX),
    ... )
    >>> goal = Goal("validation/error", 0.3)
    >>> best_of(measurements, goal, trials=trials, n=1).round(1)
       batch_size  trials  n  median   low  high  mean  share_reaching
    0           8      24  1    22.0  10.0  34.0  22.5             1.0
    """
    check_goal("goal", goal)
    confidence = numeric.confidence(confidence)
    searches = list(_searches(measurements, goal, trials))
    for search in searches:
        if not isinstance(numeric.plain(n), int) or not 1 <= n <= search.size // _SHARE:
            raise ValueError(
                f"n: got {n}, wanted 1 to {search.size // _SHARE}, a third of the {search.size} "
                f"feasible trials at batch size {search.batch_size}: a minimum over more is "
                "decided by the few fastest of them, and says too little of what others would "
                "give. Ask for a smaller n, or call study.extend(folder, trials=...)."
            )
    for search in searches:
        search.check_known(n, confidence)
    return _table(search.row(n, confidence) for search in searches)


def tuning_curve(
    measurements: pd.DataFrame, goal: Goal, *, trials: pd.DataFrame, confidence: float = 0.9
) -> pd.DataFrame:
    """How steps to target fall with the number of trials: `best_of` for n = 1, 2, 3, 4, 6, 8, ...

    Args:
      measurements: one row an evaluation.
      goal: the metric, its value and its direction.
      trials: as for `best_of`.
      confidence: as for `best_of`.

    Returns:
      The rows of `best_of` for each batch size and n up to a third of its trials. An n is left
      out where trials were cut that may have crossed before its median.

    Raises:
      KeyError: the metric is not a column of `measurements`.
      ValueError: as for `best_of`; or a batch size has fewer than 3 feasible trials, or no n left.

    >>> index = pd.MultiIndex.from_product([[8], range(24), [0]], names=TRIAL_INDEX)
    >>> trials = pd.DataFrame(
    ...     {"origin": "plan", "status": "complete", "steps_trained": 99, "stop_reason": "budget"},
    ...     index,
    ... )
    >>> rows = [(8, t, 0, s) for t in range(24) for s in (10 + t, 11 + t)]
    >>> measurements = pd.DataFrame(
    ...     {"validation/error": [0.5, 0.1] * 24},
    ...     pd.MultiIndex.from_tuples(rows, names=MEASUREMENT_INDEX),
    ... )
    >>> curve = tuning_curve(measurements, Goal("validation/error", 0.3), trials=trials)
    >>> curve[["n", "median"]].to_dict("list")
    {'n': [1, 2, 3, 4, 6, 8], 'median': [22.0, 17.0, 15.0, 14.0, 13.0, 12.0]}
    """
    check_goal("goal", goal)
    confidence = numeric.confidence(confidence)
    rows = []
    for search in _searches(measurements, goal, trials):
        most = search.size // _SHARE
        if most == 0:
            raise ValueError(
                f"trials: {search.size} feasible at batch size {search.batch_size}, at least "
                f"{_SHARE} are needed. Call study.extend(folder, trials=...)."
            )
        counts = [n for n in range(1, most + 1) if (n & -n) in (n, n / 3)]  # 1, 2, 3, 4, 6, 8 ...
        known = [n for n in counts if search.known(search.needed(n, confidence))]
        if not known:
            search.check_known(counts[-1], confidence)  # it needs the fewest crossings
        rows += [search.row(n, confidence) for n in known]
    return _table(rows)


@dataclasses.dataclass(frozen=True)
class _Search:
    """The trials of one batch size, in the order of their crossings.

    Attributes:
      batch_size: examples.
      goal: what was crossed.
      crossings: in steps, inf where there is none.
      after: the step of the evaluation before; without a crossing, of the last.
      cut: the trials without a crossing that were not trained the whole budget.
      evaluated: the steps of all evaluations, in order.
    """

    batch_size: int
    goal: Goal
    crossings: Float[np.ndarray, " trials"]
    after: Float[np.ndarray, " trials"]
    cut: pd.DataFrame
    evaluated: Float[np.ndarray, " steps"]

    @property
    def size(self) -> int:
        return len(self.crossings)

    def needed(self, n: int, confidence: float) -> float:
        """The last crossing of which it must be known that it is the k-th.

        Not that of `high`: were a trial that was cut faster, the true one would be earlier.
        """
        low, median, _ = ranks_of(self.size, n, confidence)
        return self.crossings[max(low or min(_FASTEST, self.size), median) - 1]

    def known(self, crossing: float) -> bool:
        """Whether no trial that was cut can have crossed before."""
        return not (self.cut["steps_trained"] < crossing).any()

    def check_known(self, n: int, confidence: float) -> None:
        """Refuses an n for which it is not."""
        _tables.check_long_enough(
            f"the best of {n} to {self.goal}",
            self.cut.assign(needed=self.needed(n, confidence)),
            'study.extend(folder, stop="all"), or a larger factor than before, such as stop=3.0',
        )

    def row(self, n: int, confidence: float) -> dict[str, float]:
        """The row of `best_of`."""
        ranks = ranks_of(self.size, n, confidence)
        return {
            "batch_size": self.batch_size,
            "trials": self.size,
            "n": n,
            "median": self.crossings[ranks.median - 1],
            "low": self.after[ranks.low - 1] if ranks.low else self._below(n, confidence),
            "high": self.crossings[ranks.high - 1] if ranks.high <= self.size else math.inf,
            "mean": self._mean(n),
            "share_reaching": 1
            - math.comb(int(np.isinf(self.crossings).sum()), n) / math.comb(self.size, n),
        }

    def _below(self, n: int, confidence: float) -> float:
        """The end of the interval where it is below all crossings."""
        fastest = self.crossings[:_FASTEST]
        fastest = fastest[np.isfinite(fastest)]
        if len(fastest) < 2 or fastest[0] == 0:
            return 0.0
        logs = np.log(fastest)
        drop = largest_drop(self.size, n, len(fastest), (1 - confidence) / 2)
        bound = math.exp(logs[0] - drop * np.mean(logs[-1] - logs[:-1]))
        before = self.evaluated[self.evaluated <= bound]
        return min(float(before.max(initial=0)), self.after[0])

    def _mean(self, n: int) -> float:
        """The mean over all subsets: the k-th crossing is the minimum of C(N - k, n - 1)."""
        latest = self.size - n  # the place of the latest that can be a minimum
        if np.isinf(self.crossings).sum() - len(self.cut) >= n:
            return math.inf
        if not self.known(self.crossings[latest]):
            return math.nan
        subsets = math.comb(self.size, n)
        shares = [math.comb(self.size - k, n - 1) / subsets for k in range(1, latest + 2)]
        return float(np.dot(shares, self.crossings[: latest + 1]))


def _searches(measurements: pd.DataFrame, goal: Goal, trials: pd.DataFrame) -> Iterator[_Search]:
    """The trials of each batch size."""
    check_index(measurements, MEASUREMENT_INDEX, "measurements")
    plain = _tables.plain_trials(trials)
    if "origin" not in plain:
        raise ValueError("trials: lacks the columns origin.")
    plain = _tables.feasible(plain)
    plain = _tables.select(plain, plain["origin"].isin([Origin.PLAN, Origin.TOPUP]))
    plain = plain.assign(replicate=0).set_index(list(TRIAL_INDEX))
    rows = _tables.trials_of(measurements)
    measurements = _tables.select(measurements, rows.isin(plain.index))
    plain = plain.drop(columns="first_crossing", errors="ignore")
    plain = plain.join(first_crossings(measurements, goal)).reset_index()
    plain = plain.fillna({"first_crossing": np.inf, "previous_evaluation": 0.0})
    plain = plain.assign(cut=_cut(plain)).sort_values(["first_crossing", "trial"])
    sizes = measurements.index.get_level_values("batch_size").to_numpy()
    steps = measurements.index.get_level_values("step").to_numpy(np.float64)
    for batch_size in _tables.plain_batch_sizes(trials):
        own = _tables.select(plain, plain["batch_size"] == batch_size)
        yield _Search(
            batch_size=int(batch_size),
            goal=goal,
            crossings=own["first_crossing"].to_numpy(np.float64),
            after=own["previous_evaluation"].to_numpy(np.float64),
            cut=_tables.select(own, own["cut"]),
            evaluated=np.unique(steps[sizes == batch_size]),
        )


def _cut(plain: pd.DataFrame) -> Bool[np.ndarray, " trials"]:
    """Which trials may have crossed beyond where they were trained, within the budget."""
    whole = plain["stop_reason"] == StopReason.BUDGET
    whole &= plain["status"] != Status.INCOMPLETE
    budget = plain["steps_trained"].where(whole).groupby(plain["batch_size"]).transform("max")
    whole &= plain["steps_trained"] >= budget
    whole |= plain["stop_reason"] == StopReason.OWN_BUDGET
    return np.isinf(plain["first_crossing"].to_numpy()) & ~whole.to_numpy()


def _table(rows: Iterator[dict[str, float]] | list[dict[str, float]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(_COLUMNS))
    return table.astype({"batch_size": int, "trials": int, "n": int})
