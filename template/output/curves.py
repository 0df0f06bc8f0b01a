"""The curves of a run as a picture: training and evaluation of each quantity, and the learning rate.

    png = draw(rows, title="2024-05-01_12-00-00", key="acc", best={"acc": (25, 0.997)})      # bytes

A dozen quantities have a panel each; more of them share panels. An axis is logarithmic where most values lie close to its
lower end, and leaves the first epochs out where those would press all others into a line. ``draw`` needs matplotlib; what
is drawn where (``panels_of``, ``value_range``) holds for ``curves_svg.py`` and ``curves_text.py`` too, which need nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .fonts import png_of_figure

_MOST_ALONE = 11          # quantities that have a panel each
_TOGETHER = 5             # lines in a panel that is shared, or more of them where there would be too many panels
_MOST_TOGETHER = 10       # as many as there are colors
_MOST_PANELS = 24
_MOST_POINTS = 1000       # of a line; a panel is 400 pixels wide
MOST_MARKED = 60          # points of a line that get a dot
_WIDTH, _HEIGHT = 4.2, 2.9  # of a panel, in inches
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.62, 0.12, 0.34, 0.36  # around its axes
_HEADING = 0.3
_GREY = "0.45"
_FAMILY = "DejaVu Sans"   # of names, whatever the user's settings are; other scripts have other fonts, see fonts.py


COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:olive",
          "tab:cyan")  # what a line's number stands for; matplotlib's names


class Line(NamedTuple):
    label: str           # with a leading "_" it is not in the legend
    x: np.ndarray        # epochs
    y: np.ndarray        # finite values
    color: int           # index of COLORS
    is_dotted: bool = False


class Panel(NamedTuple):
    title: str
    lines: list[Line]
    best: tuple[float, float] | None = None  # epoch and value


def draw(rows: list[dict[str, Any]], title: str, key: str | None = None,
         best: dict[str, tuple[int, float]] | None = None) -> bytes:
    """A png of the rows of ``history.csv``.

    Args:
        rows: with the columns ``epoch``, ``train/<quantity>``, ``eval/<quantity>``, and ``lr`` or ``lr/<group>``.
        title: the name of the run.
        key: the quantity that decides what is best; it comes among the first.
        best: ``{quantity: (epoch, value)}``, which get a star.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore  # optional
    from matplotlib.figure import Figure  # type: ignore  # optional

    best = {name: (_place_of(value, name, rows, epoch), value) for name, (epoch, value) in (best or {}).items()}
    unit = "epoch"
    if any(later["epoch"] <= row["epoch"] for row, later in zip(rows, rows[1:])):  # of a loader without a length
        unit = "update"
        best = {name: (_updates_at(epoch, value, name, rows), value) for name, (epoch, value) in best.items()}
        rows = [row | {"epoch": row["global_step"]} for row in rows]
    panels, left_out = panels_of(rows, key, best)
    columns = max(1, min(4, math.ceil(math.sqrt(len(panels)))))
    lines = max(1, math.ceil(len(panels) / columns))
    width, height = columns * _WIDTH, lines * _HEIGHT + _HEADING
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # no pyplot: no display is asked for, and the user's figures stay theirs
    for index, panel in enumerate(panels):
        left, bottom = index % columns * _WIDTH, (lines - 1 - index // columns) * _HEIGHT
        axes = figure.add_axes(((left + _LEFT) / width, (bottom + _BOTTOM) / height,
                                (_WIDTH - _LEFT - _RIGHT) / width, (_HEIGHT - _TOP - _BOTTOM) / height))
        _draw_panel(axes, panel, unit)
    more = f"   ({left_out} more quantities are in history.csv)" if left_out else ""
    figure.text(_LEFT / width, 1 - 0.65 * _HEADING / height, _plain(f"{title}  ·  {summary(rows, key, best, unit)}{more}"),
                size=11, va="center", family=_FAMILY)
    return png_of_figure(figure, dpi=100)


def _place_of(value, name, rows, epoch):
    """Where the row with the best value is: an evaluation within an epoch has a place of its own."""
    return next((row["epoch"] for row in reversed(rows) if row.get(f"eval/{name}") == value), epoch)


def _updates_at(epoch, value, name, rows):
    found = [row["global_step"] for row in rows if row.get(f"eval/{name}") == value]
    return found[-1] if found else next((row["global_step"] for row in rows if row["epoch"] >= epoch), 0)


def summary(rows: list[dict[str, Any]], key: str | None, best: dict[str, tuple[int, float]], unit: str = "epoch") -> str:
    """"30 epochs, best acc 0.9972 in epoch 27"; arguments as for ``draw``, and what is counted."""
    last = rows[-1]["epoch"]
    text = f"{short_number(last)} {unit}{'s' if last != 1 else ''}"
    return f"{text}, best {key} {best[key][1]:.4g} in {unit} {short_number(best[key][0])}" if key in best else text


# --- what is drawn where --------------------------------------------------------------------------------------------


def panels_of(rows: list[dict[str, Any]], key: str | None, best: dict[str, tuple[int, float]]) -> tuple[list[Panel], int]:
    """The panels in order, and the number of quantities for which there is no place; arguments as for ``draw``."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    quantities = list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(("train/", "eval/"))))
    first = [name for name in ("tol_loss", "loss", key) if name in quantities]
    quantities = list(dict.fromkeys([*first, *quantities]))
    points = {name: points_of(rows, name) for name in names}
    alone = quantities if len(quantities) <= _MOST_ALONE else list(dict.fromkeys(first))
    panels = [Panel(name, _parts_of(name, points), best.get(name)) for name in alone]
    left_out = 0
    for group in _groups(quantities[len(alone):], points, _MOST_PANELS - 1 - len(alone)):
        left_out += max(len(group) - _MOST_TOGETHER, 0)
        group = group[:_MOST_TOGETHER]
        lines = [line for number, name in enumerate(group) for line in _line_of_many(name, points, number)]
        panels.append(Panel(group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}", lines))
    rates = [name for name in names if name == "lr" or name.startswith("lr/")]
    if rates:
        lines = [Line(name.partition("/")[2] or "lr", points[name][0], points[name][1], number)
                 for number, name in enumerate(rates[:_MOST_TOGETHER])]
        panels.append(Panel("learning rate", lines))
    return panels, left_out


def _groups(quantities, points, most):
    """Those with a training value and those without, each in their order, cut into groups for one panel each."""
    trained = [name for name in quantities if f"train/{name}" in points]
    scored = [name for name in quantities if f"train/{name}" not in points]
    size = _TOGETHER
    while math.ceil(len(trained) / size) + math.ceil(len(scored) / size) > max(most, 2):
        size += 1
    return [names[start:start + size] for names in (trained, scored) for start in range(0, len(names), size)]


def points_of(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values that are numbers, and no more of them than can be seen."""
    pairs = [(row["epoch"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    can_be_drawn = np.isfinite(x) & (np.abs(y) < 1e300)  # an axis has margins
    x, y = x[can_be_drawn], y[can_be_drawn]
    if len(x) > _MOST_POINTS:
        kept = np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int)
        x, y = x[kept], y[kept]
    return x, y


def _parts_of(name, points):
    return [Line(part, *points[f"{part}/{name}"], color=color)
            for color, part in enumerate(("train", "eval")) if f"{part}/{name}" in points]


def _line_of_many(name, points, number):
    """Evaluation as a line in a color of its own, training dashed beside it."""
    parts = [part for part in ("eval", "train") if f"{part}/{name}" in points]
    return [Line(name if part == parts[0] else f"_{name}", *points[f"{part}/{name}"], number,
                 is_dotted=part != parts[0])
            for part in parts]


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw_panel(axes, panel, unit="epoch"):
    from matplotlib.ticker import MaxNLocator  # type: ignore  # optional

    lines = [line for line in panel.lines if len(line.x)]
    for line in lines:
        axes.plot(line.x, line.y, label=_plain(line.label), linewidth=1.3, markersize=2.6, color=COLORS[line.color],
                  marker="o" if len(line.x) <= MOST_MARKED and not line.is_dotted else None,
                  linestyle=":" if line.is_dotted else "-")
    if panel.best is not None and math.isfinite(panel.best[1]):
        axes.plot(*([value] for value in panel.best), "*", color="crimson", markersize=10,
                  label=f"best {panel.best[1]:.4g} ({unit} {short_number(panel.best[0])})")
    if lines:
        _scale(axes, lines, panel.best)
    axes.set_title(_plain(shortened(panel.title)), size=9, family=_FAMILY, pad=4)
    axes.tick_params(labelsize=7.5, length=2.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel(unit, size=7.5, labelpad=1)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > (panel.title == "learning rate"):
        falls = bool(lines) and lines[0].y[-1] <= lines[0].y[0]
        axes.legend(loc="upper right" if falls else "lower right", framealpha=0.7, prop={"size": 7, "family": _FAMILY},
                    title="dotted: training" if any(line.is_dotted for line in lines) else None, title_fontsize=7,
                    borderpad=0.3, labelspacing=0.25, handlelength=1.6)


def _scale(axes, lines, best):
    """The range of values, on a logarithmic axis where most lie close to the lower end of it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # type: ignore  # optional

    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([line.y for line in lines])
    axes.set_xlim(*((x[0] - 0.5, x[0] + 0.5) if x.min() == x.max() else _with_margin(x.min(), x.max(), 0.03)))
    low, high, is_log = value_range(x, y, best)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,), numticks=8))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)
    for edge, is_outside, corner in ((0.97, y.max() > high, "top"), (0.03, y.min() < low, "bottom")):
        if is_outside:
            value = y.max() if corner == "top" else y.min()
            axes.text(0.02, edge, f"begins at {value:.3g}", transform=axes.transAxes, size=7, color=_GREY, va=corner,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1})


def value_range(x: np.ndarray, y: np.ndarray, best: tuple[float, float] | None) -> tuple[float, float, bool]:
    """``(lowest, highest, whether the axis is logarithmic)``, of the points of all lines of a panel."""
    is_log = bool(y.min() > 0 and y.max() >= 5 * y.min() and np.median(y) - y.min() < 0.2 * (y.max() - y.min()))
    scaled = np.log(y) if is_log else y
    low, high = scaled.min(), scaled.max()
    epochs = np.unique(x)
    rest = scaled[x > epochs[max(0, len(epochs) // 10 - 1)]] if len(epochs) > 4 else scaled
    if 0 < 3 * np.ptp(rest) < high - low:  # the first epochs alone take two thirds of the axis
        shown = [*_with_margin(rest.min(), rest.max(), 0.25)]
        if best is not None:
            shown.append(math.log(best[1]) if is_log and best[1] > 0 else best[1])
        low, high = max(low, min(shown)), min(high, max(shown))
    low, high = _with_margin(low, high, 0.05)
    if not is_log:
        return low, high, False
    low, high = math.exp(low), math.exp(high)
    return low, high, high > 5 * low


def _with_margin(low, high, share):
    margin = share * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


# --- text -----------------------------------------------------------------------------------------------------------


def _plain(text):
    """A dollar sign is a dollar sign, and not the beginning of a formula."""
    return text.replace("$", r"\$")


def short_number(epoch: float) -> str:
    """Where an evaluation stands: 2.666667 -> "2.67", 20000 -> "20000"."""
    return f"{round(float(epoch), 2):.10g}"


def shortened(text, length=52):
    return text if len(text) <= length else f"{text[:length // 2]}…{text[-length // 2:]}"
