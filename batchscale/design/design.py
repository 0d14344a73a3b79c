"""One design across batch sizes: what is asked next, from what is known, and when it ends."""

from __future__ import annotations

import math

import numpy as np

from batchscale.design.answering import Answer, answer
from batchscale.design.asking import ask, scout
from batchscale.design.basins import Basins, basins
from batchscale.design.checking import design_trials
from batchscale.design.doubting import final, search, select
from batchscale.design.fitting import Fitted, fit, newton_without_curve
from batchscale.design.model import Model
from batchscale.design.question import Asked, Question, Round, Spent
from batchscale.design.trials import Purpose, Trials
from batchscale.scaling.posterior import posterior, smooth

# Choices.
_SEEDS = 5  # that check each quoted setting, and more where lanes would idle
_MOST_SEEDS = 9
_CHECKED_AGAIN = 20  # seeds of a batch size, up to which settings that have moved are checked anew
_MOST_FRESH = 40  # of a quoted setting, where a finer precision is asked for
_Z = 1.6449  # of 90%
_SEARCH_RUNS = 75  # that a search in the place of the model costs a batch size
_MOST_DOUBTED = 0.5  # of the batch sizes: where more are, another study is needed
_FEWEST = 4  # crossings of a batch size before anything is quoted
_LEAST_ROUNDS = 4
_MOST_TRIALS = 48  # a batch size: more say no more than another model would
_PATIENCE = 4.0  # a check is a miss after so many times the level
_CURVE_FROM = 3  # the round from which the misfit of the curve is taken from the levels
_ROUND = 0.12  # a round costs at most this share of what may be spent


