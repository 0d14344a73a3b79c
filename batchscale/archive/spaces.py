"""The search space of a study, as the `parameter_configs` of its `study.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchscale.tuner import (
    Choice,
    Distribution,
    Integer,
    LogHalfLife,
    LogUniform,
    ReverseLogUniform,
    SearchSpace,
    Uniform,
)
from batchscale.tuner.distributions import number
from batchscale.tuner.search_space import Resolved

_SCALES = {
    "LINEAR_SCALE": Uniform,
    "LOG_SCALE": LogUniform,
    "REVERSE_LOG_SCALE": ReverseLogUniform,  # the logarithm of 1 - value is uniform
    "LOG_HALF_LIFE_SCALE": LogHalfLife,  # ours alone: of moving averages
    "": Uniform,  # a choice: only integers are known to have no scale
}


def dimensions(configs: Any) -> dict[str, Resolved]:
    """What each hyperparameter is drawn from, by name, in order.

    Args:
      configs: by name, as the official archive has them; or, as a choice, a list of records that
        say their `name`.

    Raises:
      TypeError, ValueError: they are no such records.

    >>> dimensions({"momentum": {"type": "DOUBLE", "min_value": 0.9, "max_value": 0.999,
    ...                          "scale": "REVERSE_LOG_SCALE"}})
    {'momentum': ReverseLogUniform(low=0.9, high=0.999)}
    """
    found: dict[str, Resolved] = {}
    for name, config in _records(configs):
        if name in found:
            raise ValueError(f"parameter_configs: {name!r} is listed twice.")
        try:
            found[name] = _dimension(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter_configs of {name!r}: {error}") from error
    return found


def _records(configs: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(configs, Mapping):
        configs = [{"name": name, **_record(config)} for name, config in configs.items()]
    if not isinstance(configs, list):
        raise TypeError(f"parameter_configs: got {configs!r}, wanted a record of every name.")
    for config in configs:
        name = _record(config).get("name")
        if not isinstance(name, str):
            raise TypeError(f"parameter_configs: got {config!r}, wanted a record with a name.")
        yield name, config


def _record(config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise TypeError(f"parameter_configs: got {config!r}, wanted a record.")
    return config


def _dimension(config: Mapping[str, Any]) -> Resolved:
    kind = config.get("type")
    if kind == "DISCRETE":
        points = config.get("feasible_points")
        if isinstance(points, list) and len(points) == 1:
            return number("feasible_points[0]", points[0])
        return Choice(points)  # pyright: ignore[reportArgumentType]
    if kind not in ("DOUBLE", "INTEGER"):
        raise ValueError(f"got type {kind!r}, wanted DOUBLE, INTEGER or DISCRETE.")
    low = number("min_value", config.get("min_value"))
    high = number("max_value", config.get("max_value"))
    if low == high:
        return low
    if kind == "INTEGER":
        return Integer(low, high)  # pyright: ignore[reportArgumentType]  (it checks that itself)
    scale = config.get("scale") or ""
    if scale not in _SCALES:
        known = ", ".join(filter(None, _SCALES))
        raise ValueError(f"got scale {scale!r}, wanted one of {known}.")
    return _SCALES[scale](low, high)


def configs(space: SearchSpace) -> dict[str, dict[str, Any]]:
    """The records of a space, for `dimensions`; a fixed value is a choice of one.

    Args:
      space: without functions of batch size.

    Raises:
      ValueError: a distribution has no place in the archive.

    >>> configs(SearchSpace(momentum=0.9))
    {'momentum': {'type': 'DISCRETE', 'feasible_points': [0.9]}}
    """
    return {name: _config(name, space[name]) for name in space}


def _config(name: str, of: object) -> dict[str, Any]:
    if isinstance(of, Choice):
        return {"type": "DISCRETE", "feasible_points": list(of.values)}
    if isinstance(of, Integer):
        return {"type": "INTEGER", "min_value": of.low, "max_value": of.high, "scale": ""}
    for scale, kind in _SCALES.items():
        if type(of) is kind:
            assert isinstance(of, Uniform | LogUniform | ReverseLogUniform | LogHalfLife)
            return {"type": "DOUBLE", "min_value": of.low, "max_value": of.high, "scale": scale}
    if isinstance(of, Distribution) or callable(of):
        raise ValueError(f"to_archive: {name} is {of!r}, which the archive has no scale for.")
    return {"type": "DISCRETE", "feasible_points": [of]}


def everywhere(
    studies: Mapping[int, Mapping[str, Resolved]], constants: Mapping[int, Mapping[str, float]]
) -> dict[int, SearchSpace]:
    """The spaces of all batch sizes, with the same hyperparameters at each.

    A hyperparameter that a batch size has no configuration of is fixed there, if all of its trials
    have the same value. If they have not, nothing is known of what it was drawn from, and it is in
    no space.

    Args:
      studies: what each hyperparameter is drawn from, by batch size.
      constants: the values that all trials of a batch size share, by hyperparameter.

    Raises:
      ValueError: a name is no name of a hyperparameter, or there is none.

    >>> rate = LogUniform(0.1, 1)
    >>> configured = {8: {"rate": rate, "l2": Uniform(0, 1)}, 16: {"rate": rate}}
    >>> everywhere(configured, {16: {"l2": 0.0}})[16]
    SearchSpace(rate=LogUniform(low=0.1, high=1.0), l2=0.0)
    """
    found: dict[int, dict[str, Resolved]] = {size: {} for size in studies}
    for name in dict.fromkeys(name for configured in studies.values() for name in configured):
        column = {
            size: configured[name] if name in configured else constants[size].get(name)
            for size, configured in studies.items()
        }
        if None not in column.values():
            for size, dimension in column.items():
                assert dimension is not None
                found[size][name] = dimension
    return {size: SearchSpace(**space) for size, space in found.items()}
