"""Worlds with a known truth: steps to target of a trial at a batch size and a setting."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from batchscale.stopping import evaluation_grid

SIZES = tuple(2.0**k for k in range(13))


@dataclasses.dataclass(frozen=True)
class World:
    """Log steps are those of a curve, plus a height above the best setting, plus scatter.

    It shares nothing with the model that is fitted but what both are of.

    Attributes:
      batch_sizes: measured.
      curve: `hyperbola`, whose bend has the sharpness `a`; `power`, of the exponent 1/2; `slopes`,
        perfect scaling, the exponent 1/2 over three octaves, and a plateau.
      a: sharpness of the bend.
      s_min, b_crit: of the curve.
      rate: the best learning rate at batch size 1.
      flat: the batch size about which it stops to grow.
      curvature: of log steps in the log of the rate, to either side.
      wall: another response, (e^(a z) - 1) / a - z; 0 for parabolas.
      wiggle: the curvature goes up and down with the batch size.
      cliff: the log of the rate that diverges, over the best.
      scatter: the standard deviation of log steps at the smallest and the largest batch size.
      freedom: of the Student t of the scatter; 0 for normal.
      skew: the upper half of the scatter is stretched by so much.
      missed: the share of runs that never reach the goal.
      odd: a batch size whose steps are a half more, and whose best rate is a third.
      jump: the best rate is so many times larger from batch size 64 on.
      basin: the log steps of a second optimum at a fiftieth of the rate, over the first;
        None for none. From batch size 256 on it is the better by as much.
      second: whether momentum is searched.
      matters: by how much the log curvature in momentum grows per log batch size.
      low, high: the range of learning rates.
      max_steps: the budget.
      spacing: of evaluations, as a share of the steps.
    """

    batch_sizes: tuple[float, ...] = SIZES
    curve: str = "hyperbola"
    a: float = 1.0
    s_min: float = 60.0
    b_crit: float = 32.0
    rate: float = 0.02
    flat: float = 32.0
    curvature: tuple[float, float] = (0.25, 0.25)
    wall: float = 0.0
    wiggle: float = 0.0
    cliff: float = 3.0
    scatter: tuple[float, float] = (0.2, 0.2)
    freedom: float = 0.0
    skew: float = 0.0
    missed: float = 0.0
    odd: float = 0.0
    jump: float = 1.0
    basin: float | None = None
    crosses: bool = False
    second: bool = False
    matters: float = 0.0
    low: float = 1e-4
    high: float = 1e2
    max_steps: int = 400_000
    spacing: float = 0.05

    def log_steps(self, batch_size: float) -> float:
        """The median log steps of the best setting."""
        away, least = math.log(batch_size / self.b_crit), math.log(self.s_min)
        if self.curve == "power":
            return least + math.log(1000) - 0.5 * math.log(batch_size)
        if self.curve == "slopes":
            return least + (-away if away < -1.5 else max(0.5 * (1.5 - away), 0.0))
        found = least + float(np.logaddexp(0, -self.a * away)) / self.a
        found += math.log(1.5) if batch_size == self.odd else 0.0
        if self.basin is not None and self.crosses and batch_size >= 256:
            found -= self.basin
        return found

    def best_rate(self, batch_size: float) -> float:
        """The log of the best rate, of the first optimum."""
        grown = math.log(batch_size) - 0.5 * math.log1p((batch_size / self.flat) ** 2)
        found = math.log(self.rate) + grown
        found += math.log(self.jump) if batch_size >= 64 else 0.0
        return found - (math.log(3) if batch_size == self.odd else 0.0)

    def _height(self, z: np.ndarray, batch_size: float) -> np.ndarray:
        k = math.exp(self.wiggle * math.sin(1.2 * math.log(batch_size)))
        if self.wall:
            return np.expm1(np.minimum(self.wall * k * z, 50.0)) / (self.wall * k) - z
        left, right = (c * k for c in self.curvature)
        end = -0.5 / left
        return np.where(
            z < end, left * end**2 - (z - end), np.where(z < 0, left * z * z, right * z * z)
        )

    def run(
        self, batch_size: float, rate: np.ndarray, second: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact crossings of trials, inf for those without; and which diverged."""
        z = rate - self.best_rate(batch_size)
        height, count = self._height(z, batch_size), len(rate)
        logs = np.log(self.batch_sizes)
        if self.basin is not None:
            swapped = self.crosses and batch_size >= 256
            other = self._height(z + math.log(50), batch_size)
            near, far = (self.basin, 0.0) if swapped else (0.0, self.basin)
            height = np.minimum(height + near, other + far)
        if self.second:
            k = math.exp(self.matters * (math.log(batch_size) - float(np.mean(logs))))
            height = height + k * 0.12 * second**2 + k * 0.1 * second * np.clip(z, -2, 2)
            height = height + k * 0.021 * np.clip(z, -2, 2) ** 2
        share = (math.log(batch_size) - logs[0]) / (logs[-1] - logs[0])
        deviation = math.exp(
            (1 - share) * math.log(self.scatter[0]) + share * math.log(self.scatter[1])
        )
        noise = (
            random.standard_t(self.freedom, count)
            if self.freedom
            else random.standard_normal(count)
        )
        noise = np.where(noise > 0, noise * (1 + self.skew), noise)
        steps = np.exp(np.minimum(self.log_steps(batch_size) + height + deviation * noise, 50.0))
        steps = np.where(random.random(count) < self.missed, np.inf, steps)
        diverged = z + 0.15 * random.standard_normal(count) > self.cliff
        return np.where(diverged, np.inf, steps), diverged

    def grid(self) -> np.ndarray:
        """The steps of evaluation."""
        return np.array(evaluation_grid(self.max_steps, self.spacing), np.float64)


WORLDS = {
    "hyperbola": World(),
    "scatter falls": World(scatter=(0.4, 0.03)),
    "heavy tails, misses": World(freedom=2.5, missed=0.1),
    "sharp bend": World(a=2.0, b_crit=200.0),
    "soft bend": World(a=0.7),
    "three slopes": World(curve="slopes"),
    "learning rate and momentum": World(second=True),
    "momentum for large batches": World(second=True, matters=0.3),
    "optimum below the cliff": World(cliff=0.5),
    "range ends early": World(high=0.1),
    "wall, wiggles": World(wall=1.0, wiggle=0.4),
    "power law": World(curve="power"),
    "skewed scatter": World(skew=1.0, scatter=(0.3, 0.1)),
    "two basins": World(basin=0.2),
    "two basins that cross": World(basin=0.3, crosses=True),
    "odd batch size": World(odd=64.0),
    "jump of the rate": World(jump=5.0),
    "seldom evaluated": World(scatter=(0.05, 0.03), spacing=0.2),
    "seldom evaluated, scatter": World(scatter=(0.2, 0.1), spacing=0.2),
}
