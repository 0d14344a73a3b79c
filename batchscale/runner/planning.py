"""The plan of a study, on disk before anything runs: made, taken up, or refused as another's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import pandas as pd
from jax.sharding import Mesh

from batchscale import arrays, datasets, keys, records
from batchscale.engine.engine import Training
from batchscale.engine.evaluation import counted
from batchscale.engine.layout import LayoutOf, evaluation_batch, worth_sharing
from batchscale.metrics import Goal
from batchscale.plan import Definition, Plan
from batchscale.records import Origin, StudyFolder
from batchscale.runner.costs import work_of
from batchscale.runner.pacing import paces
from batchscale.stored import opening
from batchscale.workloads import Workload
from batchscale.workloads.coupling import metrics_of_batches, mixes_examples, mixes_groups
from batchscale.workloads.fingerprint import changes, fingerprint

_TRAJECTORIES = {
    "float_type": "Run it with JAX_ENABLE_X64 as it was then (wanted {})",
    "matmul_precision": "Set jax_default_matmul_precision as it was then (wanted {})",
}


@runtime_checkable
class RunPlan(Protocol):
    """A plan that says under what each of its batch sizes was run."""

    @property
    def conditions(self) -> dict[int, list[dict[str, Any]]]:
        """By batch size, under what it was run, from `records.conditions`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        ...


def begin(
    plan: RunPlan, batch_size: int, conditions: Mapping[str, Any], folder: StudyFolder
) -> None:
    """Writes into a plan what a batch size is run under, where that is new.

    Args:
      plan: of the folder.
      batch_size: that begins, or goes on.
      conditions: from `conditions`.
      folder: where the plan is.
    """
    if records.runs_under(plan.conditions, batch_size, conditions):
        folder.write_plan(plan.to_json())


def conditions(mesh: Mesh) -> dict[str, Any]:
    """What trials run under here."""
    return records.conditions([*mesh.devices.flat], str(arrays.float_type()))


def identity(plan: Plan) -> dict[str, Any]:
    """What a training state must have been written under to be taken up."""
    definition, floats = plan.definition, str(arrays.float_type())
    return {"study": dict(plan.fingerprint), "seed": definition.seed, "type of floats": floats}


def same_study(
    plan: Plan, training: Training, definition: Definition, mesh: Mesh, where: os.PathLike[str]
) -> None:
    """Refuses a plan of another study, and tells what it was run under otherwise.

    Args:
      plan: that a folder holds.
      training: what is to be trained there.
      definition: of the study that is to be run there.
      mesh: where it is to be run.
      where: the folder, for errors.

    Raises:
      ValueError: the data, the model or the study differ; or batch sizes were begun under another
        type of floats, or another precision of matrix products.
    """
    differ = plan.definition.differences(definition)
    differ += [f"{what} changed" for what in changes(plan.fingerprint, _marks(training))]
    if differ:
        lacks = plan.definition.lacks(definition)
        more = f" It is smaller, too, which study.extend(folder) mends ({'; '.join(lacks)})."
        of_goal = (
            " An easier goal is read off what was measured: "
            "batchscale.load(folder).steps_to_target(goal)."
            if [what.partition(":")[0] for what in differ] == ["goal"]
            else ""
        )
        raise ValueError(
            f"{where}: holds another study ({'; '.join(differ)}). "
            f"Give this one a folder of its own.{more if lacks else ''}{of_goal}"
        )
    here = conditions(mesh)
    for name, remedy in _TRAJECTORIES.items():
        others = plan.begun_under_other(here, name)
        if others:
            there = plan.conditions[others[0]][0][name]
            raise ValueError(
                f"{where}: batch size {_listed(others)} was begun with {name} {there}, and here it "
                f"is {here[name]}: trials would be others. {remedy.format(there)}; or give this "
                "study a folder of its own."
            )
    moved = {}
    for name in sorted(set(here) - set(_TRAJECTORIES)):
        for size in plan.begun_under_other(here, name):
            moved.setdefault(size, []).append(
                f"{name} {plan.conditions[size][-1][name]}, here {here[name]}"
            )
    if moved:
        first = next(iter(moved))
        warnings.warn(
            f"{where}: batch size {_listed(list(moved))} was run elsewhere "
            f"({'; '.join(moved[first])}). What is trained now may differ from it in the last "
            "bits; the plan records under what each batch size was run.",
            stacklevel=6,
        )


