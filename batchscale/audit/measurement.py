"""Checks of the measurement: are steps to target what they are taken for?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from batchscale import scaling
from batchscale.audit.checks import NOTHING, Check, Evidence, Verdict, sizes
from batchscale.numeric import short
from batchscale.records import Status
from batchscale.scaling.minima import of_search

# Choices.
_EASY_STEPS = 10
_LOOKS = 2.0  # by which the evaluations of the last octave may differ between batch sizes
_NEAR_BUDGET = 0.9
_SAME_EPOCHS = 0.15
_MISTAKES = 15  # of the goal on its evaluation set: fewer are known to no better than a quarter
_RESOLUTION = 0.12
_LUCK, _LUCKIEST = 2.0, 3.0  # of the median batch size, and of any
_FARTHER = 1.5  # times faster than the best of N: more than luck
_MISSED = 0.2


def budget(evidence: Evidence) -> Check:
    """Whether trials had the time to reach the goal."""
    name = "budget long enough"
    steps = evidence.steps.set_index("batch_size")["steps"]
    if steps.empty:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    missed = steps.index[np.isinf(steps)]
    if len(missed):
        reason = _epochs(evidence) or f"no trial reached {evidence.goal} at {sizes(missed)}"
        return Check(
            name,
            Verdict.FAIL,
            reason,
            "A miss says nothing of quality: give every batch size the steps it needs, with "
            "study.extend(folder, max_steps=...), or choose an easier goal.",
        )
    whole = {size: evidence.max_steps.get(int(size), math.inf) for size in steps.index}
    near = [size for size in steps.index if steps[size] > _NEAR_BUDGET * whole[size]]
    if near:
        return Check(
            name,
            Verdict.WARN,
            f"more than {_NEAR_BUDGET:.0%} of the budget was needed at {sizes(near)}: slower "
            "settings may have been cut off",
            "study.extend(folder, max_steps=...).",
        )
    return Check(name, Verdict.PASS, f"all {len(steps)} batch sizes reached the goal")


def _epochs(evidence: Evidence) -> str:
    """The words for misses that come of a budget in epochs; empty if they do not."""
    steps = evidence.steps.set_index("batch_size")["steps"]
    reached, missed = steps[np.isfinite(steps)], steps[np.isinf(steps)]
    budgets = {size: evidence.max_steps.get(int(size), 0) for size in steps.index}
    if not len(reached) or 0 in budgets.values() or len(budgets) < 2:
        return ""
    examples = np.array([size * count for size, count in budgets.items()], float)
    same = examples.max() / examples.min() < 1 + _SAME_EPOCHS
    if not same or missed.index.min() < reached.index.max():
        return ""
    fewest = int(reached.min())
    short = {size: budgets[size] for size in missed.index if budgets[size] < 2 * fewest}
    if not short:
        return ""
    least = min(short)
    return (
        f"the budget is the same number of epochs at every batch size, so at {sizes(missed.index)} "
        f"trials had few steps ({short[least]:,} at {least}), while no batch size reached "
        f"{evidence.goal} in fewer than {fewest:,}: a lack of steps, not of quality"
    )


def easy(evidence: Evidence) -> Check:
    """Whether the goal is hard enough for steps to be counted."""
    name = "goal hard enough"
    reached = evidence.reached()
    if reached.empty:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    soon = reached.loc[reached["steps"] <= _EASY_STEPS, "batch_size"]
    if len(soon):
        fewest, less = int(reached["steps"].min()), evidence.goal.mode == "min"
        return Check(
            name,
            Verdict.FAIL if fewest == 0 else Verdict.WARN,
            f"{evidence.goal} is reached within {_EASY_STEPS} steps at {sizes(soon)} (the fewest: "
            f"{fewest}), where a step more or less is a large share",
            "Choose a harder goal"
            + ("; where more of it is better, with mode='max'." if not fewest and less else "."),
        )
    return Check(name, Verdict.PASS, f"no batch size reaches it within {_EASY_STEPS} steps")


def noise_floor(evidence: Evidence) -> Check:
    """Whether the goal's value is above the noise of counting on its evaluation set."""
    name = "goal above the noise of evaluation"
    goal = evidence.goal
    values = evidence.measurements[goal.metric].to_numpy(np.float64)
    values = np.unique(values[np.isfinite(values)])
    measured = evidence.evaluation_examples
    on = "" if measured is None else f", measured on {measured:,} examples"
    no_share = Check(
        name,
        Verdict.UNKNOWN,
        f"{goal.metric} is not known to be a share of counted examples{on}, and how much it "
        "scatters from one set of examples to another is not known",
    )
    if len(values) and not 0 <= values.min() <= values.max() <= 1:
        return no_share
    examples = evidence.counted or measured
    if examples is None:
        gaps = np.diff(values)
        gaps = gaps[gaps > 1e-9]
        if len(gaps) < 2:
            return Check(name, Verdict.UNKNOWN, f"too few values of {goal.metric} were measured")
        examples = round(1 / gaps.min())
    counts = values * examples
    if not len(values) or np.abs(counts - np.round(counts)).max() > 1e-3:
        return no_share
    share = goal.value if goal.mode == "min" else 1 - goal.value
    mistakes = share * examples
    evidence_words = f"the goal is {mistakes:.0f} of {examples:,} examples"
    if examples != measured is not None:
        evidence_words += f" or parts of examples{on}"
    if mistakes < _MISTAKES:
        return Check(
            name,
            Verdict.WARN,
            f"{evidence_words}, which single examples decide",
            "Evaluate on more examples, or choose an easier goal.",
        )
    return Check(name, Verdict.PASS, evidence_words)


