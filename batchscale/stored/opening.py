"""What is in a study's folder, read and checked: the plan, the tables, and what is beside them."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from batchscale.plan import Plan
from batchscale.records import CONFIRMED, MEASURED, REFINED, DamagedError, StudyFolder
from batchscale.stored import consistency
from batchscale.stored.extended import as_extended
from batchscale.stored.followups import ConfirmationPlan, RefinementPlan
from batchscale.stored.measured import MeasurePlan


class Stored(NamedTuple):
    """A study as it is on disk.

    Attributes:
      plan: of the study.
      measurements: of the search.
      trials: of the search.
    """

    plan: Plan
    measurements: pd.DataFrame
    trials: pd.DataFrame


class Refinement(NamedTuple):
    """What was searched after the search, as it is on disk."""

    plan: RefinementPlan
    measurements: pd.DataFrame
    trials: pd.DataFrame


class Confirmed(NamedTuple):
    """What was run again under fresh seeds, as it is on disk."""

    plan: ConfirmationPlan
    measurements: pd.DataFrame
    trials: pd.DataFrame


class Measured(NamedTuple):
    """What one design across batch sizes has measured, as it is on disk."""

    plan: MeasurePlan
    measurements: pd.DataFrame
    trials: pd.DataFrame


def plan(stored: StudyFolder) -> Plan | None:
    """The plan of a study; None where none was written.

    Raises:
      DamagedError: it was changed since it was written.
      ValueError: another version wrote it.
    """
    found = stored.read_plan()
    return None if found is None else Plan.from_json(found, str(stored.folder / "plan.json"))


def study(stored: StudyFolder) -> Stored | None:
    """The plan and the tables of a study; None where there is nothing.

    Raises:
      DamagedError: a file was changed since it was written, or they do not fit one another.
      FileNotFoundError: there are tables, and no plan.
    """
    found, measurements, trials = stored.contents()
    if found is None:
        if len(measurements) or len(trials):
            raise FileNotFoundError(
                f"{stored.folder}: no plan.json. Give the folder that study.run was given; tables "
                "alone are read by batchscale.records.load_tables and analysed by "
                "batchscale.metrics."
            )
        return None
    made = Plan.from_json(found, str(stored.folder / "plan.json"))
    consistency.check(stored.folder, made, measurements, trials, accept=stored.accepted)
    return Stored(made, measurements, as_extended(trials, made.definition))


def refinement(stored: StudyFolder, plan: Plan) -> Refinement | None:
    """What was refined of a study; None where nothing was.

    Args:
      stored: the folder of the study.
      plan: of the study.

    Raises:
      DamagedError: a file was changed since it was written, or they do not fit one another.
    """
    side = stored.reading_beside(REFINED)
    found = None if side is None else _contents(side)
    if side is None or found is None:
        return None
    made = RefinementPlan.from_json(found[0], str(side.folder / "plan.json"))
    if _compared(stored, side):
        consistency.check_refinement(side.folder, plan, made, *found[1:])
    return Refinement(made, *found[1:])


def confirmed(stored: StudyFolder, plan: Plan) -> Confirmed | None:
    """What was confirmed of a study; None where nothing was.

    Args:
      stored: the folder of the study.
      plan: of the study.

    Raises:
      DamagedError: a file was changed since it was written, or they do not fit one another.
    """
    side = stored.reading_beside(CONFIRMED)
    found = None if side is None else _contents(side)
    if side is None or found is None:
        return None
    made = ConfirmationPlan.from_json(found[0], str(side.folder / "plan.json"))
    if _compared(stored, side):
        refined = refinement(stored, plan)
        consistency.check_confirmation(
            side.folder, plan, None if refined is None else refined.plan, *found[1:]
        )
    return Confirmed(made, *found[1:])


def measured(stored: StudyFolder, plan: Plan) -> Measured | None:
    """What was measured of a study by one design; None where nothing was.

    Args:
      stored: the folder of the study.
      plan: of the study.

    Raises:
      DamagedError: a file was changed since it was written, or they do not fit one another.
    """
    side = stored.reading_beside(MEASURED)
    found = None if side is None else _contents(side)
    if side is None or found is None:
        return None
    made = MeasurePlan.from_json(found[0], str(side.folder / "plan.json"))
    if _compared(stored, side):
        consistency.check_measured(side.folder, plan, made, *found[1:])
    return Measured(made, *found[1:])


def _compared(stored: StudyFolder, side: StudyFolder) -> bool:
    return "plan.json" not in stored.accepted and not side.accepted


def _contents(side: StudyFolder) -> tuple[object, pd.DataFrame, pd.DataFrame] | None:
    found = side.contents()
    if found.plan is not None:
        return found
    if len(found.trials) or len(found.measurements):
        raise DamagedError(side.folder / "plan.json", "missing, though there are tables.")
    return None
