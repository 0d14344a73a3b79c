"""Where batch sizes go out to workers and come back: the one writer of the folder."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchscale.engine.engine import Training
from batchscale.engine.layout import Layout
from batchscale.metrics import with_goal
from batchscale.plan import Plan
from batchscale.records import MEASURED, TRIAL_COLUMNS, Status, conditions_from_json, parcels
from batchscale.runner import costs, pool, sending, worker
from batchscale.runner.ledger import Ledger
from batchscale.runner.planning import RunPlan
from batchscale.runner.pool import Executor, Returned, Task
from batchscale.runner.progress import Progress, TrialEvaluation
from batchscale.runner.session import Session
from batchscale.stored import consistency

SECONDS = 600.0
"""After which a worker hands back what it has, and goes on: a death costs no more than that."""
_Tables = tuple[pd.DataFrame, pd.DataFrame]


@dataclasses.dataclass(frozen=True)
class Away:
    """Workers, and the study as they are sent it.

    Attributes:
      executor: as the user gave it.
      study: from `sending.pack`.
      training: what is trained.
    """

    executor: Executor
    study: bytes
    training: Training

    @property
    def words(self) -> str:
        """What trains, in words."""
        given = self.executor
        name = type(given).__name__ if isinstance(given, pool.Submits) else "an executor"
        return f"the workers of {name}"


class Desk:
    """Where tasks go out and results come in: the one writer of the folder.

    Args:
      session: the plan, the folder, and who is told.
      away: the workers.
      asked: what is asked of each batch size, as the worker takes it.
      side: the plan of what is run beside the search, where it is that.
      check: refuses rows that do not fit that plan.

    Attributes:
      asked: the same.
      known: the rows that are on disk, of the batch sizes that are not done.
      spent: how many seconds each batch size has taken.
    """

    def __init__(
        self,
        session: Session,
        away: Away,
        asked: dict[int, dict[str, Any]],
        *,
        side: RunPlan | None = None,
        check: Callable[[pd.DataFrame, pd.DataFrame], None] | None = None,
    ) -> None:
        self._session, self._away, self._side, self._check = session, away, side, check
        self._plan, self.asked = session.plan, asked
        sizes = list(asked)
        self.known = dict(zip(sizes, _by_size(session.folder.tables(), sizes), strict=True))
        self.spent: dict[int, float] = {}
        self._sizes = {_name(size): size for size in sizes}
        self._machines = {_machine(found): found for found in session.workers}

    def carry_out(self) -> None:
        """Has all batch sizes trained that are not done, those first that may cost most."""
        if not self.known:
            return
        table = costs.cost(self._away.training, self._plan.definition)
        table = table.assign(cost=table["flops"] + table["evaluation_flops"])
        # Of those that cost as many operations, more steps take longer.
        order = table.sort_values(["cost", "max_steps"], ascending=False)["batch_size"]
        tasks = [self._task(size) for size in order.tolist() if size in self.known]
        pool.carry_out(self._away.executor, tasks, self._receive, self._session.say)

    def finish(self, size: int, ledger: Ledger) -> None:
        """Tells of a batch size that was done before."""
        del self.known[size]
        members = len(ledger.members(ledger.step))
        self._session.report(
            Progress(
                batch_size=size,
                step=ledger.step,
                max_steps=ledger.spec.grid[-1],
                best=ledger.best,
                steps=ledger.steps_to_target(),
                trials=members,
                infeasible=len(ledger.diverged()),
                seconds=0.0,
                finished=True,
            )
        )

    def _task(self, size: int) -> Task:
        known, plan = self.known[size], self._plan
        begun = bool(len(known[1])) or size in plan.conditions
        about = {
            "batch_size": size,
            "asked": self.asked[size],
            "plan": plan.only(size).to_json(),
            "folder": str(self._session.folder.folder),
            "conditions": dict(self._session.conditions),
            "versions": sending.versions(),
            "seconds": SECONDS,
            "free": not begun and self._side is None and not self._is_measured(),
            "under": [] if self._side is None else self._side.conditions.get(size, []),
        }
        parcel = parcels.packed(*known, self._session.folder.read_state(size))
        arguments = (self._away.study, json.dumps(about), parcel)
        steps = known[0].index.get_level_values("step")
        self._session.report(
            Progress(
                batch_size=size,
                step=int(steps.max()) if len(steps) else 0,
                max_steps=self._plan.definition.max_steps[size],
                best=math.nan,
                steps=math.nan,
                trials=self._plan.definition.trials,
                infeasible=int((known[1]["status"] == Status.INFEASIBLE).sum()),
                seconds=0.0,
                finished=False,
            )
        )
        return Task(_name(size), worker.carry_out, arguments)

    def _is_measured(self) -> bool:
        """Whether a measurement beside the study goes by the layouts of its plan."""
        return self._session.folder.reading_beside(MEASURED) is not None

    def _receive(self, returned: Sequence[Returned]) -> Iterable[Task]:
        """Checks what came back and writes it, all at once; says what goes on."""
        taken, wrong = [], None
        for one in returned:
            try:
                if "about" in one.value:
                    taken.append(self._checked(one))
                elif one.value.get("error") is None:  # else it failed before it had a folder
                    raise KeyError("about")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                wrong = ValueError(
                    f"executor: what a worker returned of {one.task.name} does not fit its plan "
                    f"({error}). Nothing of it is written; the same call runs it again."
                )
                wrong.__cause__ = error
        folder = self._session.folder
        with folder.together():
            for one in taken:
                self._note(one)
            if taken:
                folder.write_plan((self._side or self._plan).to_json())
            for one in taken:
                if not one.failed or len(one.measurements):
                    self._write(one)
        for one in taken:
            self._told(one)
        if wrong is not None:
            raise wrong
        return [self._task(one.size) for one in taken if not one.done and not one.failed]

    def _checked(self, returned: Returned) -> _Taken:
        """What came back, in its exact form.

        Raises:
          KeyError, TypeError, ValueError, AttributeError: it is not what a worker returns, or does
            not fit the plan.
        """
        value, size = returned.value, self._sizes[returned.task.name]
        about = json.loads(value["about"])
        measurements, trials = parcels.tables(value, size)
        plan = self._plan.only(size)
        sent, plan.rows[size] = plan.rows[size], about["rows"]
        if plan.rows[size][: len(sent)] != sent:
            raise ValueError("its trials are not those that were planned")
        plan.layouts[size] = Layout(**about["layout"])
        if about["finding"] is not None:
            plan.findings[size] = about["finding"]
        plan.drawn_with = ", ".join(
            dict.fromkeys([*plan.drawn_with.split(", "), *about["drawn_with"].split(", ")])
        )
        conditions = conditions_from_json({str(size): about["conditions"]} if len(trials) else {})
        if self._side is None:
            plan.conditions |= conditions
            plan = Plan.from_json(json.loads(json.dumps(plan.to_json())))
            problem = consistency.plan_problem(plan, size)
            problem = problem or consistency.problems(plan, measurements, trials).get(size)
            if problem is not None:
                raise ValueError(problem)
        elif self._check is not None:
            self._check(measurements, trials)
        last = about["last"]
        if last is not None:
            _seconds(last["seconds"])
        return _Taken(
            size=size,
            measurements=measurements,
            trials=trials,
            state=parcels.state(value),
            plan=plan,
            conditions=conditions.get(size, []),
            done=bool(about["done"]),
            failed=value["error"] is not None,
            last=None if last is None else Progress(**last),
            worker=dict(about["worker"]),
            seconds={str(name): _seconds(of) for name, of in about["seconds"].items()},
        )

    def _note(self, taken: _Taken) -> None:
        """Takes into the plan what a worker found out."""
        size, plan = taken.size, self._plan
        conditions = (plan if self._side is None else self._side).conditions
        if taken.conditions:
            _warn_of_other(size, conditions.get(size, []), taken.conditions)
            conditions[size] = taken.conditions
        if self._side is not None:
            return
        plan.layouts[size], plan.rows[size] = taken.plan.layouts[size], taken.plan.rows[size]
        plan.findings |= taken.plan.findings
        parts = [*plan.drawn_with.split(", "), *taken.plan.drawn_with.split(", ")]
        plan.drawn_with = ", ".join(dict.fromkeys(parts))

    def _write(self, taken: _Taken) -> None:
        """Writes what is new of a batch size; all of it, in place of what was there, if it differs.

        That is so where bounds were enough before, and whole evaluations are wanted now.
        """
        folder, size, rows = self._session.folder, taken.size, taken.measurements
        known = self.known[size][0]
        if len(known):
            again = rows.loc[rows.index.isin(known.index)]
            if known.dropna(axis=1, how="all").equals(again.dropna(axis=1, how="all")):
                rows = taken.new(known)
            else:
                folder.drop([size])
        folder.append_measurements(rows)
        if len(taken.trials):
            folder.write_trials(size, taken.trials)
        if taken.state is not None:
            folder.write_state(size, *taken.state)
        else:
            folder.drop_state(size)

    def _told(self, taken: _Taken) -> None:
        """Tells what was measured, step by step, and that a batch size is done."""
        size, last = taken.size, taken.last
        new = taken.new(self.known[size][0])
        self.known[size] = taken.measurements, taken.trials
        machine = self._machines.setdefault(_machine(taken.worker), taken.worker)
        if machine is taken.worker:
            self._session.workers.append(machine)
        machine["batch_sizes"] = sorted({size, *machine.get("batch_sizes", ())})
        spent = machine.setdefault("seconds", {})
        for name, seconds in taken.seconds.items():
            spent[name] = round(spent.get(name, 0.0) + seconds, 1)
        if last is None:  # all of it had been done before
            if taken.done:
                del self.known[size]
            return
        self.spent[size] = self.spent.get(size, 0.0) + last.seconds
        goal = self._plan.definition.goal
        values = with_goal(new, goal)[goal.metric] if len(new) else pd.Series(dtype=float)
        steps = new.index.get_level_values("step").to_numpy()
        of_step = values.where(np.isfinite(values)).groupby(steps)
        best = (of_step.min() if goal.mode == "min" else of_step.max()).to_dict()
        counted: dict[Any, int] = of_step.size().to_dict()
        for step in counted:
            self._session.report(
                dataclasses.replace(
                    last,
                    step=int(step),
                    best=float(best[step]),
                    steps=math.nan,
                    trials=counted[step],
                    seconds=self.spent[size],
                    finished=False,
                    measured=functools.partial(self._evaluations, new, step, taken.trials),
                )
            )
        if taken.done:
            del self.known[size]
            self._session.report(dataclasses.replace(last, seconds=self.spent[size]))

    def _evaluations(
        self, new: pd.DataFrame, at: Any, trials: pd.DataFrame
    ) -> tuple[TrialEvaluation, ...]:
        """What was measured at a step."""
        rows = new.loc[new.index.get_level_values("step") == at]
        names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
        settings: dict[Any, dict[str, float]] = trials[names].to_dict("index")  # pyright: ignore
        return tuple(
            TrialEvaluation(
                folder=self._session.folder.folder,
                batch_size=size,
                trial=trial,
                replicate=replicate,
                step=step,
                values={str(n): float(x) for n, x in row.items() if not math.isnan(x)},
                hyperparameters=settings[size, trial, replicate],
            )
            for (size, trial, replicate, step), row in zip(
                rows.index, rows.to_dict("records"), strict=True
            )
        )


@dataclasses.dataclass(frozen=True)
class _Taken:
    """What came back of a batch size, checked.

    Attributes:
      size: examples a step.
      measurements: all rows of it.
      trials: all of its trials.
      state: where its training stands, if it is not done.
      plan: of it alone, with what was found out.
      conditions: what it was run under.
      done: whether nothing is left to do.
      failed: whether it ended by an error.
      last: what its run said last.
      worker: the machine and its software.
      seconds: by what they were spent on.
    """

    size: int
    measurements: pd.DataFrame
    trials: pd.DataFrame
    state: parcels.State | None
    plan: Plan
    conditions: list[dict[str, Any]]
    done: bool
    failed: bool
    last: Progress | None
    worker: dict[str, Any]
    seconds: dict[str, float]

    def new(self, known: pd.DataFrame) -> pd.DataFrame:
        """The measurements that are not among those known."""
        return self.measurements.loc[~self.measurements.index.isin(known.index)]


def _by_size(tables: _Tables, sizes: Sequence[int]) -> list[_Tables]:
    """Both tables of each batch size."""
    parts: list[dict[Any, pd.DataFrame]] = [
        dict(list(table.groupby(level="batch_size"))) for table in tables
    ]
    empty = [table.iloc[:0] for table in tables]
    return [(parts[0].get(size, empty[0]), parts[1].get(size, empty[1])) for size in sizes]


def _warn_of_other(
    size: int, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> None:
    """Tells that a batch size went on under other conditions than it was run under before."""
    if not before or len(now) == len(before):
        return
    last, here = before[-1], now[-1]
    names = [name for name in here if here[name] != last[name]]
    differ = "; ".join(f"{name} {last[name]}, then {here[name]}" for name in names)
    warnings.warn(
        f"executor: {_name(size)} went on elsewhere ({differ}). What was trained there may differ "
        "in the last bits; the plan records under what each batch size was run.",
        stacklevel=2,
    )


def _machine(found: Mapping[str, Any]) -> str:
    """What two tasks have in common that ran on the same kind of machine."""
    same = {name: of for name, of in found.items() if name not in ("batch_sizes", "seconds")}
    return json.dumps(same, sort_keys=True)


def _seconds(value: Any) -> float:
    found = float(value)
    if not 0 <= found < 1e9:
        raise ValueError(f"it says that it took {found} seconds")
    return found


def _name(size: int) -> str:
    return f"batch size {size}"
