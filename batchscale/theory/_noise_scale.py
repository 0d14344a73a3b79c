"""The gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162), at a point or along a run.

G is the gradient of the mean training loss and Sigma the covariance of the gradients of single
examples. A batch of B examples has a gradient of variance Sigma / B about G, so that batches much
smaller than B_simple = tr(Sigma) / |G|^2 are mostly noise, and of much larger ones most examples
are wasted. With the Hessian H of the mean loss, B_noise = tr(H Sigma) / (G^T H G) is the batch
size at which a step of the best length lowers the loss by half of what it could.

The population is the training set itself, not a distribution that it came from: G is the gradient
over all of its n examples, Sigma their covariance with the divisor n - 1, and a batch drawn without
replacement has a gradient of variance Sigma (1 / B - 1 / n), none if it is the whole set. Where the
loss is random as well (dropout, augmentation), G is its expectation and the part of Sigma that is
due to that randomness does not end at n; it is measured by taking gradients twice.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, PyTree

from batchscale import arrays, columns, given, keys, numeric
from batchscale.runner.progress import lines
from batchscale.scaling import Interval
from batchscale.theory._asked import check_options, check_study
from batchscale.theory._training_loss import Sums, TrainingLoss, check_single, microbatches
from batchscale.theory.ratio import CONFIDENCE, Moments, fieller, population_without_noise, ratio
from batchscale.workloads import Workload

if TYPE_CHECKING:
    from batchscale.study import Study

_NOTHING = Interval(math.nan, math.nan)
_COLUMNS = columns.NOISE_SCALES
_AT_ONCE = 64  # a choice: directions in which the curvature is taken together


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """A gradient noise scale.

    Attributes:
      b_simple: tr(Sigma) / |G|^2, in examples; inf where G cannot be told from nothing.
      interval: of B_simple, at `confidence`, for the examples or batches that were drawn; a point
        where nothing was, and one end is open where the noise hides G.
      confidence: 0.9.
      squared_gradient: the unbiased estimate of |G|^2, which may be below 0.
      trace: the unbiased estimate of tr(Sigma).
      b_noise: tr(H Sigma) / (G^T H G), in examples; NaN unless it was asked for, and where the loss
        does not curve upwards along G, or over the noise.
      b_noise_interval: of B_noise, as `interval`; NaN where `b_noise` is. The Hessian is taken for
        known: its own error, that of a mean over the same examples, is not in it.
      loss: the mean training loss of the examples.
      examples: of which gradients were taken.
    """

    b_simple: float
    interval: Interval
    confidence: float
    squared_gradient: float
    trace: float
    b_noise: float
    b_noise_interval: Interval
    loss: float
    examples: int


def noise_scale(
    workload: Workload,
    params: PyTree,
    model_state: PyTree = None,
    *,
    examples: int | None = None,
    with_hessian: bool = False,
    split: str = "train",
    hyperparameters: Mapping[str, float] | None = None,
    microbatch: int | Literal["auto"] = "auto",
    seed: int = 0,
) -> NoiseScale:
    """The noise scale at a point, from the gradients of single examples.

    Of all examples it is exact, unless the loss is random. Of some of them, |G|^2 and tr(Sigma) are
    estimated without bias, each by itself; their covariance is that of the delete-one jackknife,
    and the interval of their ratio Fieller's (1954), which knows that |G|^2 may be next to nothing.
    Of far fewer examples than B_simple it is wider than it need be, and open.

    Args:
      workload: loss and data. The loss is that of training, at the parameters as they are.
      params: where, in the structure that the workload's init returns.
      model_state: what the model keeps besides; has to be empty, see `noise_scale_of_batches`.
      examples: how many, drawn without replacement; all of the split by default.
      with_hessian: whether to compute B_noise too, which costs the square of the examples: a
        product with the Hessian for each of them. Of some of the examples it is biased by about
        one part in their number.
      split: whose examples.
      hyperparameters: those that the loss reads (label smoothing, a dropout rate), by name.
      microbatch: examples whose gradients are held at once; it changes nothing but time and memory.
      seed: of the choice of examples, and of dropout and augmentation.

    Raises:
      ValueError: an argument is not as above; a single example has no gradient of its own (of
        norms of batches, losses of pairs), or none that is finite.

    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
    >>> workload = Workload.from_functions(
    ...     init=lambda key: {"slope": np.zeros((), np.float32)},
    ...     loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
    ...     data={"train": (x, 2 * x + x**2)},
    ... )
    >>> round(noise_scale(workload, {"slope": np.float32(0)}).b_simple, 2)
    1.15
    """
    if not isinstance(with_hessian, bool | np.bool_):
        raise TypeError(f"with_hessian: got {with_hessian!r}, wanted True or False.")
    loss = TrainingLoss(workload, params, model_state, hyperparameters, split=split, seed=seed)
    check_single(workload, model_state, hyperparameters or {})
    chosen = loss.sample(examples, fewest=3)
    count = len(chosen)
    if count < 3:
        raise ValueError(f"split: {split!r} has {count} examples, wanted at least 3.")
    parts = list(microbatches(chosen, loss.microbatch(microbatch, count, single=True)))
    total, squares, losses = np.zeros(loss.parameters), [], []
    for part in parts:
        gradient, *of_each = loss.moments(part)
        total += gradient
        squares.append(of_each[0])
        losses.append(of_each[1])
    mean = total / count
    each = np.concatenate(squares)  # which may overflow where the gradients do not
    if not (np.isfinite(mean).all() and np.isfinite(each).all()):
        raise ValueError(
            f"params: gradients of single examples of {workload.name!r} are not finite there, or "
            "their squares are not. Of a loss that sees the whole batch (a norm of batches) an "
            "example has none of its own: use noise_scale_of_batches."
        )
    moments = Moments(float(mean @ mean), each)
    # Of a loss that is not random the first examples tell so.
    redrawn = loss.redrawn(parts[0])
    if redrawn.any():
        redrawn = np.concatenate([redrawn, *map(loss.redrawn, parts[1:])])
    population = population_without_noise(loss.size, redrawn.mean(), moments.trace)
    trace, squared = moments.trace, moments.squared_gradient(population)
    b_noise, b_noise_interval = math.nan, _NOTHING
    if with_hessian:
        b_noise, b_noise_interval = _b_noise(loss, parts, mean, population)
    return NoiseScale(
        b_simple=ratio(max(trace, 0.0), squared),
        interval=moments.interval(_along(loss, parts, mean, population), population),
        confidence=CONFIDENCE,
        squared_gradient=squared,
        trace=trace,
        b_noise=b_noise,
        b_noise_interval=b_noise_interval,
        loss=float(np.concatenate(losses).mean()),
        examples=count,
    )


def noise_scale_of_batches(
    workload: Workload,
    params: PyTree,
    model_state: PyTree = None,
    *,
    small: int,
    big: int,
    batches: int = 32,
    split: str = "train",
    hyperparameters: Mapping[str, float] | None = None,
    seed: int = 0,
) -> NoiseScale:
    """The noise scale at a point, from the norms of gradients of small and of big batches.

    For any loss, also one by which an example has no gradient of its own. Each big batch is drawn
    without replacement, and its gradient is the mean of those of the small batches it consists of.
    |G|^2 and tr(Sigma) are estimated by each (appendix A.1 of the paper, corrected for the finite
    training set), averaged over the big batches, and only then divided. The interval is Fieller's
    (1954), from their scatter.

    Args:
      workload: as in `noise_scale`.
      params: as in `noise_scale`.
      model_state: what the model keeps besides; used, and left as it is.
      small: examples of a small batch; of models that normalise by the statistics of a batch, of
        that batch.
      big: examples of a big batch, a multiple of `small`.
      batches: how many big batches.
      split: whose examples.
      hyperparameters: as in `noise_scale`.
      seed: as in `noise_scale`.

    Returns:
      The noise scale; `b_noise` is NaN.

    Raises:
      ValueError: an argument is not as above; or a gradient is not finite.

    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
    >>> workload = Workload.from_functions(
    ...     init=lambda key: {"slope": np.zeros((), np.float32)},
    ...     loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
    ...     data={"train": (x, 2 * x + x**2)},
    ... )
    >>> found = noise_scale_of_batches(workload, {"slope": np.float32(0)}, small=1, big=8)
    >>> found.interval.low < 1.15 < found.interval.high
    True
    """
    loss = TrainingLoss(workload, params, model_state, hyperparameters, split=split, seed=seed)
    _check_batches(small, big, batches, loss.size)
    random = loss.random()
    rows = []
    for number in range(batches):
        chosen = random.choice(loss.size, big, replace=False)
        total, losses, weight = np.zeros(loss.parameters), 0.0, 0.0
        squares, redrawn = [], 0.0
        for place, part in enumerate(microbatches(chosen, small)):
            sums, own = _mean_gradient(loss, part, draw=2 * number)
            total += sums.gradient
            losses += sums.loss
            weight += sums.weight
            squares.append(own @ own)
            if place == 0:
                _, again = _mean_gradient(loss, part, draw=2 * number + 1)
                redrawn = small * ((again - own) @ (again - own)) / 2
        mean = total / weight
        trace = (np.mean(squares) - mean @ mean) / (1 / small - 1 / big)
        rows.append((trace, mean @ mean, redrawn, losses / weight))
    table = np.array(rows)
    trace, norm, redrawn, value = table.mean(0).tolist()
    population = population_without_noise(loss.size, redrawn, trace)
    noise = 1 / big - 1 / population
    squared = norm - trace * noise
    covariance = np.cov(table[:, 0], table[:, 1] - table[:, 0] * noise) / batches
    return NoiseScale(
        b_simple=ratio(max(trace, 0.0), squared),
        interval=fieller(trace, squared, covariance, freedom=batches - 1),
        confidence=CONFIDENCE,
        squared_gradient=squared,
        trace=trace,
        b_noise=math.nan,
        b_noise_interval=_NOTHING,
        loss=value,
        examples=big * batches,
    )


def _check_batches(small: int, big: int, batches: int, size: int) -> None:
    """Refuses what is no number of batches, or of examples of them, of a split of a size."""
    numeric.integer("small", small, 1)
    numeric.integer("big", big, 2 * small, size)
    numeric.integer("batches", batches, 2)
    if big % small:
        raise ValueError(
            f"big: got {big}, wanted a multiple of the {small} examples of a small batch."
        )


def noise_scales(
    study: Study,
    *,
    batch_size: int,
    trial: int,
    steps: Sequence[int],
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """The noise scale along the run of one trial, which is trained again.

    Args:
      study: of the trial.
      batch_size: of the trial.
      trial: its number.
      steps: at which the noise scale is taken, in increasing order.
      folder: as in `Study.run_trial`.
      progress: lines of what is at work, or none.
      **options: `examples`, `with_hessian`, `split`, `microbatch` and `seed` of `noise_scale`; or,
        where examples have no gradient of their own or weigh differently (masked labels), `small`,
        `big`, `batches`, `split` and `seed` of `noise_scale_of_batches`.

    Returns:
      One row a step: `step`, `loss` (of training), `b_simple`, `low` and `high` (its interval),
      `b_noise`, `b_noise_low` and `b_noise_high`. Steps after the parameters stopped being finite
      are missing.

    >>> import batchscale as bs
    >>> study = bs.Study(
    ...     workload=bs.workloads.get("digits/fc_64"),
    ...     optimizer="sgd",
    ...     space=bs.SearchSpace(learning_rate=0.1),
    ...     batch_sizes=[32],
    ...     goal=bs.Goal("validation/error", 0.05),
    ...     trials=1,
    ...     max_steps=1000,
    ... )
    >>> table = noise_scales(study, batch_size=32, trial=0, steps=[0, 100])
    >>> bool(table["b_simple"].is_monotonic_increasing)
    True
    """
    check_study(study)
    taken = "workload", "params", "model_state", "hyperparameters"
    of_batches = {"small", "big", "batches"} & set(options)
    of = noise_scale_of_batches if of_batches else noise_scale
    check_options(of, options, taken)
    if of is noise_scale_of_batches and not {"small", "big"} <= set(options):
        raise ValueError(
            f"noise_scales: got {' and '.join(sorted(of_batches))} alone, wanted small and big, "
            "such as 8 and 64."
        )
    if (split := options.get("split", "train")) not in [*study.workload.splits()]:
        raise ValueError(
            f"split: the workload has no {split!r}; wanted one of "
            f"{', '.join(study.workload.splits())}."
        )
    size = arrays.examples(study.workload.splits()[split])
    if of is noise_scale_of_batches:
        _check_batches(options["small"], options["big"], options.get("batches", 2), size)
    if (examples := options.get("examples")) is not None:
        numeric.integer("examples", examples, 3, size)
    steps = numeric.increasing("steps", given.several("steps", steps, "steps, in a list"))
    if of is noise_scale:  # before it is trained
        planned = study.planned_trial(batch_size=batch_size, trial=trial, folder=folder)
        state = jax.eval_shape(study.workload.init, keys.shape())[1]
        check_single(study.workload, state, planned.hyperparameters)
    say = lines(progress)
    run = study.run_trial(
        batch_size=batch_size, trial=trial, steps=steps, folder=folder, progress=progress
    )
    rows = []
    for point in run.checkpoints:
        say(f"step {point.step:,} of {steps[-1]:,}: its noise scale")
        found = of(
            study.workload,
            point.params,
            point.model_state,
            hyperparameters=run.hyperparameters,
            **options,
        )
        curved = (found.b_noise, *found.b_noise_interval)
        rows.append((point.step, found.loss, found.b_simple, *found.interval, *curved))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _mean_gradient(
    loss: TrainingLoss, examples: np.ndarray, *, draw: int
) -> tuple[Sums, Float[np.ndarray, " parameters"]]:
    """The sums of a batch, and the gradient of its mean loss.

    Raises:
      ValueError: it is not finite.
    """
    sums = loss.sums(examples, draw=draw)
    if not (np.isfinite(sums.gradient).all() and sums.weight > 0):
        raise ValueError(
            f"params: gradients of batches of {len(examples)} examples of "
            f"{loss.workload.name!r} are not finite there; wanted parameters of a trial that has "
            "not diverged, and batches that count something."
        )
    return sums, sums.gradient / sums.weight


def _along(
    loss: TrainingLoss,
    parts: Sequence[np.ndarray],
    direction: Float[np.ndarray, " parameters"],
    population: float,
) -> Float[np.ndarray, " examples"] | None:
    """The products of single gradients with a direction; None of the whole population."""
    if sum(map(len, parts)) >= population:
        return None
    return np.concatenate([loss.along(part, direction) for part in parts])


def _b_noise(
    loss: TrainingLoss,
    parts: Sequence[np.ndarray],
    mean: Float[np.ndarray, " parameters"],
    population: float,
) -> tuple[float, Interval]:
    """B_noise: as B_simple, but that the Hessian makes the inner product."""
    chosen = np.concatenate(parts)
    batches = list(microbatches(chosen, loss.microbatch("auto", len(chosen))))
    curved, weight = np.zeros(len(mean)), 0.0
    for batch in batches:
        product, counted = loss.curvature(batch, mean[None])
        curved, weight = curved + product[0], weight + counted
    curved /= weight

    def squares(directions: Any) -> Float[np.ndarray, " directions"]:
        return np.sum([loss.squares_of_curvature(batch, directions)[0] for batch in batches], 0)

    size = min(len(parts[0]), _AT_ONCE)
    each = [squares(loss.single(part)) / weight for part in microbatches(chosen, size)]
    moments = Moments(float(mean @ curved), np.concatenate(each))
    b_noise = ratio(moments.trace, moments.squared_gradient(population), otherwise=math.nan)
    if not b_noise > 0:
        return math.nan, _NOTHING
    return b_noise, moments.interval(_along(loss, parts, curved, population), population)
