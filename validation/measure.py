"""Coverage and cost of one design across batch sizes, by simulation of studies of known truth.

    python -m validation.measure --studies 200
    python -m validation.measure --studies 30 --rows "hyperbola" "noisy quadratic" --share 5

Of every world (`validation.worlds`, `validation.noisy`) studies are measured by the design at a
share of the examples that search and confirmation cost there (32 trials up to three times the first
crossing, six settings under 7 seeds, the best under 21), or to a precision. Written are how often
the 90% intervals of the steps of each batch size and of B_crit hold the truth, their errors, what
it cost beside search and confirmation, and how often something was doubted, searched or refused;
a B_crit that is refused is left out of those that are held.
An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from batchscale.design.answering import Answer
from batchscale.design.design import Design
from batchscale.design.question import Question, Round, Spent
from batchscale.design.trials import Outcome, Trials, middle
from batchscale.files import local_path
from batchscale.scaling.averaging import quoted
from batchscale.scaling.posterior import posterior, scattered, smooth
from validation.noisy import NoisyQuadraticWorld
from validation.worlds import WORLDS, World

ALL: dict[str, World | NoisyQuadraticWorld] = {**WORLDS, "noisy quadratic": NoisyQuadraticWorld()}
MOST_ROUNDS = 60
Row = tuple[int, float, float, float, int, int, int]


class Cost(NamedTuple):
    """Of a study.

    Attributes:
      runs: trials, whatever their length.
      steps: of all of them.
      examples: that they were trained on.
    """

    runs: float
    steps: float
    examples: float


def trained(
    world: World | NoisyQuadraticWorld, asked: Round, number: int, random: np.random.Generator
) -> tuple[list[Row], np.ndarray]:
    """The trials of a round, as the design takes them, and the steps at each batch size."""
    grid = world.grid()
    rows: list[Row] = []
    steps = np.zeros(len(world.batch_sizes))
    for size in sorted({one.size for one in asked.asked}):
        here = [one for one in asked.asked if one.size == size]
        rate, second = (
            np.array([getattr(one, name) for one in here]) for name in ("rate", "second")
        )
        exact, diverged = world.run(world.batch_sizes[size], rate, second, random)
        place = np.searchsorted(grid, exact)
        last = len(grid) - 1
        crossing = np.where(place > last, np.inf, grid[np.minimum(place, last)])
        before = grid[np.maximum(np.minimum(place, last) - 1, 0)]
        limit = max(one.limit for one in here)
        if asked.lockstep is not None:
            limit = min(limit, asked.lockstep * crossing.min())
        limit = grid[min(int(np.searchsorted(grid, limit)), last)]
        for one, at, previous, gone in zip(here, crossing, before, diverged, strict=True):
            if gone:
                outcome, log_steps, used = Outcome.DIVERGED, 0.0, 0.0
            elif at <= limit:
                outcome, log_steps = Outcome.CROSSED, middle(at, previous)
                used = limit if asked.lockstep is not None else at
            else:
                outcome, log_steps, used = Outcome.CUT, math.log(limit), limit
            rows.append((size, one.rate, one.second, log_steps, outcome, one.purpose, number))
            steps[size] += used
    return rows, steps


def measured(
    world: World | NoisyQuadraticWorld,
    seed: int,
    *,
    examples: float,
    precision: float,
    lanes: int = 1,
) -> tuple[Answer, Cost, int, str]:
    """A study by the design: its answer, its cost, the number of rounds and why it ended."""
    sizes = np.array(world.batch_sizes)
    n = len(sizes)
    question = Question(
        sizes,
        math.log(world.low),
        math.log(world.high),
        world.second,
        # A step takes as long as a quarter of the largest batch, and the batch besides.
        seconds=sizes + sizes.max() / 4,
        lanes=np.full(n, lanes),
        max_steps=np.full(n, float(world.max_steps)),
        precision=precision,
        examples=examples,
        spacing=world.spacing,
        seed=seed,
    )
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    steps = np.zeros(n)
    warm, why = None, "rounds"
    design = Design(question, Trials.of(rows))
    for _ in range(MOST_ROUNDS):
        spent = Spent(float(steps @ question.seconds), float(steps @ sizes))
        asked = design.next(spent)
        if not asked.asked:
            why = asked.why
            break
        more, used = trained(world, asked, design.round, random)
        if len(rows):
            warm = design.fitted.parameters
        rows, steps = rows + more, steps + used
        design = Design(question, Trials.of(rows), warm)
    cost = Cost(len(rows), float(steps.sum()), float(steps @ sizes))
    return design.answer, cost, design.round, why


def searched(world: World | NoisyQuadraticWorld, seed: int) -> Cost:
    """What search and confirmation cost."""
    random, runs, steps = np.random.default_rng([seed, 1]), 0, np.zeros(len(world.batch_sizes))
    for size, batch_size in enumerate(world.batch_sizes):
        many = 8 * 32
        rate = (random.permutation(many) + random.random(many)) / many
        rate = math.log(world.low) + (math.log(world.high) - math.log(world.low)) * rate
        second = random.uniform(-2, 2, many) if world.second else np.zeros(many)
        exact, diverged = world.run(batch_size, rate, second, random)
        last = int(np.searchsorted(np.cumsum(~diverged), 32)) + 1
        rate, second, exact = rate[:last], second[:last], exact[:last]
        first = min(float(exact.min()), world.max_steps)
        steps[size] += 32 * min(3 * first, world.max_steps)
        limit, best = min(4 * first, world.max_steps), (math.inf, 0)
        leading = np.argsort(exact)[:6]
        for one in leading.tolist():
            found, _ = world.run(batch_size, np.full(7, rate[one]), np.full(7, second[one]), random)
            steps[size] += np.minimum(found, limit).sum()
            best = min(best, (float(np.median(found)), one))
        one = best[1]
        found, _ = world.run(batch_size, np.full(21, rate[one]), np.full(21, second[one]), random)
        steps[size] += np.minimum(found, limit).sum()
        runs += last + 7 * 6 + 21
    return Cost(runs, float(steps.sum()), float(steps @ np.array(world.batch_sizes)))


def study(
    world: World | NoisyQuadraticWorld, seed: int, cost: Cost, share: float, precision: float
) -> dict[str, Any]:
    """One study of the design, and how far it is off."""
    examples = cost.examples / share if share else math.inf
    began = time.monotonic()
    answer, own, rounds, why = measured(world, seed, examples=examples, precision=precision)
    truth = np.array([world.log_steps(size) for size in world.batch_sizes])
    off = answer.log_steps - truth
    sizes, logs = world.batch_sizes, np.log(world.batch_sizes)
    fit = quoted(logs, answer.mean, answer.covariance, smooth(logs), confidence=0.9)
    low, high = fit.b_crit_interval
    return {
        "seed": seed,
        "error": [round(float(x), 4) for x in off],
        "sd": [round(float(x), 4) for x in answer.log_steps_sd],
        "b_crit": None if fit.refused else [round(x, 3) for x in (low, fit.b_crit, high)],
        "refused": fit.refused,
        "rate": [
            round(float(x - world.best_rate(b)), 3) for x, b in zip(answer.rate, sizes, strict=True)
        ],
        "doubted": int(answer.doubted.sum()),
        "searched": int(answer.searched.sum()),
        "rounds": rounds,
        "why": why,
        "cost": [round(b / max(a, 1e-9), 2) for a, b in zip(own, cost, strict=True)],
        "seconds": round(time.monotonic() - began, 2),
    }


def summary(name: str, studies: list[dict[str, Any]], b_crit: float) -> dict[str, Any]:
    """What studies of a world come to."""
    error, sd = (np.array([one[k] for one in studies]) for k in ("error", "sd"))
    refused = sum(one["b_crit"] is None for one in studies)
    intervals = np.array([one["b_crit"] for one in studies if one["b_crit"] is not None])
    intervals = intervals.reshape(-1, 3)
    cost = np.exp(np.mean(np.log([one["cost"] for one in studies]), 0))
    held = (intervals[:, 0] <= b_crit) & (b_crit <= intervals[:, 2])
    off = np.log(intervals[:, 1] / b_crit)
    has = math.isfinite(b_crit) and len(intervals) > 0
    return {
        "row": name,
        "studies": len(studies),
        "times cheaper: runs, steps, examples": [round(float(x), 1) for x in cost],
        "steps: held": round(float((np.abs(error) <= 1.645 * sd).mean()), 3),
        "steps: rms error": round(float(np.sqrt((error**2).mean())), 3),
        "steps: mean sd": round(float(sd.mean()), 3),
        "b_crit: held": round(float(held.mean()), 3) if has else None,
        "b_crit: rms error": round(float(np.sqrt((off**2).mean())), 3) if has else None,
        "refused": round(refused / len(studies), 3),
        "doubted a study": round(float(np.mean([one["doubted"] for one in studies])), 2),
        "searched a study": round(float(np.mean([one["searched"] for one in studies])), 2),
        "rounds": round(float(np.mean([one["rounds"] for one in studies])), 1),
        "seconds": round(float(np.mean([one["seconds"] for one in studies])), 2),
    }


def true_b_crit(world: World | NoisyQuadraticWorld) -> float:
    """Of the world; NaN where there is none, and the fit of the truth where it has no closed form.

    A power law has none, and steps that fall by a jump where another basin becomes the better one
    lie on no one curve.
    """
    if isinstance(world, World):
        return math.nan if world.curve == "power" or world.crosses else world.b_crit
    logs = np.log(world.batch_sizes)
    levels = np.array([world.log_steps(size) for size in world.batch_sizes])
    return posterior(logs, levels, 1e-4 * np.eye(len(logs)), scattered(len(logs))).b_crit(0.5)


def main() -> None:
    """Measures, world by world, and writes what it comes to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--rows", nargs="*", default=list(ALL), choices=list(ALL), metavar="ROW")
    parser.add_argument("--share", type=float, default=8.0, help="of the price; 0 for a precision")
    parser.add_argument("--precision", type=float, default=0.15)
    parser.add_argument("--runs", type=local_path, default="runs/measure")
    parser.add_argument("--output", type=local_path, default="validation/results")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    kind = f"share_{given.share:g}" if given.share else f"precision_{given.precision:g}"
    rows = []
    for name in given.rows:
        world = ALL[name]
        path: Path = given.runs / f"{kind}_{name.replace(' ', '_').replace(',', '')}.json"
        stored = json.loads(path.read_text()) if path.exists() else {"cost": None, "studies": []}
        if stored["cost"] is None:
            costs = [searched(world, seed) for seed in range(20)]
            stored["cost"] = np.mean(costs, 0).tolist()
        for seed in range(len(stored["studies"]), given.studies):
            stored["studies"].append(
                study(world, seed, Cost(*stored["cost"]), given.share, given.precision)
            )
            path.write_text(json.dumps(stored))
        rows.append(summary(name, stored["studies"][: given.studies], true_b_crit(world)))
        print(json.dumps(rows[-1]), flush=True)
    output = given.output / f"measure_{kind}.json"
    known = json.loads(output.read_text()) if output.exists() else []
    names = {row["row"] for row in rows}
    kept = [row for row in known if row["row"] not in names]
    order = {name: place for place, name in enumerate(ALL)}
    table = sorted(kept + rows, key=lambda row: order[row["row"]])
    output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
