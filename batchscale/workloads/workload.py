"""A workload: a data set, a model, its loss and its metrics, as pure functions."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from batchscale import arrays, columns, datasets, given, keys, numeric
from batchscale.datasets import narrow
from batchscale.datasets.splits import some
from batchscale.workloads import _fields, losses, networks, operations, supervised, tracing
from batchscale.workloads._sums import finalized, loss_sums, sums

Splits = Mapping[str, Mapping[str, np.ndarray]]

_CALLS = {  # of the fields that are functions: those that are needed, and those that may be None
    "init": "init(key)",
    "loss": "loss(params, model_state, batch, key, hyperparameters)",
    "metrics": "metrics(params, model_state, batch)",
}
_OTHER_CALLS = {
    "preprocess": "preprocess(batch, key)",
    "evaluated_parameters": "evaluated_parameters(params, opt_state)",
    "titled": "titled(name, splits)",
}


@dataclasses.dataclass(frozen=True, eq=False)  # its functions have no equality but identity
class Workload:
    """What is trained and how it is judged; see `from_model` and `from_functions` for short ways.

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
      data: splits by name, each a mapping of arrays with the examples along axis 0, or a
        `datasets.Stream` of examples that are read as they are needed; or a function that loads
        them. `train` is needed, and the split of the goal.
      preprocess: `preprocess(batch, key) -> batch`, inside jit; the key is None in evaluations,
        where nothing should be augmented.
      finalize: for metrics that are not sum / count: functions of the added pytree, on the host.
      evaluated_parameters: `f(params, opt_state) -> params`, the parameters that are evaluated;
        averages of iterates, for example.
      hyperparameters: the names that the loss reads; None where it is not known.
      classes: where it is given, labels are checked to lie in 0 to classes - 1.
      labels: the field of the labels.
      ignored_label: a label besides, of what is padded.
      train_examples: the size of the training set, where it is known before loading.
      titled: `titled(name, splits) -> name`, where the name depends on the data that are found.
      ghost_batch_size: where the loss of an example depends on the others of its group alone, the
        examples of a group, as in `models.GhostBatchNorm`: microbatches are cut between groups.
        That it is so is checked before training.
      unpaired: fields whose entries belong to no example, such as samples of another distribution;
        a loss of all pairs of theirs and the others' is refused as a mistake otherwise.

    Raises:
      TypeError: a field is of another kind than above.
      ValueError: a split is missing, uneven or empty, or labels are out of range.

    What is padded is masked: loss and metrics return sums over what is not, and its count. Here
    labels of -1 are padding; `classes` is left out, since -1 is none.

    >>> import optax
    >>> def masked(params, batch, of_each):
    ...     real = batch["label"] >= 0
    ...     logits = batch["input"] @ params["w"]
    ...     # Padding gets a label that there is, and counts for nothing.
    ...     each = of_each(logits, jnp.where(real, batch["label"], 0))
    ...     return jnp.where(real, each, 0).sum(), real.sum()
    >>> def loss(params, model_state, batch, key, hyperparameters):
    ...     cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    ...     return masked(params, batch, cross_entropy), model_state
    >>> def metrics(params, model_state, batch):
    ...     def wrong(logits, labels):
    ...         return (logits.argmax(-1) != labels).astype(jnp.int32)
    ...     return {"error": masked(params, batch, wrong)}
    >>> words = np.zeros((6, 5, 8), np.float32)  # 6 sequences of at most 5 words
    >>> labels = np.array([[0, 1, 1, -1, -1]] * 6, np.int32)
    >>> workload = Workload(
    ...     name="tagger",
    ...     init=lambda key: ({"w": jnp.zeros((8, 2))}, {}),
    ...     loss=loss,
    ...     metrics=metrics,
    ...     data={"train": {"input": words, "label": labels}},
    ... )
    >>> params, model_state = workload.init(jax.random.key(0))
    >>> wrong, count = workload.metrics(params, model_state, workload.splits()["train"])["error"]
    >>> int(wrong), int(count)
    (12, 18)
    >>> workload
    Workload('tagger', train: 6 examples; input float32 (5, 8), label int32 (5,))
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
    ignored_label: int | None = None
    train_examples: int | None = None
    titled: Callable[[str, Splits], str] | None = None
    unpaired: tuple[str, ...] = ()
    ghost_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, call in _CALLS.items():
            _fields.function(name, getattr(self, name), call)
            object.__setattr__(self, name, _arrays(getattr(self, name)))
        for name, call in _OTHER_CALLS.items():
            if getattr(self, name) is not None:
                _fields.function(name, getattr(self, name), call)
        finalize = _fields.functions("finalize", self.finalize, "f(added sums)")
        object.__setattr__(self, "finalize", finalize)
        object.__setattr__(self, "unpaired", _fields.names("unpaired", self.unpaired))
        if self.hyperparameters is not None:
            names = _fields.names("hyperparameters", self.hyperparameters)
            object.__setattr__(self, "hyperparameters", names)
        columns.check_label("workload", self.name)
        _fields.word("labels", self.labels)
        if self.ignored_label is not None:
            ignored = numeric.integer("ignored_label", self.ignored_label, -(2**63), 2**63 - 1)
            object.__setattr__(self, "ignored_label", ignored)
        if self.titled is not None:
            given.called("titled", self.titled, _OTHER_CALLS["titled"], 2)
        for name in ("train_examples", "classes", "ghost_batch_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, numeric.integer(name, getattr(self, name), 1))
        if not callable(self.data):
            object.__setattr__(self, "data", _with_fields(self.data))
            _check_splits(self.data, self)
            examples = arrays.examples(self.data["train"])
            object.__setattr__(self, "train_examples", examples)

    def __repr__(self) -> str:
        if callable(self.data):
            size = self.train_examples
            known = "" if size is None else f", train: {size:,} examples"
            return f"Workload({self.name!r}{known}; loaded when it is needed)"
        of = {name: list(fields.values()) for name, fields in self.data.items()}
        sizes = (f"{name}: {len(arrays[0]):,} examples" for name, arrays in of.items())
        kinds = {name: np.asarray(x[:1]) for name, x in self.data["train"].items()}
        fields = (f"{name} {x.dtype} {x.shape[1:]}" for name, x in kinds.items())
        return f"Workload({self.name!r}, {', '.join(sizes)}; {', '.join(fields)})"

    @classmethod
    def from_functions(
        cls,
        init: Callable[[Any], PyTree],
        loss: Callable[[PyTree, PyTree], Array],
        *,
        data: Any,
        metrics: Mapping[str, Callable[[PyTree, PyTree], Any]] | None = None,
        finalize: Mapping[str, Callable[[PyTree], float]] | None = None,
        name: str = "own",
        **others: Any,
    ) -> Workload:
        """A workload from one's own pure functions.

        Args:
          init: `init(key) -> params`.
          loss: `loss(params, batch)`, one loss an example, or their mean, or `(sum, count)`, two
            scalars over the batch; any other shape is refused before anything compiles. A mean over
            tokens that are not padding is no mean over examples, and is refused, too: it is
            `(sum over the tokens, how many)`.
          data: splits by name: mappings of arrays, or pairs `(inputs, labels)`, which become the
            fields `input` and `label`; or a function that returns them.
          metrics: functions of the same arguments, by name, that return one value an example, or
            `(sum, count)`, two scalars over the batch. One boolean an example (wrong or not) is
            counted in integers. The loss itself is always measured, as `loss`.
          finalize: for metrics that are no mean over examples: such a metric returns sums over the
            batch, any pytree of them, which are added over all batches; the function of that name
            makes the metric of them, on the host.
          name: what tables and figures call it.
          **others: further fields of `Workload`.

        Raises:
          TypeError: an argument is of another kind than above.
          ValueError: a metric is called `loss`, or `finalize` names none.

        >>> import jax.numpy as jnp
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> workload = Workload.from_functions(
        ...     init=lambda key: {"slope": jnp.zeros(())},
        ...     loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
        ...     data={"train": (x, 2 * x), "validation": (x[::4], 2 * x[::4])},
        ... )
        >>> workload.train_examples
        64

        Of sequences that end early the loss is one of the tokens that there are.

        >>> tokens = np.ones((8, 5), np.float32)
        >>> weight = (np.arange(5) < np.arange(1, 9)[:, None]).astype(np.float32)
        >>> def loss(params, batch):
        ...     of_each = (params["mean"] - batch["input"]) ** 2
        ...     return (of_each * batch["weight"]).sum(), batch["weight"].sum()
        >>> workload = Workload.from_functions(
        ...     init=lambda key: {"mean": jnp.zeros(())},
        ...     loss=loss,
        ...     data={"train": {"input": tokens, "weight": weight}},
        ... )

        R^2 is no mean: of each batch it takes sums, and of their sums over a split the metric.

        >>> def sums(params, batch):
        ...     error = params["slope"] * batch["input"] - batch["label"]
        ...     y = batch["label"]
        ...     return {"n": y.size, "y": y.sum(), "yy": (y**2).sum(), "ee": (error**2).sum()}
        >>> def r2(s):
        ...     return 1 - s["ee"] / (s["yy"] - s["y"] ** 2 / s["n"])
        >>> workload = Workload.from_functions(
        ...     init=lambda key: {"slope": jnp.zeros(())},
        ...     loss=lambda params, batch: (params["slope"] * batch["input"] - batch["label"]) ** 2,
        ...     metrics={"r2": sums},
        ...     finalize={"r2": r2},
        ...     data={"train": (x, 2 * x), "validation": (x[::4], 2 * x[::4])},
        ... )
        """
        _fields.function("init", init, "init(key)")
        _fields.function("loss", loss, "loss(params, batch)")
        measured = _fields.functions("metrics", metrics, "f(params, batch)")
        finalize = _fields.functions("finalize", finalize, "f(added sums)")
        if "loss" in measured:
            raise ValueError(
                "metrics: got 'loss', which is measured already: the loss that is trained. Give "
                "the other one another name, such as 'plain_loss'."
            )
        unknown = [name for name in finalize if name not in measured]
        if unknown:
            raise ValueError(
                f"finalize: there is no metric {unknown[0]!r}; wanted some of "
                f"{', '.join(measured) or 'none'}."
            )

        def total_loss(params, model_state, batch, key, hyperparameters):
            del key, hyperparameters
            return loss_sums(loss(params, batch), batch), model_state

        def all_metrics(params, model_state, batch):
            del model_state
            found = {"loss": loss_sums(loss(params, batch), batch)}
            for name, metric in measured.items():
                value = metric(params, batch)
                found[name] = value if name in finalize else sums(value, batch, name)
            return found

        return cls(
            name=name,
            init=lambda key: (init(key), {}),
            loss=total_loss,
            metrics=all_metrics,
            data=(lambda: _from_arrays(data())) if callable(data) else _from_arrays(data),
            finalize=finalize,
            **{"hyperparameters": (), **others},
        )

    @classmethod
    def from_model(
        cls,
        model: Any,
        data: Any,
        loss: str | Callable[[Any, Any], Any] = "cross_entropy",
        *,
        ignore_label: int | None = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        finalize: Mapping[str, Callable[[PyTree], float]] | None = None,
        name: str | None = None,
        labels: str = "label",
        scale: float | None = None,
        mode: Mapping[str, tuple[Any, Any]] | None = None,
        **others: Any,
    ) -> Workload:
        """A workload from a model of Flax, Equinox or Haiku, or of plain functions.

        Dropout gets keys, and batch statistics and other state are kept. A switch by which a model
        is told whether it is trained is used (`train`, `deterministic`, `use_running_average`) or
        named in `mode`; none is left to its default. A Linen module whose call takes `dropout_rate`
        gets it where it is a hyperparameter, and so does the loss with `label_smoothing`, and `l2`,
        a penalty of l2 / 2 times the sum of squared parameters. Convolutions of Linen are several
        times as fast on a CPU with
        `nn.Conv(..., conv_general_dilated=models.layers.fast_conv_general_dilated)`.

        Args:
          model: a Flax (Linen) module; a function of a key that makes a Flax NNX or an Equinox
            module, which may come with its state; what `haiku.transform` or `transform_with_state`
            returns; or a pair `(init, apply)`, called as `init(key)` and `apply(params, inputs)`.
            Equinox's are called on one example, and all others on a batch.
          data: splits by name: pairs `(inputs, labels)`, or mappings with the field of the labels
            and the inputs, which the model gets as a mapping if they are several; or a function
            that returns them, which is called here.
          loss: `"cross_entropy"`, of logits and integers; `"next_token"`, the same of sequences of
            tokens, each split of which is one array; `"sigmoid_cross_entropy"`, of logits and 0 or
            1 for each class; `"squared_error"`; or `f(outputs, labels)`, which returns values whose
            mean is trained, or `(sum, count)`. With them `error`, `perplexity` or `r2` is measured.
          ignore_label: labels of this value (padding) count for nothing, in loss and metrics.
          metrics: more, by name: functions of (outputs, labels) that return values whose mean is
            measured, booleans in integers, or `(sum, count)`.
          finalize: for metrics that are no mean, as in `from_functions`.
          name: what tables and figures call it; the model's class by default.
          labels: the field of the labels.
          scale: unsigned 8-bit inputs are divided by it; others are taken as they are. Without it
            images of two dimensions and more are divided by 255, and smaller ones refused: they
            may be pixels, tokens or a mask.
          mode: switches of the model, each with its value in training and in evaluation:
            `{"is_train": (True, False)}`.
          **others: further fields of `Workload`.

        Raises:
          TypeError: the model, the loss or the mode is of another kind.
          ValueError: a switch of the model is neither known nor in `mode`; labels do not fit the
            outputs, or are out of range; the data is not as above.

        >>> from flax import nnx
        >>> images = np.zeros((32, 8), np.float32)
        >>> digits = {"train": (images, np.arange(32) % 10)}
        >>> def model(key):
        ...     return nnx.Linear(8, 10, rngs=nnx.Rngs(key))
        >>> workload = Workload.from_model(model, digits)
        >>> workload.name, workload.classes
        ('Linear', 10)

        Of functions, with labels that are masked:

        >>> labels = np.where(np.arange(6) < 4, np.arange(32)[:, None] % 3, -100)
        >>> workload = Workload.from_model(
        ...     (lambda key: jnp.zeros((8, 6, 3)), lambda w, x: jnp.einsum("ni,itc->ntc", x, w)),
        ...     {"train": (images, labels)},
        ...     ignore_label=-100,
        ... )
        >>> sums = workload.metrics(*workload.init(jax.random.key(0)), workload.splits()["train"])
        >>> int(sums["error"][1]), 32 * 4
        (128, 128)
        """
        given, split = data() if callable(data) else data, "train"
        tokens = isinstance(loss, str) and loss == "next_token"
        if tokens and isinstance(given, Mapping):
            given = {k: {"tokens": x} if hasattr(x, "shape") else x for k, x in given.items()}
        splits = _from_arrays(given)
        batch = supervised.batch_of_one(splits[split])
        if tokens:
            labels = supervised.only_field(splits[split])
        if labels not in batch or (len(batch) < 2 and not tokens):
            raise ValueError(
                f"data: got the fields {sorted(batch)}, wanted the labels as {labels!r} and the "
                "inputs. Name the field of the labels with labels=..., or write a Workload."
            )
        own = others.pop("preprocess", None)
        if own is not None and scale is not None:
            raise ValueError("scale: inputs are not divided where `preprocess` is given; leave it.")
        if own is None and not tokens:
            supervised.check_unsigned(splits, labels, scaled=scale is not None)
        divisor = float(
            numeric.above("scale", 255 if scale is None else scale, 0, "a number above 0")
        )
        ignored = (
            None
            if ignore_label is None
            else numeric.integer("ignore_label", ignore_label, -(2**31), 2**31 - 1)
        )
        preprocess = (
            supervised.shifted(labels, ignored) if tokens else supervised.scaled(labels, divisor)
        )
        preprocess = own or preprocess
        target = "label" if tokens else labels

        def prepared() -> PyTree:
            zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in batch.items()}
            return preprocess(zeros, None)

        values = splits[split][labels]
        streamed = datasets.is_streamed(splits[split])
        known = some(values)
        judge = losses.get(loss, ignored=ignored, labels=known)
        made = networks.network(model, lambda: supervised.inputs(prepared(), target), mode)
        classes = judge.check(made.outputs, jax.eval_shape(prepared)[target], labels)
        if not streamed:
            for name_of, fields_of in splits.items():
                judge.check_values(fields_of[labels], f"{name_of}/{labels}")
        found = supervised.fields(
            made,
            judge,
            labels=target,
            preprocess=preprocess,
            metrics=_fields.functions("metrics", metrics, "f(outputs, labels)"),
            finalize=_fields.functions("finalize", finalize, "f(added sums)"),
        )
        found |= {"labels": labels, "classes": classes, "ignored_label": ignored}
        return cls(name=made.title if name is None else name, data=splits, **{**found, **others})

    @classmethod
    def from_flax(cls, module: nn.Module, data: Any, **others: Any) -> Workload:
        """A classifier from a Flax (Linen) module that maps inputs to logits.

        `from_model` with cross-entropy, whose arguments it takes.

        >>> from batchscale import models
        >>> images = np.zeros((32, 8, 8, 1), np.uint8)
        >>> digits = (images, np.arange(32) % 10)
        >>> workload = Workload.from_flax(models.get("fc_16", 10), {"train": digits})
        >>> workload.name, workload.classes
        ('Perceptron', 10)
        """
        return cls.from_model(module, data, **others)

    def splits(self) -> Splits:
        """The data, loaded and checked.

        Raises:
          ValueError: a split is missing, uneven or empty, or labels are out of range.
        """
        return _loaded(self)

    def read(
        self,
        split: str,
        indices: Sequence[int] | np.ndarray,
        *,
        stop: threading.Event | None = None,
    ) -> Mapping[str, np.ndarray]:
        """Some examples of a split, read where it is streamed, their labels checked.

        Args:
          split: its name.
          indices: of the examples; of any shape.
          stop: when it is set, reading ends with an error.

        Returns:
          Arrays by field, with the shape of the indices in front.

        Raises:
          ValueError: an example cannot be read, or its label is out of range.
        """
        whole = self.splits()[split]
        found = datasets.take(whole, indices, stop=stop)
        if self.classes is not None and datasets.is_streamed(whole):
            datasets.check_labels(
                {split: found}, self.classes, field=self.labels, ignored=self.ignored_label
            )
        return found

    def title(self) -> str:
        """What tables call it: its name, and what is other in the data if they are known by name.

        Loads the data.

        >>> from batchscale import workloads
        >>> workloads.get("digits/fc_64").title()
        'digits/fc_64'
        """
        if self.titled is None:
            return self.name
        with tracing.told(
            f"workload {self.name!r}: titled",
            lookup="",
            remedy="It is called as titled(name, splits), and returns a name.",
        ):
            title = self.titled(self.name, self.splits())
        columns.check_label(f"workload {self.name!r}: titled", title)
        return title

    def flops(self, batch: PyTree | None = None, names: Sequence[str] = ()) -> float:
        """Floating-point operations of the gradient of one example, as XLA counts them.

        Starts the JAX backend.

        Args:
          batch: shapes and types of a batch of one; of the training set by default.
          names: the hyperparameters that the loss is given.
        """
        if batch is None:
            batch = arrays.like_examples(self.splits()["train"], 1)
        key = keys.shape()
        values = {name: jax.ShapeDtypeStruct((), np.float32) for name in names}

        def loss(
            params: PyTree, model_state: PyTree, key: PyTree, batch: PyTree, values: PyTree
        ) -> Array:
            prepared = self.prepare(batch, key)
            (total, _), _ = self.loss(params, model_state, prepared, key, values)
            return total

        params, model_state = jax.eval_shape(self.init, key)
        return operations.flops(jax.grad(loss), params, model_state, key, batch, values)

    def evaluation_flops(self) -> float:
        """Floating-point operations of the metrics of one example; starts the JAX backend."""
        batch = arrays.like_examples(self.splits()["train"], 1)
        state = jax.eval_shape(self.init, keys.shape())
        return operations.flops(
            lambda *state: self.metrics(*state[:2], self.prepare(state[2], None)), *state, batch
        )

    def finalized(self, name: str, sums: PyTree) -> float:
        """What `finalize` makes of the added sums of a metric.

        Args:
          name: of a metric that `finalize` has.
          sums: over a split.

        Raises:
          ValueError: the function raises, or what it returns is not one real number.
        """
        what = f"finalize: of the metric {name!r} of workload {self.name!r}"
        return finalized(self.finalize[name], sums, what)

    def prepare(self, batch: PyTree, key: Any) -> PyTree:
        """A batch as the loss and the metrics take it."""
        return batch if self.preprocess is None else self.preprocess(batch, key)


