"""A model of whatever framework, as two pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as two pure functions.

    Attributes:
      title: what it is called where nothing else is said.
      init: `init(key) -> (params, model_state)`.
      apply: `apply(params, model_state, inputs, key, hyperparameters) -> (outputs, model_state)`,
        of a batch of inputs; trained where it is given a key, evaluated where that is None.
      outputs: shapes and types of the outputs of a batch of one.
      hyperparameters: those that `apply` reads.
      ghost_batch_size: of ghost batch norm, as in `Workload`.
    """

    title: str
    init: Callable[[Any], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree]]
    outputs: PyTree
    hyperparameters: tuple[str, ...] = ()
    ghost_batch_size: int | None = None
