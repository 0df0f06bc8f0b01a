"""A table on the disk with a row for each number of a key, which grows from row to row: ``history.csv``.

    table = CsvTable("history.csv", key="epoch", at_the_end=("lr", "seconds"))
    table.replace(rows)                                     # the whole table, in one piece
    table.append({"epoch": 3, "train/tol_loss": 0.21})      # takes the same time for row 3 and for row 10,000

It writes what it is given and reads what is there, also after somebody edited it. Which rows belong to a run, and which of
them a checkpoint needs, is decided in ``callbacks/history.py``.
"""

from __future__ import annotations

import csv
import io
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .run_folder import replace_file


class CsvTable:
    """Rows are dicts; an empty cell is no entry. What is read is text, but for the key, which is a number.

    Args:
        path: of the file.
        key: name of the column with the numbers.
        at_the_end: columns that stand last; ``"lr"`` also stands for ``"lr/backbone"``.
        is_whole: whether the key is a whole number in each row.
    """

    def __init__(self, path: str | Path, key: str, at_the_end: tuple[str, ...], is_whole: bool = True) -> None:
        self.path = Path(path)
        self.key = key
        self.at_the_end = at_the_end
        self.is_whole = is_whole
        self._columns: list[str] = []
        self._last_row: int = 0        # where it begins, in bytes
        self._size: int | None = None  # of what was written; None: the next row needs the whole table

    def append(self, row: dict[str, Any], instead_of_last: bool = False) -> bool:
        """Write a row behind the others, or in the place of the last one.

        Returns:
            Whether it is written. It is not where the row has a new column, where the file is not as it was left here, or
            where writing failed before: then ``replace`` is due.

        Raises:
            OSError: it cannot be written, for example on a full disk.
        """
        if self._size is None or self._size != self._size_now() or not row.keys() <= set(self._columns):
            return False
        start = self._last_row if instead_of_last else self._size
        line = self._text([row])
        self._size = None
        with open(self.path, "r+b") as file:
            file.seek(start)
            file.write(line)
            file.truncate()
        self._last_row, self._size = start, start + len(line)
        return True

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Write the whole table, so that a crash leaves the old or the new one.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        self._size = None
        self._columns = self._ordered(dict.fromkeys(name for row in rows for name in row))
        earlier, last = self._text([dict(zip(self._columns, self._columns)), *rows[:-1]]), self._text(rows[-1:])
        if not self.path.exists() or self.path.read_bytes() != earlier + last:
            replace_file(self.path, earlier + last)
        self._last_row, self._size = len(earlier), len(earlier + last)

    def sync(self) -> None:
        """Have the system bring the file to the disk now, so that not even a power cut loses what was written.

        Raises:
            OSError: it cannot.
        """
        with open(self.path, "r+b") as file:
            os.fsync(file.fileno())

    def set_aside(self) -> Path:
        """Copy the file to a free name beside it, and return that."""
        path, number = self.path.with_name(f"{self.path.stem}_kept.csv"), 1
        while path.exists():
            number += 1
            path = self.path.with_name(f"{self.path.stem}_kept_{number}.csv")
        replace_file(path, self.path.read_bytes())
        return path

    def has_lines(self) -> bool:
        """Whether the file holds more than a header, whatever that is."""
        return self.path.exists() and self.path.read_bytes().strip().count(b"\n") > 0

    def is_there(self) -> bool:
        """Whether the file is as it was written here."""
        return self._size is not None and self._size == self._size_now()

    def read(self) -> list[dict[str, Any]]:
        """The rows that are there."""
        return read(self.path, self.key, self.is_whole)

    def _size_now(self):
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return None

    def _ordered(self, names):
        def place(name):
            first = name.partition("/")[0]
            return self.at_the_end.index(first) if first in self.at_the_end else -1

        return sorted(names, key=place)  # which leaves the order of those with the same place

    def _text(self, rows):
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode("utf-8")


def read(path: Path, key: str, is_whole: bool = True) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file, or where it holds something else. A line that is no row is left out:
    one of another length, which was cut short, or one that is out of order.

    Args:
        is_whole: whether a key must be a whole number; else an epoch may also be 2.5.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return []
    try:
        header, *lines = csv.reader(io.StringIO(text.replace("\0", "")))  # what a power cut leaves may hold zeros
    except (csv.Error, ValueError):
        return []
    rows: list[dict[str, Any]] = []
    for cells in lines if key in header else []:
        row: dict[str, Any] = {name: cell for name, cell in zip(header, cells) if cell}
        cell = row.get(key, "")
        number = int(cell) if cell.isdecimal() else None if is_whole else number_in(cell)
        is_number = isinstance(number, int) or isinstance(number, float) and math.isfinite(number)
        if len(cells) == len(header) and is_number and (not rows or number > rows[-1][key]):
            rows.append(row | {key: number})
    return rows


def digest(rows: Iterable[dict[str, Any]], so_far: int = 0) -> int:
    """A number that differs where rows differ; of further rows, with that of those before them."""
    for row in rows:
        cells = "\n".join(f"{name}={row[name]}" for name in sorted(row))
        so_far = zlib.crc32(cells.encode("utf-8"), so_far)
    return so_far


def number_in(cell: Any) -> Any:
    """What is in a cell: a whole number, a number, or what somebody wrote there. The key is a number already."""
    for kind in (int, float) if isinstance(cell, str) else ():
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
