"""Steps to target of the tuned setting, under seeds that took no part in choosing it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import scipy

from batchscale import columns, display, numeric, scaling
from batchscale.metrics import Goal
from batchscale.records import TRIAL_COLUMNS, Origin, Status, StopReason
from batchscale.tuner import medians


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """The tuned setting of every batch size beside the best of N trials.

    Attributes:
      table: one row a batch size: `batch_size`; `best_of_n`, the steps to target of the study;
        `trial`, the number of the chosen setting, and its hyperparameters; `seeds`, under which it
        was run after it had been chosen; `steps`, their median, inf if half of them missed, NaN if
        they were not all run yet (`previous_evaluation`: the crossing of the median lies after it);
        `low` and `high`, of the median at `confidence`: order statistics of the seeds, `low` the
        evaluation before, for a crossing lies after that; 0 and inf where the seeds are too few;
        `quantile_10` and `quantile_90`, of single runs; `missed`, the share of seeds that did not
        get there in the time they were given; and `luck`, the median over best-of-N.
      runs: one row a run of a setting that was chosen, after it had been chosen: `batch_size`,
        `trial`, `replicate`, `steps`, `previous_evaluation`.
      settings: one row a setting that was compared: `batch_size`, `trial`, `seeds`, `median`,
        `missed`, and `chosen`.
      confidence: of `low` and `high`.
      paces: between which steps the schedule decides when the goal is reached, by batch size.
      crowded: which edges of the search space the leading trials crowd, in words; empty if none.
      goal: that the steps are to; None if it is not known.
      name: of the workload and the optimizer; empty if it is not known.
    """

    table: pd.DataFrame
    settings: pd.DataFrame
    runs: pd.DataFrame
    confidence: float
    paces: Mapping[int, scaling.Pace] = dataclasses.field(default_factory=dict)
    crowded: str = ""
    goal: Goal | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.table.to_string(index=False, float_format=display.cell)

    def _repr_html_(self) -> str:
        return display.page(f"Medians of tuned settings: {self.scaling()}", self.table)

    def whole(self, trials: pd.DataFrame) -> bool:
        """Whether every batch size that trials of the search reached the goal at has its median.

        A batch size that only trials got to that diverged later has no setting to confirm.

        Args:
          trials: of the search, with `batch_size` as a column or in the index, `status` and
            `first_crossing`.
        """
        got_there = trials.loc[
            (trials["status"] != Status.INFEASIBLE).to_numpy()
            & np.isfinite(trials["first_crossing"].to_numpy(float))
        ]
        if "batch_size" in got_there:
            sizes = got_there["batch_size"]
        else:
            sizes = got_there.index.get_level_values("batch_size")
        steps = self.table.set_index("batch_size")["steps"]
        under_way = steps.index[steps.isna()].isin(sizes)
        return bool(steps.notna().any() and not under_way.any())

    def steps_to_target(self) -> pd.DataFrame:
        """The medians, as a table for `scaling.fit`, `scaling.regimes` and `scaling.recommend`.

        Batch sizes that have not been run again, or not all of them, are left out; one of which no
        trial of the search reached the goal is a miss. `log_deviation` is the standard deviation of
        the log of the median, by its interval; see `scaling.deviations`.
        """
        shown = ["batch_size", "steps", "previous_evaluation", "trial"]
        known = self.table.loc[self.table["steps"].notna()].reset_index(drop=True)
        ends = known.reindex(columns=["batch_size", "low", "high"])
        sizes, low, high = ends.to_numpy(float).T
        deviation = scaling.deviations(
            np.log(sizes), low, high, self.confidence, known["steps"].to_numpy(float)
        )
        return known[shown].assign(log_deviation=deviation)

    def recommend(
        self, *, seconds_per_step: scaling.StepTimes | None = None, tolerance: float = 0.2
    ) -> scaling.Recommendation:
        """Which batch size to train with, by the medians; see `scaling.recommend`."""
        made = scaling.recommend(
            self.steps_to_target(),
            self.scaling(),
            paces=self.paces,
            seconds_per_step=seconds_per_step,
            tolerance=tolerance,
        )
        of = "Steps are medians of the tuned settings under fresh seeds."
        return dataclasses.replace(made, sentences=(*made.sentences, of))

    def scaling(self, *, form: scaling.Form = "averaged") -> scaling.Fit:
        """The critical batch size of the medians; see `scaling.fit`.

        Averaged over the sharpness of the bend, with the medians' own precision. It is refused
        where the plateau is the schedule's doing (see `scaling.paced`), and where the leading
        trials of the search crowd an edge of the space.

        Args:
          form: `averaged`, or one that is assumed: `hyperbolic` or `generalised`.
        """
        found = scaling.fit(self.steps_to_target(), form=form, paces=self.paces)
        return found.refuse(scaling.Refusal.EDGE, self.crowded)


def confirmation(
    trials: pd.DataFrame,
    crossings: pd.DataFrame,
    best_of_n: pd.DataFrame,
    *,
    selection_seeds: int,
    seeds: int | None = None,
    limits: Mapping[int, float] | None = None,
    asked: Mapping[int, Collection[int]] | None = None,
    confidence: float = 0.9,
) -> Confirmation:
    """Chooses each batch size's setting by its median, and reports it under other seeds.

    The estimand is the median over seeds of the steps to target of the chosen setting. Its
    interval is that of order statistics (binomial, without any assumption on the distribution, so
    at least at the confidence), and reaches down to the evaluation before, for the crossing lies
    between the two. It is of that setting, not of the best one that there is: with two
    hyperparameters the best of 32 settings needs some 9% more steps than the optimum. Runs that did
    not reach the goal in the time they were given count as inf.

    Args:
      trials: those of origin `confirm`, replicates from 1 on.
      crossings: their `first_crossing` and `previous_evaluation`, as `metrics.first_crossings`
        says them.
      best_of_n: the study's table of `metrics.steps_to_target`.
      selection_seeds: replicates up to this number choose, later ones report.
      seeds: how many of the later ones; all by default. A batch size with fewer is not done.
      limits: the steps that runs were given, by batch size; a later crossing is a miss.
      asked: the settings that were to be compared, by batch size; of another one nothing is looked
        at, and a batch size where they were not all run is not done. All that were run by default.
      confidence: of the interval of the median.
    """
    confidence = numeric.confidence(confidence)
    runs = trials.loc[(trials["origin"] == Origin.CONFIRM).to_numpy()]
    previous = crossings["previous_evaluation"].reindex(runs.index).fillna(0.0)
    runs = runs.assign(steps=math.nan, previous=previous)
    names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
    rows, settings, reported = [], [], []
    last = math.inf if seeds is None else selection_seeds + seeds
    for batch_size, best in best_of_n[["batch_size", "steps"]].to_numpy().tolist():
        here = runs.loc[runs.index.get_level_values("batch_size") == batch_size]
        here = medians.within(here, (limits or {}).get(int(batch_size), math.inf))
        here = here.assign(steps=medians.steps_of(here))
        if asked is not None:
            wanted = asked.get(int(batch_size), ())
            here = here.loc[here.index.get_level_values("trial").isin(list(wanted))]
        replicate = here.index.get_level_values("replicate")
        compared = medians.by_median(here.loc[replicate <= selection_seeds])
        settings.append(compared.assign(batch_size=int(batch_size), chosen=False))
        row = {"batch_size": int(batch_size), "best_of_n": best, "seeds": 0}
        row["steps"] = math.nan if math.isfinite(best) else math.inf
        whole = compared["seeds"].eq(selection_seeds).all() and (
            asked is None or len(compared) == len(asked.get(int(batch_size), ()))
        )
        if len(compared) and whole and (here["status"] != Status.INCOMPLETE).all():
            trial = int(compared["trial"].iloc[0])
            settings[-1]["chosen"] = compared["trial"] == trial
            number = here.index.get_level_values("trial")
            later = (replicate > selection_seeds) & (replicate <= last)
            fresh = here.loc[later & (number == trial)]
            if len(fresh) and (seeds is None or len(fresh) == seeds):
                row |= {"trial": trial} | fresh.iloc[0][names].to_dict()
                row |= _summary(fresh, confidence)
                row["luck"] = row["steps"] / best if best else math.nan
                reported.append(fresh)
        rows.append(row)
    order = ["batch_size", "best_of_n", "trial", *names, *_SUMMARY, "luck"]
    table = pd.DataFrame(rows).reindex(columns=order).astype({"trial": "Int64"})
    every = pd.concat(reported or [runs.iloc[:0]]).rename(columns={"previous": _SUMMARY[2]})
    return Confirmation(
        table,
        pd.concat(settings, ignore_index=True)[list(_SETTINGS)],
        every[["steps", _SUMMARY[2]]].reset_index(),
        confidence,
    )


def at_goal(
    found: Confirmation, trials: pd.DataFrame, crossings: pd.DataFrame, best_of_n: pd.DataFrame
) -> Confirmation:
    """The same runs counted to another, easier goal; settings are those chosen for the study's.

    Args:
      found: by the study's goal.
      trials: with the `stop_reason` of every run.
      crossings: of the other goal, as `metrics.first_crossings` says them.
      best_of_n: the study's table of `metrics.steps_to_target` at that goal.

    Raises:
      ValueError: a run ended at the study's goal, short of the other one.
    """
    index = ["batch_size", "trial", "replicate"]
    seen = crossings.rename(columns={"first_crossing": "steps"})
    runs = found.runs[index].join(seen[["steps", "previous_evaluation"]], on=index)
    runs["previous_evaluation"] = runs["previous_evaluation"].fillna(0.0)
    ended = runs[index].join(trials["stop_reason"], on=index)["stop_reason"]
    short = runs.loc[((ended == StopReason.OWN_CROSSING) & ~np.isfinite(runs["steps"])).to_numpy()]
    if len(short):
        size, trial, replicate = short.iloc[0][index].astype(int)
        raise ValueError(
            f"goal: at batch size {size}, run {replicate} of trial {trial} ended where it reached "
            f"the study's goal, and is not past this one: one of {len(short)} such runs. A "
            "confirmation tells of easier goals: make a study with this goal."
        )
    best = dict(zip(best_of_n["batch_size"].tolist(), best_of_n["steps"].tolist(), strict=True))
    rows = []
    for row in found.table.to_dict("records"):
        here = runs.loc[(runs["batch_size"] == row["batch_size"]).to_numpy()]
        row["best_of_n"] = best.get(row["batch_size"], math.inf)
        if len(here):
            row |= _summary(
                here.rename(columns={"previous_evaluation": "previous"}), found.confidence
            )
            row["luck"] = row["steps"] / row["best_of_n"] if row["best_of_n"] else math.nan
        else:  # nothing was run again there, perhaps because nothing reached the study's goal
            row["steps"] = math.nan if math.isfinite(row["best_of_n"]) else math.inf
        rows.append(row)
    table = pd.DataFrame(rows)[list(found.table.columns)].astype({"trial": "Int64"})
    return dataclasses.replace(found, table=table, runs=runs)


_SUMMARY = columns.declare(
    "medians of confirmed settings",
    *("seeds", "steps", "previous_evaluation", "low", "high"),
    *("quantile_10", "quantile_90", "missed"),
)
_SETTINGS = columns.declare(
    "confirmed settings", "batch_size", "trial", "seeds", "median", "missed", "chosen"
)
columns.declare("confirmation", "best_of_n", "luck", "previous")


def median_ranks(seeds: int, confidence: float) -> tuple[int, int]:
    """The places, from 0, of the order statistics between which the median lies.

    The tightest symmetric pair that holds the median of any distribution with at least that
    probability, by the binomial distribution. Where there are too few seeds for any, -1 and their
    number: the interval is open on both sides.

    >>> median_ranks(21, 0.9), median_ranks(4, 0.9)
    ((6, 14), (-1, 4))

    Raises:
      ValueError: the confidence is none.
    """
    confidence = numeric.confidence(confidence)
    # The median is missed on one side if no more than `low` of the seeds lie below it.
    tails = scipy.stats.binom.cdf(np.arange(seeds), seeds, 0.5)
    low = int(np.searchsorted(tails, (1 - confidence) / 2, side="right")) - 1
    return low, seeds - 1 - low


def _summary(runs: pd.DataFrame, confidence: float) -> dict[str, float]:
    runs = runs.sort_values(["steps", "previous"])
    values, before = runs["steps"].to_numpy(), runs["previous"].to_numpy()
    low, high = median_ranks(len(values), confidence)
    last = len(values) - 1
    middle = medians.middle(values)
    # What the median lies after, itself the geometric mean of two of an even number.
    after = [
        float(before[place] if math.isfinite(values[place]) else before.max())
        for place in (last // 2, len(values) // 2)
    ]
    return {
        "seeds": len(values),
        "steps": middle,
        "previous_evaluation": after[0] if math.isfinite(middle) else math.sqrt(math.prod(after)),
        "low": float(before[low]) if low >= 0 else 0.0,
        "high": float(values[high]) if high <= last else math.inf,
        "quantile_10": float(values[round(0.1 * last)]),
        "quantile_90": float(values[round(0.9 * last)]),
        "missed": float(np.isinf(values).mean()),
    }
