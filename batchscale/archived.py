"""The result of an archive: the tables and analyses of a study, without a study's folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection

import pandas as pd

from batchscale import archive, audit, records
from batchscale.metrics import Goal
from batchscale.result import Result


@dataclasses.dataclass(frozen=True)
class ArchivedResult(Result):
    """A `Result` whose tables are those of an archive; see `load_archive`.

    Whatever reads the folder of a study (`confirmation`, `layouts`) refuses.

    Attributes:
      studies: one row a batch size: `train_steps`, the steps of a complete trial at least, 0 for a
        budget of time; `early_stopping`, whether bad trials were stopped early; and how many trials
        the archive has, read or not: `complete`, `incomplete` and `infeasible`.
    """

    studies: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    def refined(self) -> pd.DataFrame:
        """No trials: nothing of an archive was refined."""
        return self.trials.iloc[:0]

    def audit(self) -> audit.Audit:
        """Whether the measurements are careful enough to be believed; see `batchscale.audit`.

        What an archive does not say is not known: of how many examples its metrics are, whether
        the model depends on the batch, and whether an optimum is found again.
        """
        return self._audit()

    def _opened(self) -> records.StudyFolder:
        raise FileNotFoundError(
            f"{self.folder}: an archive of trials, not the folder of a study: it has no plan, no "
            "layouts, and nothing in it was confirmed or refined. Its tables are analysed without; "
            "to confirm settings, run a study of your own."
        )


def load_archive(
    folder: str | os.PathLike[str],
    *,
    trials: int | None = None,
    goal: Goal | None = None,
    train_examples: int | None = None,
    accept: Collection[str] = (),
) -> ArchivedResult:
    """Reads measurements in the layout in which Shallue et al. (2019) published theirs.

    The archive of "Measuring the Effects of Data Parallelism on Neural Network Training" (JMLR
    20(112)), described in google-research/batch_science, or what `Result.to_archive` wrote.
    `val/classification_error` is `validation/error` here, `cross_entropy_error` is `loss`, and
    `nesterov_momentum` is `nesterov`. Steps to target are by the paper's rule: a trial that
    diverged at any time does not count, and others count as far as they were trained.

    A trial that lacks `label_smoothing` was trained with 0; another hyperparameter that is missing
    is NaN. Incomplete trials are left out, as by the paper; where `train_steps` is 0, trials had a
    budget of time, and all of them that did not diverge are complete.

    Args:
      folder: of an optimizer, `dataset/model/optimizer`, wherever that lies. Its batch sizes are
        found by their `study.json`.
      trials: the first so many complete trials of every batch size, by number, and no others. All
        complete and infeasible ones if not given: more trials at one batch size than at another
        make its minimum lower.
      goal: that of the paper's main figures, or of the study that wrote the archive, if not given.
      train_examples: the size of the training set, if it is known neither from the paper nor from
        the study that wrote the archive.
      accept: files of an archive that `Result.to_archive` wrote whose hand edits, or whose absence,
        are accepted, by their names in the folder, such as `8/1/measurements.csv`. The paper's
        files have no digests.

    Returns:
      A `Result` with all analyses but those of a study's folder.

    Raises:
      FileNotFoundError: there is no such folder, or no study in it.
      ValueError: the folder holds several workloads or optimizers, which are listed; a batch size
        has fewer complete trials than asked for; or there is no goal, or no size of the training
        set, or nothing measured for the goal.
      TypeError: the goal is none.
      DamagedError: a file is missing, is none, does not fit the others, or was changed since this
        library wrote it; names it.

    >>> import json, pathlib, tempfile
    >>> study = {"batch_size": 8, "dataset": "mnist", "model": "fc_128", "optimizer": "sgd"}
    >>> rate = {"type": "DOUBLE", "min_value": 0.01, "max_value": 1.0, "scale": "LOG_SCALE"}
    >>> study |= {"train_steps": 20, "parameter_configs": {"learning_rate": rate}}
    >>> trial = {"trial_id": 1, "status": "COMPLETE", "steps": 20}
    >>> trial |= {"parameters": {"learning_rate": 0.1}}
    >>> rows = pd.DataFrame({"step": [0, 10, 20], "val/classification_error": [0.9, 0.03, 0.02]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = pathlib.Path(folder, "mnist", "fc_128", "sgd", "8", "1")
    ...     place.mkdir(parents=True)
    ...     _ = (place.parent / "study.json").write_text(json.dumps(study))
    ...     _ = (place / "metadata.json").write_text(json.dumps(trial))
    ...     rows.to_csv(place / "measurements.csv", index=False)
    ...     print(load_archive(folder))
    mnist/fc_128, sgd, validation/error < 0.03, 1 trials a batch size
     batch_size  steps  previous_evaluation  trial  learning_rate
              8   20.0                 10.0      1            0.1
    """
    found = archive.read(
        folder, trials=trials, goal=goal, train_examples=train_examples, accept=accept
    )
    return ArchivedResult(
        found.folder,
        found.definition,
        found.trials,
        found.measurements,
        found.paces,
        studies=found.studies,
    )
