"""How results look in a notebook: a sentence and a table, in which everything is escaped."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import pandas as pd

from batchscale.numeric import plain, short


def page(sentence: str, table: pd.DataFrame) -> str:
    r"""A sentence and a table as HTML.

    >>> page("a < b", pd.DataFrame({"steps": [1234.56]}))[:16]
    '<p>a &lt; b</p>\n'
    """
    shown = table.map(words) if len(table) else table
    return f"<p>{html.escape(sentence)}</p>\n{shown.to_html(index=False, escape=True, border=0)}"


def words(value: Any, *, infinite: str = "∞") -> str:
    """A cell: numbers to three digits.

    Args:
      value: of any kind.
      infinite: what stands for infinity.

    >>> words(3), words(12345.6), words(0.000123456), words(math.nan), words("model")
    ('3', '12,300', '0.000123', '', 'model')
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    number = plain(value)
    if number is None:
        return str(value)
    if isinstance(number, int):
        return f"{number:,}"
    if math.isnan(number):
        return ""
    if math.isinf(number):
        return infinite if number > 0 else "-∞"
    return short(number)


def cell(value: float) -> str:
    """A cell of a table in a terminal: whole numbers as they are, others to four digits.

    >>> cell(45091.0), cell(45091.5), cell(0.0123456), cell(math.inf)
    ('45,091', '45,090', '0.01235', 'inf')
    """
    return f"{value:,.0f}" if float(value).is_integer() else short(value, 4)
