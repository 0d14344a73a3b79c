"""Whether sums add: of a loss and of metrics, over examples and over batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from batchscale import arrays, datasets, jitting, keys
from batchscale.workloads import Workload

# Choices.
_SINGLE, _MANY = 64, 512  # examples, each a batch of its own
_WITHOUT = 4  # of them, beside which another is taken
_SAME = 2e-3  # of a ratio
_EXAMPLES = 8
_TRIPLES = (0, 2, 4, 5)  # of the eight, where they begin
_OTHERWISE = 0.1  # of the logarithm of odds
_NARROW = 0.05  # of a sum in 16 bits
_COUNTED, _ADDED = 2**22, 1e-5  # the largest count of so few examples; of a value that is added


def check_weightless(
    workload: Workload,
    loss: Callable[[PyTree, PyTree], tuple[Array, Array]],
    several: PyTree,
) -> tuple[Int[np.ndarray, " telling"], Int[np.ndarray, " silent"]]:
    """Refuses a mean in which examples of no weight count: its count is not theirs.

    The loss of such an example by itself is 0, or 0 / 0; beside another it changes nothing but the
    count, where it should lower the mean.

    Args:
      workload: of whose training examples some are taken, each a batch of its own.
      loss: its sum over a batch, and what it counts, by parameters and batch.
      several: parameters, more than one draw of them, along axis 0.

    Returns:
      Those of them whose own loss is neither, and the others; none where the loss takes no single
      examples.
    """
    train = workload.splits()["train"]
    size = arrays.examples(train)

    @jitting.once
    def found(several: PyTree, batches: PyTree) -> PyTree:
        return jax.lax.map(
            lambda params: jax.lax.map(lambda batch: loss(params, batch), batches), several
        )

    def of(several: PyTree, rows: Int[np.ndarray, "batch rows"]) -> Float[np.ndarray, "2 ..."]:
        return np.asarray(jax.device_get(found(several, datasets.take(train, rows))), np.float64)

    def single(number: int) -> tuple[Int[np.ndarray, " some"], Float[np.ndarray, "2 some"]]:
        some = np.unique(np.linspace(0, size - 1, number).astype(int))
        return some, of(jax.tree.map(lambda x: x[:1], several), some[:, None])[:, 0]

    if not _takes_one(workload, loss):
        return np.arange(0), np.arange(0)
    some, (totals, counts) = single(_SINGLE)
    if (number := np.count_nonzero(_tells(totals, counts))) < 4 and (number or not counts.all()):
        some, (totals, counts) = single(_MANY)  # few of them are labelled
    told = _tells(totals, counts)
    without = np.flatnonzero((counts > 0) & ~told)[:_WITHOUT]
    if told.any() and without.size:
        own, *more = some[told]
        # Last that one alone, and beside another that counts: so that its mean is no constant.
        pairs = [[own, other] for other in (*some[without], own, *more[:1])]
        totals, counts = of(several, np.array(pairs))
        alone = of(several, np.array([[own]]))
        with np.errstate(all="ignore"):
            means, whole = totals / counts, alone[0] / alone[1]
            same = np.abs(means - whole) <= _SAME * np.abs(whole)
        counted = counts > (1 + _OTHERWISE) * alone[1]
        moves = not more or not same[:, -1].all()
        if moves and (same & counted & (whole != 0))[:, : len(without)].all(0).any():
            raise ValueError(
                f"loss: that of workload {workload.name!r} is a mean in which some examples do not "
                "count, as those whose weight is 0, and it counts them: over several batches, it "
                "is not the mean over all of them. Return (sum, count): the sum over all that "
                "counts in the batch, and how much that is."
            )
    return some[told], some[~told]


def _takes_one(workload: Workload, loss: Callable[[PyTree, PyTree], PyTree]) -> bool:
    """Whether a loss takes an example alone; it may want pairs, or groups."""
    one = datasets.take(workload.splits()["train"], [0])
    try:
        jax.eval_shape(loss, jax.eval_shape(workload.init, keys.key(0))[0], one)
    except Exception:  # of any kind: it is the user's
        return False
    return True


def _tells(
    totals: Float[np.ndarray, " some"], counts: Float[np.ndarray, " some"]
) -> Bool[np.ndarray, " some"]:
    return (counts > 0) & np.isfinite(totals) & (totals != 0)


def check_weights(
    workload: Workload,
    loss: Callable[[PyTree, PyTree], PyTree],
    metrics: Callable[[PyTree, PyTree], PyTree],
    random: np.random.Generator,
) -> None:
    """Refuses a mean in which examples weigh otherwise than it counts them.

    In a mean over tokens that are not padding two examples together are w of the one and 1 - w of
    the other. Their odds w / (1 - w) are those of their weights: the same for other parameters,
    and such that those of a and b, times those of b and c, are those of a and c.
    """
    train = workload.splits()["train"]
    some = np.linspace(0, arrays.examples(train) - 1, _EXAMPLES).astype(int)
    if not _takes_one(workload, loss):
        return
    pairs = np.array([some[[k + i, k + j]] for k in _TRIPLES for i, j in ((0, 1), (1, 2), (0, 2))])
    both = datasets.take(train, pairs)  # shape (pair, 2, ...)
    one, other = (jax.tree.map(lambda x, k=k: x[:, k : k + 1], both) for k in range(2))
    shapes = jax.eval_shape(workload.init, keys.key(0))[0]
    several = jax.tree.map(lambda x: np.stack([usual(x, random) for _ in range(3)]), shapes)

    def sums(params: PyTree, batch: PyTree) -> PyTree:
        measured = metrics(params, batch).items()
        means = {name: x for name, x in measured if name not in workload.finalize}
        return {"": loss(params, batch), **means}

    @jitting.once
    def found(several: PyTree) -> PyTree:
        def of(batches: PyTree) -> PyTree:
            return jax.lax.map(
                lambda params: jax.lax.map(lambda batch: sums(params, batch), batches), several
            )

        return of(one), of(other), of(both)

    precision = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(shapes))
    measured = jax.device_get(found(several))
    for name in measured[0]:
        # Shapes (one, other or both; parameters; pair).
        totals, counts = np.moveaxis(np.asarray([x[name] for x in measured], np.float64), 1, 0)
        odds, stated = _odds(totals, counts, precision)
        if odds.size == 0 or np.abs(np.log(odds / stated)).max() < _OTHERWISE:
            continue
        most = np.abs(np.log(odds / stated)).argmax()
        w, s = (x.flat[most] / (1 + x.flat[most]) for x in (odds, stated))
        what = f"metrics: {name!r} of" if name else "loss: that of"
        raise ValueError(
            f"{what} workload {workload.name!r} is a mean in which two examples weigh "
            f"{w:.2f} and {1 - w:.2f} by what they hold, as in one over tokens that are not "
            f"padding, and it counts them as {s:.2f} and {1 - s:.2f}: over several batches, it is "
            "not the mean over all of them. Return (sum, count): the sum over all that counts in "
            "the batch, and how much that is."
        )


def _odds(
    totals: Float[np.ndarray, "3 params pair"],
    counts: Float[np.ndarray, "3 params pair"],
    precision: float,
) -> tuple[Float[np.ndarray, "triple 3"], Float[np.ndarray, "triple 3"]]:
    """The odds by which examples weigh in a mean of two, and those by which they are counted.

    None, if they are not those of weights; only of triples in which all three have other means.
    """
    with np.errstate(all="ignore"):
        first, second, together = totals / counts
        told = np.abs(first - second) > max(100 * precision, 0.01) * np.maximum(
            np.abs(first), np.abs(second)
        )
        odds = (together - second) / (first - together)
        stated = counts[0] / counts[1]
        logs = np.log(np.where(told, odds, np.nan)).reshape(len(odds), -1, 3)
        known = (np.isfinite(logs) & np.isfinite(np.log(stated)).reshape(logs.shape)).all((0, 2))
    logs, stated = logs[:, known], stated.reshape(logs.shape)[0, known]
    same = np.ptp(logs, axis=0) < _OTHERWISE / 2
    weights = np.abs(logs[..., 0] + logs[..., 1] - logs[..., 2]) < _OTHERWISE / 2
    if not (known.any() and same.all() and weights.all()):
        stated = stated[:0]
        logs = logs[:, :0]
    return np.exp(logs[0]), stated


def check_sums(workload: Workload, parts: Sequence[Mapping[str, PyTree]], narrow: bool) -> None:
    """Refuses metrics of which the numbers of two batches, added, are not those of both."""
    for name, (of_whole, of_parts) in not_adding(workload, parts, narrow).items():
        raise ValueError(
            f"metrics: {name!r} of workload {workload.name!r} is {of_whole:.6g} for some "
            f"examples taken together, and {of_parts:.6g} for the same in two batches whose "
            "numbers are added, as they are over a split. Return (sum, count): the sum over "
            "the batch, not its mean, and what was summed; and for what is no mean, sums that "
            "add, with finalize={name: function of the added sums}."
        )


def not_adding(
    workload: Workload, parts: Sequence[Mapping[str, PyTree]], narrow: bool, *, slack: float = 2.0
) -> dict[str, tuple[float, float]]:
    """Metrics of which the numbers of two batches, added, are not those of both.

    Args:
      workload: whose metrics they are.
      parts: the sums of two batches, and of both together, by name.
      narrow: whether numbers are of 16 bits.
      slack: by how many a count may be off, for rounding.

    Returns:
      Their values, of both together and of the two added, by name.
    """
    found = {}
    for name in parts[0]:
        first, second, whole = (
            jax.tree.map(lambda x: np.asarray(x, np.float64), part[name]) for part in parts
        )
        numbers = zip(*map(jax.tree.leaves, (first, second, whole)), strict=True)
        if all(_add(one, two, both, narrow, slack) for one, two, both in numbers):
            continue
        with np.errstate(invalid="ignore"):
            added = jax.tree.map(np.add, first, second)
        # One that is the same for all examples may be the mean of its values.
        of_whole, of_parts = (_value(workload, name, sums) for sums in (whole, added))
        if abs(of_whole - of_parts) > _ADDED * abs(of_whole):
            found[name] = of_whole, of_parts
    return found


def _add(
    first: np.ndarray, second: np.ndarray, whole: np.ndarray, narrow: bool, slack: float
) -> bool:
    """Whether they add but for rounding, by which an example or two may be counted otherwise."""
    with np.errstate(invalid="ignore"):
        off = np.abs(first + second - whole)
        largest = whole.max(initial=0)
        # Beyond that all numbers in 32 bits are whole: these are no counts.
        if (whole == np.round(whole)).all() and 2 < largest < _COUNTED:
            allowed = np.asarray(slack)
        else:  # of the parts too, which may cancel
            parts = np.abs(first) + np.abs(second) + np.abs(whole)
            allowed = (_NARROW if narrow else _SAME) * parts + 1e-6
        return not (off > allowed).any()


def _value(workload: Workload, name: str, sums: PyTree) -> float:
    if name in workload.finalize:
        # Of so few examples it may have none, as a correlation of one.
        with contextlib.suppress(ValueError):
            return workload.finalized(name, sums)
        return float("nan")
    total, count = sums
    return float(total / count) if count else float("nan")


def check_scale(
    workload: Workload, once: Float[np.ndarray, " pairs"], twice: Float[np.ndarray, " pairs"]
) -> None:
    """Refuses a loss whose mean over a batch is not that over the batch and a copy of it."""
    for factor, words in (
        (2.0, "a sum over the batch where its mean, or one value an example, is wanted"),
        (0.5, "a mean over the batch where its sum is wanted, with what it counts"),
    ):
        if once.all() and (np.abs(twice / once / factor - 1) < _SAME).all():
            raise ValueError(
                f"loss: of workload {workload.name!r} it is {factor:g} times as large for a batch "
                f"that holds every example twice: it looks like {words}. The learning rate would "
                "grow or shrink with the batch size."
            )


def usual(x: jax.ShapeDtypeStruct, random: np.random.Generator) -> np.ndarray:
    """Parameters as a usual initialisation has them: a last layer of zeros would tell nothing.

    Not those of the workload's init, which takes longer to compile than the loss.
    """
    values = random.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))
    return np.asarray(values, x.dtype)
