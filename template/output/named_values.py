"""Names and numbers that somebody logs in a loop of their own, as the columns of ``history.csv``.

    column_of("val_acc")                        # "eval/acc"
    numbers_of({"train_loss": loss}, "LivePlot")   # {"train/loss": 0.25}

It keeps nothing: rows belong to ``History`` and ``LivePlot``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

_PARTS = {"train": "train", "training": "train", "val": "eval", "valid": "eval", "validation": "eval", "eval": "eval",
          "dev": "eval", "test": "eval"}


def column_of(name: str) -> str:
    """"val_acc" -> "eval/acc". A name that does not say where it is from is one of training, but for the learning rates,
    which are "lr" and "lr/<group>"."""
    found = re.match(r"([a-z]+)[_/](.+)", str(name))
    if found and found[1] in _PARTS:
        return f"{_PARTS[found[1]]}/{found[2]}"
    return str(name) if str(name) == "lr" or str(name).startswith("lr/") else f"train/{name}"


def numbers_of(values: Mapping[str, Any], who: str) -> dict[str, float]:
    """Each value as a float, under the name of its column.

    Args:
        who: the class whose ``log`` was called, for the message.

    Raises:
        TypeError: a value is no number.
    """
    return {column_of(name): _number(name, value, who) for name, value in values.items()}


def epoch_behind(rows: Sequence[Mapping[str, Any]], epoch: Any) -> Any:
    """The epoch that was given, or for None the whole number that comes behind the last row's.

    Raises:
        TypeError, ValueError: it is no finite number.
    """
    if epoch is None:
        return math.floor(rows[-1]["epoch"]) + 1 if rows else 1
    if not isinstance(epoch, Real):
        raise TypeError(f"epoch must be a number, or None for the next one, got {epoch!r}.")
    if not math.isfinite(epoch):
        raise ValueError(f"epoch must be a finite number, or None for the next one, got {epoch!r}.")
    number = float(epoch)
    return int(number) if number.is_integer() else number


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"width": 8}}`` as ("model.width", 8)."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _number(name, value, who):
    try:
        if not isinstance(value, (str, bytes)):
            return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{who}.log() takes a number for each name, and {name!r} is {type(value).__name__} "
                    f"{str(value)[:80]!r}. Give a float, or a tensor with one element.")
