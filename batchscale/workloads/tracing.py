"""The functions of users, traced: what goes wrong in one is told with what it was and what to do.

A function is traced on shapes, so that nothing is computed and no backend starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import chex
import jax
from jax.errors import (
    ConcretizationTypeError,
    TracerArrayConversionError,
    TracerIntegerConversionError,
)
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from batchscale import keys

_TRACED = (ConcretizationTypeError, TracerArrayConversionError, TracerIntegerConversionError)


@contextmanager
def told(what: str, *, lookup: str, remedy: str) -> Iterator[None]:
    """Turns what is raised inside into a `ValueError` of ours.

    Args:
      what: begins the message: whose function it is.
      lookup: what could be looked up, if a name is missing.
      remedy: what to do about anything else.

    >>> with told("schedule 'mine'", lookup="The space has a.", remedy="Mend it."):
    ...     {}["b"]
    Traceback (most recent call last):
    ValueError: schedule 'mine': 'b' is looked up in it. The space has a.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{what}: {error} is looked up in it. {lookup}") from error
    except _TRACED as error:
        raise ValueError(
            f"{what}: it asks for the value of a number that is traced: hyperparameters, steps and "
            "examples are arguments of a compiled program, without a value while it is made. "
            "Python's `if`, `float` and `int` do so, and schedules of optax that are made of "
            "hyperparameters. Give one of the step alone, whose peak is 1, and the trial's "
            "learning_rate is multiplied by it: schedule=optax.cosine_decay_schedule(1.0, 1000). "
            "Or write a function of (step, hyperparameters) in jax.numpy, with jnp.where instead "
            "of `if`, and without functions of NumPy."
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and _raised_here(error):
            raise
        words = str(error).strip().splitlines()
        raise ValueError(
            f"{what}: it raises {type(error).__name__}: {words[0] if words else 'nothing more'}. "
            f"{remedy}"
        ) from error


def shapes(function: Callable[..., PyTree], *arguments: PyTree) -> Any:
    """The shapes of what a function returns; a function of its own, so that nothing is cached."""
    return jax.eval_shape(lambda *given: function(*given), *arguments)


def outputs(forward: Callable[[Any], PyTree]) -> Any:
    """The shapes of a model's outputs for a batch of one.

    Args:
      forward: of a key, which it makes parameters of.

    Raises:
      ValueError: the model does not take the inputs; what it raised is told.
    """
    with told(
        "model",
        lookup="",
        remedy="It was traced on inputs of one example, as the data have them; what it makes of "
        "them is its own.",
    ):
        return jax.eval_shape(forward, keys.shape())


class Traced:
    """A function, traced on shapes: what it returns, and what that depends on.

    >>> scalar = jax.ShapeDtypeStruct((), "float32")
    >>> sums = Traced(lambda x, y: (x["a"] + y, 2 * y), {"a": scalar, "b": scalar}, scalar)
    >>> sums.reads()
    ({'a': True, 'b': False}, True)
    >>> sums.reads((False, True))
    ({'a': False, 'b': False}, True)
    """

    def __init__(self, function: Callable[..., PyTree], *arguments: PyTree) -> None:
        # Under a name of its own: JAX remembers what it has traced.
        traced = jax.make_jaxpr(lambda *given: function(*given), return_shape=True)
        self._closed, self.shapes = traced(*arguments)
        self._inputs = jax.tree.structure(arguments)

    def reads(self, wanted: PyTree | None = None) -> Any:
        """For every argument whether a wanted result depends on it; all are wanted if None."""
        jaxpr = self._closed.jaxpr
        some = [True] * len(jaxpr.outvars) if wanted is None else jax.tree.leaves(wanted)
        _, used = partial_eval.dce_jaxpr(jaxpr, some)
        return jax.tree.unflatten(self._inputs, used)

    def returns(self, name: str) -> bool:
        """Whether the result is the argument of that name itself, in the last mapping."""
        jaxpr = self._closed.jaxpr
        places = jax.tree.unflatten(self._inputs, jaxpr.invars)[-1]
        return name in places and jaxpr.outvars[0] is places[name]


def described(tree: PyTree) -> str:
    """The arrays of a tree in words.

    >>> described({"x": jax.ShapeDtypeStruct((2, 3), "float32")})
    'x float32 (2, 3)'
    """
    words = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(
            str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path
        )
        words.append(f"{name} {leaf.dtype} {tuple(leaf.shape)}".strip())
    return ", ".join(words) or "nothing"


def alike(some: PyTree, other: PyTree) -> bool:
    """Whether two trees of shapes have one structure and the same shapes; types may differ.

    >>> some, other = (jax.ShapeDtypeStruct((2,), kind) for kind in ("int32", "float32"))
    >>> alike({"x": some}, {"x": other})
    True
    """
    try:
        chex.assert_trees_all_equal_shapes(some, other)
    except AssertionError:
        return False
    return True


def _raised_here(error: BaseException) -> bool:
    """Whether this library raised an error itself, in words that need no others around them."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(
        "batchscale."
    )
