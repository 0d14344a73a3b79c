"""The switches by which a Flax module is told whether it is trained: none is left to its default.

A module that is never told trains without dropout and with the statistics of nothing, silently.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

_KNOWN = {
    "train": (True, False),
    "deterministic": (False, True),
    "use_running_average": (False, True),
}
_OTHERS = {
    *("training", "is_training", "is_train", "train_mode", "mode", "inference", "is_inference"),
    *("test", "testing", "is_test", "eval", "evaluate", "evaluation", "is_eval", "eval_mode"),
}


def switches(module: nn.Module, mode: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """The arguments of a module's call that differ between training and evaluation.

    Args:
      module: of Flax (Linen).
      mode: those that the user names, each with its value in training and in evaluation.

    Raises:
      TypeError: `mode` is no mapping.
      ValueError: a switch is not known and not in `mode`, or one of `mode` is no argument.

    >>> class Net(nn.Module):
    ...     def __call__(self, x, train, is_frozen=False):
    ...         return x
    >>> switches(Net(), {"is_frozen": (False, False)})
    {'train': (True, False), 'is_frozen': (False, False)}
    """
    if not isinstance(mode, Mapping):
        name = mode if isinstance(mode, str) else "is_train"
        raise TypeError(
            f"mode: got {mode!r}, wanted arguments of the module's call by name, each with its "
            f"value in training and in evaluation, such as {{{name!r}: (True, False)}}."
        )
    title = type(module).__name__
    _, *taken = inspect.signature(type(module).__call__).parameters.values()
    takes = {p.name: p for p in taken}
    for name, values in mode.items():
        variadic = any(p.kind is p.VAR_KEYWORD for p in taken)
        if name not in takes and not variadic:
            raise ValueError(
                f"mode: the call of {title} takes no {name!r}; it takes {', '.join(takes)}."
            )
        if not isinstance(values, tuple | list) or len(values) != 2:
            raise ValueError(
                f"mode: got {name!r}: {values!r}, wanted its value in training and in evaluation, "
                f"such as {{{name!r}: (True, False)}}."
            )
    found = {name: _KNOWN[name] for name in takes if name in _KNOWN}
    found |= {name: (values[0], values[1]) for name, values in mode.items()}
    for name, parameter in list(takes.items())[1:]:  # the first is the inputs
        switch = name in _OTHERS or isinstance(parameter.default, bool)
        if switch and name not in found:
            raise ValueError(
                f"module: the call of {title} takes {name!r}, and it is not known what that is in "
                f"training and in evaluation. Say so: mode={{{name!r}: (True, False)}}; of what is "
                "the same in both, give the same value twice."
            )
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and name not in found and name != "dropout_rate":
            raise ValueError(
                f"module: the call of {title} needs {name!r}. Give it a default, or name its value "
                f"in training and in evaluation with mode={{{name!r}: (..., ...)}}."
            )
    for field in dataclasses.fields(module):
        if isinstance(getattr(module, field.name, None), bool) and _is_switch(field.name):
            raise ValueError(
                f"module: {field.name!r} is a constant of {title}, and so the same in training and "
                "in evaluation. Make it an argument of its call, such as __call__(self, x, train)."
            )
    return found


def nested(module: nn.Module) -> Any:
    """While its result is entered, refuses modules within one that leave a switch to its default.

    >>> class Inner(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return x
    >>> class Outer(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         return Inner()(x)
    >>> try:
    ...     with nested(outer := Outer()):
    ...         outer.init({}, 1.0, train=True)
    ... except ValueError as error:
    ...     print(error)
    module: Outer calls its Inner without 'train', which then is False, in training and in
    evaluation. Hand it on, such as Inner(...)(x, train=train).
    """

    def check(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        inner = context.module
        # A layer of Flax's own that is not told asks for it.
        if context.method_name == "__call__" and inner.path:
            signature = inspect.signature(type(inner).__call__)
            told = signature.bind_partial(inner, *args, **kwargs).arguments
            for name, parameter in signature.parameters.items():
                if _is_switch(name) and isinstance(parameter.default, bool) and name not in told:
                    inside = type(inner).__name__
                    raise ValueError(
                        f"module: {type(module).__name__} calls its {inside} without {name!r}, "
                        f"which then is {parameter.default}, in training and in evaluation. Hand "
                        f"it on, such as {inside}(...)(x, {name}={name})."
                    )
        return following(*args, **kwargs)

    return nn.intercept_methods(check)


def _is_switch(name: str) -> bool:
    return name in _OTHERS or name in _KNOWN
