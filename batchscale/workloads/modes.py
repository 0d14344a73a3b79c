"""The switches by which a Flax module is told whether it is trained: none is left to its default.

A module that is never told trains without dropout and with the statistics of nothing, silently.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
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
    found = of_call(type(module), mode, but=("dropout_rate",))
    _refuse_fields(module)
    return found


def _refuse_fields(module: nn.Module) -> None:
    for field in dataclasses.fields(module):
        if isinstance(getattr(module, field.name, None), bool) and is_switch(field.name):
            raise ValueError(
                f"module: {field.name!r} is a constant of {type(module).__name__}, and so the same "
                "in training and in evaluation. Make it an argument of its call, such as "
                "__call__(self, x, train)."
            )


def of_call(
    kind: type, mode: Mapping[str, tuple[Any, Any]], *, but: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The arguments of the call of a class of modules that differ in training and evaluation.

    Args:
      kind: the class.
      mode: those that the user names, each with its value in training and in evaluation.
      but: arguments that are given otherwise.

    Raises:
      TypeError: `mode` is no mapping.
      ValueError: a switch is not known and not in `mode`, or one of `mode` is no argument.
    """
    _, *taken = inspect.signature(kind.__call__).parameters.values()
    return _switches(f"the call of {kind.__name__}", taken[:1], taken[1:], mode, but)


def of_function(
    function: Callable[..., Any], mode: Mapping[str, tuple[Any, Any]], *, but: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Those of a function of (params, inputs), as `of_call`.

    >>> of_function(lambda params, x, train: x, {})
    {'train': (True, False)}
    """
    taken = list(inspect.signature(function).parameters.values())
    name = getattr(function, "__name__", type(function).__name__)
    return _switches(f"the function {name}", taken[:2], taken[2:], mode, but)


def checked(mode: Any) -> dict[str, tuple[Any, Any]]:
    """What the user has given as `mode`, as pairs; nothing is none.

    >>> checked("train")
    Traceback (most recent call last):
    TypeError: mode: got 'train', wanted arguments of the module's call by name, each with its value
    in training and in evaluation, such as {'train': (True, False)}.
    """
    if mode is None:
        return {}
    if not isinstance(mode, Mapping):
        name = mode if isinstance(mode, str) else "is_train"
        raise TypeError(
            f"mode: got {mode!r}, wanted arguments of the module's call by name, each with its "
            f"value in training and in evaluation, such as {{{name!r}: (True, False)}}."
        )
    for name, values in mode.items():
        if not isinstance(values, tuple | list) or len(values) != 2:
            raise ValueError(
                f"mode: got {name!r}: {values!r}, wanted its value in training and in evaluation, "
                f"such as {{{name!r}: (True, False)}}."
            )
    return {name: (values[0], values[1]) for name, values in mode.items()}


def _switches(
    title: str,
    inputs: Sequence[inspect.Parameter],
    taken: Sequence[inspect.Parameter],
    mode: Any,
    but: Collection[str],
) -> dict[str, tuple[Any, Any]]:
    mode = checked(mode)
    takes = {p.name: p for p in taken if p.name not in but}
    variadic = any(p.kind is p.VAR_KEYWORD for p in taken)
    for name in mode:
        if name not in takes and not variadic:
            listed = ", ".join(p.name for p in (*inputs, *taken))
            raise ValueError(f"mode: {title} takes no {name!r}; it takes {listed}.")
    found = {name: _KNOWN[name] for name in takes if name in _KNOWN} | mode
    for name, parameter in takes.items():
        switch = name in _OTHERS or isinstance(parameter.default, bool)
        if switch and name not in found:
            raise ValueError(
                f"module: {title} takes {name!r}, and it is not known what that is in "
                f"training and in evaluation. Say so: mode={{{name!r}: (True, False)}}; of what is "
                "the same in both, give the same value twice."
            )
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and name not in found:
            raise ValueError(
                f"module: {title} needs {name!r}. Give it a default, or name its value "
                f"in training and in evaluation with mode={{{name!r}: (..., ...)}}."
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
        method = getattr(type(inner), context.method_name, None)
        if inner.path and callable(method) and not type(inner).__module__.startswith("flax."):
            _refuse_fields(inner)
            signature = inspect.signature(method)
            told = signature.bind_partial(inner, *args, **kwargs).arguments
            for name, parameter in signature.parameters.items():
                if is_switch(name) and isinstance(parameter.default, bool) and name not in told:
                    inside = type(inner).__name__
                    raise ValueError(
                        f"module: {type(module).__name__} calls its {inside} without {name!r}, "
                        f"which then is {parameter.default}, in training and in evaluation. Hand "
                        f"it on, such as {inside}(...)(x, {name}={name})."
                    )
        return following(*args, **kwargs)

    return nn.intercept_methods(check)


def is_switch(name: str) -> bool:
    """Whether an argument of that name says whether a module is trained.

    >>> is_switch("deterministic"), is_switch("width")
    (True, False)
    """
    return name in _OTHERS or name in _KNOWN
