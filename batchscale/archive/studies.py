"""The studies of an archive, one a batch size, and their trials: what their JSON says, checked."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

from batchscale.archive import files, names, seals, spaces
from batchscale.archive.own import Own
from batchscale.archive.seals import Seal
from batchscale.numeric import plain
from batchscale.records import Origin, Status, StopReason
from batchscale.tuner.search_space import Resolved

_STATUSES = {
    "COMPLETE": Status.COMPLETE,
    "INCOMPLETE": Status.INCOMPLETE,
    "INFEASIBLE": Status.INFEASIBLE,
}


@dataclasses.dataclass(frozen=True)
class Study:
    """What `study.json` says of a batch size.

    Attributes:
      folder: of the batch size.
      batch_size: examples.
      workload: the names of the data set and of the model, `dataset/model`.
      dataset: its name.
      optimizer: its name, as it is called here.
      early_stopping: whether bad trials were stopped early; None if it does not say.
      train_steps: the steps of a complete trial, at least; 0 for a budget of time.
      dimensions: what each hyperparameter is drawn from.
      own: what this library wrote beside that; None if another did.
      seal: the digests that it wrote; None if another did.
    """

    folder: Path
    batch_size: int
    workload: str
    dataset: str
    optimizer: str
    early_stopping: bool | None
    train_steps: int
    dimensions: Mapping[str, Resolved]
    own: Own | None
    seal: Seal | None

    @property
    def path(self) -> Path:
        """The file that says so."""
        return self.folder / names.STUDY


@dataclasses.dataclass(frozen=True)
class Trial:
    """What `metadata.json` says of a trial.

    Attributes:
      folder: of the trial.
      number: of the trial.
      status: complete, incomplete or infeasible.
      steps: that it was trained; None if it does not say.
      hyperparameters: by name; those that are given.
      origin: why it was run.
      stop_reason: what ended it; None if it does not say.
    """

    folder: Path
    number: int
    status: Status
    steps: int | None
    hyperparameters: Mapping[str, float]
    origin: Origin
    stop_reason: StopReason | None


def study(folder: Path) -> Study:
    """The study of a batch size.

    Raises:
      DamagedError: its file is missing, or no such file.
    """
    path = folder / names.STUDY
    found = files.record(path)
    dataset, model = files.word(path, found, "dataset"), files.word(path, found, "model")
    early = found.get("early_stopping")
    if early is not None and not isinstance(early, bool):
        raise files.damaged(path, f"early_stopping: got {early!r}, wanted true or false.")
    try:
        dimensions = spaces.dimensions(found.get("parameter_configs"))
        own, seal = None, None
        if names.OWN in found:
            record, seal = seals.opened(folder, found)
            own = Own.from_json(record)
    except (TypeError, ValueError) as error:
        raise files.damaged(path, str(error)) from error
    return Study(
        folder,
        files.whole(path, found, "batch_size", 1),
        f"{dataset}/{model}" if own is None else own.workload,
        dataset,
        names.optimizer(files.word(path, found, "optimizer")),
        early,
        files.whole(path, found, "train_steps"),
        dimensions,
        own,
        seal,
    )


def studies(folder: Path) -> list[Study]:
    """The studies of one workload and optimizer, by batch size.

    Raises:
      DamagedError: a file is none, or is of another workload or optimizer than the others, or of
        the same batch size as another.
      FileNotFoundError, ValueError: as `files.studies`.
    """
    found = sorted(
        (study(path) for path in files.studies(folder)), key=lambda one: (one.batch_size, one.path)
    )
    for before, after in itertools.pairwise(found):
        if before.batch_size == after.batch_size:
            raise files.damaged(
                after.path, f"it is of batch size {after.batch_size}, as is {before.path}."
            )
        for name in ("workload", "optimizer"):
            here, there = getattr(after, name), getattr(before, name)
            if here != there:
                raise files.damaged(
                    after.path, f"it is of {name} {here!r}, and {before.path} of {there!r}."
                )
        if not _alike(before.own, after.own):
            raise files.damaged(after.path, f"it is of another study than {before.path}.")
    return found


def _alike(some: Own | None, other: Own | None) -> bool:
    """Whether two batch sizes are of the same study of ours, or of none."""
    if some is None or other is None:
        return some is other
    of_size = ("max_steps", "pace", "evaluation_spacing")  # NaN is not equal to itself
    fields = [field.name for field in dataclasses.fields(Own) if field.name not in of_size]
    return all(getattr(some, name) == getattr(other, name) for name in fields)


def trials(of: Study) -> list[Trial]:
    """All trials of a study, in the order of the numbers that their folders are named by.

    Raises:
      DamagedError: a file is missing, or no such file; or two trials have the same number.
    """
    found: dict[int, Trial] = {}
    for number, folder in files.trials(of.folder):
        one = _trial(of, number, folder)
        if one.number in found:
            raise files.damaged(
                folder / names.METADATA,
                f"trial_id: got {one.number}, which is that of {found[one.number].folder} too.",
            )
        found[one.number] = one
    return list(found.values())


def _trial(of: Study, number: int, folder: Path) -> Trial:
    path = folder / names.METADATA
    found = files.record(path)
    word = files.word(path, found, "status")
    if word not in _STATUSES:
        raise files.damaged(path, f"status: got {word!r}, wanted one of {', '.join(_STATUSES)}.")
    status = _STATUSES[word]
    if status == Status.INCOMPLETE and of.train_steps == 0:
        # It ran for its time: of these, the archive's README says, all count that did not diverge.
        status = Status.COMPLETE
    parameters = found.get("parameters")
    if not isinstance(parameters, dict):
        raise files.damaged(path, f"parameters: got {parameters!r}, wanted a record.")
    hyperparameters = {}
    for name, given in parameters.items():
        value = plain(given)
        if given is None:
            continue
        if value is None or not math.isfinite(value):
            raise files.damaged(path, f"parameters: {name} is {given!r}, wanted a number.")
        hyperparameters[name] = float(value)
    own = found.get(names.OWN, {})
    try:
        origin = Origin(own.get("origin", Origin.PLAN))
        reason = StopReason(own["stop_reason"]) if "stop_reason" in own else None
    except (AttributeError, TypeError, ValueError) as error:
        raise files.damaged(path, f"{names.OWN}: {error}.") from error
    if of.own is None and names.OWN in found:
        raise files.damaged(of.path, f"what {path.name} says under {names.OWN} is missing here.")
    if reason is not None and (reason == StopReason.DIVERGED) != (status == Status.INFEASIBLE):
        raise files.damaged(path, f"its status is {word}, and its stop_reason {str(reason)!r}.")
    return Trial(
        folder,
        files.whole(path, found, "trial_id") if "trial_id" in found else number,
        status,
        files.whole(path, found, "steps") if "steps" in found else None,
        hyperparameters,
        origin,
        reason,
    )
