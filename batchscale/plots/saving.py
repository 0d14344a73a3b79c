"""Figures as files: pictures, and drawings that are the same byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchscale.files import local_path, replacing
from batchscale.given import instance, several

_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 200},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
# Letters of a PDF as TrueType, which journals ask for; names in an SVG that do not change.
_FIXED: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "batchscale"}


def save(
    figure: Axes | Figure | np.ndarray,
    stem: str | Path,
    formats: Sequence[Literal["png", "svg", "pdf"]] = ("png", "svg"),
) -> tuple[Path, ...]:
    """Writes a figure as PNG and as SVG, or as PDF.

    The same figure gives the same SVG and the same PDF, byte for byte. A PDF has its fonts in it.

    Args:
      figure: a figure, one of its axes, or an array of them.
      stem: where, without a suffix; folders are made as needed.
      formats: of "png", "svg" and "pdf", in order.

    Returns:
      The paths, of these `<stem>.png` and `<stem>.svg`.

    >>> import tempfile
    >>> import matplotlib.pyplot as plt
    >>> figure, ax = plt.subplots()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in save(ax, f"{folder}/curves/mnist", ["png", "pdf"])]
    ['mnist.png', 'mnist.pdf']
    >>> plt.close(figure)

    Raises:
      ValueError: a format is none of these, or the stem ends in one.
    """
    drawn: Any = figure.flat[0] if isinstance(figure, np.ndarray) and figure.size else figure
    instance("figure", drawn, (Figure, Axes), "a figure or axes of Matplotlib, or what plots give")
    if not isinstance(drawn, Figure):
        drawn = drawn.get_figure(root=True)
    stem = local_path(stem, "stem")
    if stem.suffix[1:] in _FORMATS:
        raise ValueError(
            f"stem: got {stem.name!r}, wanted a name without a suffix: formats say what is "
            f"written, such as save(figure, {stem.stem!r}, [{stem.suffix[1:]!r}])."
        )
    wanted = f"some of {', '.join(_FORMATS)}, in a list"
    names = several("formats", formats, wanted)
    if not names or not all(isinstance(name, str) and name in _FORMATS for name in names):
        raise ValueError(f"formats: got {formats!r}, wanted {wanted}.")
    paths = tuple(stem.with_name(f"{stem.name}.{name}") for name in names)
    for path, name in zip(paths, names, strict=True):
        with replacing(path) as file, mpl.rc_context(_FIXED):
            drawn.savefig(file, format=name, **_FORMATS[name])
    return paths
