"""What a check is, and what checks read."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from batchscale import columns
from batchscale.confirmation import Confirmation
from batchscale.metrics import Goal
from batchscale.records import Origin, Status
from batchscale.scaling import Pace
from batchscale.tuner import SearchSpace

NOTHING = "no batch size reached the goal"


class Verdict(enum.StrEnum):
    """What a check found.

    >>> print(Verdict.WARN)
    warn
    """

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"  # the tables cannot tell; the remedy says what would


@dataclasses.dataclass(frozen=True)
class Check:
    """One question, and its answer.

    Attributes:
      name: of the check, in words.
      verdict: `pass`, `warn`, `fail`, or `unknown`.
      evidence: what was found, in words and numbers.
      remedy: what to do about it; empty where it passed.
      key: of the check, one word, which stays when the words change.
    """

    name: str
    verdict: Verdict
    evidence: str
    remedy: str = ""
    key: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:>7}  {self.name}: {self.evidence}"
        return f"{line}\n         {self.remedy}" if self.remedy else line


columns.declare("audit", *(field.name for field in dataclasses.fields(Check)))


@dataclasses.dataclass(frozen=True)
class Audit:
    """The checks of a study; prints as a list of them.

    Attributes:
      checks: all of them, in a fixed order.
    """

    checks: tuple[Check, ...]

    def __len__(self) -> int:
        return len(self.checks)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))

    def of(self, name: str) -> Check:
        """The check of a name, or of a key.

        Raises:
          KeyError: there is none.
        """
        for check in self.checks:
            if name in (check.name, check.key):
                return check
        raise KeyError(f"audit: no check {name!r}; there are {', '.join(c.key for c in self)}.")

    @property
    def alarms(self) -> tuple[Check, ...]:
        """Those that warn or fail."""
        return tuple(c for c in self.checks if c.verdict in (Verdict.WARN, Verdict.FAIL))

    def table(self) -> pd.DataFrame:
        """One row a check: `name`, `verdict`, `evidence`, `remedy`, `key`."""
        return pd.DataFrame([dataclasses.asdict(check) for check in self.checks])


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What checks read of a study, whoever made it.

    Attributes:
      measurements: one row an evaluation.
      trials: one row a trial.
      steps: the table of `metrics.steps_to_target`.
      goal: of the study.
      spaces: what hyperparameters were drawn from, by batch size.
      max_steps: the budget by batch size; empty if not known.
      batch_dependent: whether the model has layers that see the whole batch; None if not known.
      confirmation: of the tuned settings, if there is one.
      evaluation_examples: on which the goal's metric is measured; None if not known.
      counted: of how many it counts some there; guessed from the values if None.
      refined: the trials of `Study.refine`, if there are any.
      paces: between which steps the schedule decides when the goal is reached, by batch size, where
        it does; None if not known.
    """

    measurements: pd.DataFrame
    trials: pd.DataFrame
    steps: pd.DataFrame
    goal: Goal
    spaces: Mapping[int, SearchSpace]
    max_steps: Mapping[int, int]
    batch_dependent: bool | None
    confirmation: Confirmation | None
    evaluation_examples: int | None = None
    counted: int | None = None
    refined: pd.DataFrame | None = None
    paces: Mapping[int, Pace] | None = None

    def plain(self) -> pd.DataFrame:
        """The trials that count, diverged or not, with `batch_size` and `trial` as columns."""
        origin = self.trials["origin"].isin([Origin.PLAN, Origin.TOPUP]).to_numpy()
        replicate = self.trials.index.get_level_values("replicate") == 0
        return self.trials.loc[origin & replicate].reset_index()

    def feasible(self) -> pd.DataFrame:
        """Those of them that did not diverge."""
        plain = self.plain()
        return plain.loc[(plain["status"] != Status.INFEASIBLE).to_numpy()]

    def reached(self) -> pd.DataFrame:
        """The rows of `steps` that are no misses."""
        return self.steps.loc[np.isfinite(self.steps["steps"])]


def sizes(values) -> str:
    """Batch sizes in words.

    >>> sizes([1, 2, 64])
    'batch sizes 1, 2, 64'
    """
    values = sorted(int(value) for value in values)
    return f"batch size{'s' if len(values) != 1 else ''} {', '.join(map(str, values))}"
