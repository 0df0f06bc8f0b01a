"""The curves of a run as SVG, for pages and notebooks: what ``curves.py`` would draw, without matplotlib, in milliseconds.

    svg = figure(rows, "2024-05-01_12-00-00", key="acc", best={"acc": (25, 0.997)})     # all panels, as one text
    svgs = [panel_svg(panel) for panel in panels_of(rows, "acc", {})[0]]                # one by one, for a page

Text and axes have the color of the text around them, so a page is legible in light and in dark. Where it is shown within a
page, each epoch tells its values when the mouse rests on it. It knows nothing of fonts: lengths of names are estimated.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from .curves import MOST_MARKED, Panel, panels_of, short_number, shortened, summary, value_range

COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#a0695d", "#e377c2", "#7f7f7f", "#a9aa1f", "#17becf")
_STAR = "#e0245e"
_WIDTH, _PLOT_HEIGHT = 420, 190
_LEFT, _RIGHT, _TITLE, _ROW, _BOTTOM = 58, 10, 22, 14, 32  # around the plot
_LEGEND_CHARACTERS = 60  # in a row of the legend
_MOST_HOVERED = 120      # epochs of a panel that tell their values
_MOST_ROWS = 6           # of a legend
_GREY = "#7d7d7d"        # legible on white and on black
_FONT = ('font-family="system-ui, -apple-system, \'Segoe UI\', \'Noto Sans\', \'PingFang SC\', \'Microsoft YaHei\', '
         '\'Noto Sans CJK SC\', \'Source Han Sans SC\', sans-serif"')


def figure(rows: list[dict[str, Any]], title: str, key: str | None = None, best: dict[str, tuple[int, float]] | None = None,
           unit: str = "epoch") -> str:
    """One SVG with all panels in a grid, in colors that suit light and dark; the arguments are those of ``curves.draw``, and
    of ``panel_svg``. A learning rate that stays as it is has no panel."""
    panels, left_out = panels_of(rows, key, best or {})
    panels = [panel for panel in panels if panel.title != "learning rate" or _changes(panel)] or panels
    columns = min(len(panels), 2 if len(panels) < 7 else 3) or 1
    heights = [_height(panel) for panel in panels]
    heading = 26
    parts, y = [], heading
    for start in range(0, len(panels), columns):
        for index, panel in enumerate(panels[start:start + columns]):
            size = f'width="{_WIDTH}" height="{heights[start + index]}"'
            parts.append(panel_svg(panel, f'x="{index * _WIDTH}" y="{y}" {size}', unit))
        y += max(heights[start:start + columns])
    width = columns * _WIDTH
    more = f"   ({left_out} more quantities)" if left_out else ""
    words = "  ·  ".join(filter(None, (title, summary(rows, key, best or {}, unit))))
    head = _text(12, 17, words + more, size=13)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="100%" '
            f'style="max-width:{width}px" color="{_GREY}" {_FONT}>{head}{"".join(parts)}</svg>')


def panel_svg(panel: Panel, place: str | None = None, unit: str = "epoch") -> str:
    """One panel.

    Args:
        unit: what is counted from left to right.
        place: attributes of the ``<svg>``, instead of those that fill the width there is.
    """
    height = _height(panel)
    place = place or f'class="panel" role="img" aria-label="{escape(panel.title)}" {_FONT}'
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" {place}>',
             _text(_LEFT, 15, shortened(panel.title, 40), size=12.5, weight=600)]
    for number, row in enumerate(_legend(panel, unit)):
        spans = "".join(f'<tspan fill="{color}">{sign}</tspan><tspan> {escape(label)}   </tspan>'
                        for sign, label, color in row)
        parts.append(f'<text x="{_LEFT}" y="{_TITLE + 9 + number * _ROW}" font-size="11" fill="currentColor" '
                     f'xml:space="preserve">{spans}</text>')
    lines = [line for line in panel.lines if len(line.x)]
    if lines:
        parts.append(_plot(panel, lines, height - _BOTTOM - _PLOT_HEIGHT, unit))
    else:
        parts.append(_text(_LEFT, height - _BOTTOM - _PLOT_HEIGHT / 2, "no number until now", size=11))
    return "".join([*parts, "</svg>"])


def _changes(panel):
    return any(len(line.y) and line.y.min() < line.y.max() for line in panel.lines)


# --- parts of a panel -----------------------------------------------------------------------------------------------


def _height(panel):
    return _TITLE + _ROW * len(_legend(panel)) + 6 + _PLOT_HEIGHT + _BOTTOM


def _legend(panel, unit="epoch"):
    """Rows of ``(sign, text, color)``."""
    items = [("━", shortened(line.label, 30), COLORS[line.color]) for line in panel.lines if not line.label.startswith("_")]
    if len(items) == 1 and panel.title in ("learning rate", items[0][1]):
        items = []
    if any(line.is_dotted for line in panel.lines):
        items.append(("┅", "training", "currentColor"))
    if panel.best is not None and math.isfinite(panel.best[1]):
        items.append(("★", f"best {panel.best[1]:.4g} ({unit} {short_number(panel.best[0])})", _STAR))
    rows: list[list[Any]] = [[]]
    for item in items:
        if rows[-1] and sum(len(label) + 5 for _, label, _ in [*rows[-1], item]) > _LEGEND_CHARACTERS:
            rows.append([])
        rows[-1].append(item)
    return rows[:_MOST_ROWS]


def _plot(panel, lines, top, unit):
    """Grid, axes, lines, star, and the columns that tell their values."""
    x, y = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    low, high, is_log = value_range(x, y, panel.best)
    left, right = (x[0] - 0.5, x[0] + 0.5) if x.min() == x.max() else (x.min(), x.max())
    width, scale = _WIDTH - _LEFT - _RIGHT, math.log if is_log else float
    inset = 6  # so that the first and the last dot are whole

    def across(epoch):
        return inset + (epoch - left) / (right - left) * (width - 2 * inset)

    def up(value):
        if is_log and value <= 0:
            return 2 * _PLOT_HEIGHT
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return (1 - min(max(share, -9), 9)) * _PLOT_HEIGHT

    parts = [f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{_PLOT_HEIGHT}" fill="none" stroke="currentColor" '
             'stroke-opacity="0.35"/>']
    for value in ticks(low, high, is_log):
        height = top + up(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{height:.1f}" y2="{height:.1f}" stroke="currentColor" '
                     'stroke-opacity="0.18"/>')
        parts.append(_text(_LEFT - 5, height + 3.5, f"{value:.5g}", size=10, anchor="end"))
    for epoch in _whole_ticks(left, right):
        place = _LEFT + across(epoch)
        parts.append(_text(place, top + _PLOT_HEIGHT + 13, f"{short_number(epoch)}", size=10, anchor="middle"))
    parts.append(_text(_LEFT + width / 2, top + _PLOT_HEIGHT + 27, unit, size=10, anchor="middle"))
    parts.append(f'<svg x="{_LEFT}" y="{top}" width="{width}" height="{_PLOT_HEIGHT}" overflow="hidden">')  # cuts the lines
    for line in lines:
        points = [(across(epoch), up(value)) for epoch, value in zip(line.x, line.y)]
        color, dotted = COLORS[line.color], ' stroke-dasharray="2 3"' if line.is_dotted else ""
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.6" '
                     f'stroke-linejoin="round"{dotted}/>')
        if len(points) <= MOST_MARKED and not line.is_dotted:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="{color}"/>' for a, b in points]
    if panel.best is not None and math.isfinite(panel.best[1]):
        parts.append(f'<path d="{_star(across(panel.best[0]), up(panel.best[1]))}" fill="{_STAR}"/>')
    parts.append(_columns(lines, across, width, unit))
    parts.append("</svg>")
    for value, edge in ((y.max(), 12), (y.min(), _PLOT_HEIGHT - 6)):
        if not low <= value <= high:
            parts.append(_text(_LEFT + width - 5, top + edge, f"begins at {value:.3g}", size=10, anchor="end"))
    return "".join(parts)


def _columns(lines, across, width, unit):
    """Over each epoch an invisible column, whose title is all values of that epoch."""
    epochs = np.unique(np.concatenate([line.x for line in lines]))
    if len(epochs) > _MOST_HOVERED:
        epochs = epochs[np.linspace(0, len(epochs) - 1, _MOST_HOVERED).round().astype(int)]
    places = [across(epoch) for epoch in epochs]
    edges = [0, *((a + b) / 2 for a, b in zip(places, places[1:])), width]
    parts = []
    for epoch, start, end in zip(epochs, edges, edges[1:]):
        values = [f"{line.label.lstrip('_')}{' (training)' if line.is_dotted else ''} {line.y[index]:.6g}"
                  for line in lines for index in np.flatnonzero(line.x == epoch)[:1]]
        title = escape("\n".join([f"{unit} {short_number(epoch)}", *values]))
        parts.append(f'<rect class="epoch" x="{start:.1f}" y="0" width="{end - start:.1f}" height="{_PLOT_HEIGHT}" '
                     f'fill="currentColor" fill-opacity="0"><title>{title}</title></rect>')
    return "".join(parts)


def _star(x, y, radius=8.0):
    corners = [(radius if number % 2 == 0 else 0.42 * radius, math.pi * (number / 5 - 0.5)) for number in range(10)]
    points = [f"{x + size * math.cos(angle):.1f} {y + size * math.sin(angle):.1f}" for size, angle in corners]
    return f"M{'L'.join(points)}Z"


def _text(x, y, text, size, anchor="start", weight=400):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="currentColor">{escape(text)}</text>')


# --- ticks ----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, is_log: bool, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most``."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if high / low < 200 else (1,)
        values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        values = [value for value in values if low <= value <= high]
        return values[::math.ceil(len(values) / most)] if values else [low, high]
    step = next(step for step in _steps((high - low) / most) if (high - low) / step <= most)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _whole_ticks(left, right):
    step = next(step for step in _steps(max((right - left) / 7, 1)) if step >= 1 and step == int(step))
    first = math.ceil(left / step)
    values = [number * step for number in range(first, math.floor(right / step) + 1)]
    return values if values else [left]


def _steps(least):
    """1, 2, 5, 10, … times a power of ten, from about ``least`` on."""
    power = math.floor(math.log10(least))
    for exponent in range(power, power + 4):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            if step >= least * (1 - 1e-9):
                yield step
