"""Damage set aside, so that the next run of a study measures it again."""

from __future__ import annotations

import os
from collections.abc import Collection

from batchscale import records
from batchscale.files import local_path
from batchscale.plan import Plan
from batchscale.records import CONFIRMED, MEASURED, REFINED, DamagedError, StudyFolder
from batchscale.stored import consistency, opening


def repair(folder: str | os.PathLike[str], *, accept: Collection[str] = ()) -> list[str]:
    """Sets aside what is damaged in a study's folder, for `Study.run` to measure it again.

    A file that was changed since it was written is moved into `damaged-1` (`damaged-2` ...) in the
    same folder; nothing is deleted. Batch sizes whose tables then do not fit the plan, or one
    another, are dropped with their training states: `Study.run` measures them again, with the same
    results. A damaged confirmation or refinement is set aside whole, for `Study.confirm` and
    `Study.refine` to make again. A plan cannot be made again: restore it from a copy.

    Args:
      folder: of a study.
      accept: files whose hand edits are taken over for good, by their names in the folder;
        tables and plans that are accepted are not compared with others any more. `index.json`
        takes all files as they are, where it is lost; they are still compared with one another.

    Returns:
      What was done, a line each; empty where nothing was damaged.

    Raises:
      DamagedError: the plan is damaged, or the index.
      RuntimeError: another process is writing this study.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StudyFolder.open(folder) as study:
    ...         study.write_provenance({"date": "2026-01-01"})
    ...     _ = (study.folder / "provenance.json").write_text("{}")
    ...     repair(folder)
    ['provenance.json: set aside as damaged-1/provenance.json']
    """
    folder = local_path(folder)
    if folder.name in (CONFIRMED, REFINED, MEASURED) and (folder.parent / records.INDEX).exists():
        folder = folder.parent
    told: list[str] = []
    with StudyFolder.repairing(folder, accept=accept) as stored:
        damaged = stored.damaged()
        if "plan.json" in damaged:
            raise DamagedError(
                folder / "plan.json",
                "damaged, and nothing can be measured without it.",
                remedy="Restore it from a copy, or take it as it is, by batchscale.repair(folder, "
                "accept=['plan.json']); else run the study again in another folder.",
            )
        told += [f"{name}: set aside as {stored.set_aside(name)}" for name in damaged]
        plan = opening.plan(stored)
        if plan is None:
            return told
        told += _drop(stored, plan)
        for name, read in (
            (REFINED, opening.refinement),
            (CONFIRMED, opening.confirmed),
            (MEASURED, opening.measured),
        ):
            try:
                read(stored, plan)
            except ValueError as error:
                told.append(f"{name}: set aside as {stored.set_aside_beside(name)}: {error}")
    return told


def _drop(stored: StudyFolder, plan: Plan) -> list[str]:
    """Drops the batch sizes whose tables do not fit; says why, a line each."""
    if "plan.json" in stored.accepted:
        return []
    for batch_size in plan.rows:
        if problem := consistency.plan_problem(plan, batch_size):
            raise DamagedError(stored.folder / "plan.json", problem, name="plan.json")
    if any(name.endswith(".parquet") for name in stored.accepted):
        return []
    problems = consistency.problems(plan, *stored.tables())
    if problems:
        for batch_size in problems:
            plan.conditions.pop(batch_size, None)
        with stored.together():
            stored.write_plan(plan.to_json())
            stored.drop(list(problems))
    return [f"dropped: {problem}" for problem in problems.values()]
