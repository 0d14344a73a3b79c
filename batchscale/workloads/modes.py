"""The switches by which a Flax module is told whether it is trained: none is left to its default.

A module that is never told trains without dropout and with the statistics of nothing, silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
# Names that mean other things where a method is no call.
_OTHERWISE = {"mode", "test", "testing", "eval", "evaluate", "evaluation"}


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
    for name in _switch_fields(module):
        raise _constant(type(module), name)


def _switch_fields(module: nn.Module) -> list[str]:
    names = [field.name for field in dataclasses.fields(module) if is_switch(field.name)]
    return [name for name in names if isinstance(getattr(module, name, None), bool)]


def _constant(kind: type, name: str) -> ValueError:
    return ValueError(
        f"module: {name!r} is a constant of {kind.__name__}, and so the same in training and in "
        "evaluation. Make it an argument of its call, such as __call__(self, x, train)."
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
    function: Callable[..., Any],
    mode: Mapping[str, tuple[Any, Any]],
    *,
    inputs: int = 2,
    but: Collection[str] = (),
) -> dict[str, tuple[Any, Any]]:
    """Those of a function of (params, inputs), or of so many other things, as `of_call`.

    >>> of_function(lambda params, x, train: x, {})
    {'train': (True, False)}
    """
    taken = list(inspect.signature(function).parameters.values())
    name = getattr(function, "__name__", type(function).__name__)
    return _switches(f"the function {name}", taken[:inputs], taken[inputs:], mode, but)


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


Constants = dict[tuple[type, str, tuple[str, ...]], set[bool]]
"""Switches that are fields of modules within one, by class, name and place, and their values."""


def refuse_constants(constants: Constants) -> None:
    """Refuses a field that is the same where its module is trained and where it is evaluated."""
    for (kind, name, _), values in constants.items():
        if len(values) == 1:
            raise _constant(kind, name)


def nested(module: nn.Module, constants: Constants) -> Any:
    """While its result is entered, refuses modules within one that leave a switch to its default.

    Args:
      module: the whole.
      constants: where switches that are fields of modules within it are noted.

    >>> class Inner(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return x
    >>> class Outer(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         return Inner()(x)
    >>> try:
    ...     with nested(outer := Outer(), {}):
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
            for name in _switch_fields(inner):
                place = (type(inner), name, inner.path)
                constants.setdefault(place, set()).add(getattr(inner, name))
            refuse_default(type(module).__name__, type(inner), method, inner, *args, **kwargs)
            refuse_none(type(module).__name__, type(inner), method, inner, *args, **kwargs)
        return following(*args, **kwargs)

    return nn.intercept_methods(check)


def refuse_default(
    outer: str, kind: type, method: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """Refuses a call within a module that leaves a switch to its default.

    Args:
      outer: what the module is called.
      kind: of what is called within it.
      method: its method, as a function whose first argument is the module.
      *args: that it is called with, the module first.
      **kwargs: likewise.

    Raises:
      ValueError: the method has a switch whose default is a truth value, and it is left out.
    """
    signature = inspect.signature(method)
    told = signature.bind_partial(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if _is_defaulted(method, parameter) and name not in told:
            raise ValueError(
                f"module: {outer} calls its {kind.__name__} without {name!r}, which then is "
                f"{parameter.default}, in training and in evaluation. Hand it on, such as "
                f"{kind.__name__}(...)(x, {name}={name})."
            )


def refuse_none(
    outer: str, kind: type, method: Callable[..., Any], inner: Any, *args: Any, **kwargs: Any
) -> None:
    """Refuses a call within a module of Linen or Haiku that leaves a switch at None.

    There None is what a module reads in training and in evaluation alike, unless an attribute of
    the same name stands for it (`nn.merge_param`). Of NNX and Equinox it is what a layer was set
    to, which they change themselves.

    Args:
      outer: what the module is called.
      kind: of what is called within it.
      method: its method, as a function whose first argument is the module.
      inner: the module within it.
      *args: that it is called with.
      **kwargs: likewise.

    Raises:
      ValueError: the method has a switch that is None, left out or written.
    """
    signature = inspect.signature(method)
    told = signature.bind_partial(inner, *args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if not _is_named(method, name) or parameter.default is not None:
            continue
        if told.get(name) is None and not isinstance(getattr(inner, name, None), bool):
            raise ValueError(
                f"module: {outer} calls its {kind.__name__} without {name!r}, which then is None, "
                f"in training and in evaluation. Hand it on, such as {kind.__name__}(...)(x, "
                f"{name}={name})."
            )


@contextlib.contextmanager
def handed_on(outer: str, kinds: Iterable[type], *, but: str) -> Iterator[None]:
    """While it is entered, methods of these classes refuse calls that leave a switch out.

    Args:
      outer: what the module is called that calls them.
      kinds: classes of modules within it.
      but: the package of classes that are left alone: a framework's own are told otherwise.

    >>> class Inner:
    ...     def __call__(self, x, train=False):
    ...         return x
    >>> with handed_on("Outer", [Inner], but="flax"):
    ...     Inner()(1.0)
    Traceback (most recent call last):
    ValueError: module: Outer calls its Inner without 'train', which then is False, in training and
    in evaluation. Hand it on, such as Inner(...)(x, train=train).
    >>> Inner()(1.0)
    1.0
    """
    owners = {
        owner
        for kind in kinds
        for owner in kind.__mro__
        if owner is not object and owner.__module__.split(".")[0] != but
    }
    with contextlib.ExitStack() as stack:
        for owner in owners:
            for name, method in list(vars(owner).items()):
                if _has_default(method):
                    setattr(owner, name, _asking(outer, owner, method))
                    stack.callback(setattr, owner, name, method)
        yield


def _has_default(method: Any) -> bool:
    """Whether it is a method, compiled by itself or not, with a switch that may be left out."""
    bound = callable(method) and hasattr(method, "__get__") and not isinstance(method, type)
    if not bound or isinstance(method, staticmethod | classmethod):
        return False
    try:
        taken = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(_is_defaulted(method, parameter) for parameter in taken)


def _is_defaulted(method: Any, parameter: inspect.Parameter) -> bool:
    """Whether an argument is a switch with a truth value by default."""
    return _is_named(method, parameter.name) and isinstance(parameter.default, bool | int)


def _is_named(method: Any, name: str) -> bool:
    """Whether an argument of that name of a method is a switch."""
    called = getattr(method, "__name__", "__call__") == "__call__"
    return is_switch(name) and (called or name not in _OTHERWISE)


def _asking(outer: str, kind: type, method: Any) -> Callable[..., Any]:
    @functools.wraps(method)
    def asking(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_default(outer, kind, method, self, *args, **kwargs)
        return method.__get__(self, type(self))(*args, **kwargs)

    return asking


def is_switch(name: str) -> bool:
    """Whether an argument of that name says whether a module is trained.

    >>> is_switch("deterministic"), is_switch("width")
    (True, False)
    """
    return name in _OTHERS or name in _KNOWN
