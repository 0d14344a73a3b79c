"""Presets: how large a figure, its letters, lines and points are where it will be shown."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib as mpl

_INK = ("axes", "xtick.major", "ytick.major", "xtick.minor", "ytick.minor")


def _preset(size: tuple[float, float], letters: float, line: float, point: float) -> dict[Any, Any]:
    """From inches, and the points of letters, lines and markers, what follows from them."""
    frame = 0.5 * line
    return {
        "figure.figsize": size,
        "font.size": letters,
        "axes.labelsize": letters,
        "axes.titlesize": letters,
        "xtick.labelsize": letters,
        "ytick.labelsize": letters,
        "lines.linewidth": line,
        "lines.markersize": point,
        **{f"{part}.{'linewidth' if part == 'axes' else 'width'}": frame for part in _INK},
        **{f"{part}.size": 0.35 * letters for part in _INK if "major" in part},
    }


_PRESETS: dict[str, dict[Any, Any]] = {
    "column": _preset((3.3, 3.0), letters=8, line=1.1, point=4),
    "page": _preset((6.8, 4.6), letters=9, line=1.4, point=5.5),
    "slide": _preset((10, 5.6), letters=18, line=2.5, point=10),
}


def style(preset: Literal["column", "page", "slide"]) -> AbstractContextManager[None]:
    """Figures that are drawn within it have the size of a preset.

    Figures of `bs.plots` follow Matplotlib's rcParams at the time of drawing: `figure.figsize`,
    `font.size`, `lines.linewidth` and `lines.markersize`, and those of ticks and labels. A preset
    sets these, and leaves everything else; any others can be set by `matplotlib.rc_context`.

    Args:
      preset: "column", 3.3 inches wide, a paper's column; "page", 6.8 inches, a page's text;
        "slide", 10 by 5.6 inches with letters of 18 points.

    Returns:
      A context manager, at whose end rcParams are what they were.

    Raises:
      ValueError: there is no such preset.

    >>> import matplotlib.pyplot as plt
    >>> with style("column"):
    ...     figure = plt.figure()
    >>> float(figure.get_figwidth()), plt.rcParams["font.size"]
    (3.3, 10.0)
    >>> plt.close(figure)
    >>> style("poster")
    Traceback (most recent call last):
    ValueError: style: got 'poster', wanted one of column, page, slide.
    """
    if not isinstance(preset, str) or preset not in _PRESETS:
        raise ValueError(f"style: got {preset!r}, wanted one of {', '.join(_PRESETS)}.")
    return mpl.rc_context(_PRESETS[preset])
