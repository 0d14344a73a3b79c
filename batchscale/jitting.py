"""How functions are compiled: as usual, whatever a debugging switch of JAX says; or in haste."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import jax

ONCE: Final = {"xla_backend_optimization_level": 0}
"""Options of XLA for what runs once: its compilation is what it costs."""


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled as fast as can be, and not optimised.

    >>> int(once(lambda x: x + 1)(2))
    3
    """
    return jax.jit(function, compiler_options=dict(ONCE))


def as_usual() -> AbstractContextManager[Any]:
    """Inside, `JAX_DISABLE_JIT` has no effect.

    Without jit there are no programs that can be compiled ahead and compared with those of a
    folder; loops would be other programs.

    >>> with jax.disable_jit(), as_usual():
    ...     jax.config.jax_disable_jit
    False
    """
    config: Any = jax.config
    return jax.disable_jit(False) if config.jax_disable_jit else contextlib.nullcontext()
