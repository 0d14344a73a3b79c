"""What functions of this package are given, refused by its name before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from batchscale.given import described, instance
from batchscale.workloads import Workload


def check_study(study: Any) -> None:
    """Refuses an argument `study` that is none.

    >>> check_study("mnist")
    Traceback (most recent call last):
    TypeError: study: got 'mnist', wanted a Study.
    """
    if isinstance(study, type) or not hasattr(study, "planned_trial"):
        raise TypeError(f"study: got {described(study)}, wanted a Study.")


def check_result(result: Any) -> None:
    """Refuses an argument `result` that is none.

    >>> check_result(None)
    Traceback (most recent call last):
    TypeError: result: got None, wanted the result of the study: batchscale.load(folder).
    """
    if isinstance(result, type) or not all(
        hasattr(result, x) for x in ("definition", "measurements")
    ):
        raise TypeError(
            f"result: got {described(result)}, wanted the result of the study: "
            "batchscale.load(folder)."
        )


def check_workload(workload: Any) -> None:
    """Refuses an argument `workload` that is none.

    >>> check_workload("mnist/fc_64")
    Traceback (most recent call last):
    TypeError: workload: got 'mnist/fc_64', wanted a Workload: workloads.get(name), or one of your
    own.
    """
    wanted = "a Workload: workloads.get(name), or one of your own"
    instance("workload", workload, Workload, wanted)


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], taken: tuple[str, ...]
) -> None:
    """Refuses options that a function does not have, or that are `taken` by its caller.

    >>> def scaled(x, *, by=1): ...
    >>> check_options(scaled, {"to": 2}, ("x",))
    Traceback (most recent call last):
    TypeError: scaled has no option 'to'; wanted any of by.
    """
    known = [name for name in inspect.signature(function).parameters if name not in taken]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{function.__name__} has no option {name!r}; wanted any of {', '.join(known)}."
            )