def resolution(evidence: Evidence) -> Check:
    """Whether evaluations before the crossing were close enough together."""
    name = "evaluations close together"
    reached = evidence.reached()
    if reached.empty:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    gap = reached["steps"] - reached["previous_evaluation"]
    share = (gap / reached["steps"]).where(gap > 1, 0.0)  # closer than a step there is none
    coarse = reached.loc[share > _RESOLUTION, "batch_size"]
    if len(coarse):
        return Check(
            name,
            Verdict.WARN,
            f"the evaluation before the crossing is up to {share.max():.0%} of the steps earlier, "
            f"at {sizes(coarse)}",
            "Evaluate more often: evaluation_spacing=0.05.",
        )
    apart = f"at most {share.max():.0%} of the steps" if share.max() > 0 else "a single step"
    return Check(name, Verdict.PASS, f"{apart} apart")


def looks(evidence: Evidence) -> Check:
    """Whether every batch size had as many looks at the metric before its crossing."""
    name = "equal looks at the metric"
    counts = {}
    steps = evidence.measurements.index.get_level_values("step").to_numpy()
    size = evidence.measurements.index.get_level_values("batch_size").to_numpy()
    for batch_size, count in evidence.reached()[["batch_size", "steps"]].itertuples(index=False):
        some = np.unique(steps[size == batch_size])
        counts[batch_size] = int(((some > count / 2) & (some <= count)).sum())
    if not counts:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    low, high = min(counts.values()), max(counts.values())
    if high > _LOOKS * low:
        most = [size for size, looks in counts.items() if looks > _LOOKS * low]
        return Check(
            name,
            Verdict.WARN,
            f"{low} to {high} evaluations in the last octave before the crossing, most at "
            f"{sizes(most)}: more looks are more chances",
            "Evaluate at the same relative spacing at every batch size, and choose a goal that "
            "takes all of them some tens of steps.",
        )
    return Check(name, Verdict.PASS, f"{low} to {high} evaluations in the octave before it")


def schedule(evidence: Evidence) -> Check:
    """Whether steps are those that training needs, not those that a schedule takes."""
    name = "steps not made by the schedule"
    if evidence.reached().empty:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    if evidence.paces is None:
        return Check(
            name, Verdict.UNKNOWN, "it is not known how the learning rate changes with the step"
        )
    found = scaling.paced(evidence.steps, evidence.paces)
    if found.unknown and not found.plateau:
        return Check(
            name,
            Verdict.UNKNOWN,
            f"what the learning rate does is not known up to the crossings at "
            f"{sizes(found.unknown)}: the updates of the optimizer do not show it",
            "Give the schedule as schedule=..., a function of (step, hyperparameters), instead of "
            "one inside the optimizer.",
        )
    if found.why:
        return Check(
            name,
            Verdict.FAIL if found.plateau else Verdict.WARN,
            found.why,
            "Choose a harder goal, a shorter warm-up and another horizon, or search their lengths "
            "as hyperparameters, from next to nothing on.",
        )
    return Check(
        name, Verdict.PASS, "no crossing lies at a warm-up, or at the horizon of a schedule"
    )


def test_set(evidence: Evidence) -> Check:
    """Whether the data that hyperparameters are chosen by are not those of the final test."""
    name = "not tuned on the test set"
    if evidence.goal.metric.startswith("test/"):
        return Check(
            name,
            Verdict.FAIL,
            f"the goal is {evidence.goal}, so that settings were chosen by the test set",
            "Make the goal one of the validation split.",
        )
    return Check(name, Verdict.PASS, f"the goal is {evidence.goal}")


