"""The curves of a run as characters, for a terminal: what ``curves.py`` would draw, in lines of text.

    print(text_figure(rows, "acc", {"acc": (25, 0.997)}, width=80))

    tol_loss                                acc
    1.75│⡇                                  0.997│    ⣀⡠⠤⠤⠒⠒⠒⠉⠉⠉*⠉
        │⢱                                       │ ⢀⠔⠉
        │ ⢣                                      │⢀⠎
    0.54│  ⠑⠒⠤⠤⣀⣀⣀⣀⣀*⣀                      0.830│⡎
        └──────────────                          └──────────────
         1            8                           1            8
    * 0.5544 (7)  eval 0.5552  train 0.539  * 0.9972 (7)  eval 0.9944

As many panels as fit stand beside each other, those that matter most. It writes nothing and asks for no terminal.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from .curves import Panel, panels_of, short_number, value_range

_LEAST_WIDTH = 28   # of a panel
_MOST_PANELS = 3
_GAP = 2            # columns between panels
_DOTTED_EVERY = 3   # dots of a line that has no color
_POINTS_FOR_EACH = 4  # column of dots


class Dots(NamedTuple):
    """How dots become characters: a cell is ``columns`` x ``rows`` dots, the bit of each is in ``bits[row][column]``."""

    columns: int
    rows: int
    bits: tuple[tuple[int, ...], ...]
    characters: str  # by the sum of bits
    axes: str        # beside the plot, below it, and where these meet


CHARACTERS = {
    "braille": Dots(2, 4, ((1, 8), (2, 16), (4, 32), (64, 128)), " " + "".join(map(chr, range(0x2801, 0x2900))), "│─└"),
    "blocks": Dots(1, 2, ((1,), (2,)), " ▀▄█", "│─└"),
    "ascii": Dots(1, 2, ((1,), (2,)), " '.:", "|-+"),
}
_WIDE = ("gb", "big5", "euc", "cp932", "cp949", "cp936", "cp950", "shift", "iso2022", "johab")  # blocks take two columns


def characters_for(encoding: str | None) -> str:
    """The name of the finest of ``CHARACTERS`` that a console of this encoding shows."""
    for name in ("braille", "blocks"):
        try:
            (CHARACTERS[name].characters + CHARACTERS[name].axes).encode(encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            continue
        if not (encoding or "").lower().replace("-", "").replace("_", "").startswith(_WIDE):
            return name
    return "ascii"


def text_figure(rows: list[dict[str, Any]], key: str | None = None, best: dict[str, tuple[int, float]] | None = None,
                width: int = 80, height: int = 10, characters: str = "braille", colors: bool = False) -> str:
    """Lines of text, none wider than ``width``.

    Args:
        rows, key, best: as for ``curves.draw``.
        width: of the terminal, in columns.
        height: of the curves, in lines.
        characters: "braille", "blocks" or "ascii".
        colors: with the colors of a terminal (ANSI): training blue, evaluation yellow. Without them training is dotted.
    """
    panels = [panel for panel in panels_of(rows, key, best or {})[0] if any(len(line.x) for line in panel.lines)]
    scored = [panel for panel in panels if panel.title != "learning rate"] or panels
    count = max(1, min(_MOST_PANELS, len(scored), (width + _GAP) // (_LEAST_WIDTH + _GAP)))
    room = min((width - _GAP * (count - 1)) // count, 60)
    drawn = [_panel_lines(panel, room, height, CHARACTERS[characters], colors) for panel in scored[:count]]
    return "\n".join((" " * _GAP).join(parts).rstrip() for parts in zip(*drawn))


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes: a wide character takes two, a combining one none."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
               for letter in text)


# --- a panel --------------------------------------------------------------------------------------------------------


def _panel_lines(panel: Panel, width, height, dots, colors):
    """``height`` + 4 lines, each of exactly ``width`` columns: title, curves, axis, epochs, values."""
    lines = [line for line in panel.lines if len(line.x)]
    x, y = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    low, high, is_log = value_range(x, y, panel.best)
    first, last = float(x.min()), float(x.max())
    top, bottom = f"{high:.3g}", f"{low:.3g}"
    label = max(len(top), len(bottom))
    cells = max(width - label - 1, 4)
    scale = math.log if is_log else float

    def place(epoch, value):
        """Column and row of dots."""
        across = (epoch - first) / ((last - first) or 1) * (cells * dots.columns - 1)
        if is_log and value <= 0:
            return across, 10.0 * height * dots.rows
        up = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return across, (1 - up) * (height * dots.rows - 1)

    bits = np.zeros((height, cells), dtype=int)
    owner = np.full((height, cells), -1)
    for number, line in enumerate(lines):
        every = 1 if colors or len(lines) == 1 or number == len(lines) - 1 else _DOTTED_EVERY
        points = _thinned(list(zip(line.x.tolist(), line.y.tolist())), _POINTS_FOR_EACH * cells * dots.columns)
        for column, row in _dots_of([place(*point) for point in points], every, height * dots.rows):
            cell = row // dots.rows, column // dots.columns
            bits[cell] |= dots.bits[row % dots.rows][column % dots.columns]
            owner[cell] = line.color
    grid = [[(dots.characters[bits[row, column]], owner[row, column]) for column in range(cells)] for row in range(height)]
    if panel.best is not None and math.isfinite(panel.best[1]):
        column, row = place(*panel.best)
        if 0 <= column < cells * dots.columns and -1 < row < height * dots.rows:
            grid[int(max(row, 0)) // dots.rows][int(column) // dots.columns] = ("*", -2)
    beside, below, corner = dots.axes
    text = [_fitted(_cut(panel.title, width), width)]
    for number, cells_of_row in enumerate(grid):
        name = top if number == 0 else bottom if number == height - 1 else ""
        text.append(f"{name:>{label}}{beside}{_colored(cells_of_row, colors)}")
    text.append(f"{'':{label}}{corner}{below * cells}")
    ends = short_number(first), short_number(last) if last > first else ""
    text.append(f"{'':{label + 1}}{ends[0]}{ends[1]:>{cells - len(ends[0])}}")
    return [*text, _values(panel, lines, width, colors)]


def _thinned(points, most):
    """At most so many of them, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def _dots_of(points, every, rows):
    """All dots of a line through points; of a dotted one each ``every``-th column."""
    for (x, y), (next_x, next_y) in zip(points, points[1:] or points):
        steps = int(max(abs(next_x - x), min(abs(next_y - y), 4 * rows))) + 1
        for step in range(steps + 1):
            column = int(round(x + (next_x - x) * step / steps))
            row = round(y + (next_y - y) * step / steps)
            if 0 <= row < rows and column % every == 0:
                yield column, int(row)


