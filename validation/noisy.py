"""The noisy quadratic model as a world of first crossings, in plain NumPy."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np

from batchscale.files import local_path
from batchscale.stopping import evaluation_grid
from batchscale.theory import NoisyQuadratic

MODEL, TARGET = NoisyQuadratic.power_law(200), 0.05
SIZES = tuple(4.0**k for k in range(1, 9))
TRUTH = Path(__file__).parent / "results" / "noisy_quadratic_truth.json"


@dataclasses.dataclass(frozen=True)
class NoisyQuadraticWorld:
    """Trials of the noisy quadratic: single noisy runs, evaluated on the grid.

    Attributes:
      batch_sizes: measured.
      low, high: the range of learning rates; beyond 2 training diverges.
      max_steps: the budget.
      second: there is none.
    """

    batch_sizes: tuple[float, ...] = SIZES
    low: float = 1e-3
    high: float = 8.0
    max_steps: int = 100_000
    second: bool = False

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
            for _ in range(int(step) - at):
                theta = theta * shrink + kick * random.standard_normal(theta.shape)
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
        return np.array(evaluation_grid(self.max_steps, 0.05), np.float64)

    def log_steps(self, batch_size: float) -> float:
        """The least median log first crossing of any rate, by simulation."""
        return json.loads(TRUTH.read_text())["log_steps"][str(int(batch_size))]

    def best_rate(self, batch_size: float) -> float:
        """The log of that rate."""
        return json.loads(TRUTH.read_text())["log_rate"][str(int(batch_size))]


def truth(runs: int, seed: int) -> dict[str, dict[str, float]]:
    """The least median at each batch size: a parabola through the medians of rates about it."""
    world, random = NoisyQuadraticWorld(), np.random.default_rng(seed)
    grid = world.grid()
    steps, best = {}, {}
    for batch_size in world.batch_sizes:
        exact = MODEL.optimum(TARGET, batch_size=int(batch_size))
        rates = np.log(float(exact.learning_rate)) + np.linspace(-0.2, 0.8, 6)
        rates = rates[rates < math.log(1.97)]
        medians = []
        for rate in rates:
            found, _ = world.run(batch_size, np.full(runs, rate), np.zeros(runs), random)
            place = np.searchsorted(grid, found)
            after = grid[np.maximum(place - 1, 0)]
            # Spread within the interval of evaluations, so that the median is not on the grid.
            within = after + (found - after) * random.random(runs)
            medians.append(float(np.median(np.log(within))))
        fitted = np.polyfit(rates, medians, 2) if len(rates) > 3 else [0.0, 0.0, min(medians)]
        top = -fitted[1] / (2 * fitted[0]) if fitted[0] > 0 else rates[int(np.argmin(medians))]
        top = float(np.clip(top, rates[0], rates[-1]))
        inside = fitted[0] > 0
        steps[str(int(batch_size))] = float(np.polyval(fitted, top)) if inside else min(medians)
        best[str(int(batch_size))] = top
        print(
            batch_size,
            np.round(rates, 2),
            np.round(medians, 3),
            steps[str(int(batch_size))],
            top,
            flush=True,
        )
    return {"log_steps": steps, "log_rate": best}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=256)
    parser.add_argument("--output", type=local_path, default=TRUTH)
    given = parser.parse_args()
    found = truth(given.runs, 0) | {"runs": given.runs}
    Path(given.output).write_text(json.dumps(found, indent=1) + "\n")
