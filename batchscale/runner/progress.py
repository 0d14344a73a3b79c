"""What a run says while it runs: its progress, what it measures, and the bar that shows it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from batchscale.engine import hosts
from batchscale.given import switch
from batchscale.metrics import Goal

_SECONDS = 0.2  # between two refreshments
_FIRST = 5.0  # seconds of a call that says nothing
_LINES = 30.0  # seconds between two lines, where there is no terminal
# Closed, a terminal that is gone, a pipe that nobody reads, a full disk; or, of a signal that is
# told, another line that it came within.
_UNHEARD = contextlib.suppress(OSError, ValueError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class TrialEvaluation:
    """What was measured of one trial at one step: a row of `Result.measurements`, and its trial's.

    Attributes:
      folder: that it is written into. With `batch_size`, `trial` and `replicate` it names the
        trial, also where one call makes several studies, as `recommend` does.
      batch_size: examples a step.
      trial: its number.
      replicate: 0, or the seed under which the trial is run again.
      step: after which it was measured.
      values: by `split/metric`; what was not measured at this step is left out.
      hyperparameters: of the trial, by name.

    >>> row = TrialEvaluation(
    ...     Path("runs/mine"), 64, 7, 0, 120, {"validation/error": 0.05}, {"learning_rate": 0.3})
    >>> row.name
    'mine/64/7/0'
    """

    folder: Path
    batch_size: int
    trial: int
    replicate: int
    step: int
    values: dict[str, float]
    hyperparameters: dict[str, float]

    @property
    def name(self) -> str:
        """Of the trial, to be shown: its folder's, batch size, number and replicate."""
        return f"{self.folder.name}/{self.batch_size}/{self.trial}/{self.replicate}"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback is told after every evaluation.

    Attributes:
      batch_size: the batch size that is running.
      step: the step that was evaluated.
      max_steps: the last step that may have to be.
      best: the best value of the goal's metric there, NaN if nothing is finite.
      steps: the steps to target, once they are known; inf if the goal was not reached.
      trials: feasible trials at this step.
      infeasible: trials that have diverged.
      seconds: since this batch size began, in this process.
      finished: whether the batch size is done.
      measured: makes `evaluations`, for who asks: most callbacks do not.
    """

    batch_size: int
    step: int
    max_steps: int
    best: float
    steps: float
    trials: int
    infeasible: int
    seconds: float
    finished: bool
    measured: Callable[[], tuple[TrialEvaluation, ...]] = dataclasses.field(
        default=tuple, repr=False, compare=False
    )

    @functools.cached_property
    def evaluations(self) -> tuple[TrialEvaluation, ...]:
        """What has been measured since the callback was told before, one a trial.

        None once the batch size is done, and none of a trial that has just diverged. What is found
        in the folder when a run goes on is not told again.
        """
        return self.measured()


class ProgressBar:
    """A bar over batch sizes, and a line for each that is done.

    Where standard error is no terminal, but a log, there are lines alone: one for each batch size
    that is done, and one every half minute.

    Args:
      batch_sizes: how many there are.
      goal: what is looked for.
      title: what runs.
      quiet: whether the end of a batch size is no news, for it comes again and again.
    """

    def __init__(self, batch_sizes: int, goal: Goal, title: str, *, quiet: bool = False) -> None:
        self._goal, self._title, self._quiet = goal, title, quiet
        self._shown = time.monotonic() if not _live() else 0.0
        self._bar = None
        if _live():
            self._bar = tqdm(
                total=batch_sizes,
                desc=title,
                leave=False,
                # Batch sizes take very different times: no rate and no time left.
                bar_format="{desc}: {elapsed}{postfix}"
                if quiet
                else "{desc}: {n_fmt}/{total_fmt} batch sizes |{bar:10}| {elapsed}{postfix}",
            )

    def __call__(self, progress: Progress) -> None:
        """Shows one more evaluation."""
        if progress.finished and self._quiet:
            return
        if progress.finished:
            self.say(sentence(progress, self._goal))
            if self._bar is not None:
                with _UNHEARD:
                    self._bar.update()
            return
        best = "" if math.isnan(progress.best) else f", best {self._goal.metric} "
        best += f"{progress.best:.4g}" if best else ""
        words = f"batch size {progress.batch_size}: step {progress.step:,}{best}"
        late = time.monotonic() - self._shown > (_LINES if self._bar is None else _SECONDS)
        if self._bar is not None:
            with _UNHEARD:
                self._bar.set_postfix_str(words, refresh=late)
        elif late:
            self.say(f"{self._title}: {words}")
        if late:
            self._shown = time.monotonic()

    def say(self, line: str) -> None:
        """Writes a line, above the bar if there is one."""
        if self._bar is None:
            tell(line)
            return
        with _UNHEARD:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            with _UNHEARD:
                self._bar.close()


def tell(line: str) -> None:
    """Writes a line to standard error, if there is one that can be written: no run ends by it."""
    if sys.stderr is not None:
        with _UNHEARD:
            print(line, file=sys.stderr, flush=True)


def lines(progress: bool) -> Callable[[str], None]:
    """What shows lines of a call that has no bar: `tell`, or nothing.

    Args:
      progress: whether lines are shown; of several processes the first alone shows them.

    >>> lines(False)("nobody hears this")
    >>> lines(None)
    Traceback (most recent call last):
    TypeError: progress: got None, wanted True or False.
    """
    switch("progress", progress)
    return tell if progress and hosts.is_first() else lambda _: None


class Seldom:
    """Says a line where the last one is some time ago, and none in a call that is soon done.

    Args:
      say: shows a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._next = say, time.monotonic() + _FIRST

    def __call__(self, line: str) -> None:
        """Shows it, or not."""
        if time.monotonic() >= self._next:
            self._say(line)
            self._next = time.monotonic() + _LINES


def _live() -> bool:
    """Whether a line can be written over: in a terminal, and in a notebook."""
    if "ipykernel" in sys.modules:
        return True
    with contextlib.suppress(AttributeError, ValueError):  # none, or closed
        return sys.stderr.isatty()
    return False


def sentence(progress: Progress, goal: Goal) -> str:
    """One line about a batch size that is done.

    >>> done = Progress(64, 932, 20000, 0.0298, 932, 32, 3, 4.2, True)
    >>> sentence(done, Goal("validation/error", 0.03))
    'batch size     64:     932 steps to validation/error < 0.03 (32 trials, 3 diverged, 4.2 s)'
    """
    if math.isfinite(progress.steps):
        found = f"{int(progress.steps):7,} steps to {goal}"
    else:
        found = (
            f"{goal} not reached in {progress.max_steps:,} steps, {progress.best:.4g} at the end"
        )
    infeasible = f", {progress.infeasible} diverged" if progress.infeasible else ""
    return (
        f"batch size {progress.batch_size:6,}: {found} "
        f"({progress.trials} trials{infeasible}{took(progress)})"
    )


def took(progress: Progress) -> str:
    """The time of a batch size that is done, in words; none where it was found done.

    >>> done = Progress(64, 932, 20000, 0.0298, 932, 32, 3, 0.004, True)
    >>> took(done), took(dataclasses.replace(done, seconds=4.21))
    ('', ', 4.2 s')
    """
    return f", {progress.seconds:.1f} s" if progress.seconds >= 0.05 else ""
