"""A curve fitted to steps to target, what it says, and why it may say nothing."""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from batchscale import numeric
from batchscale.numeric import short
from batchscale.scaling.curve import Form, Interval, log_steps
from batchscale.scaling.posterior import Posterior

# Choices.
_SEEN = 0.2  # over the fewest examples, or steps: an end that is so near is seen
WORST = 0.4  # standard deviation of log steps about the curve, above which it is none


class Refusal(enum.StrEnum):
    """Why a critical batch size is not quoted; `Fit.refused` says it with the numbers of the case.

    >>> print(Refusal.NO_PLATEAU)
    no plateau is certain within the batch sizes
    """

    TOO_FEW = "too few batch sizes reach the goal"
    SCATTER = "steps scatter so far about the curve that it is none of this form"
    NEITHER_END = "neither perfect scaling nor a plateau can be told from the scatter"
    NO_PLATEAU = "no plateau is certain within the batch sizes"
    NO_PERFECT_SCALING = "no perfect scaling is certain within the batch sizes"
    POWER_LAW = (
        "steps fall along a power law of the batch size, without the bend from perfect scaling to "
        "a plateau"
    )
    SCHEDULE = "the plateau may be the schedule's"
    EDGE = "the leading trials crowd an edge of the search space"


@dataclasses.dataclass(frozen=True)
class Fit:
    """A curve S = S_min (1 + (B_crit / B)^a)^(1/a) through steps to target.

    Attributes:
      form: `hyperbolic` (a = 1), `generalised`, or `averaged` over a.
      s_min: the steps of an infinite batch.
      b_crit: the batch size where the two asymptotes meet; with the hyperbola that at which twice
        the fewest steps and twice the fewest examples are needed (McCandlish et al. 2018). NaN
        where it is refused.
      sharpness: a.
      b_crit_interval: of B_crit, at `confidence`. It is that of steps scattered about the curve:
        the luck of the trials at each batch size, and the resolution of the evaluations.
      s_min_interval: of S_min, at the same confidence.
      confidence: for example 0.9.
      spread: the standard deviation of log steps about the curve.
      batch_sizes: how many reach the goal.
      misses: how many do not; each says that its steps are more than were evaluated.
      refused: why B_crit is not quoted, in words; empty if it is.
      refusals: the kinds of these reasons.
      cautions: what else a reader must know: that steps are minima over trials, that forms
        disagree, that an end is not seen.
    """

    form: Form
    s_min: float
    b_crit: float
    sharpness: float
    b_crit_interval: Interval
    s_min_interval: Interval
    confidence: float
    spread: float
    batch_sizes: int
    misses: int
    refused: str
    refusals: tuple[Refusal, ...] = ()
    cautions: tuple[str, ...] = ()
    _log_b_crit: float = dataclasses.field(repr=False, default=math.nan)
    _posterior: Posterior | None = dataclasses.field(repr=False, default=None, compare=False)

    def __str__(self) -> str:
        if self.refused:
            return f"no critical batch size is quoted: {self.refused}"
        low, high = self.b_crit_interval
        words = (
            f"critical batch size {short(self.b_crit)} ({self.confidence:.0%} interval "
            f"{short(low)} to {short(high)}), {short(self.s_min)} steps of an infinite batch, "
            f"{self._bend()}spread {self.spread:.2f}"
        )
        return "; ".join([words, *self.cautions])

    def _bend(self) -> str:
        return "" if self.form == "hyperbolic" else f"bend a = {short(self.sharpness, 2)}, "

    def refuse(self, refusal: Refusal, why: str) -> Fit:
        """The same curve without its B_crit, for a reason that steps alone do not tell.

        Args:
          refusal: the kind of the reason.
          why: in words; if empty there is none.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> print(fit(table).refuse(Refusal.SCHEDULE, "the plateau is a warm-up's"))
        no critical batch size is quoted: the plateau is a warm-up's
        """
        if not why:
            return self
        why = f"{why}; and {self.refused}" if self.refused else why
        return dataclasses.replace(
            self,
            b_crit=math.nan,
            b_crit_interval=Interval(0.0, math.inf),
            refused=why,
            refusals=(refusal, *self.refusals),
        )

    def steps(self, batch_sizes: ArrayLike) -> Float[np.ndarray, " batch_sizes"]:
        """The steps of the curve at batch sizes, also where B_crit is refused.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> fit(table).steps([16]).round(-1)
        array([120.])
        """
        sizes = np.asarray(batch_sizes, np.float64)
        if not (sizes >= 0).all():
            raise ValueError(f"batch_sizes: got {batch_sizes!r}, wanted numbers of at least 0.")
        with np.errstate(divide="ignore"):
            log_b = np.log(sizes)
        return np.exp(log_steps(log_b, math.log(self.s_min), self._log_b_crit, self.sharpness))

    def batch_size_at_overhead(self, overhead: float) -> float:
        """The batch size at which examples to target are (1 + overhead) times the fewest.

        With 0.2 the critical batch size of Zhang et al. (2024, arXiv:2410.21676), with 1 and the
        hyperbola that of McCandlish et al. (2018). NaN where B_crit is refused.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> found = fit(table)
        >>> round(found.batch_size_at_overhead(0.2) / found.b_crit, 3)
        0.2
        """
        return self._moved("overhead", overhead, 1.0)

    def batch_size_at_excess(self, excess: float) -> float:
        """The batch size at which steps to target are (1 + excess) times the fewest.

        With 0.2 no larger batch takes off more than a sixth of the steps. NaN where B_crit is
        refused.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256], "steps": [1710, 435, 116, 37, 16]}
        ... )
        >>> found = fit(table)
        >>> round(found.batch_size_at_excess(0.2) / found.b_crit, 3)
        5.0
        """
        return self._moved("excess", excess, -1.0)

    def overhead_interval(self, overhead: float) -> Interval:
        """The interval of `batch_size_at_overhead`, at `confidence`; NaN where it is not known.

        Of the hyperbola that batch size is a multiple of B_crit, and so is its interval; averaged
        over the sharpness of the bend it is wider, for far from B_crit forms differ most.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [1, 4, 16, 64, 256, 1024], "steps": [2500, 600, 180, 56, 31, 26]}
        ... )
        >>> narrow, wide = (
        ...     fit(table, form=form).overhead_interval(0.2) for form in ("hyperbolic", "averaged")
        ... )
        >>> wide.high / wide.low > narrow.high / narrow.low
        True
        """
        return self._moved_interval("overhead", overhead, 1.0)

    def excess_interval(self, excess: float) -> Interval:
        """The interval of `batch_size_at_excess`, at `confidence`; NaN where it is not known."""
        return self._moved_interval("excess", excess, -1.0)

    def _moved(self, name: str, share: float, sign: float) -> float:
        numeric.above(name, share, 0, "a share above 0, such as 0.2")
        if self._posterior is not None and not self.refused:
            if sign > 0:
                return self._posterior.batch_size_at_overhead(share, 0.5)
            return self._posterior.batch_size_at_excess(share, 0.5)
        return self.b_crit * moved(share, self.sharpness, sign)

    def _moved_interval(self, name: str, share: float, sign: float) -> Interval:
        numeric.above(name, share, 0, "a share above 0, such as 0.2")
        tail = (1 - self.confidence) / 2
        if self.refused or self.form == "generalised":
            return Interval(math.nan, math.nan)
        if self._posterior is None:
            ratio = self._moved(name, share, sign) / self.b_crit
            return Interval(*(end * ratio for end in self.b_crit_interval))
        of = self._posterior.batch_size_at_overhead
        of = of if sign > 0 else self._posterior.batch_size_at_excess
        return Interval(of(share, tail), of(share, 1 - tail))

    def unseen(self, smallest: float, largest: float) -> str:
        """What is not seen of the two ends of the curve, though B_crit is quoted; else empty.

        Perfect scaling is seen where the smallest batch size needs at most a fifth more than the
        fewest examples, the plateau where the largest needs at most a fifth more than the fewest
        steps: a B_crit without them rests on the form of the curve.

        Args:
          smallest: of the batch sizes that reach the goal.
          largest: of them.

        >>> import pandas as pd
        >>> from batchscale.scaling import fit
        >>> table = pd.DataFrame(
        ...     {"batch_size": [16, 32, 64, 128, 256], "steps": [36, 23, 16, 13, 12]}
        ... )
        >>> fit(table).unseen(16, 256)
        'perfect scaling is not seen, for it would end below the smallest batch size, 16'
        """
        if self.refused:
            return ""
        words = []
        if self.batch_size_at_overhead(_SEEN) < smallest:
            words.append(
                "perfect scaling is not seen, for it would end below the smallest batch size, "
                f"{smallest:,.0f}"
            )
        if self.batch_size_at_excess(_SEEN) > largest:
            words.append(
                "the plateau is not seen, for it would begin above the largest batch size, "
                f"{largest:,.0f}"
            )
        return ", and ".join(words)

    def cautioned(self, *words: str) -> Fit:
        """The same fit, with more that a reader must know; nothing is added for empty words."""
        more = tuple(word for word in words if word)
        return dataclasses.replace(self, cautions=(*self.cautions, *more))


