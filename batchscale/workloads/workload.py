"""A workload: a data set, a model, its loss and its metrics, as pure functions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from batchscale import datasets
from batchscale.workloads import classifier
from batchscale.workloads._sums import examples_in, total

Splits = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)  # its functions have no equality but identity
class Workload:
    """What is trained and how it is judged; see `from_functions` and `from_flax` for short ways.

    Attributes:
      name: what tables and figures call it.
      init: `init(key) -> (params, model_state)`. Model state is what is not trained (batch
        statistics); it may be empty.
      loss: `loss(params, model_state, batch, key, hyperparameters) -> ((sum, count), model_state)`.
        The sum over the batch and what it counts (examples, tokens): microbatches of unequal size
        and padding stay exact. The key feeds dropout.
      metrics: `metrics(params, model_state, batch) -> {name: (sum, count)}`. A sum of integers
        says how many of `count` there are, 0 <= sum <= count whatever the parameters: it is
        compared with the goal exactly, and evaluations end as soon as they are decided. With
        `finalize`, any pytree that adds over batches.
      data: splits by name, each a mapping of arrays with the examples along axis 0; or a function
        that loads them. `train` is needed, and the split of the goal.
      preprocess: `preprocess(batch, key) -> batch`, inside jit; the key is None in evaluations,
        where nothing should be augmented.
      finalize: for metrics that are not sum / count: functions of the added pytree, on the host.
      evaluated_parameters: `f(params, opt_state) -> params`, the parameters that are evaluated;
        averages of iterates, for example.
      hyperparameters: the names that the loss reads; None where it is not known.
      classes: where it is given, labels are checked to lie in 0 to classes - 1.
      labels: the field of the labels.
      train_examples: the size of the training set, where it is known before loading.
    """

    name: str
    init: Callable[[Any], tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[tuple[Array, Array], PyTree]]
    metrics: Callable[..., Mapping[str, PyTree]]
    data: Splits | Callable[[], Splits]
    preprocess: Callable[[PyTree, Any], PyTree] | None = None
    finalize: Mapping[str, Callable[[PyTree], float]] = dataclasses.field(default_factory=dict)
    evaluated_parameters: Callable[[PyTree, PyTree], PyTree] | None = None
    hyperparameters: tuple[str, ...] | None = None
    classes: int | None = None
    labels: str = "label"
    train_examples: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.data):
            _check_splits(self.data, self)
            examples = examples_in(self.data["train"])
            object.__setattr__(self, "train_examples", examples)

    @classmethod
    def from_functions(
        cls,
        init: Callable[[Any], PyTree],
        loss: Callable[[PyTree, PyTree], Array],
        *,
        data: Any,
        metrics: Mapping[str, Callable[[PyTree, PyTree], Array]] | None = None,
        name: str = "own",
        **others: Any,
    ) -> Workload:
        """A workload from one's own pure functions.

        Args:
          init: `init(key) -> params`.
          loss: `loss(params, batch)`, one loss an example, or their mean; any other shape is
            refused before anything compiles.
          data: splits by name: mappings of arrays, or pairs `(inputs, labels)`, which become the
            fields `input` and `label`.
          metrics: functions like `loss`, by name. One boolean an example (wrong or not) is counted
            in integers. The loss itself is always measured, as `loss`.
          name: what tables and figures call it.
          **others: further fields of `Workload`.

        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> workload = Workload.from_functions(
        ...     init=lambda key: {"slope": jnp.zeros(())},
        ...     loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
        ...     data={"train": (x, 2 * x), "validation": (x[::4], 2 * x[::4])},
        ... )
        >>> workload.train_examples
        64
        """
        measured = {"loss": loss, **(metrics or {})}

        def sums(values: Array, batch: PyTree, what: str) -> tuple[Array, Array]:
            count = examples_in(batch)
            if values.shape not in ((), (count,)):
                raise ValueError(
                    f"{what}: got an array of shape {values.shape} for a batch of {count}, wanted "
                    f"({count},), one value an example, or their mean. Labels of shape (N, 1) "
                    "beside predictions of shape (N,) give every pair of both: make the shapes the "
                    "same. Of several values an example take the mean, or use the full contract of "
                    "Workload, which counts them."
                )
            if values.ndim == 0:
                return values * count, jnp.asarray(count)
            return total(values), jnp.asarray(values.size)

        def total_loss(params, model_state, batch, key, hyperparameters):
            del key, hyperparameters
            return sums(loss(params, batch), batch, "loss"), model_state

        def all_metrics(params, model_state, batch):
            del model_state
            return {
                name: sums(
                    value(params, batch), batch, name if name == "loss" else f"metric {name!r}"
                )
                for name, value in measured.items()
            }

        return cls(
            name=name,
            init=lambda key: (init(key), {}),
            loss=total_loss,
            metrics=all_metrics,
            data=_from_arrays(data) if isinstance(data, Mapping) else data,
            **{"hyperparameters": (), **others},
        )

    @classmethod
    def from_flax(
        cls,
        module: nn.Module,
        data: Any,
        *,
        name: str | None = None,
        labels: str = "label",
        scale: float = 255.0,
        **others: Any,
    ) -> Workload:
        """A classifier from a Flax (Linen) module that maps inputs to logits.

        The loss is the softmax cross-entropy, with `label_smoothing` where that is a
        hyperparameter; the metrics are `error`, the share of wrong examples, and `loss`. A module
        whose call takes `train` or `deterministic` is told whether it is trained; `dropout_rate`
        reaches a module whose call takes it, for `models.layers.dropout`, whose rate can be tuned
        (that of `nn.Dropout` is a constant). Convolutions are several times as fast on a CPU with
        `nn.Conv(..., conv_general_dilated=models.layers.fast_conv_general_dilated)`.

        Args:
          module: called as `module(inputs)`.
          data: splits by name: pairs `(inputs, labels)`, or mappings with the field of the labels
            and one more, the inputs.
          name: what tables and figures call it; the module's class by default.
          labels: the field of the labels, integers from 0.
          scale: unsigned 8-bit inputs are divided by it; others are taken as they are.
          **others: further fields of `Workload`.

        >>> from batchscale import models
        >>> images = np.zeros((32, 8, 8, 1), np.uint8)
        >>> digits = (images, np.arange(32) % 10)
        >>> workload = Workload.from_flax(models.get("fc_16", 10), {"train": digits})
        >>> workload.name, workload.classes
        ('Perceptron', 10)
        """
        splits = _from_arrays(data)
        fields = classifier.fields(
            module, example=classifier.example(splits["train"], labels), labels=labels, scale=scale
        )
        return cls(name=name or type(module).__name__, data=splits, **{**fields, **others})

    def splits(self) -> Splits:
        """The data, loaded and checked.

        Raises:
          ValueError: a split is missing, uneven or empty, or labels are out of range.
        """
        return _loaded(self)

    def flops(self, batch: PyTree | None = None, names: Sequence[str] = ()) -> float:
        """Floating-point operations of the gradient of one example, as XLA counts them.

        Starts the JAX backend.

        Args:
          batch: shapes and types of a batch of one; of the training set by default.
          names: the hyperparameters that the loss is given.
        """
        if batch is None:
            batch = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), self.splits()["train"]
            )
        key = jax.ShapeDtypeStruct((2,), np.uint32)
        values = {name: jax.ShapeDtypeStruct((), np.float32) for name in names}

        def loss(
            params: PyTree, model_state: PyTree, key: PyTree, batch: PyTree, values: PyTree
        ) -> Array:
            prepared = self.prepare(batch, key)
            (total, _), _ = self.loss(params, model_state, prepared, key, values)
            return total

        params, model_state = jax.eval_shape(self.init, key)
        lowered = jax.jit(jax.grad(loss)).lower(params, model_state, key, batch, values)
        return float((lowered.cost_analysis() or {}).get("flops", float("nan")))

    def evaluation_flops(self) -> float:
        """Floating-point operations of the metrics of one example, likewise."""
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), self.splits()["train"]
        )
        key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
        lowered = jax.jit(lambda *state: self.metrics(*state[:2], self.prepare(state[2], None)))
        cost = lowered.lower(*jax.eval_shape(self.init, key), batch).cost_analysis()
        return float((cost or {}).get("flops", float("nan")))

    def prepare(self, batch: PyTree, key: Any) -> PyTree:
        """A batch as the loss and the metrics take it."""
        return batch if self.preprocess is None else self.preprocess(batch, key)


def _from_arrays(data: Mapping[str, Any]) -> Splits:
    others = sorted(set(data) - {"train", "validation", "test"})
    if "train" not in data or others:
        raise ValueError(
            f"data: got the splits {', '.join(sorted(data))}, "
            + (f"and does not know {', '.join(others)}." if others else "and no 'train'.")
            + " Name them 'train', 'validation' and 'test'; 'train' is needed."
        )
    return datasets.from_arrays(**data)


@functools.lru_cache(maxsize=8)
def _loaded(workload: Workload) -> Splits:
    splits = workload.data() if callable(workload.data) else workload.data
    _check_splits(splits, workload)
    return splits


def _check_splits(splits: Splits, workload: Workload) -> None:
    if "train" not in splits:
        raise ValueError(
            f"data: {workload.name!r} has the splits {sorted(splits)}, and no 'train'. "
            "Name the training split 'train'."
        )
    for split, fields in splits.items():
        sizes = {name: len(values) for name, values in fields.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(
                f"data: the fields of split {split!r} of {workload.name!r} have the lengths "
                f"{sizes}; wanted one length, above 0. Put the examples along axis 0."
            )
    if workload.classes is not None:
        datasets.check_labels(splits, workload.classes, field=workload.labels)
