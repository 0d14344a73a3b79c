"""Sharpness: the largest eigenvalues of the loss's Hessian, and whether flat minima generalise.

Large batches are said to end in sharp minima, and sharp minima to generalise badly (Keskar et al.
2017, arXiv:1609.04836). Batch sizes compared after the same steps, or epochs, differ in how far
they have trained, and so does their sharpness; `generalisation` compares them at the same training
loss, each with its own best hyperparameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float, PyTree

from batchscale import checks, columns, numeric
from batchscale.evaluate import Evaluate
from batchscale.metrics import Goal
from batchscale.records import Origin, Status
from batchscale.runner.progress import lines
from batchscale.theory._asked import check_options, check_result, check_study
from batchscale.theory._training_loss import TrainingLoss, microbatches
from batchscale.workloads import Workload

if TYPE_CHECKING:
    from batchscale.result import Result
    from batchscale.study import Study

_ENDED = 1e-6  # of the largest: what is left of a Krylov space beyond is float32's rounding

_COLUMNS = columns.GENERALISATION

_Vector = Float[np.ndarray, " parameters"]


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalues of a Hessian.

    Attributes:
      eigenvalues: from the largest down; an eigenvalue that stands several times may be found once.
      errors: of each: an eigenvalue lies within so much of it. It is the norm of (H v - lambda v)
        for the unit vector v that was found, rounding included.
      iterations: products with the Hessian that it took.
      examples: whose mean loss it is the Hessian of.
    """

    eigenvalues: Float[np.ndarray, " top"]
    errors: Float[np.ndarray, " top"]
    iterations: int
    examples: int


def sharpness(
    workload: Workload,
    params: PyTree,
    model_state: PyTree = None,
    *,
    top: int = 1,
    examples: int | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
    split: str = "train",
    hyperparameters: Mapping[str, float] | None = None,
    microbatch: int | Literal["auto"] = "auto",
    seed: int = 0,
) -> Sharpness:
    """The largest eigenvalues of the Hessian of the mean training loss, at a point.

    By the method of Lanczos (1950) with full reorthogonalisation. The loss is that of training:
    dropout and augmentation are on, drawn once for each microbatch.

    Args:
      workload: loss and data.
      params: where, in the structure that the workload's init returns.
      model_state: what the model keeps besides; used, and left as it is.
      top: how many eigenvalues.
      examples: how many, drawn without replacement; all of the split by default.
      iterations: products with the Hessian at most; where they do not suffice, the errors tell.
      tolerance: it ends as soon as all errors are below this share of the largest eigenvalue.
      split: whose examples.
      hyperparameters: those that the loss reads, by name.
      microbatch: examples at once; of models that normalise by the statistics of a batch, of that
        batch. It changes nothing but time and memory, unless the loss is random.
      seed: of the choice of examples, of dropout and augmentation, and of the first vector.

    Raises:
      ValueError: an argument is not as above, or the Hessian is not finite.

    >>> points = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    >>> workload = Workload.from_functions(
    ...     init=lambda key: np.zeros(3, np.float32),
    ...     loss=lambda params, batch: 0.5 * (batch["input"] @ params - batch["label"]) ** 2,
    ...     data={"train": (points, points[:, 0])},
    ... )
    >>> found = sharpness(workload, np.zeros(3, np.float32))
    >>> bool(np.isclose(found.eigenvalues[0], np.linalg.eigvalsh(points.T @ points / 64)[-1]))
    True
    """
    tolerance = numeric.at_least("tolerance", tolerance, 0, "a share, 0 or more, such as 0.001")
    loss = TrainingLoss(workload, params, model_state, hyperparameters, split=split, seed=seed)
    numeric.integer("top", top, 1, loss.parameters)
    numeric.integer("iterations", iterations, top)
    chosen = loss.sample(examples, fewest=1)
    parts = list(microbatches(chosen, loss.microbatch(microbatch, len(chosen))))

    def hessian(vector: _Vector) -> _Vector:
        total, weight = np.zeros(loss.parameters), 0.0
        for part in parts:
            products, count = loss.curvature(part, vector[None])
            total += products[0]
            weight += count
        if not np.isfinite(total).all():
            raise ValueError(
                "params: the loss has no finite second derivatives there; wanted parameters of a "
                "trial that has not diverged."
            )
        return total / weight

    values, vectors, used = _lanczos(
        hessian,
        loss.random().normal(size=loss.parameters),
        top=top,
        iterations=iterations,
        tolerance=tolerance,
    )
    errors = [np.linalg.norm(hessian(v) - x * v) for x, v in zip(values, vectors, strict=True)]
    return Sharpness(values, np.array(errors), used + top, len(chosen))


