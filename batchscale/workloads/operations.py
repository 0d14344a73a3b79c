"""Floating-point operations of a function, as XLA counts them, with every turn of its loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree

from batchscale.models import convolution


def flops(function: Callable[..., PyTree], *arguments: PyTree) -> float:
    """Floating-point operations of a call; starts the JAX backend.

    Convolutions are counted as JAX has them: what `models` does to be fast is not part of a model.

    XLA counts the body of a loop once. Here that of a loop whose length is known (`scan`, `map`,
    `fori_loop` with constant bounds) is counted as often as it runs; of any other loop, once.

    Args:
      function: to be traced.
      *arguments: its arguments, or their shapes and types.

    Returns:
      How many; NaN where XLA does not say.

    >>> import jax.numpy as jnp
    >>> def product(x):
    ...     return x @ x
    >>> def several(x):
    ...     return jax.lax.scan(lambda x, _: (x @ x, None), x, length=10)[0]
    >>> x = jnp.ones((8, 8))
    >>> flops(product, x), round(flops(several, x) / flops(product, x))
    (1024.0, 10)
    """
    with convolution.ways(cpu="grouped"):
        traced = jax.make_jaxpr(function)(*arguments)
    return _of(traced)


def _of(jaxpr: core.ClosedJaxpr) -> float:
    counted = _as_xla_counts(jaxpr)
    for body, length in _loops(jaxpr.jaxpr):
        counted += length * _of(body) - _as_xla_counts(body)
    return counted


def _as_xla_counts(jaxpr: core.ClosedJaxpr) -> float:
    lowered = jax.jit(core.jaxpr_as_fun(jaxpr)).lower(*jaxpr.in_avals)
    found = lowered.cost_analysis() or {}
    return float(found.get("flops", 0.0 if found else math.nan))


def _loops(jaxpr: core.Jaxpr) -> Iterator[tuple[core.ClosedJaxpr, int]]:
    """The bodies of the outermost loops of known length, and how often they run."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"], equation.params["length"]
            continue
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _loops(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
