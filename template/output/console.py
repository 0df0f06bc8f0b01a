"""Lines for the console that a person reads at one glance, however many quantities there are.

    values_line({"tol_loss": 0.21, "part0": 0.1, ...}, important=("acc",))
    # tol_loss 0.2100  acc 0.9700  part0 0.1000  and 76 more in history.csv
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import Any

_LEAST_WIDTH = 120    # of a line: logs are read in wide windows, and a terminal of 80 columns shows it in two lines
_BESIDE_VALUES = 45   # the epoch's number before them, rate and seconds behind


def values_line(values: Mapping[str, Any], important: Iterable[Any] = ()) -> str:
    """``name value`` of the floats, as many as fit in a line, and how many more there are.

    Args:
        values: what is shown, in this order.
        important: names that come first where not all fit, behind ``tol_loss``.
    """
    texts = {name: number(value) for name, value in values.items() if isinstance(value, float)}
    shown, left_out = fitting(texts, important)
    line = "  ".join(f"{name} {text}" for name, text in shown.items())
    return f"{line}  and {left_out} more in history.csv" if left_out else line


def number(value: float) -> str:
    """Four decimals, and for what is very small or large a power of ten: "0.9731", "3.2100e-05"."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4e}"


def fitting(texts: dict[str, str], important: Iterable[Any] = ()) -> tuple[dict[str, str], int]:
    """``(the entries that fit in a line, the number of the others)``; at least two, and all in their order if all fit."""
    width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH) - _BESIDE_VALUES
    if sum(map(_length, texts.items())) <= width:
        return texts, 0
    shown: dict[str, str] = {}
    for name in dict.fromkeys([*(name for name in ("tol_loss", *important) if name in texts), *texts]):
        shown[name] = texts[name]
        if len(shown) > 2 and sum(map(_length, shown.items())) > width - len("and 999 more in history.csv"):
            del shown[name]
            break
    return shown, len(texts) - len(shown)


def _length(entry):
    """With a space between name and value, and two behind them."""
    return sum(map(len, entry)) + 3
