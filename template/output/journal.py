"""A text file that grows line by line, of which what was written is there after a kill.

    journal = Journal("numbers.jsonl")
    journal.add('{"update": 5, "train/tol_loss": 0.7}\n')
    for line in journal.lines(start=100): …

A line that a kill cut short is cut off when the next process opens the file. What a full disk refuses waits in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .patient_file import PatientFile
from .run_folder import replace_file


class Journal:
    """The lines of one file.

    Args:
        path: of the file; its folder is made when the first line comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0  # lines, those that wait for room on the disk too
        self._file = PatientFile(path)

    def add(self, text: str) -> None:
        """Append whole lines."""
        self._file.write(text.encode("utf-8"))
        self.count += text.count("\n")

    def begin(self, earlier: Path | None = None, count: int | None = None) -> list[str]:
        """Go on behind the lines that are there.

        Args:
            earlier: of another file, whose lines take the place of those that are there; a file that is not there has none.
            count: so many lines at most.

        Returns:
            These lines.
        """
        lines = list(_whole_lines(self.path if earlier is None else earlier))[:count]
        content = "".join(lines)
        if not self.path.exists() or self.path.read_bytes() != content.encode("utf-8"):
            if lines or self.path.exists():
                self._file.close()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self.path, content)
        self.count = len(lines)
        return lines

    def lines(self, start: int = 0) -> Iterator[str]:
        """Those from number ``start`` on, as far as they are on the disk."""
        for number, line in enumerate(_whole_lines(self.path)):
            if number >= start:
                yield line

    def size(self) -> int:
        """Of the file, in bytes."""
        return os.stat(self.path).st_size if self.path.exists() else 0


def _whole_lines(path):
    """Without one at the end that is not complete."""
    if path.exists():
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                if line.endswith("\n"):
                    yield line
