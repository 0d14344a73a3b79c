"""A power law of the critical batch size in the size of the data, the model, or the loss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from batchscale import numeric
from batchscale.numeric import short
from batchscale.scaling.curve import Interval, check_table

# Choices.
_FEWEST = 3  # studies: a height, an exponent, and something left over
_FARTHEST = 10.0  # times beyond what was measured, however wide that is
_SCATTER = 0.2  # of critical batch sizes about the law, in logs: the half-Cauchy prior's scale
_FINEST = 1e-3  # no study is known better than to a tenth of a percent
_SCATTERS = np.r_[0.0, np.geomspace(_FINEST / 20, 100, 300)]


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A critical batch size that a power law gives.

    Attributes:
      by: what it goes with, such as `train_examples`.
      at: the value of that.
      b_crit: in examples; NaN if it is refused.
      interval: of a study there, its scatter about the law included; NaN likewise.
      factor: how many times beyond the nearest value that was measured; 1 between them.
      refused: why nothing is quoted; empty if something is.
      confidence: of the interval.
    """

    by: str
    at: float
    b_crit: float
    interval: Interval
    factor: float
    refused: str
    confidence: float

    def __str__(self) -> str:
        if self.refused:
            return f"Critical batch size at {self.by} = {self.at:,.6g}: {self.refused}"
        beyond = f"EXTRAPOLATED {short(self.factor)} times beyond"
        how = "interpolated within" if self.factor == 1 else beyond
        low, high = self.interval
        return (
            f"Critical batch size at {self.by} = {self.at:,.6g}, {how} what was measured: "
            f"{short(self.b_crit)} ({self.confidence:.0%} interval {short(low)} to {short(high)})"
        )


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """B_crit = c x^p, with what it is fitted to.

    Attributes:
      by: what x is.
      exponent: p, the median of the posterior.
      exponent_interval: of p.
      scatter: of log B_crit about the law beside the studies' own errors, likewise.
      measured: the least and the greatest x.
      reach: how many times beyond them is quoted.
      confidence: of all intervals.
    """

    by: str
    exponent: float
    exponent_interval: Interval
    scatter: float
    measured: Interval
    reach: float
    confidence: float
    _mixture: _Mixture = dataclasses.field(repr=False)

    def __str__(self) -> str:
        low, high = self.exponent_interval
        return (
            f"The critical batch size goes with {self.by} to the power {self.exponent:.2f} "
            f"({self.confidence:.0%} interval {low:.2f} to {high:.2f}), from "
            f"{self.measured.low:,.6g} to {self.measured.high:,.6g}"
        )

    def at(self, value: float) -> Extrapolation:
        """The critical batch size at a value of x that was not measured.

        Args:
          value: of x, above 0.

        Raises:
          ValueError: it is not.
        """
        value = float(numeric.above("value", value, 0, f"a value of {self.by!r} above 0"))
        low, high = self.measured
        factor = max(1.0, value / high, low / value)
        if factor > self.reach * (1 + 1e-12):
            refused = (
                f"refused, for it lies {short(factor)} times beyond what was measured "
                f"({low:,.6g} to {high:,.6g}), and no more than {short(self.reach)} times is "
                "quoted. Measure nearer to it."
            )
            nothing = Interval(math.nan, math.nan)
            return Extrapolation(
                self.by, value, math.nan, nothing, factor, refused, self.confidence
            )
        tail = (1 - self.confidence) / 2
        direction = np.array([1.0, math.log(value) - self._mixture.centre])
        first, middle, last = (
            math.exp(self._mixture.quantile(direction, q, scattered=True))
            for q in (tail, 0.5, 1 - tail)
        )
        interval = Interval(first, last)
        return Extrapolation(self.by, value, middle, interval, factor, "", self.confidence)


