"""A response curve: log steps to target over one hyperparameter, and how sharp its optimum is."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float

from batchscale.scaling.curve import Interval

# Choices.
FEWEST = 4  # leading trials: a curve has three parameters and a scatter
_FREEDOM = 4.0  # of the Student t by which log steps scatter: heavy tails, for unlucky trials
_SHARPNESS = (math.log(0.05), math.log(12.0))
_SCATTER = (math.log(0.03), 0.0)
_HALVINGS = 7


class Shape(abc.ABC):
    """A curve of log steps over the log of a hyperparameter, with one minimum.

    Distances z are logs of ratios to the minimum.
    """

    @staticmethod
    @abc.abstractmethod
    def height(z: Any, sharpness: Any) -> Any:
        """The log of steps over the fewest."""

    @staticmethod
    @abc.abstractmethod
    def gradient(z: Any, sharpness: float) -> tuple[Any, Any]:
        """The derivatives of the height by z, and by the log of the sharpness."""

    @staticmethod
    @abc.abstractmethod
    def reach(height: float, sharpness: float) -> tuple[float, float]:
        """The distances below and above the minimum that have a height."""


class Wall(Shape):
    """(e^(a z) - 1) / a - z: slope -1 far below the minimum, and without bound above it.

    The shape of learning rates. Small ones need steps in inverse proportion; the larger the
    sharpness a, the more sudden the end of training at large ones.

    >>> low, high = Wall.reach(math.log(2), 2.0)
    >>> round(math.exp(low), 2), round(math.exp(high), 2)
    (0.32, 1.92)
    >>> Wall.height(np.array([low, 0, high]), 2.0).round(3)
    array([0.693, 0.   , 0.693])
    """

    @staticmethod
    def height(z: Any, sharpness: Any) -> Any:
        """The log of steps over the fewest."""
        # Beyond e^100 times the steps nothing needs to be told apart.
        return np.expm1(np.minimum(sharpness * z, 100.0)) / sharpness - z

    @staticmethod
    def gradient(z: Any, sharpness: float) -> tuple[Any, Any]:
        """The derivatives of the height by z, and by the log of the sharpness."""
        rise = np.expm1(np.minimum(sharpness * z, 100.0))
        return rise, z * (rise + 1) - rise / sharpness

    @staticmethod
    def reach(height: float, sharpness: float) -> tuple[float, float]:
        """The distances below and above the minimum that have a height."""
        # With w = a z: e^w = w + 1 + a height, which Lambert's function solves.
        level = 1 + sharpness * height
        low, high = (scipy.special.lambertw(-math.exp(-level), branch).real for branch in (0, -1))
        return (-level - float(low)) / sharpness, (-level - float(high)) / sharpness


class Parabola(Shape):
    """a z^2: no side is favoured.

    >>> Parabola.reach(1.0, 4.0)
    (-0.5, 0.5)
    """

    @staticmethod
    def height(z: Any, sharpness: Any) -> Any:
        """The log of steps over the fewest."""
        return sharpness * z**2

    @staticmethod
    def gradient(z: Any, sharpness: float) -> tuple[Any, Any]:
        """The derivatives of the height by z, and by the log of the sharpness."""
        return 2 * sharpness * z, sharpness * z**2

    @staticmethod
    def reach(height: float, sharpness: float) -> tuple[float, float]:
        """The distances below and above the minimum that have a height."""
        half = math.sqrt(height / sharpness)
        return -half, half


class Curve(NamedTuple):
    """The most likely curve of a shape.

    Attributes:
      centre: the log of the hyperparameter at the minimum.
      interval: between the ends, in logs.
      sharpness: a of the shape.
      scatter: of log steps about the curve.
    """

    centre: float
    interval: Interval
    sharpness: float
    scatter: float


def fit_curve(
    x: Float[np.ndarray, " trials"],
    log_steps: Float[np.ndarray, " trials"],
    leads: Bool[np.ndarray, " trials"],
    shape: type[Shape],
    *,
    height: float,
    confidence: float,
) -> Curve:
    """The curve through the leading trials, below which no other trial is known to lie.

    Log steps scatter by a Student t with 4 degrees of freedom. The interval is of what comes within
    `height` of the minimum: from the lower confidence limit of its low end to the upper limit of
    its high end, by the profile likelihood with the threshold of an F test, and no further than the
    trials.

    Args:
      x: the log of the hyperparameter of each trial.
      log_steps: of a leading trial, its own; of another, what is known to be too few.
      leads: which trials lead; at least `FEWEST`.
      shape: of the curve.
      height: of the interval above the minimum, in log steps.
      confidence: of the limits together.

    >>> x = np.linspace(-2, 2, 9)
    >>> y = 1 + (x - 0.25) ** 2
    >>> found = fit_curve(x, y, y < 3, Parabola, height=0.25, confidence=0.9)
    >>> round(found.centre, 2), round(found.sharpness, 1)
    (0.25, 1.0)
    """
    likelihood = _Likelihood(x, log_steps, leads, shape)
    best = likelihood.best()
    freedom = max(int(leads.sum()) - 3, 1)
    f = scipy.stats.f.ppf(confidence, 1, freedom)
    allowed = float(leads.sum()) / 2 * math.log1p(f / freedom)
    interval = Interval(
        likelihood.end(best, 0, height, allowed), likelihood.end(best, 1, height, allowed)
    )
    return Curve(float(best[1]), interval, math.exp(best[2]), math.exp(best[3]))


class _Likelihood:
    """Of the log of the fewest steps, the centre, and the logs of sharpness and scatter."""

    def __init__(
        self, x: np.ndarray, log_steps: np.ndarray, leads: np.ndarray, shape: type[Shape]
    ) -> None:
        self._x, self._y, self._leads, self._shape = x, log_steps, leads, shape
        lead = log_steps[leads]
        self._bounds = [(lead.min() - 1, lead.max()), (x.min(), x.max()), _SHARPNESS, _SCATTER]

    def minus_log(self, parameters: Float[np.ndarray, " 4"]) -> tuple[float, np.ndarray]:
        """Minus the log likelihood, and its gradient."""
        least, centre, log_sharpness, log_scatter = parameters
        sharpness, scatter = math.exp(log_sharpness), math.exp(log_scatter)
        z = self._x - centre
        residual = (self._y - least - self._shape.height(z, sharpness)) / scatter
        by_residual = np.empty_like(residual)
        lead, other = residual[self._leads], residual[~self._leads]
        by_residual[self._leads] = (_FREEDOM + 1) * lead / (_FREEDOM + lead**2)
        tail = scipy.special.stdtr(_FREEDOM, -other)
        density = 0.375 * (1 + other**2 / _FREEDOM) ** (-(_FREEDOM + 1) / 2)
        by_residual[~self._leads] = density / tail
        total = (_FREEDOM + 1) / 2 * np.log1p(lead**2 / _FREEDOM).sum() - np.log(tail).sum()
        by_z, by_sharpness = self._shape.gradient(z, sharpness)
        gradient = [
            -by_residual.sum() / scatter,
            by_residual @ by_z / scatter,
            -(by_residual @ by_sharpness) / scatter,
            len(lead) - by_residual @ residual,
        ]
        return float(total + len(lead) * log_scatter), np.array(gradient)

    def best(self) -> Float[np.ndarray, " 4"]:
        """The most likely parameters, from several beginnings."""
        least = self._y[self._leads].min()
        found = [
            _minimum(
                self.minus_log, np.array([least, centre, sharpness, math.log(0.15)]), self._bounds
            )
            for centre in np.quantile(self._x[self._leads], [0.25, 0.75])
            for sharpness in (-1.0, 1.0)
        ]
        return min(found, key=lambda result: result.fun).x

    def end(self, best: Float[np.ndarray, " 4"], side: int, height: float, allowed: float) -> float:
        """The furthest end of the interval whose curve is no more than `allowed` less likely.

        Args:
          best: the most likely parameters.
          side: 0 for the low end, 1 for the high one.
          height: of the end above the minimum.
          allowed: in log likelihood.
        """
        most = self.minus_log(best)[0] + allowed
        nearest = np.delete(best, 1)

        def excess(end: float) -> float:
            nonlocal nearest

            def cost(others: np.ndarray) -> tuple[float, np.ndarray]:
                sharpness = math.exp(others[1])
                distance = self._shape.reach(height, sharpness)[side]
                value, gradient = self.minus_log(np.insert(others, 1, end - distance))
                by_z, by_sharpness = self._shape.gradient(distance, sharpness)
                # The height stays, so a sharper curve has its end nearer to the centre.
                gradient[2] += gradient[1] * by_sharpness / by_z
                return value, np.delete(gradient, 1)

            found = _minimum(cost, nearest, [self._bounds[0], *self._bounds[2:]])
            nearest = found.x
            return found.fun - most

        outside = float(self._x.min() if side == 0 else self._x.max())
        inside = float(best[1] + self._shape.reach(height, math.exp(best[2]))[side])
        beyond = inside <= outside if side == 0 else inside >= outside
        if beyond or excess(outside) <= 0:
            return outside
        nearest = np.delete(best, 1)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return outside


def _minimum(
    cost: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    bounds: list[tuple[float, float]],
) -> Any:
    # SLSQP because it asks no threads of the linear algebra, which for so few numbers only wait.
    return scipy.optimize.minimize(
        cost, start, method="SLSQP", jac=True, bounds=bounds, options={"ftol": 1e-9}
    )
