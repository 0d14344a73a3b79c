"""What stands on a page, in order, and how it becomes HTML: everything is escaped."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence

import jinja2
import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from batchscale.display import words

_STEPS = ("steps", "best_of_n", "seen", "predicted")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, as SVG.

    Attributes:
      source: a data address, so that the page needs no other file.
      caption: under it; also what is read to those who cannot see it.
    """

    source: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
      heads: of the columns.
      rows: cells, in the order of the heads.
      caption: under it.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
      title: the heading.
      paragraphs: words.
      figure: if there is one.
      table: if there is one.
      checks: of an audit: verdict, name, evidence and remedy.
      pairs: names and values.
      code: verbatim.
    """

    title: str
    paragraphs: Sequence[str] = ()
    figure: Figure | None = None
    table: Table | None = None
    checks: Sequence[Mapping[str, str]] = ()
    pairs: Sequence[tuple[str, str]] = ()
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
      title: what was measured.
      answer: in one sentence, or a few.
      sections: in order.
    """

    title: str
    answer: str
    sections: Sequence[Section]


def html(page: Page) -> str:
    """The page as HTML; nothing in it is loaded from elsewhere, and no script runs.

    >>> "<b>" in html(Page("<b>", "", ()))
    False
    """
    return _template().render(page=page)


def figure(axes: Axes, caption: str) -> Figure:
    """A figure for a page; it is closed."""
    drawn, file = axes.get_figure(root=True), io.BytesIO()
    assert drawn is not None
    with mpl.rc_context({"svg.hashsalt": "batchscale"}):  # the same figure, the same bytes
        drawn.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(drawn)
    coded = base64.b64encode(file.getvalue()).decode()
    return Figure(f"data:image/svg+xml;base64,{coded}", caption)


def table(frame: pd.DataFrame, heads: Mapping[str, str], caption: str = "") -> Table:
    """Some columns of a table, as words.

    >>> table(pd.DataFrame({"steps": [1234.4, float("inf")]}), {"steps": "Steps"}).rows
    [['1,230'], ['not reached']]
    """
    shown = [name for name in heads if name in frame]
    missing = ["not reached" if name in _STEPS else "∞" for name in shown]  # as the end of a range
    rows = [
        [words(value, infinite=of) for value, of in zip(row, missing, strict=True)]
        for row in frame[shown].itertuples(index=False)
    ]
    return Table([heads[name] for name in shown], rows, caption)


@functools.lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("batchscale.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html")
