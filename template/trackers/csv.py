"""``numbers.csv`` in the run's folder: a row for each number, and no tracker at all.

    trainer.callbacks = [Csv()]

    update,epoch,name,value
    5,1,train/tol_loss,0.7

``pandas.read_csv(path).pivot_table(index="update", columns="name", values="value")`` makes a column of each name. A resumed
run cuts the file back to its checkpoint.
"""

from __future__ import annotations

from typing import Any

from .base import Tracker


class Csv(Tracker):
    """Writes the rows of a point when it comes. Pictures and texts are in files of their own already."""

    cuts = True

    def __init__(self) -> None:
        super().__init__()

    def _file_name(self, model):
        return "numbers.csv"

    def line(self, point: dict[str, Any]) -> str:
        header = "" if self._points.journal.count else "update,epoch,name,value\n"
        rows = [f"{point['update']},{point['epoch']},{_cell(name)},{value!r}\n" for name, value in point.items()
                if isinstance(value, (int, float)) and name not in ("update", "epoch", "time", "crc")]
        return header + "".join(rows) if rows else ""


def _cell(name):
    return '"' + name.replace('"', '""') + '"' if any(letter in name for letter in ',"\n\r') else name