class Design:
    """The state of a measurement, all of which follows from its trials.

    Args:
      question: what is asked.
      trials: that were run, in the order of their rounds.
      warm: the parameters of an earlier fit, to begin from.
    """

    def __init__(self, question: Question, trials: Trials, warm: np.ndarray | None = None) -> None:
        self.question, self.trials = question, trials
        # A folder of an earlier version may hold those of another model.
        fits = warm is not None and len(warm) == question.model().parameters
        self._warm = warm if fits else None
        self._fitted: Fitted | None = None
        self._basins: Basins | None = None
        self._answer: Answer | None = None

    @property
    def round(self) -> int:
        """The number of the round that comes next."""
        return int(self.trials.round.max()) + 1 if len(self.trials) else 0

    @property
    def fitted(self) -> Fitted:
        """The model of the design's trials."""
        if self._fitted is None:
            model, trials = self.question.model(), design_trials(self.trials)
            late = self._warm is not None and self.round > _CURVE_FROM
            if self._warm is not None and late:
                known = misfit_of(model, trials, self._warm)
                model.misfit = max(known, 0.03)
            fresh = not late or self.round % 4 == 0
            self._fitted = fit(model, trials, warm=self._warm, fresh=fresh)
            self._basins = basins(self._fitted)
            if self._basins is not None:
                self._fitted = self._basins.fitted()
        return self._fitted

    @property
    def answer(self) -> Answer:
        """What the trials say so far."""
        if self._answer is None:
            self._answer = answer(
                self.fitted, self.trials, self._basins, spacing=self.question.spacing
            )
        return self._answer

    @property
    def widths(self) -> tuple[float, float] | None:
        """Half widths of the steps' widest interval and of B_crit's, if they have been looked at.

        In logs; that of B_crit is inf where it is not within the batch sizes.
        """
        return None if self._answer is None else (self._answer.width, self._answer.b_crit_width)

    def next(self, spent: Spent) -> Round:
        """The next round; nothing asked and the reason, where the measurement is done.

        Args:
          spent: on the trials so far.
        """
        if not len(self.trials):
            return scout(self.question)
        if not self.trials.crossed.any():
            return Round([], why="no trial of the scout reached the goal")
        # Batch sizes may be added after others have been checked.
        tried = np.bincount(self.trials.size, minlength=self.question.sizes) > 0
        checked = self._checked() and bool(tried.all())
        left = self._left(spent)
        if checked:
            return self._after_check(left)
        reserved = self._check_price()
        why = self._enough(left, reserved)
        if why:
            return self._check(_SEEDS)
        share = _ROUND * self._all()
        # Before the first rounds the price of the check is not known.
        most = max(min(left - reserved, share), 0.1 * left)
        found = ask(self.fitted, self.question, self.round, most, self._basins)
        return found if found.asked else self._check(_SEEDS)

    def _checked(self) -> bool:
        """Whether the last trials were fresh seeds of quoted settings."""
        last = self.trials.round == self.trials.round.max()
        return bool((self.trials.purpose[last] >= Purpose.CHECK).all())

    def _all(self) -> float:
        """What may be spent, in the unit of `seconds`; without a limit, a multiple of the check."""
        question = self.question
        if math.isinf(question.price) and math.isinf(question.examples):
            return 8 * float(_SEEDS * self._a_seed().sum() * 1.05)
        ratio = self._price_of_an_example()
        return min(question.price, question.examples * ratio)

    def _price_of_an_example(self) -> float:
        """Of the trials at the settings of the model, in the unit of `seconds`."""
        steps = np.exp(self.fitted.level)
        question = self.question
        return float((question.seconds * steps).sum() / (question.batch_sizes * steps).sum())

    def _left(self, spent: Spent) -> float:
        question = self.question
        by_examples = (question.examples - spent.examples) * self._price_of_an_example()
        return min(question.price - spent.price, by_examples)

    def _check_price(self) -> float:
        """An idle lane of a pack costs as much as one at work."""
        lanes = self.question.lanes
        return float((-(-_SEEDS // lanes) * lanes * self._a_seed()).sum() * 1.05)

    def _a_seed(self) -> np.ndarray:
        """The price of the setting of each batch size under one seed."""
        steps = np.minimum(np.exp(self.fitted.level), self.question.max_steps)
        return steps * self.question.seconds

    def _enough(self, left: float, reserved: float) -> str:
        """Why no more trials are asked for; empty if they are."""
        early = self.round < _LEAST_ROUNDS and left > 0.5 * self._all()
        if left <= reserved and not early:
            return "price"
        trials, n = design_trials(self.trials), self.question.sizes
        crossed = np.bincount(trials.size[trials.crossed], minlength=n)
        if (np.bincount(trials.size, minlength=n) > _MOST_TRIALS).all():
            return "trials"
        if self.round < _LEAST_ROUNDS or (crossed < _FEWEST).any():
            return ""
        return "precision" if self._precise() else ""

    def _precise(self) -> bool:
        found = self.answer
        wide = found.b_crit_width
        # Where B_crit is not within the batch sizes, more trials do not bring it there.
        return found.width <= self.question.precision and (
            wide <= self.question.precision or math.isinf(wide)
        )

    def _check(self, seeds: int) -> Round:
        fitted, question = self.fitted, self.question
        asked = []
        for size in range(question.sizes):
            lanes = int(question.lanes[size])
            full = -(-seeds // lanes) * lanes if lanes <= _MOST_SEEDS else seeds
            limit = min(_PATIENCE * math.exp(fitted.level[size]), float(question.max_steps[size]))
            one = Asked(
                size,
                float(fitted.rate[size]),
                float(fitted.second[size]),
                limit,
                Purpose.CHECK,
            )
            asked += [one] * full
        return Round(asked)

    def _after_check(self, left: float) -> Round:
        """A search where the model is doubted; else more trials, or the end."""
        found, trials = self.answer, self.trials
        last = int(trials.purpose[trials.round == trials.round.max()][0])
        begun = np.unique(trials.size[trials.purpose == Purpose.SEARCH])
        if last == Purpose.SEARCH:
            return select(self.question, self.fitted, trials, begun)
        if last == Purpose.SELECT:
            return final(self.question, trials, begun)
        where = np.setdiff1d(np.flatnonzero(found.doubted), begun)
        price = self._search_price(where)
        if len(where) and len(where) <= _MOST_DOUBTED * self.question.sizes and price < left:
            return search(self.question, self.fitted, where, self.round)
        # What is quoted may have moved away from what was checked, where trials are few.
        checks = np.bincount(
            trials.size[trials.purpose == Purpose.CHECK], minlength=len(found.seeds)
        )
        moved = (found.seeds < _SEEDS) & ~found.searched & (checks < _CHECKED_AGAIN)
        if moved.any() and left > self._check_price():
            return self._check(_SEEDS)
        if self._precise():
            return Round([], why="precision")
        wide = found.log_steps_sd * _Z > self.question.precision
        if len(begun) and not (wide & ~found.searched).any():
            return Round([], why="search")  # more trials say nothing where the model is not used
        if left <= self._check_price():
            return Round([], why="price")
        return self._more(left)

    def _search_price(self, sizes: np.ndarray) -> float:
        steps = np.minimum(np.exp(self.fitted.level), self.question.max_steps)
        return float(_SEARCH_RUNS * (steps * self.question.seconds)[sizes].sum())

    def _more(self, left: float) -> Round:
        trials, n = self.trials, self.question.sizes
        if (np.bincount(trials.size, minlength=n) > _MOST_TRIALS).all():
            return Round([], why="trials")
        left -= self._check_price()
        found = ask(self.fitted, self.question, self.round, left, self._basins)
        if found.asked:
            return found
        # The model has nothing more to ask: what is left is by the fresh seeds.
        if (self.answer.levels.seeds < _MOST_FRESH).any():
            return self._check(_SEEDS)
        return Round([], why="precision of the model")


def misfit_of(model: Model, trials: Trials, warm: np.ndarray) -> float:
    """The misfit of the curve, from levels that were not drawn to it."""
    found = fit(model, trials, warm=warm, fresh=False, rounds=1, steps=3)
    mean, covariance = newton_without_curve(found)
    return posterior(model.log_batch, mean, covariance, smooth(model.log_batch)).misfit
