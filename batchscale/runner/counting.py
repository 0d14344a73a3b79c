"""What a batch size takes, counted by the ledger that would run it: nothing is trained."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from batchscale.engine.packs import TrialId
from batchscale.metrics import Goal
from batchscale.runner.ledger import Ledger


@dataclasses.dataclass
class Counts:
    """What is done at one batch size.

    Attributes:
      trials: that have anything left to do.
      steps: of all trials together.
      advances: packs that were trained from one evaluation to the next.
      pack_steps: steps of packs, in which idle lanes cost what others do.
      whole: evaluations of a trial on all that is measured of a split, by split.
      bounded: evaluations on the goal's split that end once the trial is certainly not past it.
      packs: the packs that are evaluated whole, by split.
      bounded_packs: the packs in which some end early.
      evaluations: how many times trials are measured together.
    """

    trials: int = 0
    steps: int = 0
    advances: int = 0
    pack_steps: int = 0
    whole: dict[str, int] = dataclasses.field(default_factory=dict)
    bounded: int = 0
    packs: dict[str, int] = dataclasses.field(default_factory=dict)
    bounded_packs: int = 0
    evaluations: int = 0

    def measured(self, split: str, trials: int, packs: int) -> None:
        """Adds whole evaluations of some trials on a split."""
        self.whole[split] = self.whole.get(split, 0) + trials
        self.packs[split] = self.packs.get(split, 0) + packs

    def __add__(self, other: Counts) -> Counts:
        """What is done in both."""
        added: dict[str, Any] = {}
        for name, mine in vars(self).items():
            more = vars(other)[name]
            both = Counter(mine) + Counter(more) if isinstance(mine, dict) else mine + more
            added[name] = dict(both) if isinstance(mine, dict) else both
        return Counts(**added)


def count(
    ledger: Ledger,
    crossings: Mapping[TrialId, float],
    *,
    width: int,
    bounded: bool,
    others: Collection[str],
    at: Mapping[TrialId, int] | None = None,
) -> Counts:
    """Goes through all that a ledger asks for, as if trials crossed the goal where it is said.

    No trial diverges, and one that is past the goal stays there.

    Args:
      ledger: of the batch size; it is used up.
      crossings: the step from which on a trial is past the goal; one that is left out never is.
      width: trials of a full pack.
      bounded: whether evaluations on the goal's split can end early.
      others: the splits that are measured besides the goal's.
      at: the steps of training states that are at hand, by trial.
    """
    spec, found, at = ledger.spec, Counts(), dict(at or {})
    value = {past: {spec.goal.metric: _value(spec.goal, past)} for past in (True, False)}
    met: set[TrialId] = set()
    while (action := ledger.next(at)) is not None:
        met.update(action.trials)
        packs = -(-len(action.trials) // width)
        since = max(action.since, 0)
        if action.to > since:
            found.advances += packs
            found.pack_steps += packs * (action.to - since)
            found.steps += len(action.trials) * (action.to - since)
        at |= dict.fromkeys(action.trials, action.to)
        if not action.unmeasured:
            continue
        step, trials = action.to, action.unmeasured
        past = {trial for trial in trials if step >= crossings.get(trial, math.inf)}
        first = {trial for trial in past if math.isinf(ledger.crossing(trial))}
        packs = -(-len(trials) // width)
        short: set[TrialId] = set()
        if bounded and not spec.exact and step not in ledger.whole:
            short = {trial for trial in trials if math.isinf(ledger.crossing(trial))}
        if short:
            found.bounded += len(short)
            found.bounded_packs += packs
        if whole := len(trials) - len(short - past):
            found.measured(spec.goal.split, whole, min(packs, whole))
        now = [split for split in others if step in spec.others.get(split, ())]
        for split in now:
            found.measured(split, len(trials), packs)
        for split in set(others).difference(now) if first else ():
            found.measured(split, len(first), min(packs, len(first)))
        found.evaluations += 1
        ledger.record(step, {trial: value[trial in past] for trial in trials}, ())
    found.trials = len(met)
    return found


def _value(goal: Goal, past: bool) -> float:
    """A value that is past the goal, or one that is not."""
    better = -1.0 if goal.mode == "min" else 1.0
    return goal.value + (better if past else -better)
