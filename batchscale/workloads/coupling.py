"""Whether the loss of an example depends on the others of its batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from batchscale import arrays, datasets, jitting, keys
from batchscale.workloads import Workload
from batchscale.workloads.adding import (
    check_scale,
    check_sums,
    check_weightless,
    check_weights,
    not_adding,
    usual,
)

# Choices.
_EXAMPLES = 8
_FEW = 4  # in a batch of the smallest
_MEASURED = 64  # so many that a metric is hardly the same for all of them
_DRAWS = 3  # of parameters: of one alone an exchange may happen to change little
_APART, _ROUNDING = 0.02, 16  # of what an exchange changes; of the precision, times the gradient


def mixes_examples(workload: Workload, hyperparameters: Mapping[str, float]) -> bool | None:
    """Whether the loss of an example depends on the others of its batch.

    A loss that sees each example by itself is a sum over them: with the same randomness, what its
    gradient changes by when one example is exchanged does not depend on another. Norms of batches,
    with running statistics or without, and losses of pairs do not have that property.

    Args:
      workload: its loss, and its training examples, of which eight are taken.
      hyperparameters: that the loss is given, by name.

    Returns:
      Whether it does; None where the loss is not finite or flat, where no exchange of examples
      changes it, or there are fewer than four examples.

    Raises:
      ValueError: the loss of a batch grows otherwise than with its examples, or is a mean in which
        they weigh otherwise than it counts them, or what it counts depends on the parameters, or is
        negative; or
        it is one of all pairs of its examples, so that a field might belong to any of them; or the
        sums of a metric do not add.

    >>> x = np.linspace(-1, 1, 8, dtype=np.float32)
    >>> def workload(loss):
    ...     return Workload.from_functions(
    ...         lambda key: {"w": jnp.ones(())}, loss, data={"train": (x, x)}
    ...     )
    >>> values = {"learning_rate": 0.1}
    >>> mixes_examples(workload(lambda p, batch: (p["w"] * batch["input"] - 1) ** 2), values)
    False
    >>> mixes_examples(workload(lambda p, batch: (p["w"] * batch["input"]).mean() ** 2), values)
    True
    """
    return _asked(workload, hyperparameters)[0]


def metrics_of_batches(
    workload: Workload, hyperparameters: Mapping[str, float]
) -> Mapping[str, tuple[float, float]]:
    """Metrics whose value depends on how many examples are evaluated at once.

    They may be where the loss of an example depends on others; elsewhere they are refused.

    Args:
      workload: as in `mixes_examples`, which remembers it.
      hyperparameters: likewise.

    Returns:
      Values by name: of some examples together, and of the same in small batches, added.

    >>> x = np.linspace(-1, 1, 8, dtype=np.float32)
    >>> workload = Workload.from_functions(
    ...     lambda key: {"w": jnp.ones(())},
    ...     lambda p, batch: (p["w"] * batch["input"]).mean() ** 2,
    ...     data={"train": (x, x)},
    ... )
    >>> list(metrics_of_batches(workload, {"learning_rate": 0.1}))
    ['loss']
    """
    return _asked(workload, hyperparameters)[1]


def _asked(
    workload: Workload, hyperparameters: Mapping[str, float]
) -> tuple[bool | None, Mapping[str, tuple[float, float]]]:
    given = tuple(sorted((name, float(value)) for name, value in hyperparameters.items()))
    return _mixes(workload, given, jax.config.read("jax_enable_x64"))


@functools.lru_cache(maxsize=8)  # each folder of a pilot and of its measurement asks it
def _mixes(
    workload: Workload, hyperparameters: tuple[tuple[str, float], ...], x64: bool
) -> tuple[bool | None, Mapping[str, tuple[float, float]]]:
    """`mixes_examples` and `metrics_of_batches`, at a precision."""
    del x64  # of what is remembered
    train = workload.splits()["train"]
    size = arrays.examples(train)
    if size < 4:
        return None, {}
    random = np.random.default_rng(0)
    # Functions of others may take no arrays of NumPy.
    values = {name: jnp.asarray(of, arrays.float_type()) for name, of in hyperparameters}
    key = keys.key(0)
    shapes, model_state = jax.eval_shape(workload.init, key)
    several = jax.tree.map(lambda x: np.stack([usual(x, random) for _ in range(_DRAWS)]), shapes)
    if jax.tree.leaves(model_state):  # of any kind: variances, counts, keys
        model_state = jitting.once(workload.init)(key)[1]

    def total(params: PyTree, batch: PyTree) -> tuple[Array, Array]:
        prepare_key, loss_key = jax.random.split(key)
        prepared = workload.prepare(batch, prepare_key)
        return workload.loss(params, model_state, prepared, loss_key, values)[0]

    # An exchange of examples that count for nothing says nothing; of one that does for one that
    # does not, most.
    telling, silent = check_weightless(workload, total, several)
    quiet = silent if len(silent) else telling
    kinds = [[telling] * 4, [telling, quiet, telling, telling], [telling, quiet] * 2]
    kinds += [[telling] * 4, [], []]
    # Some of all of it: a batch of examples of one class would say less. The others stay as they
    # are: of two examples a norm leaves nothing but the sign.
    held = min(size, _EXAMPLES)
    drawn = [_drawn(random, size, held, of) for of in kinds]
    quadruples = [
        [(x, y, *others) for x in (a, b) for y in (c, d)] for a, b, c, d, *others in drawn
    ]
    # With the first, each field alone: in another order, and with an entry of another example.
    fields = [name for name in train if name not in workload.unpaired]
    first, _, exchanged, _ = quadruples[0]
    rows = {
        name: np.array(
            [
                *quadruples[0],
                *(
                    row
                    for field in fields
                    for row in ([np.roll(first, 1), exchanged] if field == name else [first] * 2)
                ),
                *(row for quadruple in quadruples[1:] for row in quadruple),
            ]
        )
        for name in train
    }
    batches = {name: datasets.take({name: x}, rows[name])[name] for name, x in train.items()}
    begins = np.array([0, *(4 * k + 2 * len(fields) for k in range(1, len(kinds)))])  # of each
    count = 4 * len(kinds) + 2 * len(fields)
    draws = np.searchsorted(begins, np.arange(count), side="right") - 1
    signs = np.zeros(count)
    for k, sign in enumerate((1, -1, -1, 1)):
        signs[begins + k] = sign
    some = np.linspace(0, size - 1, min(size, _MEASURED)).astype(int)
    parts = [
        datasets.take(train, part)
        for part in (some[: len(some) // 4], some[len(some) // 4 :], some)
    ]

    def metrics(params: PyTree, batch: PyTree) -> PyTree:
        return workload.metrics(params, model_state, workload.prepare(batch, None))

    def counted(params: PyTree, batch: PyTree) -> Array:
        count = total(params, batch)[1]
        return count if jnp.issubdtype(count.dtype, jnp.inexact) else jnp.zeros(())

    def norm(tree: PyTree) -> Array:
        return optax.tree.norm(tree).astype(float)

    @jitting.once
    def sums(several: PyTree, batches: PyTree, parts: list[PyTree]) -> Any:
        def step(carry: PyTree, given: tuple[Array, Array, PyTree]) -> tuple[PyTree, Any]:
            before, kept, apart = carry
            draw, sign, batch = given
            params = jax.tree.map(lambda x: x[draw % _DRAWS], several)
            found, gradient = jax.value_and_grad(total, has_aux=True)(params, batch)
            kept = jax.tree.map(lambda g, k: jnp.where(draw == before, k, g), gradient, kept)
            apart = jax.tree.map(
                lambda g, x: jnp.where(draw == before, x, 0) + sign.astype(g.dtype) * g,
                gradient,
                apart,
            )
            change = jax.tree.map(jnp.subtract, kept, gradient)
            return (draw, kept, apart), ([norm(x) for x in (gradient, change, apart)], found)

        params = jax.tree.map(lambda x: x[0], several)
        nothing = jax.tree.map(jnp.zeros_like, params)
        given = (jnp.asarray(draws), jnp.asarray(signs, arrays.float_type()), batches)
        _, (norms, once) = jax.lax.scan(step, (jnp.asarray(-1), nothing, nothing), given)
        doubled = jax.tree.map(lambda x: jnp.concatenate([x[:4], x[:4]], 1), batches)
        twice = jax.lax.map(lambda batch: total(params, batch), doubled)
        counts = optax.tree.norm(jax.grad(counted)(params, jax.tree.map(lambda x: x[0], batches)))
        measured = [metrics(params, part) for part in parts]
        return norms, once, twice, counts, measured

    norms, once, twice, counts, measured = jax.device_get(sums(several, batches, parts))
    if counts > 0:
        raise ValueError(
            f"loss: what that of workload {workload.name!r} counts depends on the parameters, and "
            "the gradient is that of the sum, over a count that is held constant. If that is "
            "meant, use jax.lax.stop_gradient on the count; if not, return the sum of "
            "what is to become least, and a count that hangs on the data alone."
        )
    gradients, changes, aparts = np.asarray(norms, np.float64)
    found = np.array([[of[:4] for of in once], twice], np.float64)
    if not (np.isfinite(found).all() and np.isfinite(changes[draws == 0]).all()):
        return None, {}
    if (found[:, 1] < 0).any():
        raise ValueError(
            f"loss: that of workload {workload.name!r} returns (sum, count), and the count of "
            f"{len(first)} examples is {found[0, 1].min():g}. What is counted is above zero, or "
            "zero for a batch of which nothing counts; it is the sum that may be negative."
        )
    if not found[:, 1].all():
        return None, {}
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(shapes))
    if not gradients[0]:
        check_sums(workload, measured, eps > 1e-5)
        return None, {}
    check_scale(workload, *(total / count for total, count in found))
    rounding = _ROUNDING * eps * gradients[begins]
    each = np.array([changes[begins + 1], changes[begins + 2]])
    if not (aparts[begins + 3] > np.maximum(_APART * each.max(0), rounding)).any():
        check_sums(workload, measured, eps > 1e-5)
        return (False if (each.min(0) > rounding).any() else None), {}
    alone = changes[4 : 4 + 2 * len(fields)]
    stays = {
        name: dealt <= max(_APART * replaced, rounding[0])
        for name, dealt, replaced in zip(fields, alone[::2], alone[1::2], strict=True)
        # Rows that are alike in another order are the same rows.
        if replaced > rounding[0] / _APART and not _alike(batches[name][0])
    }
    check_weights(workload, total, metrics, random)
    # If no other field matters, another order of one is another order of the examples.
    if len(stays) > 1 and any(stays.values()):
        _refuse_pairs(workload, [name for name in stays if stays[name]][-1])
    # Where the loss is one of whole batches, so may its metrics be: that is told.
    return True, _of_batches(workload, metrics, several, narrow=eps > 1e-5)


def _drawn(
    random: np.random.Generator, size: int, held: int, kinds: Sequence[np.ndarray]
) -> Int[np.ndarray, " held"]:
    """Examples, each once, of which the first are of these kinds; of any if there are too few."""
    first: list[int] = []
    for kind in kinds:
        left = np.setdiff1d(kind, first)
        if not len(left):
            first = []
            break
        first.append(int(random.choice(left)))
    left = np.setdiff1d(np.arange(size), first)
    return np.concatenate([first, random.choice(left, held - len(first), replace=False)]).astype(
        int
    )


def _of_batches(
    workload: Workload,
    metrics: Callable[[PyTree, PyTree], PyTree],
    several: PyTree,
    *,
    narrow: bool,
) -> dict[str, tuple[float, float]]:
    """Metrics that are others for the same examples in batches of a few, at any of several points.

    No count may be off by one, but in 16 bits, in which two classes may be as likely: what an
    example is taken for changes seldom with its batch, and evaluations look for mistakes.
    """
    train = workload.splits()["train"]
    count = min(arrays.examples(train), _MEASURED) // _FEW * _FEW
    rows = np.linspace(0, arrays.examples(train) - 1, count).astype(int)
    whole, small = datasets.take(train, rows), datasets.take(train, rows.reshape(-1, _FEW))

    @jitting.once
    def sums(several: PyTree, whole: PyTree, small: PyTree) -> Any:
        def of(params: PyTree) -> Any:
            parts = jax.lax.map(lambda batch: metrics(params, batch), small)
            return jax.tree.map(lambda x: x.sum(0), parts), metrics(params, whole)

        return jax.lax.map(of, several)

    added, together = jax.device_get(sums(several, whole, small))
    found: dict[str, tuple[float, float]] = {}
    for draw in range(_DRAWS):
        one, both = (jax.tree.map(operator.itemgetter(draw), of) for of in (added, together))
        parts = one, jax.tree.map(np.zeros_like, one), both
        found |= not_adding(workload, parts, narrow, slack=2.0 if narrow else 0.0)
    return found


def mixes_groups(workload: Workload, hyperparameters: Mapping[str, float]) -> bool:
    """Whether the loss of an example depends on others than those of its ghost batch.

    With the same randomness, what the loss of two groups changes by when an example of the one is
    exchanged must not depend on an example of the other: not the first on the first, nor the last
    of the one on the first of the other, which larger groups, and groups cut elsewhere, hold
    together. In large groups it depends little, so that rounding alone is allowed.

    Args:
      workload: whose loss depends on other examples.
      hyperparameters: that the loss is given, by name.

    Returns:
      Whether it does; True where it has no ghost batches, or fewer than two of them, and where what
      is found is within rounding.

    Raises:
      ValueError: it has ghost batches of another size than it says.

    >>> x = np.linspace(-1, 1, 8, dtype=np.float32)
    >>> def loss(params, batch):
    ...     of_pairs = (params["w"] * batch["input"].reshape(-1, 2)).mean(1) ** 2
    ...     return of_pairs.sum(), of_pairs.size
    >>> workload = Workload.from_functions(
    ...     lambda key: {"w": jnp.ones(())}, loss, data={"train": (x, x)}, ghost_batch_size=2
    ... )
    >>> mixes_groups(workload, {"learning_rate": 0.1})
    False
    """
    group = workload.ghost_batch_size
    train = workload.splits()["train"]
    if group is None or arrays.examples(train) < 2 * group + 2:
        return True
    some = np.linspace(0, arrays.examples(train) - 1, 2 * group + 2).astype(int)
    others, (b, d) = some[:-2], some[-2:]
    # As they are; the second group's first exchanged; an example of the first group; both.
    chosen = np.array([others] * 6)
    chosen[[1, 3, 5], group] = d
    chosen[[2, 3], 0] = b
    chosen[[4, 5], group - 1] = b
    batches = datasets.take(train, chosen)
    values = {name: jnp.asarray(of, arrays.float_type()) for name, of in hyperparameters.items()}
    key = keys.key(0)
    shapes, model_state = jax.eval_shape(workload.init, key)
    if jax.tree.leaves(model_state):
        model_state = jitting.once(workload.init)(key)[1]

    @jitting.once
    def losses(params: PyTree, batches: PyTree) -> Array:
        def of(batch: PyTree) -> Array:
            prepare_key, loss_key = jax.random.split(key)
            prepared = workload.prepare(batch, prepare_key)
            return workload.loss(params, model_state, prepared, loss_key, values)[0][0]

        return jax.lax.map(of, batches)

    for seed in range(_DRAWS):
        random = np.random.default_rng(seed)
        params = jax.tree.map(functools.partial(usual, random=random), shapes)
        found = losses(params, batches)
        types = [found.dtype, *(x.dtype for x in jax.tree.leaves(shapes))]
        kept, second, *others = np.asarray(found, np.float64)
        rounding = _ROUNDING * max(float(jnp.finfo(x).eps) for x in types) * abs(kept)
        pairs = ((others[0], others[1]), (others[2], others[3]))
        least = min(abs(second - kept), *(abs(first - kept) for first, _ in pairs))
        if not least > rounding / _APART:
            return True
        if any(not abs(kept - first - second + both) <= rounding for first, both in pairs):
            break
    else:
        return False
    raise ValueError(
        f"ghost_batch_size: workload {workload.name!r} says {group}, and the loss of an example "
        f"changes with examples of other groups of {group}, too. State the size of the groups that "
        "its norm takes, over examples in their order, or none."
    )


def _alike(rows: Any) -> bool:
    """Whether most of some rows are the same, so that their order says little."""
    rows = np.asarray(rows).reshape(len(rows), -1)
    same = (rows == np.roll(rows, 1, axis=0)).all(1)
    return bool(same.sum() >= len(rows) - 2)


def _refuse_pairs(workload: Workload, field: str) -> None:
    shape = workload.splits()["train"][field].shape
    remedy = f"{field}[:, 0]" if len(shape) > 1 else "predictions[:, 0]"
    raise ValueError(
        f"loss: of workload {workload.name!r} it stays the same when the field {field!r} is dealt "
        "out among its examples in another order: it looks like a mean over all pairs of them, as "
        "labels of shape (N, 1) beside predictions of shape (N,) give it, or the other way round. "
        f"{field!r} has the shape {shape}; make the shapes the same, with {remedy} for example, "
        "and return one value an example. If its entries belong to no example, as samples "
        f"of another distribution, say so with Workload(unpaired=({field!r},))."
    )
