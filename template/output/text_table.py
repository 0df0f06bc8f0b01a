"""Rows as an aligned table for the terminal and the log.

    print(text_table([{"fold": 1, "acc": 0.9312}, {"fold": 2, "acc": 0.9281}]))

It knows no widths of terminals and no colours: a table of many columns is one for ``history.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line of names and one for each row; numbers stand to the right, and what a row lacks stays empty.

    Args:
        rows: values by name. Floats are shown with four significant digits.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    is_number = [all(_is_number(row.get(name)) for row in rows) for name in names]
    return "\n".join("  ".join(cell.rjust(width) if right else cell.ljust(width)
                               for cell, width, right in zip(line, widths, is_number)).rstrip() for line in cells)


def _cell(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value):
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