def moved(share: float, sharpness: float, sign: float) -> float:
    """The batch size at which examples (sign 1) or steps (-1) are 1 + share of the fewest.

    In units of B_crit.

    >>> moved(1.0, 1.0, 1.0), round(moved(1.0, 0.5, 1.0), 2), round(moved(1.0, 0.5, -1.0), 1)
    (1.0, 0.17, 5.8)
    """
    return math.expm1(sharpness * math.log1p(share)) ** (sign / sharpness)


def judged(
    interval: Interval, spread: float, sizes: Interval, straight: bool, ends: Interval
) -> tuple[Interval, Refusal | None, str]:
    """The interval of B_crit as it may be told, and the reason to quote no B_crit, if there is one.

    Of a soft bend B_crit can lie within the batch sizes while both of the asymptotes that meet
    there lie outside, and it hangs on nothing but the form of the curve. So twice the fewest
    examples and twice the fewest steps have to lie within, which of the hyperbola is B_crit itself.

    Args:
      interval: as it was found.
      spread: the standard deviation of log steps about the curve.
      sizes: the smallest and the largest batch size that reach the goal.
      straight: whether a power law describes the steps as well.
      ends: the batch sizes of twice the fewest examples, and of twice the fewest steps.
    """
    if spread > WORST:
        words = (
            f"steps scatter by a factor of {math.exp(spread):.2g} about the curve: it is none of "
            "this form"
        )
        return interval, Refusal.SCATTER, words
    if interval.high > sizes.high and interval.low < sizes.low:
        return interval, Refusal.NEITHER_END, str(Refusal.NEITHER_END)
    if interval.high > sizes.high:
        words = f"{Refusal.NO_PLATEAU}: it is at least {short(interval.low)}"
        return Interval(interval.low, math.inf), Refusal.NO_PLATEAU, words
    if interval.low < sizes.low:
        words = f"{Refusal.NO_PERFECT_SCALING}: it is at most {short(interval.high)}"
        return Interval(0.0, interval.high), Refusal.NO_PERFECT_SCALING, words
    if straight:
        return Interval(0.0, math.inf), Refusal.POWER_LAW, str(Refusal.POWER_LAW)
    if ends.low < sizes.low:
        words = (
            f"{Refusal.NO_PERFECT_SCALING}: the smallest, {sizes.low:,.0f}, already needs over "
            "twice the fewest examples of the fitted curve"
        )
        return Interval(0.0, interval.high), Refusal.NO_PERFECT_SCALING, words
    if ends.high > sizes.high:
        words = (
            f"{Refusal.NO_PLATEAU}: the largest, {sizes.high:,.0f}, still needs over twice the "
            "fewest steps of the fitted curve"
        )
        return Interval(interval.low, math.inf), Refusal.NO_PLATEAU, words
    return interval, None, ""
