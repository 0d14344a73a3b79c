"""What a figure is asked to draw, and where: refused by its name before a figure is opened."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from batchscale.given import described


def check_reads(name: str, value: Any, wanted: str, *reads: str) -> None:
    """Refuses an argument `name` that lacks what a figure reads of it.

    Args:
      name: of the argument.
      value: what was given.
      wanted: what an error asks for.
      *reads: the attributes that are read.

    Raises:
      TypeError: one of them is not there, or it is a class and no instance.

    >>> check_reads("result", 0.1, "the result of a study: batchscale.load(folder)", "goal")
    Traceback (most recent call last):
    TypeError: result: got 0.1, wanted the result of a study: batchscale.load(folder).
    """
    if isinstance(value, type) or not all(hasattr(value, read) for read in reads):
        of_answer = " Of an answer give answer.measurement." if hasattr(value, "pilot") else ""
        raise TypeError(f"{name}: got {described(value)}, wanted {wanted}.{of_answer}")


def check_place(ax: Any, title: Any) -> None:
    """Refuses axes that are none of Matplotlib's, and a title that is no word.

    Args:
      ax: axes; None for a new figure.
      title: words; None for the figure's own.

    Raises:
      TypeError: one of them is something else.

    >>> check_place("left", None)
    Traceback (most recent call last):
    TypeError: ax: got 'left', wanted Axes of Matplotlib, or None for a new figure.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(
            f"ax: got {described(ax)}, wanted Axes of Matplotlib, or None for a new figure."
        )
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title: got {described(title)}, wanted text, or None for the figure's.")


RESULT = "the result of a study: batchscale.load(folder)"
MEASUREMENT = "a measurement: result.measurement(), or answer.measurement"
