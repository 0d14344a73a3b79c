"""The noisy quadratic model as a world of first crossings, in plain NumPy.

Between two evaluations a run is a Gaussian chain, so that one draw takes the place of all steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pandas as pd

from batchscale.stopping import evaluation_grid
from batchscale.theory import NoisyQuadratic

MODEL, TARGET = NoisyQuadratic.power_law(200), 0.05
SIZES = tuple(4.0**k for k in range(1, 9))
TRUTH = Path(__file__).parents[1] / "results" / "noisy_quadratic" / "search.csv"


@dataclasses.dataclass(frozen=True)
class NoisyQuadraticWorld:
    """Trials of the noisy quadratic: single noisy runs, evaluated on the grid.

    Attributes:
      batch_sizes: measured.
      low, high: the range of learning rates; beyond 2 training diverges.
      max_steps: the budget.
      second: there is none.
      spacing: of evaluations, as a share of the steps.
    """

    batch_sizes: tuple[float, ...] = SIZES
    low: float = 1e-3
    high: float = 8.0
    max_steps: int = 100_000
    second: bool = False
    spacing: float = 0.05

    def run(
        self,
        batch_size: float,
        rate: np.ndarray,
        second: np.ndarray,
        random: np.random.Generator,
        limit: float = math.inf,
    ) -> tuple[np.ndarray, np.ndarray]:
        """First evaluated steps past the target, inf beyond the limit; and which diverged."""
        del second
        rates = np.exp(rate)
        curvature, noise = MODEL.curvature, np.sqrt(MODEL.noise / batch_size)
        theta = random.standard_normal((len(rates), len(curvature))) * np.sqrt(MODEL.start)
        crossing = np.full(len(rates), np.inf)
        diverged = np.zeros(len(rates), bool)
        alive, at = np.arange(len(rates)), 0
        for step in self.grid():
            if step > limit or not len(alive):
                break
            shrink, kick = 1 - rates[alive, None] * curvature, rates[alive, None] * noise
            power, deviation = leap(shrink, kick, int(step) - at)
            theta = theta * power + deviation * random.standard_normal(theta.shape)
            at = int(step)
            risk = 0.5 * theta**2 @ curvature
            bad = ~(risk < 1e6)
            diverged[alive[bad]] = True
            crossing[alive[risk < TARGET]] = step
            stay = ~bad & (risk >= TARGET)
            alive, theta = alive[stay], theta[stay]
        return crossing, diverged

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def grid(self) -> np.ndarray:
        """The steps of evaluation."""
        return np.array(evaluation_grid(self.max_steps, self.spacing), np.float64)

    def log_steps(self, batch_size: float) -> float:
        """The least median log first crossing of any rate, in the middle of its interval."""
        return _truth()[batch_size][0]

    def best_rate(self, batch_size: float) -> float:
        """The log of that rate."""
        return _truth()[batch_size][1]


def leap(shrink: np.ndarray, kick: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """So many steps of x -> shrink x + kick z at once: what x is multiplied by, and what z is.

    >>> leap(np.array([0.5, 1.0]), np.array([1.0, 1.0]), 2)[1] ** 2
    array([1.25, 2.  ])
    """
    with np.errstate(all="ignore"):  # of what diverges
        power, square = shrink**steps, shrink**2
        sums = np.where(np.abs(1 - square) < 1e-12, steps, (1 - power**2) / (1 - square))
    return power, kick * np.sqrt(sums)


@functools.lru_cache(maxsize=1)
def _truth() -> dict[float, tuple[float, float]]:
    """By batch size: of ten rates, 128 seeds each, the least median, from 128 other seeds.

    Known to the spacing of evaluations, and to the 2% by which a median of so many seeds scatters.
    """
    table = pd.read_csv(TRUTH)
    rows = table[["batch_size", "least_median", "least_median_rate"]].to_numpy(float)
    return {size: (math.log(steps) - 0.025, math.log(rate)) for size, steps, rate in rows}