def generalisation(
    study: Study,
    result: Result,
    *,
    train_loss: float,
    trials: int = 1,
    max_steps: int | None = None,
    split: str = "test",
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Sharpness and the gap between training and test, by batch size, at the same training loss.

    At each batch size the trials that reached the study's goal first are trained again, up to the
    first evaluation at which the training loss is below a given value. What is compared is then
    the batch size, with its own best hyperparameters, and not how far it has trained.

    Args:
      study: what was run.
      result: its result, for the leading trials and how they were packed.
      train_loss: the value that `train/loss` is to get below.
      trials: how many at each batch size, from the one that reached the goal first on.
      max_steps: of each; the study's budget by default.
      split: what the gap is measured on.
      progress: lines of what is at work, or none.
      **options: `examples`, `iterations`, `tolerance`, `microbatch` and `seed` of `sharpness`.

    Returns:
      One row a trial: `batch_size`, `trial`, `step` (inf where the value was not reached, and the
      rest NaN), `train_loss`, `test_loss` and `gap`, test less training; `train_error`,
      `test_error` and `error_gap` likewise, NaN where the workload does not measure `error`;
      `sharpness`, the largest eigenvalue, and `sharpness_error`. A batch size of which no trial
      reached the goal has one row without a trial.

    Raises:
      ValueError: more than one trial is asked for of a study that ended at the first crossings;
        the workload has no such split, measures no `loss`, or evaluates other parameters than it
        trains.

    >>> import tempfile
    >>> import batchscale as bs
    >>> study = bs.Study(
    ...     workload=bs.workloads.get("digits/fc_64"),
    ...     optimizer="sgd",
    ...     space=bs.SearchSpace(learning_rate=0.2),
    ...     batch_sizes=[64],
    ...     goal=bs.Goal("validation/error", 0.2),
    ...     trials=1,
    ...     max_steps=500,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = study.run(folder, progress=False)
    ...     table = generalisation(study, result, train_loss=0.5, examples=200)
    >>> bool(0 < table["train_loss"].item() < 0.5 < table["sharpness"].item())
    True
    """
    check_study(study)
    check_result(result)
    check_options(sharpness, options, ("workload", "params", "model_state", "hyperparameters"))
    if max_steps is not None:
        max_steps = numeric.integer("max_steps", max_steps, 1)
    if study.workload.evaluated_parameters is not None:
        raise ValueError(
            "study: its workload evaluates other parameters than it trains (averages of them), "
            "and so the losses and the sharpness would be of different ones."
        )
    say = lines(progress)
    until = Goal("train/loss", train_loss)
    checks.metric(Goal(f"{split}/loss", 0.0), study.workload, study.space.names)
    # Whatever the study measured: what a trial is measured on does not change it.
    examples = {
        name: n for name, n in study.evaluation.examples.items() if name in ("train", split)
    }
    study = dataclasses.replace(
        study, evaluate=Evaluate(splits=("train", split), examples=examples, share=None)
    )
    rows = []
    for batch_size, trial in _leading(result, numeric.integer("trials", trials, 1)):
        row: dict[str, Any] = {"batch_size": batch_size, "trial": trial, "step": math.inf}
        rows.append(row)
        if trial is None:
            continue
        budget = result.definition.max_steps[batch_size] if max_steps is None else max_steps
        say(f"batch size {batch_size:,}: trial {trial} is trained until {until}")
        run = study.run_trial(
            batch_size=batch_size, trial=trial, folder=result.folder, steps=budget, until=until,
            progress=progress,
        )  # fmt: skip
        at = run.curve.iloc[-1]
        if run.diverged or not until.reached(at["train/loss"]):
            continue
        found = sharpness(
            study.workload,
            run.params,
            run.model_state,
            hyperparameters=run.hyperparameters,
            **options,
        )
        row["step"] = run.curve.index.get_level_values("step")[-1]
        for name, gap in (("loss", "gap"), ("error", "error_gap")):
            if f"train/{name}" in at:
                row[f"train_{name}"] = at[f"train/{name}"]
                row[f"test_{name}"] = at[f"{split}/{name}"]
                row[gap] = row[f"test_{name}"] - row[f"train_{name}"]
        row["sharpness"], row["sharpness_error"] = found.eigenvalues[0], found.errors[0]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"step": float, "trial": "Int64"})


def _leading(result: Result, count: int) -> list[tuple[int, int | None]]:
    """The trials that reached the goal first: batch sizes and numbers; None where none did."""
    stop = result.definition.stop
    if count > 1 and stop in ("first", 1):
        raise ValueError(
            f"trials: got {count}, but with stop={stop!r} every batch size ended when its first "
            "trial reached the goal. Call study.extend(folder, stop=3.0), or ask for 1."
        )
    table = result.trials.reset_index()
    plain = (table["replicate"] == 0) & table["origin"].isin([Origin.PLAN, Origin.TOPUP])
    plain &= (table["status"] != Status.INFEASIBLE) & np.isfinite(table["first_crossing"])
    table = table.loc[plain].sort_values(["first_crossing", "trial"])
    found = []
    for batch_size in result.definition.batch_sizes:
        numbers = table.loc[table["batch_size"] == batch_size, "trial"].tolist()
        found += [(batch_size, number) for number in numbers[:count] or [None]]
    return found


def _lanczos(
    product: Callable[[_Vector], _Vector],
    first: _Vector,
    *,
    top: int,
    iterations: int,
    tolerance: float,
) -> tuple[Float[np.ndarray, " top"], Float[np.ndarray, "top parameters"], int]:
    """The largest Ritz values of a symmetric matrix, their unit vectors, and the products taken.

    >>> values, _, _ = _lanczos(
    ...     lambda v: np.array([1.0, 2.0, 3.0]) * v, np.ones(3), top=2, iterations=9, tolerance=0)
    >>> values.round(6)
    array([3., 2.])
    """
    basis: list[_Vector] = []
    diagonal: list[float] = []
    beside: list[float] = []  # the off-diagonal; its last entry leads out of the basis
    random = np.random.default_rng(0)

    def apart(vector: _Vector) -> _Vector:
        for _ in range(2):  # twice is enough, once is not
            for other in basis:
                vector = vector - (other @ vector) * other
        return vector

    vector = first / np.linalg.norm(first)
    while True:
        basis.append(vector)
        moved = product(vector)
        diagonal.append(float(vector @ moved))
        moved = apart(moved)
        beside.append(float(np.linalg.norm(moved)))
        values, columns = scipy.linalg.eigh_tridiagonal(diagonal, beside[:-1])
        scale = max(abs(values[0]), abs(values[-1]))
        residuals = np.abs(beside[-1] * columns[-1])[-top:]
        used = len(basis)
        if used == min(iterations, len(first)):
            break
        ended = beside[-1] <= _ENDED * scale
        if used >= top and (ended or (residuals <= tolerance * scale).all()):
            break
        if ended:  # the basis is all that this first vector leads to; another one leads on
            beside[-1], moved = 0.0, apart(random.normal(size=len(first)))
        vector = moved / np.linalg.norm(moved)
    order = slice(None, -top - 1, -1)
    vectors = columns[:, order].T @ np.stack(basis)
    return values[order].copy(), vectors, used
