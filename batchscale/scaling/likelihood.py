"""The likelihood of one form of the curve, given between which evaluations crossings lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import scipy

from batchscale.scaling.curve import Form, Interval, log_steps

# Choices.
SMALLEST_SPREAD = 0.005
_MOST_SHARP = 3.0  # the log of the sharpest bend, and minus that of the dullest
_LARGEST_LOG_SPREAD = 3.0
_BEGINNINGS = 5
_PLATEAU = 0.1  # slopes of log steps so near to 0 and -1 are those of a plateau, of scaling
_CLOSE = 3e-3  # in the log of a parameter
_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


class Likelihood:
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
        self._known = table["deviation"].to_numpy()  # of each point, besides the spread of all

    def sharpness(self, parameters: np.ndarray) -> float:
        """The sharpness of the bend, between limits."""
        if self._form == "hyperbolic":
            return 1.0
        return math.exp(_MOST_SHARP * math.tanh(parameters[3] / _MOST_SHARP))

    def spread(self, parameters: np.ndarray) -> float:
        """The standard deviation of log steps, which is never quite nothing."""
        return math.hypot(math.exp(min(parameters[2], _LARGEST_LOG_SPREAD)), SMALLEST_SPREAD)

    def is_line(self, parameters: np.ndarray) -> bool:
        """Whether log steps are as well described by a line, whose slope is neither end's."""
        # A crossing lies between two evaluations; so does the curve.
        between = self._between & np.isfinite(self._low)
        logs = np.where(between, (self._low + self._high) / 2, self._high)[self._reached]
        batch = self._batch[self._reached]
        mean = log_steps(batch, parameters[0], parameters[1], self.sharpness(parameters))
        slope, height = np.polyfit(batch, logs, 1)
        least = len(logs) * SMALLEST_SPREAD**2
        curve = max(float(((logs - mean) ** 2).sum()), least)
        line = max(float(((logs - height - slope * batch) ** 2).sum()), least)
        more = 1 if self._form == "generalised" else 0  # parameters of the curve
        bent = len(logs) * math.log(line / curve) - more * math.log(len(logs))
        return bent <= 0 and _PLATEAU < -slope < 1 - _PLATEAU

    def minus_log(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log likelihood, and its gradient."""
        log_s, log_b, log_scatter = parameters[:3]
        sharpness = self.sharpness(parameters)
        spread = np.hypot(self.spread(parameters), self._known)
        mean = log_steps(self._batch, log_s, log_b, sharpness)
        high, low = (self._high - mean) / spread, (self._low - mean) / spread
        by_mean, by_spread = np.zeros_like(mean), np.zeros_like(mean)
        exact, of_exact = high[self._exact], spread[self._exact]
        total = float((0.5 * exact**2 + np.log(of_exact)).sum())
        by_mean[self._exact], by_spread[self._exact] = -exact / of_exact, 1 - exact**2
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
        by_mean[self._between] = (at_high - at_low) / spread[self._between]
        by_spread[self._between] = np.where(np.isinf(high), 0, high) * at_high
        by_spread[self._between] -= np.where(np.isinf(low), 0, low) * at_low
        beyond = sharpness * (log_b - self._batch)
        share = scipy.special.expit(beyond)
        moving = math.exp(log_scatter) if log_scatter < _LARGEST_LOG_SPREAD else 0.0
        gradient = [
            by_mean.sum(), (by_mean * share).sum(), (by_spread * (moving / spread) ** 2).sum()
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
        start[2] = min(max(start[2], math.log(SMALLEST_SPREAD)), 0.0)

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
