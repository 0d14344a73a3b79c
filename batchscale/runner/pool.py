"""Tasks on an executor: submitted, waited for, and tried again where a worker is lost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any, NamedTuple, Protocol, runtime_checkable

from batchscale.runner import sending

ATTEMPTS = 3
"""How often a task is tried whose worker is lost."""
_POLL = 0.5  # seconds between two looks at futures that are none of the standard library's
# Between two receptions pass so many times the seconds of the last, but no more than the second
# number: what comes back meanwhile is received together, which costs hardly more than one does.
_REST, _LONGEST_REST = 4.0, 10.0
_SILENT = 60.0  # seconds without a word from workers, after which that is said, and so on doubled


@runtime_checkable
class Submits(Protocol):
    """An executor, as far as it is needed: `concurrent.futures.Executor`, and what is like it."""

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        """Calls a function elsewhere; what it returns has `done()` and `result()`."""
        ...


_WANTED = (
    "a concurrent.futures.Executor, such as dask.distributed.Client().get_executor(), or a "
    "function that makes one"
)

Executor = Submits | Callable[[], Submits]
"""An executor; or a function that makes one, and is called again where that breaks."""


class Task(NamedTuple):
    """A call on a worker.

    Attributes:
      name: of what is done, in words.
      function: a plain function of a module.
      arguments: bytes, strings, and mappings of them.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class Returned(NamedTuple):
    """What came back of a task."""

    task: Task
    value: dict[str, Any]


Receive = Callable[[Sequence[Returned]], Iterable[Task]]
"""Takes what came back together, and says what is to be done next because of it."""


def check(executor: Any) -> None:
    """Refuses what is no executor.

    >>> check(4)
    Traceback (most recent call last):
    TypeError: executor: got 4, wanted a concurrent.futures.Executor, such as
    dask.distributed.Client().get_executor(), or a function that makes one.
    """
    if not _submits(executor) and not callable(executor):
        raise TypeError(f"executor: got {executor!r}, wanted {_WANTED}.")
    # What says of itself that it takes nothing any more: a pool of processes, of threads, Dask.
    ended = [getattr(executor, name, False) for name in ("_shutdown_thread", "_shutdown")]
    status = getattr(executor, "status", "")
    if any(end is True for end in ended) or (isinstance(status, str) and status == "closed"):
        raise ValueError(
            f"executor: got {type(executor).__name__}, which has been shut down. Give one that is "
            "open, or a function that makes one."
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "executor: the workers of a pool import the script that started them, and this one "
            'starts a pool again. Put what it calls below `if __name__ == "__main__":`.'
        )


