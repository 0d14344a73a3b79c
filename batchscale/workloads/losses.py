"""Losses of a model's outputs: what is trained, and the metrics that go with it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from batchscale import arrays
from batchscale.optimizers import Hyperparameters
from batchscale.workloads import _regularised, tracing
from batchscale.workloads._sums import is_sum_and_count, total, wide

Pair = tuple[Array, Array]


class Loss(abc.ABC):
    """A loss of outputs and labels, as sums over a batch."""

    hyperparameters: tuple[str, ...] = ()
    """Those that it reads."""

    @property
    def finalize(self) -> Mapping[str, Callable[[PyTree], float]]:
        """Of metrics that are no ratio."""
        return {}

    @abc.abstractmethod
    def trained(self, outputs: Any, labels: Any, hyperparameters: Hyperparameters) -> Pair:
        """The sum and the count of what is trained."""

    @abc.abstractmethod
    def measured(self, outputs: Any, labels: Any) -> dict[str, PyTree]:
        """The metrics, as sums."""

    def check_values(self, labels: np.ndarray, field: str) -> None:
        """Refuses values of labels that are out of range, where that is not done elsewhere."""
        del labels, field

    @abc.abstractmethod
    def check(self, outputs: PyTree, labels: PyTree, field: str) -> int | None:
        """Refuses shapes that do not go together.

        Args:
          outputs: shapes of a batch of one.
          labels: likewise.
          field: of the labels.

        Returns:
          How many classes there are, where labels are numbers of classes.
        """


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy of logits and integer labels; `error` counts what is wrong.

    In 32 bits or more: in 16 the loss of an example that is certain rounds to zero.

    Attributes:
      ignored: a label that counts for nothing; None where there is none.
      perplexity: whether that is measured, too.
    """

    ignored: int | None = None
    perplexity: bool = False
    hyperparameters: ClassVar[tuple[str, ...]] = ("label_smoothing",)  # pyright: ignore

    @property
    def finalize(self) -> Mapping[str, Callable[[PyTree], float]]:
        """Of metrics that are no ratio."""
        return {"perplexity": _perplexity} if self.perplexity else {}

    def trained(self, outputs: Any, labels: Any, hyperparameters: Hyperparameters) -> Pair:
        """The sum and the count of what is trained."""
        real, labels = self._real(labels)
        outputs = wide(outputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        losses = _regularised.smoothed(losses, outputs, hyperparameters)
        return _summed(losses, real), _count(labels, real)

    def measured(self, outputs: Any, labels: Any) -> dict[str, PyTree]:
        """The metrics, as sums."""
        real, labels = self._real(labels)
        losses = optax.softmax_cross_entropy_with_integer_labels(wide(outputs), labels)
        # Not in the labels' type, which may be too narrow for all classes.
        wrong = outputs.argmax(-1).astype(jnp.int32) != labels.astype(jnp.int32)
        count = _count(labels, real)
        found = (_summed(losses, real), count)
        more = dict.fromkeys(self.finalize, found)
        return {"error": (_summed(wrong, real), count), "loss": found, **more}

    def check(self, outputs: PyTree, labels: PyTree, field: str) -> int | None:
        """Refuses shapes that do not go together."""
        shape = _one_array(outputs).shape[1:]
        *of_labels, classes = shape or (None,)
        got, wanted = tuple(labels.shape[1:]), tuple(of_labels)
        if classes is None:
            raise ValueError(
                "module: it returns one number an example, wanted its logits, one for each class."
            )
        if got != wanted:
            remedy = "Give each label the shape that its logits have, without the classes."
            if got == (*wanted, 1):
                remedy = f"Give {field}[..., 0]."
            elif got == (*wanted, classes):
                remedy = f"If they are one-hot, give {field}.argmax(-1), the integers."
            raise ValueError(
                f"labels: one of {field!r} has the shape {got}, wanted {wanted}, an integer for "
                f"the {classes} logits. {remedy}"
            )
        return classes

    def _real(self, labels: Any) -> tuple[Any, Any]:
        """Which labels count, and all of them with a class in the place of what does not."""
        if self.ignored is None:
            return None, labels
        real = labels != self.ignored
        return real, jnp.where(real, labels, 0)


@dataclasses.dataclass(frozen=True)
class SigmoidCrossEntropy(Loss):
    """Sigmoid cross-entropy of logits and labels of 0 and 1, one for each class.

    The mean is over all labels that count; `error` is the share that is on the wrong side of one
    half.

    Attributes:
      ignored: a label that counts for nothing; None where there is none.
    """

    ignored: int | None = None

    def trained(self, outputs: Any, labels: Any, hyperparameters: Hyperparameters) -> Pair:
        """The sum and the count of what is trained."""
        del hyperparameters
        real, outputs = self._real(labels), wide(outputs)
        targets = _like(labels if real is None else jnp.where(real, labels, 0), outputs)
        losses = optax.sigmoid_binary_cross_entropy(outputs, targets)
        return _summed(losses, real), _count(labels, real)

    def measured(self, outputs: Any, labels: Any) -> dict[str, PyTree]:
        """The metrics, as sums."""
        real = self._real(labels)
        summed, count = self.trained(outputs, labels, {})
        wrong = (outputs > 0) != (labels > 0)
        return {"error": (_summed(wrong, real), count), "loss": (summed, count)}

    def check(self, outputs: PyTree, labels: PyTree, field: str) -> int | None:
        """Refuses shapes that do not go together."""
        _check_alike(_one_array(outputs), labels, field)

    def check_values(self, labels: np.ndarray, field: str) -> None:
        """Refuses what is neither 0 nor 1."""
        allowed = [0, 1] if self.ignored is None else [0, 1, self.ignored]
        if not np.isin(labels, allowed).all():
            found = np.unique(labels)[:4].tolist()
            raise ValueError(
                f"labels: {field!r} has values such as {found}, wanted 0 and 1 for each class"
                f"{'' if self.ignored is None else f', or {self.ignored}'}."
            )

    def _real(self, labels: Any) -> Any:
        return None if self.ignored is None else labels != self.ignored


_ROUNDING = 2e-6  # of sums in 32 bits: three times what labels that are all the same leave


@dataclasses.dataclass(frozen=True)
class SquaredError(Loss):
    """The mean squared difference of outputs and labels; `r2` beside it.

    R^2 = 1 - sum of squared errors / sum of squared deviations from the mean of the split's labels;
    NaN where these are no more than rounding, as of labels that are all the same.

    Attributes:
      centre: of the labels, about which sums are taken, so that they are exact enough.
    """

    centre: float = 0.0

    @property
    def finalize(self) -> Mapping[str, Callable[[PyTree], float]]:
        """Of metrics that are no ratio."""
        return {"r2": _r2}

    def trained(self, outputs: Any, labels: Any, hyperparameters: Hyperparameters) -> Pair:
        """The sum and the count of what is trained."""
        del hyperparameters
        squares = jnp.square(wide(outputs) - _like(labels, wide(outputs)))
        return squares.sum(), jnp.asarray(labels.size)

    def measured(self, outputs: Any, labels: Any) -> dict[str, PyTree]:
        """The metrics, as sums."""
        summed, count = self.trained(outputs, labels, {})
        away = _like(labels, wide(outputs)) - self.centre
        sums = {
            "count": count,
            "error": summed,
            "away": away.sum(),
            "squares": jnp.square(away).sum(),
        }
        return {"loss": (summed, count), "r2": sums}

    def check_values(self, labels: np.ndarray, field: str) -> None:
        """Refuses what is not finite, which no step gets over."""
        wrong = np.flatnonzero(
            ~np.isfinite(np.asarray(labels, np.float32)).reshape(len(labels), -1).all(1)
        )
        if len(wrong):
            raise ValueError(
                f"labels: {field!r} has {len(wrong):,} that are not finite, the first of example "
                f"{wrong[0]:,}. Leave these examples out."
            )

    def check(self, outputs: PyTree, labels: PyTree, field: str) -> int | None:
        """Refuses shapes that do not go together."""
        _check_alike(_one_array(outputs), labels, field)


@dataclasses.dataclass(frozen=True)
class Own(Loss):
    """A function of one's own, `f(outputs, labels)`.

    Attributes:
      function: returns values whose mean is trained, with the examples along axis 0, or
        `(sum, count)`, two scalars over the batch.
    """

    function: Callable[[Any, Any], Any]

    def trained(self, outputs: Any, labels: Any, hyperparameters: Hyperparameters) -> Pair:
        """The sum and the count of what is trained."""
        del hyperparameters
        return _of_own("loss", self.function(outputs, labels), labels)

    def measured(self, outputs: Any, labels: Any) -> dict[str, PyTree]:
        """The metrics, as sums."""
        return {"loss": self.trained(outputs, labels, {})}

    def check(self, outputs: PyTree, labels: PyTree, field: str) -> int | None:
        """Refuses what does not go together, by calling the function on shapes."""
        with tracing.told(
            "loss",
            lookup="",
            remedy="It is called as loss(outputs, labels), and returns one value an example, "
            "several, or (sum, count).",
        ):
            jax.eval_shape(lambda *given: self.measured(*given), outputs, labels)


NAMES = ("cross_entropy", "next_token", "sigmoid_cross_entropy", "squared_error")


def get(loss: Any, *, ignored: int | None, labels: np.ndarray | None) -> Loss:
    """A loss by its name, or of a function of one's own.

    Args:
      loss: one of `NAMES`, or `f(outputs, labels)`.
      ignored: a label that counts for nothing; None where there is none.
      labels: of the training set, or some of them; None where they are not known.

    Raises:
      ValueError: there is none of that name, or the loss ignores no labels.
      TypeError: it is neither a name nor a function.

    >>> get("squared_error", ignored=None, labels=np.array([1.0, 3.0]))
    SquaredError(centre=2.0)
    """
    if callable(loss):
        made: Loss = Own(loss)
    elif loss == "cross_entropy":
        return CrossEntropy(ignored)
    elif loss == "next_token":
        return CrossEntropy(ignored, perplexity=True)
    elif loss == "sigmoid_cross_entropy":
        return SigmoidCrossEntropy(ignored)
    elif loss == "squared_error":
        made = SquaredError(0.0 if labels is None else float(np.mean(labels, dtype=np.float64)))
    elif isinstance(loss, str):
        raise ValueError(
            f"loss: got {loss!r}, wanted one of {', '.join(NAMES)}, or a function of (outputs, "
            "labels) that returns one value an example."
        )
    else:
        raise TypeError(
            f"loss: got a {type(loss).__name__}, wanted one of {', '.join(NAMES)}, or a function "
            "of (outputs, labels) that returns one value an example."
        )
    if ignored is not None:
        raise ValueError(
            f"ignore_label: got {ignored!r}, and this loss has labels that are no classes. Leave "
            "it out; a loss of your own returns (sum, count) over what counts."
        )
    return made


def sums(name: str, value: Any, labels: Any) -> Pair:
    """The sum and the count of what a metric of the user's returns."""
    return _of_own(f"metrics[{name!r}]", value, labels)


def _of_own(name: str, value: Any, labels: Any) -> Pair:
    if is_sum_and_count(value):
        return jnp.asarray(value[0]), jnp.asarray(value[1])
    examples = arrays.examples(labels)
    shape = getattr(value, "shape", None)
    if not shape or shape[0] != examples:
        got = f"an array of shape {shape}" if shape is not None else f"a {type(value).__name__}"
        raise ValueError(
            f"{name}: got {got} for a batch of {examples}, wanted one value an example, "
            f"({examples},), or several, ({examples}, ...), all of which count; or (sum, count), "
            "two scalars over the batch. Of a mean, leave the mean out."
        )
    value = jnp.asarray(value)
    return total(value), jnp.asarray(value.size)


def _summed(values: Array, real: Any) -> Array:
    return total(values if real is None else jnp.where(real, values, jnp.zeros_like(values)))


def _count(labels: Any, real: Any) -> Array:
    return jnp.asarray(labels.size) if real is None else real.sum(dtype=jnp.int32)


def _like(labels: Any, outputs: Any) -> Array:
    return jnp.asarray(labels).astype(outputs.dtype)


def _perplexity(sums: PyTree) -> float:
    with np.errstate(over="ignore"):  # of a loss that has run away it is inf
        return float(np.exp(np.divide(*sums)))


def _r2(sums: PyTree) -> float:
    deviations = sums["squares"] - sums["away"] ** 2 / sums["count"]
    known = deviations > _ROUNDING * sums["squares"]
    return 1 - sums["error"] / deviations if known else float("nan")


def _one_array(outputs: PyTree) -> Any:
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1 or leaves[0] is not outputs:
        raise ValueError(
            f"model: it returns {len(leaves)} arrays, wanted one, its outputs. Make a model that "
            "returns just these, or give a loss of your own, a function of (outputs, labels)."
        )
    return outputs


def _check_alike(outputs: Any, labels: Any, field: str) -> None:
    got, wanted = tuple(labels.shape[1:]), tuple(outputs.shape[1:])
    if got == wanted:
        return
    remedy = "Give each label the shape of its output."
    if wanted == (*got, 1):
        remedy = "Let the model return its output[..., 0]."
    elif got == (*wanted, 1):
        remedy = f"Give {field}[..., 0]."
    raise ValueError(
        f"labels: one of {field!r} has the shape {got}, and the model's output {wanted}; wanted "
        f"the same, for numbers of other shapes would be compared in all pairs. {remedy}"
    )
