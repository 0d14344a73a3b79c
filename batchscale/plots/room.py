"""How much room there is in a figure, and how much of it text takes, in points."""

from __future__ import annotations

import functools

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path


def text_size() -> float:
    """Of titles and labels, in points: what rcParams say now."""
    return float(mpl.rcParams["font.size"])


def small_text() -> float:
    """Of legends and of what is written beside points."""
    return 0.9 * text_size()


@functools.lru_cache(maxsize=1024)
def text_width(text: str, size: float) -> float:
    """Of the longest line, in letters of a size.

    >>> text_width("two words", 20) == 2 * text_width("two words", 10)
    True
    """
    font = FontProperties(size=size)
    measure = text_to_path.get_text_width_height_descent
    return max(measure(line, font, line.count("$") > 1)[0] for line in text.split("\n"))


def wrapped(text: str, size: float, room: float) -> str:
    r"""In as few lines as there is room for, of about one length; a longer word has its own line.

    >>> wrapped("one two three four", 10, 85)
    'one two\nthree four'
    """
    lines = _lines(text, size, room)
    while len(lines) > 1 and room > size:
        room -= size / 2
        shorter = _lines(text, size, room)
        if len(shorter) > len(lines) or text_width("\n".join(shorter), size) > room:
            break
        lines = shorter
    return "\n".join(lines)


def _lines(text: str, size: float, room: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def axes_room(ax: Axes) -> tuple[float, float]:
    """Width and height that axes will have, as near as can be told before they are laid out."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    width, height = 72 * figure.get_size_inches()
    spec = ax.get_subplotspec()
    if figure.get_layout_engine() is None or spec is None:
        box = ax.get_position()
        return box.width * width, box.height * height
    rows, columns = spec.get_gridspec().get_geometry()
    # Beside them are a label, ticks, and numbers of up to six letters.
    beside = 5.6 * text_size() + 12
    return (
        len(spec.colspan) * width / columns - beside,
        len(spec.rowspan) * height / rows - axes_below(),
    )


def axes_below() -> float:
    """Of the label, the numbers and the ticks below axes."""
    return 3.5 * text_size() + 12
