"""What a run left in its folder, read without a checkpoint: it loads no weights, writes nothing and may look at any time.

    run = RunRecord("check_point/2026-11-27_14-03-11")
    run.state                            # "running", "finished", "stopped", "crashed", "killed"
    run.rows, run.starts, run.digests    # history.csv, config.json, digests.csv
    run.notes                            # what could not be read, in words

    folders_of_runs("check_point")       # also those of kfold and search, which are folders in a folder
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from . import run_lock
from .csv_table import number_in, read
from .run_folder import DIGESTS

_LEFT_BY_A_RUN = ("config.json", "history.csv", "log.txt")
_SAID = ((r"=== \d{4}-\d\d-", "killed"), (r"=== [\d,]+ (epochs?|updates) done", "finished"),
         (r"Interrupted|Stopped (by a signal|at epoch)", "stopped"), ("Traceback", "crashed"))
_HEAD, _TAIL = 1 << 18, 1 << 14  # bytes of a log that are read
_DIGEST = re.compile("[0-9a-f]{64}")


def folders_of_runs(root: str | Path) -> list[Path]:
    """All folders below ``root`` in which a run left something, at any depth, by name; ``root`` itself among them."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith((".", "shards-"))]
        if any(name in files for name in _LEFT_BY_A_RUN) or any(name.endswith(".pth") for name in files):
            found.append(Path(folder))
    return sorted(found)


class RunRecord:
    """One run. Each file is read when it is first asked for; one that is missing or damaged is a line in ``notes``.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.notes: list[str] = []

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The entries of ``config.json``, the first start first."""
        text = self._text("config.json")
        try:
            starts = json.loads(text) if text else []
        except ValueError:
            starts = None
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            self.notes.append(f"{self.folder / 'config.json'} is damaged, so settings are missing.")
            return []
        return starts

    def newest(self, name: str) -> dict[str, Any]:
        """``options``, ``settings``, ``environment`` or another dict of the last start."""
        found = self.starts[-1].get(name) if self.starts else None
        return found if isinstance(found, dict) else {}

    @cached_property
    def end(self) -> dict[str, Any]:
        """What the last start that trained and could say it says of its end; empty where none did."""
        ends = [start.get("ended") for start in self.starts]
        return next((end for end in reversed(ends) if isinstance(end, dict)), {})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of ``history.csv``, with numbers in them."""
        text = self._text("history.csv")
        if not text:
            return []
        rows = [{name: number_in(cell) for name, cell in row.items()}
                for row in read(self.folder / "history.csv", "global_step" if "global_step" in text[:4096] else "epoch")]
        rows = [row for row in rows if isinstance(row.get("epoch"), (int, float))]
        lines = sum(1 for line in text.splitlines() if line.strip(" \0")) - 1
        if len(rows) < lines:
            self.notes.append(f"{self.folder / 'history.csv'}: {lines - len(rows)} of {lines} lines cannot be read.")
        return rows

    @cached_property
    def digests(self) -> dict[int, dict[str, Any]]:
        """``{global_step: {"epoch": 3, "batch": 0, "digest": "…"}}`` of the saves; a line that was cut short is left out."""
        rows = [{name: number_in(cell) if name != "digest" else cell for name, cell in row.items()}
                for row in read(self.folder / DIGESTS, "global_step")]
        return {row["global_step"]: row for row in rows if _DIGEST.fullmatch(str(row.get("digest", "")))}

    @cached_property
    def state(self) -> str:
        """In a word. A run without a mark of its end, of an older version, is known by the last words of its log; "unknown"
        where they do not tell."""
        is_held = run_lock.is_held(self.folder)
        if is_held is not None:
            return "running" if is_held else "killed"
        if isinstance(how := self.end.get("how"), str):
            return how
        if any("ended" in start for start in self.starts):  # a version that marks the end, and no lock: deleted by hand
            return "killed"
        said = "unknown"
        for line in self.log_end.splitlines():
            said = next((state for pattern, state in _SAID if re.match(pattern, line)), said)
        says_its_end = bool(self.starts) and "number" in self.starts[-1]  # before that, a run was silent when all was done
        return said if said != "killed" or says_its_end else "unknown"

    @cached_property
    def log(self) -> Path:
        """The path of its log, which may have another name than ``log.txt``."""
        others = sorted(path for kind in ("*.log", "*.txt") for path in self.folder.glob(kind))
        own = self.folder / "log.txt"
        return own if own.exists() or not others else others[0]

    @cached_property
    def log_end(self) -> str:
        """The last lines of the log."""
        return self._part_of_log(-_TAIL)

    @cached_property
    def key(self) -> tuple[str | None, str | None]:
        """The name of ``key_metric`` and whether "max" or "min" is best, as far as the run has said; None: it has not."""
        if self.end.get("key_metric"):
            return self.end["key_metric"], self.end.get("mode")
        rules = re.findall(r"^  best = (highest|lowest) (\S+)", self._part_of_log(_HEAD), re.M)
        if rules:
            return rules[-1][1], "max" if rules[-1][0] == "highest" else "min"
        return self.newest("settings").get("key_metric"), None

    def _part_of_log(self, count):
        """The first bytes, or the last ones where ``count`` is negative."""
        try:
            with open(self.log, "rb") as file:
                if count < 0:
                    file.seek(max(file.seek(0, os.SEEK_END) + count, 0))
                return file.read(abs(count)).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _text(self, name):
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            self.notes.append(f"{self.folder / name} cannot be read: {error.strerror or error}.")
            return ""