def batch_dependent(evidence: Evidence) -> Check:
    """Whether the model itself changes with the batch size."""
    name = "model independent of the batch size"
    if evidence.batch_dependent is None:
        return Check(name, Verdict.UNKNOWN, "it is not known which layers the model has")
    if evidence.batch_dependent:
        return Check(
            name,
            Verdict.WARN,
            "the loss of an example depends on the others of its batch (statistics of batches, "
            "a mean over words or weights, or a loss of pairs), so that another batch size is "
            "another objective",
            "Of words, pixels or weights that are masked return (sum, count), with the full "
            "Workload; use ghost batch norm (models.GhostBatchNorm), say how large its groups are "
            "(ghost_batch_size=N of the workload) and take batch sizes that N divides; or a norm "
            "that does not see the batch.",
        )
    return Check(
        name,
        Verdict.PASS,
        "the loss of an example depends on no others, or on as many at every batch size",
    )


def reproducible(evidence: Evidence) -> Check:
    """Whether the optimum is found again under new seeds."""
    name = "optimum reproducible under new seeds"
    if evidence.confirmation is None:
        return Check(name, Verdict.UNKNOWN, "not run again", "study.confirm(folder).")
    table = evidence.confirmation.table
    table = table.loc[np.isfinite(table["best_of_n"])]
    unknown = table.loc[table["luck"].isna(), "batch_size"]
    if len(unknown):
        return Check(
            name, Verdict.UNKNOWN, f"not run again at {sizes(unknown)}", "study.confirm(folder)."
        )
    faster = table.loc[table["luck"] < 1 / _FARTHER, "batch_size"]
    if len(faster):
        return Check(
            name,
            Verdict.WARN,
            f"the confirmed median is over {_FARTHER:g} times faster than the best of N at "
            f"{sizes(faster)}: the search did not come near the optimum there",
            "Quote the medians of the confirmation; for a best of N, search a range about the "
            "confirmed settings, with more trials, in a new study (another folder).",
        )
    missed = table.loc[table["missed"] > _MISSED, "batch_size"]
    luck = table["luck"].median()
    # Of many batch sizes one is twice as lucky by chance.
    most = _LUCK if luck > _LUCK else _LUCKIEST
    lucky = table.loc[table["luck"] > most, "batch_size"]
    if len(missed) or len(lucky):
        where = [f"more than {_MISSED:.0%} of the seeds missed at {sizes(missed)}"] * bool(
            len(missed)
        ) + [f"the median is more than {most:g} times the best at {sizes(lucky)}"] * bool(
            len(lucky)
        )
        return Check(
            name,
            Verdict.WARN,
            "; ".join(where),
            "Quote the medians of the confirmation, not the best of N. A goal that is reached on "
            "a steeper part of the curve depends less on the seed.",
        )
    return Check(name, Verdict.PASS, f"the median is {luck:.2f} times the best of N")


def extrapolated(evidence: Evidence) -> Check:
    """Whether a critical batch size lies within what was measured."""
    name = "critical batch size within the data"
    reached = evidence.reached()
    if reached.empty:
        return Check(name, Verdict.UNKNOWN, NOTHING)
    if 0 in reached["steps"].to_numpy():
        return Check(name, Verdict.UNKNOWN, "the goal held before the first step")
    confirmed, trials = evidence.confirmation, evidence.plain()
    done = set(evidence.steps["batch_size"])
    whole = confirmed is not None and confirmed.whole(trials)
    if confirmed is not None and whole and set(confirmed.table["batch_size"]) == done:
        found = dataclasses.replace(confirmed, paces=evidence.paces or {}).scaling()
        of = "tuned setting's median"
    else:
        found = of_search(
            evidence.steps,
            trials.loc[trials["batch_size"].isin(done)],
            {size: space for size, space in evidence.spaces.items() if size in done},
            paces=evidence.paces,
        )
        of = "best of N"
    if found.refused:
        return Check(
            name,
            Verdict.WARN,
            f"no critical batch size can be quoted: {found.refused}",
            "Measure smaller batch sizes where perfect scaling is missing, larger ones where the "
            "plateau is, and mend what other checks find where the steps are no such curve.",
        )
    low, high = found.b_crit_interval
    words = f"{short(found.b_crit)}, {short(low)} to {short(high)} ({of})"
    if ends := found.unseen(reached["batch_size"].min(), reached["batch_size"].max()):
        return Check(
            name,
            Verdict.WARN,
            f"{words}; but {ends}",
            "It rests on the form of the curve beyond what was measured: "
            "study.extend(folder, batch_sizes=[...]) there.",
        )
    return Check(name, Verdict.PASS, words)


def interrupted(evidence: Evidence) -> Check:
    """Whether the study is finished."""
    name = "study finished"
    begun = evidence.trials.index.get_level_values("batch_size")
    open_ = set(begun[(evidence.trials["status"] == Status.INCOMPLETE).to_numpy()])
    open_ |= set(evidence.spaces) - set(begun)
    if open_:
        return Check(name, Verdict.WARN, f"not at {sizes(open_)}", "study.run(folder) goes on.")
    return Check(name, Verdict.PASS, "all trials ran as far as they were to")