def planned(
    training: Training,
    definition: Definition,
    layout_of: LayoutOf,
    mesh: Mesh,
    folder: StudyFolder,
    *,
    extend: bool,
    share: bool = False,
) -> Plan:
    """The plan on disk, after what is new in it has been written there.

    Args:
      training: what is trained.
      definition: of the study.
      layout_of: how trials are packed.
      mesh: the devices.
      folder: of the study.
      extend: whether a plan that is there may grow.
      share: whether batch sizes that have no layout yet share programs where that is worth it;
        never where an example's loss hangs on others of its microbatch.

    Raises:
      ValueError: the folder holds another study, or a smaller one that may not grow.
      DamagedError: a file in it was changed since it was written, or does not fit the others.
    """
    workload = training.workload
    stored = opening.study(folder)
    if stored is None:
        plan = Plan(definition, _marks(training))
        if lost := datasets.not_finite(workload.splits()):
            warnings.warn(
                f"workload {workload.name!r}: NaN or infinity in {'; '.join(lost)}. Unless "
                "the loss leaves them out, trials diverge as soon as they meet one. Leave these "
                "examples out, or fill them in.",
                stacklevel=6,
            )
    else:
        plan = stored.plan
        same_study(plan, training, definition, mesh, folder.folder)
        lacks = plan.definition.lacks(definition)
        if lacks and not extend:
            raise ValueError(
                f"{folder.folder}: holds a smaller study ({'; '.join(lacks)}). Call "
                "study.extend(folder), or study.measure(folder, extend=True) if it is measured by "
                "one design, to go on with it; or give another folder."
            )
        if extend:
            plan.definition = plan.definition.extended(definition)
    _find_out(plan, training)
    cpu = mesh.devices.flat[0].platform == "cpu"
    share = share and plan.mixes_examples is False and worth_sharing(workload, cpu=cpu)
    for batch_size in plan.definition.batch_sizes:
        if batch_size not in plan.measured_from:
            plan.measured_from[batch_size] = definition.evaluate.first_steps(
                plan.measured,
                definition.goal.split,
                batch_size,
                work_of(workload, training.names),
            )
        plan.extend(batch_size, plan.definition.trials, Origin.PLAN)
        if batch_size not in plan.layouts:
            layout = layout_of(batch_size, mesh)
            plan.layouts[batch_size] = layout.sharing(batch_size) if share else layout
    if plan.paces is None or extend:
        plan.paces = paces(
            training.schedule,
            training.optimizer,
            jax.eval_shape(workload.init, keys.shape())[0],
            {b: plan.planned(b) for b in plan.definition.batch_sizes},
            plan.definition.max_steps,
        )
    folder.write_plan(plan.to_json())
    return plan


def _find_out(plan: Plan, training: Training) -> None:
    """What a plan says of the workload itself: its examples, what is measured, and how it adds."""
    workload, definition = training.workload, plan.definition
    splits = workload.splits()
    plan.examples = {split: arrays.examples(fields) for split, fields in splits.items()}
    space = definition.spaces[definition.batch_sizes[0]]
    unknown = plan.mixes_examples is None
    if unknown:
        plan.mixes_examples = mixes_examples(workload, space.typical())
    group = workload.ghost_batch_size
    other = plan.mixes_examples and group not in (None, plan.ghost_batch_size)
    if other and not mixes_groups(workload, space.typical()) and plan.ghost_batch_size is None:
        plan.ghost_batch_size = group
    if not plan.measured:
        plan.measured = definition.evaluate.counts(splits, definition.goal.split)
        plan.counted = counted(workload, definition.goal, plan.measured)
    if unknown:
        _check_metrics(
            workload,
            definition.goal,
            plan.measured,
            metrics_of_batches(workload, space.typical()),
        )


def _check_metrics(
    workload: Workload,
    goal: Goal,
    measured: Mapping[str, int],
    found: Mapping[str, tuple[float, float]],
) -> None:
    """Refuses a goal, and tells of metrics, that depend on how many examples are evaluated at once.

    They are what they say of a split that is evaluated at once on every device.
    """
    most = {
        split: evaluation_batch(count, tokens=arrays.elements(of), cpu=True)
        for split, count in measured.items()
        for of in [workload.splits()[split]]
    }
    parted = [split for split, count in measured.items() if most[split] < count]
    for name, (together, apart) in found.items():
        words = (
            f"{name!r} of workload {workload.name!r} is {together:.6g} for some examples taken "
            f"together, and {apart:.6g} for the same in small batches: it depends on how many are "
            "evaluated at once, which hangs on the device and the size of the split"
        )
        if name == goal.name and goal.split in parted:
            tokens = arrays.elements(workload.splits()[goal.split])
            few = range(measured[goal.split], 0, -1)
            count = next(n for n in few if evaluation_batch(n, tokens=tokens, cpu=True) == n)
            raise ValueError(
                f"goal: {words}. Make the goal one of a metric that each example has by itself: "
                "return one value an example, or (sum, count); or measure so few that they are "
                f"evaluated at once, evaluate={{{goal.split!r}: {count}}} at most."
            )
        if parted:
            warnings.warn(
                f"metrics: {words}. On the split {' and '.join(parted)} it is of several batches; "
                "compare it with nothing.",
                stacklevel=7,
            )


def _marks(training: Training) -> dict[str, str]:
    return fingerprint(training.workload, training.optimizer, training.schedule, training.names)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def measured_again(definition: Definition, measurements: pd.DataFrame) -> set[int]:
    """The batch sizes that are measured again from their beginning: bounds were enough before."""
    bound = definition.goal.bound
    if definition.curves != "exact" or bound not in measurements:
        return set()
    return set(measurements.index[measurements[bound].notna()].get_level_values("batch_size"))