def power_law(
    table: pd.DataFrame, by: str, *, reach: float | None = None, confidence: float = 0.9
) -> PowerLaw:
    """Fits a power law to critical batch sizes of several studies, to say what larger ones have.

    Published laws are of the loss that is reached (Kaplan et al. 2020: B_crit falls with about its
    4.8th power), and of the training examples (Zhang et al. 2024 and Bergsma et al. 2025: about
    their square root, and hardly with the size of the model). Here nothing is taken from them: the
    exponent is that of the studies in the table.

    log B_crit = log c + p log x + scatter + the study's own error. Height and exponent have flat
    priors, and the scatter a half-Cauchy one (with scale 0.2, a choice), for few studies say little
    of it; all are integrated out. Studies count as independent: goals of one and the same study
    are not, and make intervals too narrow.

    Args:
      table: one row a study: `by`, `b_crit`, and its 90% interval `b_crit_low`, `b_crit_high`, as
        in `compare(...).table`.
      by: the column of x: `train_examples`, `parameters`, `loss`.
      reach: how many times beyond what was measured is quoted; by default as many as the largest x
        is of the smallest, at most 10.
      confidence: of the intervals that come out.

    Raises:
      TypeError: the table is no DataFrame.
      ValueError: it lacks a column; fewer than three values of x; or a study without a critical
        batch size, which might be left out on purpose only.

    >>> sizes = pd.DataFrame({"train_examples": [1e4, 2e4, 4e4, 8e4], "b_crit": [50, 72, 98, 143]})
    >>> sizes["b_crit_low"], sizes["b_crit_high"] = sizes["b_crit"] / 1.1, sizes["b_crit"] * 1.1
    >>> law = power_law(sizes, "train_examples")
    >>> round(law.exponent, 1), law.exponent_interval.low < 0.5 < law.exponent_interval.high
    (0.5, True)
    >>> found = law.at(3.2e5)
    >>> found.factor, found.interval.low < 283 < found.interval.high
    (4.0, True)
    >>> print(law.at(1e9))
    Critical batch size at train_examples = 1e+09: refused, for it lies 12,500 times beyond what
    was measured (10,000 to 80,000), and no more than 8 times is quoted. Measure nearer to it.
    """
    check_table("table", table, "one row a study")
    numeric.confidence(confidence)
    if not isinstance(by, str):
        raise TypeError(f"by: got {by!r}, wanted the name of a column.")
    wanted = [by, "b_crit", "b_crit_low", "b_crit_high"]
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(
            f"table: no column {', '.join(map(repr, missing))}; wanted {', '.join(wanted)}."
        )
    for name in wanted:
        if not pd.api.types.is_numeric_dtype(table[name].dtype):
            raise ValueError(
                f"table: the column {name!r} is {table[name].dtype}; wanted real numbers, such as "
                "pandas.to_numeric makes of words."
            )
    values = table[wanted].to_numpy(float)
    good = (np.isfinite(values) & (values > 0)).all(1) & (values[:, 2] < values[:, 3])
    good &= (values[:, 2] <= values[:, 1]) & (values[:, 1] <= values[:, 3])
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(
            f"table: row {row} has {dict(zip(wanted, values[row].tolist(), strict=True))}; wanted "
            "finite numbers above 0, in an interval. A study that quotes no critical batch size "
            "says something about the law, too (that it is larger, say): leave it out on purpose, "
            "or measure it where it can be quoted."
        )
    x, b, low, high = values.T
    apart = 1 + int((np.diff(np.sort(np.log(x))) > _FINEST).sum())
    if apart < _FEWEST:
        raise ValueError(
            f"table: {apart} values of {by!r}, wanted at least {_FEWEST}, further apart than "
            "0.1%: two points lie on every power law."
        )
    if reach is None:
        reach = min(float(x.max() / x.min()), _FARTHEST)
    numeric.at_least("reach", reach, 1, "a factor of at least 1")
    deviations = np.maximum(np.log(high / low) / (2 * ndtri(0.95)), _FINEST)
    mixture = _Mixture.of(np.log(x), np.log(b), deviations)
    tail = (1 - confidence) / 2
    slope = np.array([0.0, 1.0])
    first, middle, last = (mixture.quantile(slope, q) for q in (tail, 0.5, 1 - tail))
    return PowerLaw(
        by=by,
        exponent=middle,
        exponent_interval=Interval(first, last),
        scatter=mixture.scatter(),
        measured=Interval(float(x.min()), float(x.max())),
        reach=float(reach),
        confidence=confidence,
        _mixture=mixture,
    )


@dataclasses.dataclass(frozen=True)
class _Mixture:
    """The posterior: for every scatter a normal distribution of height and exponent.

    The height is that at the centre of log x.
    """

    centre: float
    weights: Float[np.ndarray, " scatters"]
    means: Float[np.ndarray, "scatters 2"]
    covariances: Float[np.ndarray, "scatters 2 2"]

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, " studies"],
        y: Float[np.ndarray, " studies"],
        deviations: Float[np.ndarray, " studies"],
    ) -> _Mixture:
        centre = float(x.mean())
        design = np.stack([np.ones_like(x), x - centre], 1)
        logs, means, covariances = [], [], []
        for scatter in _SCATTERS:
            precise = 1 / (deviations**2 + scatter**2)
            covariance = np.linalg.inv(design.T @ (precise[:, None] * design))
            mean = covariance @ (design.T @ (precise * y))
            left = y - design @ mean
            # What remains when height and exponent are integrated out, and the prior.
            log = 0.5 * (np.log(precise).sum() + np.linalg.slogdet(covariance)[1])
            log -= 0.5 * (precise * left**2).sum() + math.log1p((scatter / _SCATTER) ** 2)
            logs.append(log)
            means.append(mean)
            covariances.append(covariance)
        # The rule of trapezoids: the scatters stand unevenly.
        ends = np.r_[_SCATTERS[0], _SCATTERS, _SCATTERS[-1]]
        weights = np.exp(np.array(logs) - max(logs)) * (ends[2:] - ends[:-2])
        return cls(centre, weights / weights.sum(), np.array(means), np.array(covariances))

    def quantile(
        self, direction: Float[np.ndarray, " 2"], probability: float, *, scattered: bool = False
    ) -> float:
        """Of height and exponent along a direction; with the scatter about it, if asked for."""
        centres = self.means @ direction
        variances = np.einsum("i,kij,j->k", direction, self.covariances, direction)
        spread = np.sqrt(variances + (_SCATTERS**2 if scattered else 0))

        def excess(value: float) -> float:
            return float(self.weights @ ndtr((value - centres) / spread)) - probability

        far = 10 * spread.max()
        return float(brentq(excess, centres.min() - far, centres.max() + far))  # pyright: ignore

    def scatter(self) -> float:
        """Its median."""
        cumulated = np.cumsum(self.weights)
        return float(np.interp(0.5, cumulated - self.weights / 2, _SCATTERS))
