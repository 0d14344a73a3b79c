"""The local critical batch size, as branches of one run tell it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from batchscale import columns

_DRAWS = 2000  # a choice: of the bootstrap over copies


class Change(NamedTuple):
    """A batch size, and from when on it is used.

    Attributes:
      examples: that a run has been trained on by then.
      batch_size: of the steps that follow.
    """

    examples: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Branches:
    """Branches of one trial at some of its steps, and what they say of its critical batch size.

    Attributes:
      losses: one row a step of the trial, batch size of a branch, and copy: `step`, `examples`
        (that the trial has been trained on), `batch_size`, `learning_rate_factor`, `copy`, and
        `loss`, the smoothed metric at the end of the branch; infinite of a copy that has diverged.
      metric: that was measured, as `split/metric`.
      batch_size: of the trial.
      tolerance: by how much a branch may be worse than any smaller one.
      confidence: of the intervals.
    """

    losses: pd.DataFrame = dataclasses.field(repr=False)
    metric: str
    batch_size: int
    tolerance: float
    confidence: float = 0.9

    @property
    def table(self) -> pd.DataFrame:
        """The local critical batch size at each step.

        The largest batch size whose loss recovers: it is at most `tolerance` above that of every
        smaller one. The critical one lies between it and the next; `b_local` is their geometric
        mean, and `low` and `high` are such ends that the copies, drawn anew with replacement,
        leave between them.

        Returns:
          One row a step: `step`, `examples`, `loss` (of the smallest branch), `recovers` (the
          largest batch size that does, NaN where the smallest branch diverges), `b_local`, `low`,
          `high`, and `why` there is no `b_local`.
        """
        rows = []
        random = np.random.default_rng(0)
        for (step, examples), part in self.losses.groupby(["step", "examples"]):
            wide = part.pivot_table(index="copy", columns="batch_size", values="loss")
            sizes, losses = wide.columns.to_numpy(int), wide.to_numpy(float)
            loss = float(losses[:, 0].mean())
            if not math.isfinite(loss):
                why = f"training diverges at batch size {sizes[0]:,}, the smallest branch"
                rows.append((step, examples, loss, math.nan, math.nan, 0.0, math.inf, why))
                continue
            at = largest_that_recovers(losses.mean(0), self.tolerance)
            drawn = random.integers(0, len(losses), (_DRAWS, len(losses)))
            found = [largest_that_recovers(losses[own].mean(0), self.tolerance) for own in drawn]
            tail = (1 - self.confidence) / 2
            # Ends that are tried batch sizes: no quantile lies between two of them.
            first, last = np.quantile(found, [tail, 1 - tail], method="nearest").astype(int)
            low = float(sizes[first]) if first else 0.0
            high = float(sizes[last + 1]) if last + 1 < len(sizes) else math.inf
            why, b_local = "", math.nan
            if at + 1 == len(sizes):
                why = f"the largest branch recovers, too: try batch sizes above {sizes[-1]:,}"
            elif at == 0:
                why = f"the second branch does not recover: try batch sizes below {sizes[0]:,}"
            else:
                b_local = math.sqrt(sizes[at] * sizes[at + 1])
            if why and not np.isfinite(losses.mean(0)).all():
                why += "; larger ones diverge"
            rows.append((step, examples, loss, float(sizes[at]), b_local, low, high, why))
        return pd.DataFrame(rows, columns=list(columns.LOCAL))

    def warm_up(self) -> list[Change]:
        """Batch sizes to train with: doubled as soon as the local critical one is twice as large.

        The rule of Merrill et al. (2025). Where the largest branch recovers, too, its batch size
        takes the place of `b_local`; where no branch does but the smallest, nothing changes.

        Returns:
          The batch size from the beginning on, and every change; as `train_in_stages` takes them.
        """
        changes = [Change(0, self.batch_size)]
        table = self.table
        compared = table["recovers"] > self.losses["batch_size"].min()
        reach = table["b_local"].fillna(table["recovers"].where(compared)).fillna(0)
        for examples, reached in zip(table["examples"].tolist(), reach.tolist(), strict=True):
            size = changes[-1].batch_size
            while reached > 2 * size:
                size *= 2
            if size > changes[-1].batch_size:
                changes.append(Change(examples, size))
        # What changes before the first step was never otherwise.
        return changes[1:] if len(changes) > 1 and changes[1].examples == 0 else changes


def largest_that_recovers(losses: Float[np.ndarray, " branches"], tolerance: float) -> int:
    """The place of the last branch that is at most the tolerance above every one before it.

    The definition of Merrill et al. (2025), section 3.

    Args:
      losses: by increasing batch size.
      tolerance: in the unit of the losses.

    >>> largest_that_recovers(np.array([1.0, 1.005, 0.98, 1.2, math.inf]), 0.01)
    2
    """
    least = np.minimum.accumulate(losses)
    with np.errstate(invalid="ignore"):
        recovers = losses[1:] <= least[:-1] + tolerance
    return int(np.flatnonzero(np.r_[True, recovers & np.isfinite(losses[1:])])[-1])
