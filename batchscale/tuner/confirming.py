"""The tuned settings under fresh seeds, asked for by a study and its result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol


class _Study(Protocol):
    def confirm(self, folder: str | os.PathLike[str], **options: Any) -> Any: ...


class _Result(Protocol):
    @property
    def folder(self) -> Path: ...


def confirm(study: _Study, result: _Result, **options: Any) -> Any:
    """Runs the leading settings of a result under fresh seeds: `study.confirm(result.folder)`.

    Args:
      study: that the result is of.
      result: whose trials were trained past the first crossing.
      **options: of `Study.confirm`: `settings`, `selection_seeds`, `seeds`, `patience`, `progress`,
        `devices`.

    Returns:
      The `Confirmation`: the median of the tuned setting at every batch size, with its interval.

    Raises:
      ValueError: as `Study.confirm` does.

    >>> from types import SimpleNamespace
    >>> study = SimpleNamespace(confirm=lambda folder, seeds: f"{folder}: {seeds} seeds")
    >>> confirm(study, SimpleNamespace(folder=Path("runs/mine")), seeds=21)
    'runs/mine: 21 seeds'
    """
    return study.confirm(result.folder, **options)
