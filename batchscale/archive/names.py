"""What the archive calls things, and what they are called here: both ways."""

from __future__ import annotations

from collections.abc import Iterable

from batchscale.metrics import BOUNDS

STUDY, METADATA, MEASUREMENTS = "study.json", "metadata.json", "measurements.csv"
OWN = "_batchscale"
"""The key of what this library writes beside the archive's own keys."""

_OPTIMIZERS = {"nesterov_momentum": "nesterov"}
_SPLITS = {"val": "validation"}
_METRICS = {"classification_error": "error", "cross_entropy_error": "loss"}


def optimizer(name: str) -> str:
    """The optimizer's name here.

    >>> optimizer("nesterov_momentum"), optimizer("sgd")
    ('nesterov', 'sgd')
    """
    return _OPTIMIZERS.get(name, name)


def archived_optimizer(name: str) -> str:
    """The optimizer's name in the archive.

    >>> archived_optimizer("nesterov"), archived_optimizer("adam")
    ('nesterov_momentum', 'adam')
    """
    return _back(_OPTIMIZERS).get(name, name)


def column(name: str) -> str | None:
    """The name here of a column of `measurements.csv`; None for one that is no "split/metric".

    >>> column("val/classification_error"), column("train/cross_entropy_error")
    ('validation/error', 'train/loss')
    >>> column("val/average_precision"), column("seconds")
    ('validation/average_precision', None)
    """
    return _translated(name, _SPLITS, _METRICS)


def archived_columns(names: Iterable[str]) -> dict[str, str]:
    """The names in the archive of columns of measurements, bounds of them included.

    Raises:
      ValueError: a column would not come back under its name.

    >>> archived_columns(["validation/error", "test/loss", "validation/error_at_least"])
    {'validation/error': 'val/classification_error', 'test/loss': 'test/cross_entropy_error',
     'validation/error_at_least': 'val/classification_error_at_least'}
    """
    found = {}
    for name in names:
        archived = _translated(name, _back(_SPLITS), _back(_METRICS))
        if archived is None or column(archived) != name:
            raise ValueError(
                f"to_archive: the column {name!r} has a name that means another in the archive, "
                f"and would come back as {column(archived or name)!r}. Rename the split or the "
                "metric."
            )
        found[name] = archived
    return found


def _translated(name: str, splits: dict[str, str], metrics: dict[str, str]) -> str | None:
    split, slash, metric = name.partition("/")
    if not split or not slash or not metric or "/" in metric:
        return None
    end = next((end for end in BOUNDS if metric.endswith(end)), "")
    metric = metric.removesuffix(end)
    return f"{splits.get(split, split)}/{metrics.get(metric, metric)}{end}"


def _back(names: dict[str, str]) -> dict[str, str]:
    return {here: there for there, here in names.items()}
