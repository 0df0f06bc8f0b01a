"""The points of a run, line by line in a file, and which of them are there when the run goes on.

    points = Points(is_cut=False)
    points.take_up(trainer, "trackers/wandb.jsonl")       # the training begins, or goes on behind a load_state
    if not points.has(update, {"train/tol_loss": 0.7}):   # else it is trained again, behind a checkpoint
        points.journal.add(line)

What is in the file at a kill stays there, also what lies behind the checkpoint, because it may have been sent already.
"""

from __future__ import annotations

import json
import weakref
from collections import deque
from pathlib import Path
from typing import Any

from .journal import Journal
from .run_folder import told_when_it_fails


class Points:
    """Those of the run that a trainer is in.

    Args:
        is_cut: what lies behind a checkpoint is cut off when the run goes on, because nothing was sent.
    """

    def __init__(self, is_cut: bool) -> None:
        self.is_cut = is_cut
        self.journal: Any = None
        self.mark: Any = None            # file with the id of the tracker's run, and how many points were sent
        self.before = 0                  # points of the run that are not in the journal, because it was lost
        self.folder: Path | None = None  # of the checkpoint that was loaded last, until it is gone on from
        self._trainer: Any = None        # weak reference to the one that the points are of
        self._loaded: int | None = None  # points that the loaded checkpoint knows of, until it is gone on from
        self._saved: Any = deque(maxlen=2)  # points in the newest two saves of this process
        self._last: Any = (-1, set())    # of the journal's last line that was there: its update, what there is of that

    def are_of(self, trainer: Any) -> bool:
        """Whether the last points were those of this trainer."""
        return self._trainer is not None and self._trainer() is trainer

    def are_taken_up(self, trainer: Any) -> bool:
        """Whether the next one comes behind them: no checkpoint was loaded meanwhile."""
        return self._loaded is None and self.are_of(trainer)

    @property
    def count(self) -> int:
        """Of the run."""
        return self._loaded or 0 if self.journal is None or self._loaded is not None else self.before + self.journal.count

    def load(self, count: int) -> None:
        """A checkpoint was loaded that knows of so many points."""
        self._loaded = count

    def note_save(self) -> None:
        """A checkpoint is made."""
        if self.journal is not None:
            self._saved.append(self.before + self.journal.count)

    def take_up(self, trainer: Any, name: str) -> bool:
        """Find the file ``name`` of the run that goes on, or begin one. Returns whether it is a run of its own."""
        source, count, is_loaded = self.folder, self._loaded or 0, self._loaded is not None
        goes_back = self.are_of(trainer) and len(self._saved) == 2 and count < self._saved[0]
        is_elsewhere = source is not None and source.resolve() != trainer.path_of(".").resolve()
        is_new = not is_loaded or goes_back or is_elsewhere  # with the points until there
        self.journal, self.mark = Journal(trainer.path_of(name)), trainer.path_of(name).with_suffix(".json")
        with told_when_it_fails(self.journal.path):
            before = 0 if self.is_cut else read_mark((source or Path()) / Path(name).with_suffix(".json")).get("before", 0)
            if not is_loaded:
                self.journal.begin(count=0)
            elif self.is_cut or goes_back or is_elsewhere:
                self.journal.begin(source / name if source is not None and is_elsewhere else None, max(count - before, 0))
            self.before, self._last = 0, (-1, set())
            if is_new:
                self.mark.unlink(missing_ok=True)
            elif not self.is_cut:
                self._last = _last_of(self.journal.begin())
                self.before = before if self.journal.count or before else count
        self._trainer, self._loaded, self.folder = weakref.ref(trainer), None, None
        self._saved.clear()
        return is_new

    def has(self, update: int, point: dict[str, Any]) -> bool:
        """Whether the process that was killed wrote this point."""
        return update < self._last[0] or update == self._last[0] and _kind(point) in self._last[1]


def read_mark(path: Path) -> dict[str, Any]:
    """``{"id": …, "sent": …, "before": …}``; nothing where there is no such file."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def _kind(point):
    """What a point is, by which one that is done again is known."""
    for name in ("picture", "text"):
        if name in point:
            return f"{name} {point[name]}"
    return next(iter(point)).partition("/")[0]


def _last_of(lines):
    """The update of the last line, and what there is of this update."""
    update, kinds = -1, set()
    for line in reversed(lines):
        point = json.loads(line)
        if update not in (-1, point["update"]):
            break
        update = point.pop("update")
        del point["epoch"], point["time"]
        kinds.add(_kind(point))
    return update, kinds
