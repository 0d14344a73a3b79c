"""The critical batch size: a curve fitted to steps to target, with an interval, or a refusal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import scipy.stats
from jaxtyping import Float
from numpy.typing import ArrayLike

from batchscale.scaling.curve import Form, Interval, log_steps, points

# Choices.
_FEWEST = {"hyperbolic": 4, "generalised": 5}  # batch sizes that reach the goal
_WORST = 0.4  # standard deviation of log steps about the curve, above which it is none
_SMALLEST_SPREAD = 0.005
_DECADES = 2.0  # beyond the batch sizes in which B_crit is looked for
_MOST_SHARP = 3.0  # the log of the sharpest bend, and minus that of the dullest
_BEGINNINGS = 7
_HALVINGS = 9
_OUTWARD = (0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the way to a limit at which an end is sought


@dataclasses.dataclass(frozen=True)
class Fit:
    """A curve S = S_min (1 + (B_crit / B)^a)^(1/a) through steps to target.

    Attributes:
      form: `hyperbolic` (a = 1) or `generalised`.
      s_min: the steps of an infinite batch.
      b_crit: the batch size where the two asymptotes meet; with the hyperbola that at which twice
        the fewest steps and twice the fewest examples are needed (McCandlish et al. 2018). NaN
        where it is refused.
      sharpness: a.
      b_crit_interval: of B_crit, at `confidence`. It is that of steps scattered about the curve:
        the luck of the trials at each batch size, and the resolution of the evaluations.
      s_min_interval: of S_min, likewise.
      confidence: for example 0.9.
      spread: the standard deviation of log steps about the curve.
      batch_sizes: how many reach the goal.
      misses: how many do not; each says that its steps are more than were evaluated.
      refused: why B_crit is not quoted; empty if it is.
    """

    form: Form
    s_min: float
    b_crit: float
    sharpness: float
    b_crit_interval: Interval
    s_min_interval: Interval
    confidence: float
    spread: float
    batch_sizes: int
    misses: int
    refused: str
    _log_b_crit: float = dataclasses.field(repr=False, default=math.nan)

    def steps(self, batch_sizes: ArrayLike) -> Float[np.ndarray, " batch_sizes"]:
        """The steps of the curve at batch sizes, also where B_crit is refused.

        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> fit(table).steps([16]).round(-1)
        array([120.])
        """
        with np.errstate(divide="ignore"):
            log_b = np.log(np.asarray(batch_sizes, np.float64))
        return np.exp(log_steps(log_b, math.log(self.s_min), self._log_b_crit, self.sharpness))

    def batch_size_at_overhead(self, overhead: float) -> float:
        """The batch size at which examples to target are (1 + overhead) times the fewest.

        With 0.2 the critical batch size of Zhang et al. (2024, arXiv:2410.21676), with 1 and the
        hyperbola that of McCandlish et al. (2018). NaN where B_crit is refused.

        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> found = fit(table)
        >>> round(found.batch_size_at_overhead(0.2) / found.b_crit, 3)
        0.2
        """
        if not overhead > 0:
            raise ValueError(f"overhead: got {overhead!r}, wanted a share above 0, such as 0.2.")
        return self.b_crit * ((1 + overhead) ** self.sharpness - 1) ** (1 / self.sharpness)


def fit(steps: pd.DataFrame, *, form: Form = "hyperbolic", confidence: float = 0.9) -> Fit:
    """Fits a curve to steps to target, in log space, by maximum likelihood.

    log S scatters normally about the curve. What was measured is that the crossing lies between two
    evaluations, or, of a miss, beyond the last: both enter as intervals. The interval of B_crit is
    that of the profile likelihood, with the threshold of an F test, so that few batch sizes make it
    wide.

    B_crit is refused (NaN, with the reason) where fewer than 4 batch sizes reach the goal (5 for
    the generalised form), where steps scatter by more than half about the curve, and where the
    interval leaves the batch sizes that were measured: then the bend has not been seen, and the
    interval is the one-sided bound that is left.

    Args:
      steps: the table of `metrics.steps_to_target`; `previous_evaluation` may be missing.
      form: `hyperbolic`, S = S_min (1 + B_crit / B), or `generalised`, whose bend may be sharper.
      confidence: of the intervals.

    Raises:
      ValueError: the table or an argument is not as above.

    >>> table = pd.DataFrame({"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]})
    >>> found = fit(table)
    >>> round(found.b_crit), found.refused
    (181, '')
    """
    if form not in _FEWEST:
        raise ValueError(f"form: got {form!r}, wanted 'hyperbolic' or 'generalised'.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r}, wanted a number between 0 and 1.")
    table = points(steps)
    if 0 in table["steps"].to_numpy():
        raise ValueError("steps: the goal held before the first step; choose a harder one.")
    reached = np.isfinite(table["steps"])
    count, misses = int(reached.sum()), int((~reached).sum())
    nothing = Interval(math.nan, math.nan)
    if count < _FEWEST[form]:
        why = f"{count} batch sizes reach the goal, at least {_FEWEST[form]} are needed"
        return Fit(
            form, math.nan, math.nan, math.nan, nothing, nothing, confidence, math.nan, count,
            misses, why,
        )  # fmt: skip
    likelihood = _Likelihood(table, form)
    logs = np.log(table["batch_size"][reached].to_numpy())
    margin = _DECADES * math.log(10)
    limits = Interval(logs.min() - margin, logs.max() + margin)
    best = likelihood.best(limits)
    freedom = max(count - (2 if form == "hyperbolic" else 3), 1)
    allowed = count / 2 * math.log1p(scipy.stats.f.ppf(confidence, 1, freedom) / freedom)
    s_min = likelihood.interval(0, best, Interval(best[0] - 3, best[0] + 3), allowed)
    b_crit = likelihood.interval(1, best, limits, allowed)
    spread = max(math.exp(best[2]), _SMALLEST_SPREAD)
    refused = ""
    smallest, largest = math.exp(logs.min()), math.exp(logs.max())
    if spread > _WORST:
        refused = (
            f"steps scatter by a factor of {math.exp(spread):.2g} about the curve: it is none of "
            "this form"
        )
    elif b_crit.high > largest and b_crit.low < smallest:
        refused = "neither perfect scaling nor a plateau can be told from the scatter"
    elif b_crit.high > largest:
        b_crit = Interval(b_crit.low, math.inf)
        refused = f"no plateau within the batch sizes: it is at least {b_crit.low:.3g}"
    elif b_crit.low < smallest:
        b_crit = Interval(0.0, b_crit.high)
        refused = f"no perfect scaling within the batch sizes: it is at most {b_crit.high:.3g}"
    return Fit(
        form=form,
        s_min=math.exp(best[0]),
        b_crit=math.nan if refused else math.exp(best[1]),
        sharpness=likelihood.sharpness(best),
        b_crit_interval=b_crit,
        s_min_interval=s_min,
        confidence=confidence,
        spread=spread,
        batch_sizes=count,
        misses=misses,
        refused=refused,
        _log_b_crit=float(best[1]),
    )


class _Likelihood:
    """The likelihood of a curve, given between which steps the crossings lie.

    Its parameters are log S_min, log B_crit, the log of the spread, and, of the generalised form,
    the log of the sharpness.
    """

    def __init__(self, table: pd.DataFrame, form: Form) -> None:
        self._form: Form = form
        with np.errstate(divide="ignore"):
            self._batch = np.log(table["batch_size"].to_numpy())
            self._high, self._low = np.log(table["steps"].to_numpy()), np.log(table["after"])
        # A miss of which it is not known how long it was says nothing.
        self._between = table["after"].notna().to_numpy()
        self._reached = np.isfinite(self._high)
        self._exact = ~self._between & self._reached

    def sharpness(self, parameters: np.ndarray) -> float:
        """The sharpness of the bend."""
        if self._form == "hyperbolic":
            return 1.0
        return math.exp(float(np.clip(parameters[3], -_MOST_SHARP, _MOST_SHARP)))

    def minus_log(self, parameters: np.ndarray) -> float:
        """Minus the log likelihood."""
        spread = math.exp(float(np.clip(parameters[2], math.log(_SMALLEST_SPREAD), 3)))
        mean = log_steps(self._batch, parameters[0], parameters[1], self.sharpness(parameters))
        high, low = (self._high - mean) / spread, (self._low - mean) / spread
        exact = high[self._exact]
        total = 0.5 * float(exact @ exact) + math.log(spread) * len(exact)
        high, low = high[self._between], low[self._between]
        # Of two tails the smaller: their difference is not lost to rounding.
        flip = low > 0
        upper = scipy.special.log_ndtr(np.where(flip, -low, high))
        lower = scipy.special.log_ndtr(np.where(flip, -high, low))
        with np.errstate(divide="ignore"):
            inside = upper + np.log1p(-np.exp(np.minimum(lower - upper, 0)))
        return total - float(np.maximum(inside, -1e6).sum())

    def best(self, limits: Interval) -> np.ndarray:
        """The most likely parameters, from several beginnings."""
        found = []
        for log_b in np.linspace(limits.low, limits.high, _BEGINNINGS):
            curve = log_steps(self._batch, 0, log_b, 1.0)
            log_s = float(np.mean((self._high - curve)[self._reached]))
            start = [log_s, log_b, math.log(0.2), *([0.0] * (self._form == "generalised"))]
            found.append(_minimise(self.minus_log, start))
        first = min(found, key=lambda result: result.fun)
        return _minimise(self.minus_log, first.x).x

    def interval(self, index: int, best: np.ndarray, limits: Interval, allowed: float) -> Interval:
        """Where the profile likelihood of a parameter is no more than `allowed` below the best.

        In the parameter's units, not logs; 0 or inf where it is so up to a limit.
        """
        most = self.minus_log(best) + allowed
        nearest = {"start": np.delete(best, index)}

        def excess(value: float) -> float:
            def at(rest: np.ndarray) -> float:
                return self.minus_log(np.insert(rest, index, value))

            found = _minimise(at, nearest["start"])
            nearest["start"] = found.x
            return found.fun - most

        ends = []
        for limit, open_end in ((limits.low, 0.0), (limits.high, math.inf)):
            nearest["start"] = np.delete(best, index)
            inside, outside = best[index], best[index]
            for share in _OUTWARD:
                outside = best[index] + share * (limit - best[index])
                if excess(outside) > 0:
                    break
                inside = outside
            if inside == outside:
                ends.append(open_end)
            else:
                for _ in range(_HALVINGS):
                    middle = (inside + outside) / 2
                    inside, outside = (inside, middle) if excess(middle) > 0 else (middle, outside)
                ends.append(math.exp(outside))
        return Interval(*ends)


def _minimise(function: Callable[[np.ndarray], float], start: ArrayLike) -> Any:
    options = {"xatol": 1e-4, "fatol": 1e-6, "maxiter": 2000}
    return scipy.optimize.minimize(function, start, method="Nelder-Mead", options=options)
