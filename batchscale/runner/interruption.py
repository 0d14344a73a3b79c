"""Signals that ask a run to end: the segment in flight is finished and written down first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

# Of these, those whose handlers are Python's own: a handler that a program chose is left alone.
_USUAL: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}


class Interruption:
    """Ctrl-C, SIGTERM and SIGHUP, while a run is entered: a segment in flight is finished first.

    The first signal puts the usual handlers back, so that a second one stops at once, and raises
    where nothing is held: `KeyboardInterrupt` for Ctrl-C, otherwise `SystemExit`; where something
    is, that is raised when it ends. After SIGTERM and SIGHUP the process is ended by the same
    signal when the run is left, everything written and closed: its status is the usual one.

    Handlers are changed in the main thread alone, and only where they are Python's own.

    Args:
      say: shows a line.

    >>> with Interruption(lambda line: print(line[:6])) as interruption:
    ...     try:
    ...         with interruption.held():
    ...             signal.raise_signal(signal.SIGINT)
    ...             print("the segment ends")
    ...     except KeyboardInterrupt:
    ...         print("then the run")
    SIGINT
    the segment ends
    then the run

    Attributes:
      say: shows a line.
      asked: the signal that came, if one did.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.asked: signal.Signals | None = None
        self._holds = False
        self._former: dict[signal.Signals, Any] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What is inside is finished before a signal ends the run.

        Raises:
          KeyboardInterrupt, SystemExit: at its end, where one came.
        """
        self._end_if_asked()
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
        self._end_if_asked()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name, usual in _USUAL.items():
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and signal.getsignal(number) == usual:
                    self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._put_back()
        if self.asked in (None, signal.SIGINT):
            return
        if error is not None and not isinstance(error, SystemExit):
            self.say(f"{type(error).__name__}: {error}")  # no traceback follows
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os.kill(os.getpid(), self.asked)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._put_back()
        self.asked = signal.Signals(number)
        if self._holds:
            self.say(
                f"{self.asked.name}: what is being trained is finished and written first, up to "
                "its next evaluation. Once more stops at once."
            )
        else:
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            raise SystemExit(128 + self.asked)

    def _put_back(self) -> None:
        for number, former in self._former.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, former)
        self._former = {}
