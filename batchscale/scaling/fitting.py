"""The critical batch size: a curve fitted to steps to target, with an interval, or a refusal."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike

from batchscale import numeric
from batchscale.scaling.curve import Form, Interval, check_begun, log_steps, points
from batchscale.scaling.pace import Pace, paced

# Choices.
_FEWEST = {"hyperbolic": 4, "generalised": 5}  # batch sizes that reach the goal
_WORST = 0.4  # standard deviation of log steps about the curve, above which it is none
_SMALLEST_SPREAD = 0.005
_DECADES = 2.0  # beyond the batch sizes in which B_crit is looked for
_MOST_SHARP = 3.0  # the log of the sharpest bend, and minus that of the dullest
_LARGEST_LOG_SPREAD = 3.0
_BEGINNINGS = 5
_PLATEAU = 0.1  # slopes of log steps so near to 0 and -1 are those of a plateau, of scaling
_CLOSE = 3e-3  # in the log of a parameter
_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


class Refusal(enum.StrEnum):
    """Why a critical batch size is not quoted; `Fit.refused` says it with the numbers of the case.

    >>> print(Refusal.NO_PLATEAU)
    no plateau is certain within the batch sizes
    """

    TOO_FEW = "too few batch sizes reach the goal"
    SCATTER = "steps scatter so far about the curve that it is none of this form"
    NEITHER_END = "neither perfect scaling nor a plateau can be told from the scatter"
    NO_PLATEAU = "no plateau is certain within the batch sizes"
    NO_PERFECT_SCALING = "no perfect scaling is certain within the batch sizes"
    POWER_LAW = (
        "steps fall along a power law of the batch size, without the bend from perfect scaling to "
        "a plateau"
    )
    SCHEDULE = "the plateau may be the schedule's"


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
      s_min_interval: of S_min, at the same confidence.
      confidence: for example 0.9.
      spread: the standard deviation of log steps about the curve.
      batch_sizes: how many reach the goal.
      misses: how many do not; each says that its steps are more than were evaluated.
      refused: why B_crit is not quoted, in words; empty if it is.
      refusals: the kinds of these reasons.
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
    refusals: tuple[Refusal, ...] = ()
    _log_b_crit: float = dataclasses.field(repr=False, default=math.nan)

    def __str__(self) -> str:
        if self.refused:
            return f"no critical batch size is quoted: {self.refused}"
        low, high = self.b_crit_interval
        return (
            f"critical batch size {self.b_crit:.3g} ({self.confidence:.0%} interval {low:.3g} to "
            f"{high:.3g}), {self.s_min:.3g} steps of an infinite batch, spread {self.spread:.2f}"
        )

    def refuse(self, refusal: Refusal, why: str) -> Fit:
        """The same curve without its B_crit, for a reason that steps alone do not tell.

        Args:
          refusal: the kind of the reason.
          why: in words; if empty there is none.

        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> print(fit(table).refuse(Refusal.SCHEDULE, "the plateau is a warm-up's"))
        no critical batch size is quoted: the plateau is a warm-up's
        """
        if not why:
            return self
        why = f"{why}; and {self.refused}" if self.refused else why
        return dataclasses.replace(
            self,
            b_crit=math.nan,
            b_crit_interval=Interval(0.0, math.inf),
            refused=why,
            refusals=(refusal, *self.refusals),
        )

    def steps(self, batch_sizes: ArrayLike) -> Float[np.ndarray, " batch_sizes"]:
        """The steps of the curve at batch sizes, also where B_crit is refused.

        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> fit(table).steps([16]).round(-1)
        array([120.])
        """
        sizes = np.asarray(batch_sizes, np.float64)
        if not (sizes >= 0).all():
            raise ValueError(f"batch_sizes: got {batch_sizes!r}, wanted numbers of at least 0.")
        with np.errstate(divide="ignore"):
            log_b = np.log(sizes)
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
        if not 0 < overhead < math.inf:
            raise ValueError(f"overhead: got {overhead!r}, wanted a share above 0, such as 0.2.")
        return self.b_crit * ((1 + overhead) ** self.sharpness - 1) ** (1 / self.sharpness)


def fit(
    steps: pd.DataFrame,
    *,
    form: Form = "hyperbolic",
    confidence: float = 0.9,
    paces: Mapping[int, Pace] | None = None,
) -> Fit:
    """Fits a curve to steps to target, in log space, by maximum likelihood.

    log S scatters normally about the curve. What was measured is that the crossing lies between two
    evaluations, or, of a miss, beyond the last: both enter as intervals. The interval of B_crit is
    that of the profile likelihood, with the threshold of an F test, so that few batch sizes make it
    wide.

    B_crit is refused (NaN, with the reason) where fewer than 4 batch sizes reach the goal (5 for
    the generalised form), where steps scatter by more than half about the curve, where a straight
    line in logs (a power law, which has no bend to speak of) describes them as well, and where the
    interval leaves the batch sizes that were measured: then the bend has not been seen, and the
    interval is the one-sided bound that is left. As well is by the Bayesian information criterion
    (Schwarz 1978); of the hyperbola, which has as many parameters as a line, by the squares left.
    It is refused too where the plateau is the schedule's doing; see `paced`.

    Args:
      steps: the table of `metrics.steps_to_target`; `previous_evaluation` may be missing.
      form: `hyperbolic`, S = S_min (1 + B_crit / B), or `generalised`, whose bend may be sharper.
      confidence: of the intervals.
      paces: where the schedule decides when the goal is reached, as `Result.paces`; by default
        nowhere.

    Raises:
      ValueError: the table or an argument is not as above.

    >>> table = pd.DataFrame({"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]})
    >>> found = fit(table)
    >>> round(found.b_crit), found.refused
    (181, '')
    """
    if form not in _FEWEST:
        raise ValueError(f"form: got {form!r}, wanted 'hyperbolic' or 'generalised'.")
    confidence = numeric.confidence(confidence)
    table = points(steps)
    check_begun(table)
    reached = np.isfinite(table["steps"])
    count, misses = int(reached.sum()), int((~reached).sum())
    nothing = Interval(math.nan, math.nan)
    if count < _FEWEST[form]:
        why = f"{count} batch sizes reach the goal, at least {_FEWEST[form]} are needed"
        few = Fit(
            form, math.nan, math.nan, math.nan, nothing, nothing, confidence, math.nan, count,
            misses, why, (Refusal.TOO_FEW,),
        )  # fmt: skip
        return few.refuse(Refusal.SCHEDULE, paced(table, paces or {}).refusal)
    likelihood = _Likelihood(table, form)
    logs = np.log(table["batch_size"][reached].to_numpy())
    margin = _DECADES * math.log(10)
    limits = Interval(logs.min() - margin, logs.max() + margin)
    best = likelihood.best(limits)
    freedom = max(count - (2 if form == "hyperbolic" else 3), 1)
    allowed = count / 2 * math.log1p(scipy.stats.f.ppf(confidence, 1, freedom) / freedom)
    s_min = likelihood.interval(0, best, Interval(best[0] - 3, best[0] + 3), allowed)
    b_crit = likelihood.interval(1, best, limits, allowed)
    spread = likelihood.spread(best)
    refused, refusal = "", None
    smallest, largest = math.exp(logs.min()), math.exp(logs.max())
    if spread > _WORST:
        refusal = Refusal.SCATTER
        refused = (
            f"steps scatter by a factor of {math.exp(spread):.2g} about the curve: it is none of "
            "this form"
        )
    elif b_crit.high > largest and b_crit.low < smallest:
        refusal = Refusal.NEITHER_END
        refused = str(refusal)
    elif b_crit.high > largest:
        b_crit = Interval(b_crit.low, math.inf)
        refusal = Refusal.NO_PLATEAU
        refused = f"{refusal}: it is at least {b_crit.low:.3g}"
    elif b_crit.low < smallest:
        b_crit = Interval(0.0, b_crit.high)
        refusal = Refusal.NO_PERFECT_SCALING
        refused = f"{refusal}: it is at most {b_crit.high:.3g}"
    elif likelihood.is_line(best):
        refusal = Refusal.POWER_LAW
        refused = str(refusal)
        b_crit = Interval(0.0, math.inf)
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
        refusals=() if refusal is None else (refusal,),
        _log_b_crit=float(best[1]),
    ).refuse(Refusal.SCHEDULE, paced(table, paces or {}).refusal)


class _Likelihood:
    """The likelihood of a curve, given between which steps the crossings lie.

    Its parameters are log S_min, log B_crit, the log of the spread, and, of the generalised form,
    the log of the sharpness.
    """

    def __init__(self, table: pd.DataFrame, form: Form) -> None:
        self._form: Form = form
        with np.errstate(divide="ignore"):
            self._batch = np.log(table["batch_size"].to_numpy())
            self._high = np.log(table["steps"].to_numpy())
            self._low = np.log(table["after"].to_numpy())
        # A miss of which it is not known how long it was says nothing.
        self._between = table["after"].notna().to_numpy()
        self._reached = np.isfinite(self._high)
        self._exact = ~self._between & self._reached

    def sharpness(self, parameters: np.ndarray) -> float:
        """The sharpness of the bend, between limits."""
        if self._form == "hyperbolic":
            return 1.0
        return math.exp(_MOST_SHARP * math.tanh(parameters[3] / _MOST_SHARP))

    def spread(self, parameters: np.ndarray) -> float:
        """The standard deviation of log steps, which is never quite nothing."""
        return math.hypot(math.exp(min(parameters[2], _LARGEST_LOG_SPREAD)), _SMALLEST_SPREAD)

    def is_line(self, parameters: np.ndarray) -> bool:
        """Whether log steps are as well described by a line, whose slope is neither end's."""
        # A crossing lies between two evaluations; so does the curve.
        between = self._between & np.isfinite(self._low)
        logs = np.where(between, (self._low + self._high) / 2, self._high)[self._reached]
        batch = self._batch[self._reached]
        mean = log_steps(batch, parameters[0], parameters[1], self.sharpness(parameters))
        slope, height = np.polyfit(batch, logs, 1)
        least = len(logs) * _SMALLEST_SPREAD**2
        curve = max(float(((logs - mean) ** 2).sum()), least)
        line = max(float(((logs - height - slope * batch) ** 2).sum()), least)
        more = 1 if self._form == "generalised" else 0  # parameters of the curve
        bent = len(logs) * math.log(line / curve) - more * math.log(len(logs))
        return bent <= 0 and _PLATEAU < -slope < 1 - _PLATEAU

    def minus_log(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log likelihood, and its gradient."""
        log_s, log_b, log_scatter = parameters[:3]
        spread, sharpness = self.spread(parameters), self.sharpness(parameters)
        mean = log_steps(self._batch, log_s, log_b, sharpness)
        high, low = (self._high - mean) / spread, (self._low - mean) / spread
        by_mean, by_spread = np.zeros_like(mean), np.zeros_like(mean)
        exact = high[self._exact]
        total = 0.5 * float((exact**2).sum()) + math.log(spread) * len(exact)
        by_mean[self._exact], by_spread[self._exact] = -exact / spread, 1 - exact**2
        high, low = high[self._between], low[self._between]
        # Of two tails the smaller: their difference is not lost to rounding.
        flip = low > 0
        upper = scipy.special.log_ndtr(np.where(flip, -low, high))
        lower = scipy.special.log_ndtr(np.where(flip, -high, low))
        with np.errstate(divide="ignore"):
            inside = upper + np.log1p(-np.exp(np.minimum(lower - upper, 0)))
        inside = np.maximum(inside, -1e6)
        at_high, at_low = (
            np.exp(np.minimum(-0.5 * z**2 - _LOG_ROOT_TAU - inside, 100)) for z in (high, low)
        )
        by_mean[self._between] = (at_high - at_low) / spread
        by_spread[self._between] = np.where(np.isinf(high), 0, high) * at_high
        by_spread[self._between] -= np.where(np.isinf(low), 0, low) * at_low
        beyond = sharpness * (log_b - self._batch)
        share = scipy.special.expit(beyond)
        by_log_scatter = 0.0
        if log_scatter < _LARGEST_LOG_SPREAD:
            by_log_scatter = (math.exp(log_scatter) / spread) ** 2
        gradient = [
            by_mean.sum(), (by_mean * share).sum(), by_spread.sum() * by_log_scatter
        ]  # fmt: skip
        if self._form == "generalised":
            by_log = (by_mean * (share * beyond - np.logaddexp(0, beyond))).sum() / sharpness
            gradient.append(by_log * (1 - math.tanh(parameters[3] / _MOST_SHARP) ** 2))
        return total - float(inside.sum()), np.array(gradient)

    def _minimise(self, start: np.ndarray, fixed: int | None = None) -> tuple[np.ndarray, float]:
        """The most likely parameters, from a start; the one that is `fixed` stays as it is."""
        free = [i for i in range(len(start)) if i != fixed]
        start = start.copy()
        # Where the scatter is nothing, or as large as can be, the likelihood is flat in it.
        start[2] = min(max(start[2], math.log(_SMALLEST_SPREAD)), 0.0)

        def at(values: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = start.copy()
            parameters[free] = values
            value, gradient = self.minus_log(parameters)
            return value, gradient[free]

        # BFGS is spelt out in NumPy: of L-BFGS-B's few numbers BLAS makes work for its threads.
        found = scipy.optimize.minimize(
            at, start[free], method="BFGS", jac=True, options={"gtol": 1e-3}
        )
        parameters = start.copy()
        parameters[free] = found.x
        return parameters, found.fun

    def best(self, limits: Interval) -> np.ndarray:
        """The most likely parameters, from several beginnings, with B_crit within limits."""
        starts = [self._start(log_b) for log_b in np.linspace(*limits, _BEGINNINGS)]
        best = min(map(self._minimise, starts), key=lambda pair: pair[1])[0]
        if limits.low <= best[1] <= limits.high:
            return best
        return self._minimise(self._start(np.clip(best[1], *limits)), fixed=1)[0]

    def _start(self, log_b: float) -> np.ndarray:
        """Some parameters with this B_crit."""
        curve = log_steps(self._batch, 0, log_b, 1.0)
        log_s = float(np.mean((self._high - curve)[self._reached]))
        start = [log_s, log_b, math.log(0.2), *([0.0] * (self._form == "generalised"))]
        return np.array(start)

    def interval(self, index: int, best: np.ndarray, limits: Interval, allowed: float) -> Interval:
        """Where the profile likelihood of a parameter is no more than `allowed` below the best.

        In the parameter's units, not logs; 0 or inf where it is so up to a limit.
        """
        least = self.minus_log(best)[0]

        def excess(value: float) -> float:
            start = self._start(value) if index == 1 else best.copy()
            start[index] = value
            found = self._minimise(start, fixed=index)[1]
            # The root of the rise is nearly linear in the parameter.
            return math.sqrt(max(found - least, 0.0)) - math.sqrt(allowed)

        ends = []
        for limit, open_end in ((limits.low, 0.0), (limits.high, math.inf)):
            beyond = best[index] <= limit if open_end == 0 else best[index] >= limit
            if beyond or excess(limit) <= 0:
                ends.append(open_end)
            else:
                found: Any = scipy.optimize.brentq(excess, best[index], limit, xtol=_CLOSE)
                ends.append(math.exp(found))
        return Interval(*ends)
