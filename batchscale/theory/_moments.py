"""Second moments of the noisy quadratic model, any number of steps later."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class Leap:
    """Any number of steps with one learning rate, taken at once, by doubling.

    Args:
      curvature: h of every coordinate.
      noise: the variance of a gradient of one example, in every coordinate.
      alpha: the learning rate, or one a coordinate.
      batch_size: examples a step.
      momentum: m, of heavy-ball momentum.
      averaging: g, of the exponential average of iterates.
      preconditioning: p; steps are scaled by h^-p.
    """

    def __init__(
        self,
        curvature: Float[np.ndarray, " coordinates"],
        noise: Float[np.ndarray, " coordinates"],
        alpha: float | Float[np.ndarray, " coordinates"],
        batch_size: float,
        momentum: float,
        averaging: float,
        preconditioning: float,
    ) -> None:
        scale = curvature**-preconditioning
        h = curvature * scale
        one, zero = np.ones_like(h), np.zeros_like(h)
        g, m = averaging, momentum
        # Of (theta, v, theta'): v' = m v + h theta + n, theta' = theta - alpha v', and the average.
        rows = [
            [one - alpha * h, -alpha * m * one, zero],
            [h, m * one, zero],
            [(1 - g) * (one - alpha * h), -(1 - g) * alpha * m * one, g * one],
        ]
        state = parts(momentum, averaging)
        forward = np.moveaxis(np.array(rows), 2, 0)[:, state][:, :, state]
        kick = np.stack([-alpha * one, one, -(1 - g) * alpha * one], 1)[:, state]
        variance = noise * scale**2 / batch_size
        added = variance[:, None, None] * kick[:, :, None] * kick[:, None, :]
        self._doublings = [(forward, added)]

    def take(self, moments: np.ndarray, steps: int) -> np.ndarray:
        """The second moments so many steps later."""
        power = 0
        while steps >> power:
            if len(self._doublings) <= power:
                forward, added = self._doublings[-1]
                self._doublings.append(
                    (forward @ forward, added + forward @ added @ forward.swapaxes(1, 2))
                )
            if steps >> power & 1:
                forward, added = self._doublings[power]
                moments = forward @ moments @ forward.swapaxes(1, 2) + added
            power += 1
        return moments


def parts(momentum: float, averaging: float) -> list[int]:
    """Which of theta, velocity and average make up the state."""
    return [0, *([1] if momentum else []), *([2] if averaging else [])]


def begun(
    start: Float[np.ndarray, " coordinates"], momentum: float, averaging: float, times: int = 1
) -> Float[np.ndarray, "..."]:
    """The second moments before the first step, of all coordinates, so many times.

    Args:
      start: theta^2 of every coordinate.
      momentum: m, of heavy-ball momentum.
      averaging: g, of the exponential average of iterates.
      times: how often, one after the other.
    """
    size = len(parts(momentum, averaging))
    moments = np.zeros((times * len(start), size, size))
    positions = [0, -1] if averaging else [0]
    for i in positions:
        for j in positions:
            moments[:, i, j] = np.tile(start, times)
    return moments
