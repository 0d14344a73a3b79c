"""How many more steps a setting needs than the best one, and how that changes with the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_CLIPPED = 2.0  # the optimum of the second hyperparameter moves with the rate no further than this


class Height(NamedTuple):
    """Log steps over those of the optimum, and derivatives, one entry a trial.

    Attributes:
      value: at least 0.
      by_distance: by the log of the rate over the best one.
      by_left: by the log curvature of the side below the optimum, which both share.
      by_right: by the log of the curvature above it over that below it.
    """

    value: np.ndarray
    by_distance: np.ndarray
    by_left: np.ndarray
    by_right: np.ndarray


def of_rate(distance: np.ndarray, left: np.ndarray, right: np.ndarray) -> Height:
    """Two half parabolas, the one below the optimum no steeper than steps = constant / rate.

    Small learning rates need steps in inverse proportion; so the slope far below is -1.

    Args:
      distance: the log of the rate over the best one.
      left: the curvature below the optimum.
      right: above it.

    >>> of_rate(np.array([-9.0, -1.0, 2.0]), np.array([0.25]), np.array([0.5])).value
    array([8.  , 0.25, 2.  ])
    """
    below, far = distance < 0, distance < -0.5 / left
    curvature = np.where(below, left, right)
    square = curvature * distance**2
    value = np.where(far, -distance - 0.25 / left, square)
    by_distance = np.where(far, -1.0, 2 * curvature * distance)
    by_left = np.where(far, 0.25 / left, square)
    return Height(value, by_distance, by_left, np.where(below, 0.0, square))


class Second(NamedTuple):
    """What the second hyperparameter adds, and derivatives.

    Attributes:
      value: at least 0.
      by_offset: by its distance from the optimum.
      by_curvature: by the log of its curvature.
      moved: how far the rate moves the optimum, a unit of the tilt.
      held: whether a rate further away would move it further.
    """

    value: np.ndarray
    by_offset: np.ndarray
    by_curvature: np.ndarray
    moved: np.ndarray
    held: np.ndarray


def of_second(
    offset: np.ndarray, distance: np.ndarray, curvature: np.ndarray, tilt: float
) -> Second:
    """A parabola whose optimum moves with the rate: at the best rate it is at 0.

    Args:
      offset: from the optimum at the best rate.
      distance: the log of the rate over the best one.
      curvature: above 0.
      tilt: the slope of the optimum over the distance.

    >>> of_second(np.array([1.0]), np.array([0.5]), np.array([0.2]), 2.0).value
    array([0.])
    """
    moved = np.clip(distance, -_CLIPPED, _CLIPPED)
    q = offset - tilt * moved
    square = curvature * q * q
    return Second(square, 2 * curvature * q, square, moved, np.abs(distance) < _CLIPPED)
