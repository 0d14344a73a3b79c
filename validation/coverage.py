"""How often intervals hold what they are said to hold, by simulation.

    python -m validation.coverage --what fit
    python -m validation.coverage --what best_of
    python -m validation.coverage --what learning_rates
    python -m validation.coverage --what median
    python -m validation.coverage --what noise_scale
    python -m validation.coverage --what extrapolation

`fit`: steps to target are drawn about a known curve, with a scatter like that of minima over
trials, and rounded up to the grid of evaluations, as a study reports them. Printed are the share of
the intervals at a confidence of 90% that hold the true B_crit (of all simulated studies: the
one-sided bounds of refusals count as intervals), the share refused, and the median width. Last, of
power laws, which have no B_crit, the share refused.

`best_of`: searches of N trials are drawn from a known distribution, and for each a new search of n.
Printed are the share of the prediction intervals at 90% that hold what the new search reports, the
shares below and above, and the median width. For contrast: the quantiles of the minima of subsets,
which take the N trials for the whole distribution; and, at n = N, those of a bootstrap.

`learning_rates`: careful studies (`validation.simulation`) whose optimal learning rates are known:
the share of the intervals that hold them, the share that hold all rates as good within 20% (which
is what they are said to hold), and how wide both are. The curve that is fitted has the form of one
of the kinds, "a wall above the optimum", and another than the others.

`median`: the leading settings of the same studies under fresh seeds: the share of the intervals
that hold the median of the setting that was chosen. Beside it the median of luck, the
confirmed median over the best of N.

`noise_scale`: a linear model whose gradients' covariance is known exactly: the share of the
intervals of B_simple and B_noise from some of its examples, and of those from pairs of batches,
that hold the training set's own.

`extrapolation`: families of studies whose critical batch sizes scatter about a power law:
the share of the intervals that hold its exponent, and the true critical batch size of a study two
and four times beyond the largest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

from batchscale import metrics, scaling
from batchscale.records import MEASUREMENT_INDEX, TRIAL_INDEX
from batchscale.scaling.curve import log_steps
from batchscale.stopping import evaluation_grid
from batchscale.theory import noise_scale, noise_scale_of_batches
from batchscale.workloads import Workload
from validation import extrapolated
from validation.simulation import KINDS, confirm, simulate

CASES = (  # B_crit, sharpness, scatter, batch sizes as powers of two, budget in steps
    (32.0, 1.0, 0.1, range(13), 10**7),
    (32.0, 1.0, 0.2, range(13), 10**7),
    (32.0, 1.0, 0.1, range(0, 13, 2), 10**7),
    (32.0, 1.0, 0.02, range(13), 10**7),
    (1000.0, 1.0, 0.1, range(12), 10**7),
    (32.0, 1.0, 0.1, range(13), 800),  # the small batch sizes miss the goal
    (32.0, 2.0, 0.1, range(13), 10**7),
    (32.0, 1.0, 0.1, range(3, 8), 10**7),  # 8 to 128
    (32.0, 1.0, 0.2, range(3, 8), 10**7),
)
EXPONENTS = (0.3, 0.5, 0.7)  # of power laws, which have no B_crit
S_MIN = 40.0


def study(
    random: np.random.Generator,
    b_crit: float,
    sharpness: float,
    scatter: float,
    powers: Iterable[int],
    budget: int,
) -> pd.DataFrame:
    """The table of steps to target of a simulated study."""
    sizes = 2.0 ** np.array(list(powers))
    mean = log_steps(np.log(sizes), math.log(S_MIN), math.log(b_crit), sharpness)
    exact = np.exp(mean + scatter * random.normal(size=len(sizes)))
    return _reported_table(sizes, exact, budget)


def _reported_table(sizes: np.ndarray, exact: np.ndarray, budget: int = 10**7) -> pd.DataFrame:
    """Steps as a study reports them, on the grid of its evaluations."""
    grid = np.array(evaluation_grid(budget, 0.05))
    place = np.searchsorted(grid, exact)
    missed = place >= len(grid)
    place = np.minimum(place, len(grid) - 1)
    return pd.DataFrame(
        {
            "batch_size": sizes.astype(int),
            "steps": np.where(missed, np.inf, grid[place]),
            "previous_evaluation": np.where(missed, grid[-1], grid[place - 1]),
        }
    )


def fit_rows(studies: int, seed: int) -> Iterable[dict[str, Any]]:
    """The coverage of the interval of B_crit, case by case."""
    for b_crit, sharpness, scatter, powers, budget in CASES:
        random = np.random.default_rng(seed)
        form: scaling.Form = "hyperbolic" if sharpness == 1 else "generalised"
        fits = [
            scaling.fit(study(random, b_crit, sharpness, scatter, powers, budget), form=form)
            for _ in range(studies)
        ]
        intervals = [found.b_crit_interval for found in fits]
        yield {
            "b_crit": b_crit,
            "sharpness": sharpness,
            "scatter": scatter,
            "batch_sizes": len(list(powers)),
            "budget": budget,
            "covered": float(np.mean([low <= b_crit <= high for low, high in intervals])),
            "refused": float(np.mean([bool(found.refused) for found in fits])),
            "median_width": round(
                float(np.median([high / max(low, 1e-9) for low, high in intervals])), 3
            ),
        }
    forms: tuple[scaling.Form, ...] = ("hyperbolic", "generalised")
    for exponent in EXPONENTS:
        for form in forms:
            random = np.random.default_rng(seed)
            sizes = 2.0 ** np.arange(3, 12)
            refused = [
                bool(scaling.fit(_reported_table(sizes, steps), form=form).refused)
                for steps in 1e5
                * sizes**-exponent
                * np.exp(0.1 * random.normal(size=(studies, len(sizes))))
            ]
            yield {"exponent": exponent, "form": form, "refused": float(np.mean(refused))}


@dataclasses.dataclass(frozen=True)
class Search:
    """The distribution of the steps of a trial.

    log steps = log `fewest` + `bowl` (u - 0.2)^2 - `slope` u + scatter, u the log learning rate,
    uniform from -1 to 1.
    """

    fewest: float = 1000.0
    bowl: float = 3.0
    slope: float = 0.0
    scatter: float = 0.15
    exponential: bool = False  # steps of the fastest follow a power law
    misses: float = 0.2
    quasi_random: bool = False

    def draw(self, random: np.random.Generator, searches: int, trials: int) -> np.ndarray:
        """The steps of every trial, inf for a miss; shape (searches, trials)."""
        shape = (searches, trials)
        if self.quasi_random:
            bits = (trials - 1).bit_length()
            sequences = [qmc.Sobol(1, rng=random).random_base2(bits) for _ in range(searches)]
            u = 2 * np.array(sequences)[:, :trials, 0] - 1
        else:
            u = random.uniform(-1, 1, shape)
        noise = -random.exponential(size=shape) if self.exponential else random.normal(size=shape)
        logs = math.log(self.fewest) + self.bowl * (u - 0.2) ** 2 - self.slope * u
        steps = np.exp(logs + self.scatter * noise)
        return np.where(random.random(shape) < self.misses, np.inf, steps)


SEARCHES = {
    "bowl": Search(),
    "wide scatter": Search(scatter=0.4),
    "scatter below the grid's resolution": Search(scatter=0.02),
    "power law": Search(scatter=0.3, exponential=True),
    "best at the edge": Search(bowl=0.0, slope=2.0),
    "many misses": Search(misses=0.6),
    "few steps": Search(fewest=30.0),
    "quasi-random": Search(quasi_random=True),
}
TRIALS = (24, 64, 100)
BUDGET = 100_000


def best_of_rows(studies: int, seed: int) -> Iterable[dict[str, Any]]:
    """The coverage of the prediction intervals of `best_of`, case by case."""
    grid = np.array(evaluation_grid(BUDGET, 0.05), float)
    goal = metrics.Goal("validation/error", 0.5)
    for name, search in SEARCHES.items():
        for count in TRIALS:
            random = np.random.default_rng(seed)
            crossings = _reported(search.draw(random, studies, count), grid)
            tables = _tables(crossings, grid)
            first = np.sort(crossings, axis=1)
            for n in (1, count // 8, count // 3):
                new = _reported(search.draw(random, studies, n), grid).min(axis=1)
                found = metrics.best_of(tables[0], goal, trials=tables[1], n=n)
                low, high = found["low"].to_numpy(), found["high"].to_numpy()
                subsets = [math.comb(count - k, n) for k in range(count + 1)]
                others = _quantiles(first, grid, subsets)
                yield {
                    "search": name,
                    "trials": count,
                    "n": n,
                    "covered": float(np.mean((low < new) & (new <= high))),
                    "below": float(np.mean(new <= low)),
                    "above": float(np.mean(new > high)),
                    "median_width": _width(low, high),
                    "subsets_covered": float(np.mean((others[0] < new) & (new <= others[1]))),
                }
            new = _reported(search.draw(random, studies, count), grid).min(axis=1)
            resamples = [(count - k) ** count for k in range(count + 1)]
            low, high = _quantiles(first, grid, resamples)
            yield {
                "search": name,
                "trials": count,
                "n": count,
                "bootstrap_covered": float(np.mean((low < new) & (new <= high))),
            }


def learning_rate_rows(studies: int, seed: int) -> Iterable[dict[str, Any]]:
    """The coverage of the intervals of the optimal learning rate, kind by kind."""
    for kind, study in KINDS.items():
        found = []
        for number in range(seed, seed + studies):
            tables = simulate(study, number)
            rates = scaling.learning_rates(tables.measurements, tables.goal, trials=tables.trials)
            found.append(rates[["batch_size", "centre", "low", "high", "interval"]])
        table = pd.concat(found)
        table["true"] = table["batch_size"].map(study.optimal_rate)
        # Rates with up to 20% more steps.
        below, above = np.exp(study.shape.reach(math.log(1.2), study.curvature))
        for interval, some in table.groupby("interval"):
            off = np.abs(np.log(some["centre"] / some["true"])).median()
            whole = some["low"] <= some["true"] * below
            whole &= some["true"] * above <= some["high"]
            yield {
                "kind": kind,
                "interval": interval,
                "intervals": len(some),
                "covered": float(some["true"].between(some["low"], some["high"]).mean()),
                "all_as_good_covered": float(whole.mean()),
                "centre_off": round(math.exp(off), 3),
                "median_width": round(float((some["high"] / some["low"]).median()), 3),
                "true_width": round(above / below, 3),
            }


def median_rows(studies: int, seed: int) -> Iterable[dict[str, Any]]:
    """The coverage of the intervals of the median of the setting that is chosen."""
    for kind, study in KINDS.items():
        found = []
        for number in range(seed, seed + studies):
            tables = simulate(study, number)
            found.append(confirm(study, tables, number).table)
        table = pd.concat(found)
        quiet = dataclasses.replace(study, scatter=0.0)
        random = np.random.default_rng(0)  # of which nothing is left
        true = np.array(
            [
                quiet.steps(size, np.array([rate]), random)[0]
                for size, rate in table[["batch_size", "learning_rate"]].to_numpy()
            ]
        )
        yield {
            "kind": kind,
            "intervals": len(table),
            "covered": float(np.mean((table["low"] < true) & (true <= table["high"]))),
            "median_width": round(float((table["high"] / table["low"]).median()), 3),
            "median_of_luck": round(float(table["luck"].median()), 3),
        }


def noise_scale_rows(studies: int, seed: int) -> Iterable[dict[str, Any]]:
    """The coverage of the intervals of the noise scale, where the gradient is strong and weak."""
    size, dimension = 2000, 8
    random = np.random.default_rng(seed)
    x = random.normal(size=(size, dimension)) * np.geomspace(2, 0.2, dimension)
    y = x @ random.normal(size=dimension) + 0.5 * random.normal(size=size)
    workload = Workload.from_functions(
        init=lambda key: np.zeros(dimension, np.float32),
        loss=lambda params, batch: 0.5 * (batch["input"] @ params - batch["label"]) ** 2,
        data={"train": (x.astype(np.float32), y.astype(np.float32))},
    )
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    hessian = x.T @ x / size
    for away in (1.0, 0.3, 0.1):
        params = best + away * np.ones(dimension) / dimension**0.5
        rows = (x @ params - y)[:, None] * x
        gradient, sigma = rows.mean(0), np.cov(rows.T)
        simple = np.trace(sigma) / (gradient @ gradient)
        noise = np.trace(hessian @ sigma) / (gradient @ hessian @ gradient)
        point = params.astype(np.float32)
        for examples in (50, 400):
            single = [
                noise_scale(workload, point, examples=examples, with_hessian=True, seed=number)
                for number in range(studies)
            ]
            pairs = [
                noise_scale_of_batches(
                    workload, point, small=1, big=examples // 10, batches=20, seed=number
                )
                for number in range(studies)
            ]
            yield {
                "b_simple": round(float(simple), 2),
                "b_noise": round(float(noise), 2),
                "examples": examples,
                "covered": _held([one.interval for one in single], simple),
                "b_noise_covered": _held([one.b_noise_interval for one in single], noise),
                "pairs_covered": _held([one.interval for one in pairs], simple),
                "open": float(np.mean([math.isinf(one.interval.high) for one in single])),
            }


def _held(intervals: list[scaling.Interval], true: float) -> float:
    """The share of the intervals that hold a number; of those that say anything."""
    said = [interval for interval in intervals if not math.isnan(interval.low)]
    return float(np.mean([low <= true <= high for low, high in said]))


def _reported(steps: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The first evaluation after the crossing, inf beyond the budget."""
    return np.append(grid, np.inf)[np.searchsorted(grid, steps)]