_ANSI = {0: "34", 1: "33", 2: "32", 3: "31", 4: "35", 5: "36", 6: "95", 7: "37", 8: "93", 9: "96", -2: "1;91"}


def _colored(cells, colors):
    """The characters of a line, with a change of color where the line of the curve changes."""
    if not colors:
        return "".join(character for character, _ in cells)
    text, present = "", -1
    for character, owner in cells:
        if owner != present and (owner != -1 or present != -1):
            text += f"\x1b[{_ANSI[owner]}m" if owner != -1 else "\x1b[0m"
            present = owner
        text += character
    return text + ("\x1b[0m" if present != -1 else "")


def _values(panel, lines, width, colors):
    """The newest value of each line, and the best; as many as fit."""
    items = [(f"{line.label.lstrip('_')} {line.y[-1]:.4g}", line.color) for line in reversed(lines)]
    if panel.best is not None and math.isfinite(panel.best[1]):
        items.insert(0, (f"* {panel.best[1]:.4g} ({short_number(panel.best[0])})", -2))
    kept: list[Any] = []
    for item in items:
        if sum(columns_of(text) + 2 for text, _ in [*kept, item]) - 2 <= width:
            kept.append(item)
    plain = "  ".join(text for text, _ in kept)
    shown = "  ".join(f"\x1b[{_ANSI[color]}m{text}\x1b[0m" for text, color in kept) if colors else plain
    return shown + " " * (width - columns_of(plain))


def _cut(text, width):
    """As much of a text as ``width`` columns hold."""
    while columns_of(text) > width:
        text = text[:-1]
    return text


def _fitted(text, width):
    return text + " " * (width - columns_of(text))