def _arrays(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of the user's, whose leaves become arrays: of Python's numbers too."""
    if getattr(function, "_makes_arrays", False):  # of a workload that was replaced
        return function

    @functools.wraps(function, updated=())
    def arrays(*arguments: PyTree) -> PyTree:
        return jax.tree.map(_array, function(*arguments))

    arrays._makes_arrays = True  # pyright: ignore
    return arrays


def _array(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    # Not of a type that gives way to others: it would change within a loop.
    return array if keys.is_key(array) else array.astype(array.dtype)


def _from_arrays(data: Any) -> Splits:
    if not isinstance(data, Mapping):
        raise TypeError(
            f"data: got {type(data).__name__}, wanted splits by name, such as "
            '{"train": (inputs, labels), "validation": (inputs, labels)}, or a function that '
            "returns them."
        )
    others = sorted(set(data) - {"train", "validation", "test"})
    if "train" not in data or others:
        raise ValueError(
            f"data: got the splits {', '.join(sorted(data))}, "
            + (f"and does not know {', '.join(others)}." if others else "and no 'train'.")
            + " Name them 'train', 'validation' and 'test'; 'train' is needed."
        )
    return datasets.from_arrays(**data)


def _with_fields(splits: Any) -> Any:
    """Splits of which those that are streams are mappings of their fields."""
    if not isinstance(splits, Mapping):
        return splits
    return {k: x.fields() if isinstance(x, datasets.Stream) else x for k, x in splits.items()}


@functools.lru_cache(maxsize=8)
def _loaded(workload: Workload) -> Splits:
    splits = _with_fields(workload.data()) if callable(workload.data) else workload.data
    _check_splits(splits, workload)
    loaded, stated = arrays.examples(splits["train"]), workload.train_examples
    if stated is not None and stated != loaded:
        raise ValueError(
            f"data: {workload.name!r} states train_examples={stated}, and {loaded} were loaded. "
            'Batch sizes ("full") and budgets in epochs go by that number: state the right one, or '
            "none."
        )
    return splits


def _check_splits(splits: Splits, workload: Workload) -> None:
    if not isinstance(splits, Mapping) or not all(isinstance(x, Mapping) for x in splits.values()):
        raise TypeError(
            f"data: {workload.name!r} has {_kinds(splits)}, wanted splits by name, each a mapping "
            "of arrays by field. datasets.from_arrays makes them of pairs (inputs, labels)."
        )
    for split in splits:
        columns.check_name(f"data: {workload.name!r} has a split", split)
    if "train" not in splits:
        raise ValueError(
            f"data: {workload.name!r} has the splits {sorted(splits)}, and no 'train'. "
            "Name the training split 'train'."
        )
    for split, fields in splits.items():
        sizes = {name: len(x) if hasattr(x, "__len__") else 0 for name, x in fields.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise ValueError(
                f"data: the fields of split {split!r} of {workload.name!r} have the lengths "
                f"{sizes}; wanted one length, above 0. Put the examples along axis 0."
            )
        for name, values in fields.items():
            if not hasattr(values, "shape") or not hasattr(values, "dtype"):
                raise TypeError(
                    f"data: field {name!r} of split {split!r} of {workload.name!r} is "
                    f"{given.described(values)}, wanted an array with the examples along axis 0."
                )
            where = f"data: split {split!r} of {workload.name!r}"
            narrow.check_unmasked(where, name, values)
            narrow.check_held(where, name, values)
    if workload.classes is not None:
        datasets.check_labels(
            splits, workload.classes, field=workload.labels, ignored=workload.ignored_label
        )


def _kinds(splits: Any) -> str:
    if not isinstance(splits, Mapping):
        return f"a {type(splits).__name__}"
    return ", ".join(f"{split!r}: a {type(fields).__name__}" for split, fields in splits.items())
