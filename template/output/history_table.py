"""The history of a run as a table: a pandas DataFrame, or where pandas is absent a light one of the same columns.

    table = as_table([{"epoch": 1, "train_loss": 0.7, "val_loss": 0.8}])
    table["val_loss"], table.columns, len(table), table.to_csv("history.csv")      # the same for both
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from .text_table import text_table


def as_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A ``pandas.DataFrame``, or a ``Table`` where pandas is not installed; a value that a row lacks is NaN."""
    try:
        import pandas  # type: ignore  # optional
    except ImportError:
        return Table(rows)
    return pandas.DataFrame(columns_of(rows))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """``{name: values}``, in the order in which the names come."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def named_as_in_keras(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``history.csv`` with the names of Keras: "eval/tol_loss" is "val_loss", and the first rate "lr"."""
    named = {"epoch": row["epoch"]} if "epoch" in row else {}
    for name, value in row.items():
        part, _, rest = name.partition("/")
        if part in ("train", "eval"):
            named[f"{'val' if part == 'eval' else part}_{'loss' if rest == 'tol_loss' else rest}"] = value
    rates = [value for name, value in row.items() if name == "lr" or name.startswith("lr/")]
    if rates:
        named["lr"] = rates[0]
    return named | {name.replace("/", "_"): value for name, value in row.items() if name.startswith("lr/")}


def in_pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of training and validation of each quantity beside each other, the loss first."""
    names = dict.fromkeys(name for row in rows for name in row)
    quantities = dict.fromkeys(name.partition("_")[2] for name in names if name.startswith(("train_", "val_")))
    pairs = [f"{part}_{quantity}" for quantity in sorted(quantities, key=lambda name: name != "loss")
             for part in ("train", "val")]
    order = dict.fromkeys(name for name in ["epoch", *pairs, "lr", *names] if name in names)
    return [{name: row.get(name, math.nan) for name in order} for row in rows]


class Table:
    """What of a DataFrame is needed to read a history.

    Args:
        rows: values by name.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [dict(row) for row in rows]
        self._columns = columns_of(rows)

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._columns:
            raise KeyError(f"There is no column {name!r}; there are {self.columns}.")
        return list(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return text_table(self.rows)

    def to_csv(self, path: str | PathLike[str], index: bool = False) -> None:
        """Write the rows below a line of names. ``index`` is taken as pandas does, and nothing is written for it."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*self._columns.values()))