def carry_out(
    executor: Executor,
    tasks: Iterable[Task],
    receive: Receive,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Carries tasks out, in this order as far as there are workers, and those that follow them.

    A task whose worker is lost is tried again, `ATTEMPTS` times in all. After an error nothing new
    is begun; what is under way is waited for and received, and then the error is raised. After an
    interruption nothing is waited for, but what has come back is received.

    Args:
      executor: as the user gave it.
      tasks: the calls.
      receive: is given what came back. A task that returned an `error` comes to it as well.
      say: shows a line, where nothing has come back for long.

    Raises:
      RuntimeError: a task lost its worker each time, or the executor is broken.
      Exception: what a task returned as its `error`, or `receive` raised.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> found = []
    >>> def receive(returned):
    ...     found.extend(one.value["sum"] for one in returned)
    ...     return ()
    >>> tasks = [Task(f"task {n}", lambda n: {"sum": n + 1}, (n,)) for n in range(3)]
    >>> with ThreadPoolExecutor(2) as executor:
    ...     carry_out(executor, tasks, receive)
    >>> sorted(found)
    [1, 2, 3]
    """
    run = _Run(_Workers(executor), receive, deque(tasks), say)
    try:
        run.run()
    except (KeyboardInterrupt, SystemExit):
        run.workers.end()
        raise
    finally:
        run.workers.close()


class _Workers:
    """The executor in use; one that was made here is made anew where it breaks."""

    def __init__(self, given: Executor) -> None:
        self._make: Any = None if _submits(given) else given
        self._executor: Any = given if _submits(given) else None
        self._others = set(multiprocessing.active_children())

    def submit(self, task: Task) -> Any:
        if self._executor is None:
            made = self._make()
            if not _submits(made):
                raise TypeError(f"executor: its function returned {made!r}, wanted {_WANTED}.")
            self._executor = made
        return self._executor.submit(task.function, *task.arguments)

    @property
    def current(self) -> Submits | None:
        return self._executor

    def broke(self, executor: Submits | None) -> bool:
        """Says whether another takes the place of one that broke."""
        if self._make is None:
            return False
        if executor is self._executor:
            self.close()
        return True

    def end(self) -> None:
        """Ends the executor with its processes, if it was made here: nobody would wait for them.

        A process that ends by a signal takes none of them with it.
        """
        if self._make is not None:
            self.close()
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()

    def close(self) -> None:
        """Ends the executor, if it was made here."""
        if self._make is not None and self._executor is not None:
            shutdown = getattr(self._executor, "shutdown", None)
            if shutdown is not None:
                shutdown(wait=False, cancel_futures=True)
            self._executor = None


class _Run:
    """Tasks that are waiting, under way, and lost so often."""

    def __init__(
        self,
        workers: _Workers,
        receive: Receive,
        waiting: deque[Task],
        say: Callable[[str], None],
    ) -> None:
        self.workers = workers
        self._say = say
        self._receive = receive
        self._waiting = waiting
        self._running: dict[Any, tuple[Task, Submits | None]] = {}
        self._lost: dict[str, int] = {}
        self._returned: list[Returned] = []  # and not yet received
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._submit()
            while self._running:
                ended, began = self._ended(), time.monotonic()
                self._take(ended)
                self._submit()  # what follows is not to wait for us
                if len(self._running) > 1:
                    time.sleep(min(_REST * (time.monotonic() - began), _LONGEST_REST))
        except BaseException:
            done = [future for future in self._running if future.done()]
            self._cancel()
            with contextlib.suppress(Exception):  # what interrupted us is to be told
                self._take(done)
            raise
        if self._error is not None:
            raise self._error

    def _submit(self) -> None:
        while self._waiting:
            task = self._waiting[0]
            try:
                future = self.workers.submit(task)
            except BrokenExecutor as error:
                if not self._lose(task, error, self.workers.current):
                    return
                continue
            except Exception as error:
                if self.workers.current is None:  # the user's function has failed
                    raise
                raise RuntimeError(
                    f"executor: {type(self.workers.current).__name__} takes no task "
                    f"({_words(error)}). Give one that is open, or a function that makes one."
                ) from error
            if not (hasattr(future, "done") and hasattr(future, "result")):
                raise TypeError(
                    f"executor: submit of {type(self.workers.current).__name__} returned "
                    f"{future!r}, wanted a future, which has done and result."
                )
            self._waiting.popleft()
            self._running[future] = task, self.workers.current

    def _ended(self) -> list[Any]:
        """Futures that have ended, at least one if any is under way."""
        began, told = time.monotonic(), _SILENT
        while True:
            if all(isinstance(future, Future) for future in self._running):
                found, _ = concurrent.futures.wait(
                    self._running, _SILENT, concurrent.futures.FIRST_COMPLETED
                )
            else:
                found = {future for future in self._running if future.done()}
                time.sleep(0 if found else _POLL)
            if found:
                return [future for future in self._running if future in found]
            if (silent := time.monotonic() - began) >= told:
                told *= 2
                names = ", ".join(task.name for task, _ in self._running.values())
                self._say(
                    f"nothing has come back from workers for {silent:.0f} s ({names}); they hand "
                    "over what they have every ten minutes, once they are there"
                )

    def _take(self, ended: Sequence[Any]) -> None:
        """Receives what came back; of what did not, decides what becomes of it."""
        for future in ended:
            task, executor = self._running.pop(future)
            try:
                value = future.result()
            except Exception as error:
                if self._error is None and self._lose(task, error, executor):
                    self._waiting.append(task)
                continue
            if (found := _fault(task, value)) is None:
                self._returned.append(Returned(task, value))
                continue
            if isinstance(found, Exception):  # nothing of it can be used
                self._fail(found)
                continue
            error = sending.rebuilt(found)
            if self._error is not None:
                continue
            if found["of_machine"] and self._count(task) < ATTEMPTS:
                self._tell(task, error)
                self._waiting.append(task)
                continue
            self._returned.append(Returned(task, value))
            self._fail(error)
        try:
            following = list(self._receive(self._returned)) if self._returned else []
        except Exception as error:
            self._fail(error)
            following = []
        self._returned = []  # an interruption above leaves them to be received again
        if self._error is None:
            self._waiting.extendleft(reversed(following))

    def _count(self, task: Task) -> int:
        self._lost[task.name] = self._lost.get(task.name, 0) + 1
        return self._lost[task.name]

    def _tell(self, task: Task, error: Exception) -> None:
        warnings.warn(
            f"executor: {task.name} was lost with its worker ({_words(error)}), and is tried "
            f"again: {self._lost[task.name] + 1} of {ATTEMPTS}.",
            stacklevel=2,
        )

    def _lose(self, task: Task, error: Exception, executor: Submits | None) -> bool:
        """Takes down that a worker was lost; says whether the task is tried again."""
        replaced = not isinstance(error, BrokenExecutor) or self.workers.broke(executor)
        if replaced and self._count(task) < ATTEMPTS:
            self._tell(task, error)
            return True
        why = (
            f"{task.name} was lost with its worker {ATTEMPTS} times, at last by {_words(error)}. "
            "Give its workers more memory or time; and in a script that starts processes, put the "
            'call below `if __name__ == "__main__":`'
            if replaced
            else f"the pool broke under {task.name} ({_words(error)}). A function that makes one, "
            "such as executor=lambda: ProcessPoolExecutor(2), is called again where that happens"
        )
        told = RuntimeError(
            f"executor: {why}. What came back is written; the same call goes on from it."
        )
        told.__cause__ = error
        self._fail(told)
        return False

    def _fail(self, error: Exception) -> None:
        """From here on nothing new is begun."""
        self._error = self._error or error
        self._waiting.clear()
        self._cancel()

    def _cancel(self) -> None:
        for future in self._running:
            with contextlib.suppress(Exception):  # what is no standard future may not have it
                future.cancel()


def _fault(task: Task, value: Any) -> dict[str, Any] | Exception | None:
    """The error that a task returned; an exception where it returned no answer at all."""
    of_error = {"module": str, "name": str, "arguments": list, "words": str, "note": str}
    if isinstance(value, Mapping):
        found = value.get("error")
        if found is None:
            return None
        kinds = {**of_error, "of_machine": bool}
        if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items()):
            return found
    return ValueError(
        f"executor: what a worker returned of {task.name} is no answer ({type(value).__name__}). "
        "Nothing of it is written; the same call runs it again. Give an executor that returns "
        "what its tasks return."
    )


def _submits(executor: Any) -> bool:
    return isinstance(executor, Submits) and not isinstance(executor, type)


def _words(error: Exception) -> str:
    words = str(error).rstrip(".")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
