"""Whether the optimizer and the schedule find the hyperparameters that they need in the space."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchscale import columns, schedules
from batchscale.optimizers import Optimizer
from batchscale.schedules import OfSteps, Schedule
from batchscale.tuner import SearchSpace
from batchscale.workloads import Workload, tracing

_SCHEDULED = (
    " It is what schedules change from step to step: an optimizer of one's own reads it as "
    'h["learning_rate"], whatever else is in the space.'
)


def names(
    space: SearchSpace, optimizer: Optimizer, schedule: str | Schedule | OfSteps, workload: Workload
) -> None:
    """Checks names: those of the parts, and that what is needed is in the space.

    What nothing reads is found here where the readers say what they read; `updates` finds the rest.
    Traces the optimizer's factory and the schedule; loads nothing, and starts no backend.
    """
    columns.check_label("workload", workload.name)
    columns.check_label("optimizer", optimizer.name)
    title = schedules.name(schedule)
    needed = dict.fromkeys(schedules.get(schedule)[1], f"schedule {title!r}")
    needed |= dict.fromkeys(optimizer.required, f"optimizer {optimizer.name!r}")
    for name, by in needed.items():
        if name not in space:
            raise ValueError(
                f"space: {by} needs {name!r}, and the space has {', '.join(space)}. "
                f"Add {name}=... to the SearchSpace; a plain number is a fixed value."
                + _SCHEDULED
                * (name == "learning_rate" and optimizer.takes_all)
            )
    values = dict.fromkeys(space, jax.ShapeDtypeStruct((), np.float32))
    if optimizer.takes_all:

        def make(values: dict[str, Any]) -> int:
            optimizer.transformation(values, None)
            return 0

        with tracing.told(f"optimizer {optimizer.name!r}", **_remedies(space)):
            tracing.shapes(make, values)
    if callable(schedule):
        rate(schedules.get(schedule)[0], values, schedules.name(schedule))
    if optimizer.takes_all or callable(schedule) or workload.hyperparameters is None:
        return
    read = {*needed, *optimizer.defaults, *workload.hyperparameters}
    unread = [name for name in space if name not in read]
    if unread:
        raise ValueError(
            f"space: nothing reads {', '.join(map(repr, unread))}; optimizer "
            f"{optimizer.name!r}, schedule {title!r} and workload "
            f"{workload.name!r} read {', '.join(sorted(read))}."
        )


def rate(schedule: Schedule, values: dict[str, Any], title: str) -> None:
    """Refuses a schedule of one's own that does not make one number of what it is given."""
    what = f"schedule {title!r}"
    step = jax.ShapeDtypeStruct((), np.int32)
    with tracing.told(what, **_remedies(values)):
        found = tracing.shapes(schedule, step, values)
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape != ():
        raise ValueError(f"{what}: it returns {found}, wanted one number, the learning rate.")
    if not jnp.issubdtype(found.dtype, jnp.number):
        raise ValueError(f"{what}: it returns {found.dtype}, wanted a number, the learning rate.")


def _remedies(names: Any) -> dict[str, str]:
    return {
        "lookup": f"The space has the hyperparameters {', '.join(names)}. Add it to the "
        "SearchSpace, where a plain number is a fixed value, or spell it as there.",
        "remedy": "An optimizer of one's own is a function of a mapping of hyperparameters that "
        "makes an optax transformation; a schedule is a function of (step, hyperparameters) that "
        "returns the learning rate.",
    }
