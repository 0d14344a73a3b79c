"""The most likely parameters of the model, and how sure they are."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from batchscale.design.model import Described, Model
from batchscale.design.trials import Trials

_CLOSE = 1e-3  # in the log posterior
_LARGEST_STEP = 2.0
_LARGEST_DAMPING = 1e9


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model fitted to trials.

    Attributes:
      model: what was fitted.
      trials: to which.
      parameters: the most likely.
      covariance: the inverse of the expected Hessian there (Laplace).
      value: minus the log posterior.
    """

    model: Model
    trials: Trials
    parameters: Float[np.ndarray, " parameters"]
    covariance: Float[np.ndarray, "parameters parameters"]
    value: float

    @property
    def level(self) -> np.ndarray:
        """The log steps of the best setting of each batch size."""
        return self.parameters[self.model.at.level]

    @property
    def rate(self) -> np.ndarray:
        """The log of the best effective learning rate of each batch size."""
        return self.parameters[self.model.at.rate]

    @property
    def second(self) -> np.ndarray:
        """The best second hyperparameter of each batch size; 0 where there is none."""
        model = self.model
        if not model.has_second:
            return np.zeros(model.sizes)
        place, trend = self.parameters[model.at.second][:2]
        return np.clip(place + trend * model.centred, -2.0, 2.0)

    @property
    def second_curvature(self) -> np.ndarray:
        """Of log steps in the second hyperparameter, at each batch size."""
        log_curvature, growth = self.parameters[self.model.at.second][[2, 4]]
        return np.exp(log_curvature + growth * self.model.centred)

    @property
    def curvature(self) -> np.ndarray:
        """Of log steps in the log rate, the geometric mean of both sides."""
        model, t = self.model, self.parameters
        log_left = t[model.at.shape][0] + t[model.at.shape][2] * model.centred
        return np.exp(log_left + t[model.at.curvature] + 0.5 * t[model.at.shape][1])

    @property
    def scatter(self) -> np.ndarray:
        """The standard deviation of log steps over seeds at each best setting."""
        return np.exp(
            self.describe(np.arange(self.model.sizes), self.rate, self.second).log_scatter
        )

    @property
    def missed(self) -> float:
        """The share of trials that never reach the goal."""
        return float(1 / (1 + np.exp(-self.parameters[self.model.at.miss][0])))

    def deviation(self, part: slice) -> np.ndarray:
        """Standard deviations of some parameters."""
        return np.sqrt(np.diag(self.covariance)[part])

    def describe(self, size: np.ndarray, rate: np.ndarray, second: np.ndarray) -> Described:
        """What the fitted model says of settings."""
        return self.model.describe(self.parameters, size, rate, second)


def fit(
    model: Model,
    trials: Trials,
    *,
    warm: Float[np.ndarray, " parameters"] | None = None,
    fresh: bool = True,
    rounds: int = 3,
    steps: int = 12,
) -> Fitted:
    """The most likely parameters, by damped Newton steps with expected Hessians.

    Args:
      model: what is fitted.
      trials: to which.
      warm: parameters to begin from, besides the best trials.
      fresh: whether to begin from the best trials too, where `warm` is given.
      rounds: how often the trust in far trials is renewed.
      steps: of a round at most.
    """
    model.settle(trials)
    starts = [] if warm is None else [warm]
    if fresh or warm is None:
        starts += model.starts(trials)
    found = [_descend(model, trials, start, rounds, steps) for start in starts]
    value, parameters, hessian = min(found, key=lambda one: one[0])
    return Fitted(model, trials, parameters, np.linalg.inv(hessian), value)


def _descend(
    model: Model, trials: Trials, start: np.ndarray, rounds: int, steps: int
) -> tuple[float, np.ndarray, np.ndarray]:
    t, damping, value = start, 1e-2, math.inf
    hessian = np.eye(len(t))
    for _ in range(rounds):
        height = model.describe(t, trials.size, trials.rate, trials.second).height
        distrust = model.distrust(height)
        value, gradient, hessian = model.minus_log(t, trials, distrust)
        for _ in range(steps):
            while damping < _LARGEST_DAMPING:
                step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
                step *= min(1.0, _LARGEST_STEP / np.abs(step).max())
                new = model.minus_log(t + step, trials, distrust)
                if new[0] < value:
                    break
                damping *= 8
            else:
                damping = 1e-2
                break
            damping = max(damping / 6, 1e-6)
            gained, t = value - new[0], t + step
            value, gradient, hessian = new
            if gained < _CLOSE:
                break
    return value, t, hessian


def newton_without_curve(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Levels by themselves, not drawn to the curve, and their covariance: one Newton step."""
    model, trials = fitted.model, fitted.trials
    kept, model.misfit = model.misfit, 1.0
    try:
        height = model.describe(fitted.parameters, trials.size, trials.rate, trials.second).height
        _, gradient, hessian = model.minus_log(fitted.parameters, trials, model.distrust(height))
    finally:
        model.misfit = kept
    covariance = np.linalg.inv(hessian)
    moved = fitted.parameters - covariance @ gradient
    at = model.at.level
    return moved[at], covariance[at, at]