def _before(reported: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The evaluation before; of a miss the last."""
    return grid[np.searchsorted(grid, reported) - 1]


def _quantiles(
    first: np.ndarray, grid: np.ndarray, above: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The 5% and 95% quantiles of a minimum that is beyond the k-th crossing in `above[k]` cases.

    The lower is the evaluation before, as in `best_of`.
    """
    ranks = [
        next(k for k in range(1, first.shape[1] + 1) if above[k] / above[0] <= 1 - share)
        for share in (0.05, 0.95)
    ]
    return _before(first[:, ranks[0] - 1], grid), first[:, ranks[1] - 1]


def _width(low: np.ndarray, high: np.ndarray) -> float | str:
    """The median of high / low, in words where it is not finite."""
    width = float(np.median(high / np.maximum(low, 1)))
    return round(width, 3) if math.isfinite(width) else "open"


def _tables(crossings: np.ndarray, grid: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measurements and trials, a simulated search in place of a batch size.

    Of every trial the evaluations about its crossing are there, of the first all.
    """
    search, trial = (places.ravel() for places in np.indices(crossings.shape))
    after = crossings.ravel()
    rows = [(search, trial, _before(after, grid), 1.0)]
    reached = np.isfinite(after)
    rows.append((search[reached], trial[reached], after[reached], 0.0))
    others = [(s, 0, grid[grid < _before(c, grid)], 1.0) for s, c in enumerate(crossings[:, 0])]
    frame = pd.concat(
        pd.DataFrame(
            dict(zip(("batch_size", "trial", "step", "validation/error"), row, strict=True))
        )
        for row in rows + others
    )
    frame = frame.assign(replicate=0).astype({"step": int})
    index = pd.MultiIndex.from_arrays([search, trial, 0 * trial], names=TRIAL_INDEX)
    trials = pd.DataFrame(
        {
            "origin": "plan",
            "status": "complete",
            "steps_trained": BUDGET,
            "stop_reason": "budget",
        },
        index,
    )
    return frame.set_index(list(MEASUREMENT_INDEX)), trials


ROWS = {
    "fit": fit_rows,
    "best_of": best_of_rows,
    "learning_rates": learning_rate_rows,
    "median": median_rows,
    "noise_scale": noise_scale_rows,
    "extrapolation": extrapolated.rows,
}


def main() -> None:
    """Simulates every case and writes what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--what", choices=ROWS, default="fit")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="validation/results/coverage_<what>.json")
    arguments = parser.parse_args()
    rows = []
    for row in ROWS[arguments.what](arguments.studies, arguments.seed):
        rows.append(row)
        print(row, flush=True)
    output = arguments.output or Path(f"validation/results/coverage_{arguments.what}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    found = {"studies": arguments.studies, "seed": arguments.seed, "rows": rows}
    output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
