"""The thread that sends the points of a run to a tracker, while the training goes on.

    sender = Sender(tracker, about, points, trainer.lifetime.close_at_exit)
    sender.start()
    sender.wake.set()                    # there is a new point
    sender.end("finished", seconds=60)

What the tracker cannot take now is tried again later, and is never lost: the points are in a file, see ``points.py``. How
many of them were handed over stands in a file beside it.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
import zlib
from collections import deque
from typing import Any

from .points import Points, read_mark
from .run_folder import replace_file

RETRY_SECONDS = 60.0
_MOST_TRIES = 5       # of one point; then it is left out


class Sender(threading.Thread):
    """Hands the points of a run to a tracker, in their order.

    Args:
        tracker: whose methods are called, in this thread.
        about: what the tracker is told of the run.
        points: of the run.
        close: method that closes the run at the interpreter's exit.
    """

    def __init__(self, tracker: Any, about: Any, points: Points, close: Any) -> None:
        super().__init__(daemon=True, name=f"{type(tracker).__name__} sender")
        self.tracker, self.about, self.journal, self.mark = tracker, about, points.journal, points.mark
        self.wake = threading.Event()
        self.notes: Any = deque()      # to be told by the thread of the training
        self.files: list[Any] = []     # (path, kind) to be sent
        self._status: str | None = None  # with which the run ends
        self._close_run = weakref.WeakMethod(close)
        self._is_open = False
        self._before = points.before   # of the run, which are not in the journal
        self._sent = 0                 # lines of it
        self._tries = 0
        self._again = 0.0              # when to try again, on time.monotonic's clock
        self._has_failed = False
        self._mark_file: Any = None
        self._place = 0                # in the journal, in bytes

    def end(self, status: str, seconds: float) -> None:
        """Send what is left, and finish; so many seconds are waited for it at most."""
        self._status = status
        self.wake.set()
        self.join(seconds)
        left = self.journal.count - self._sent
        if self.is_alive():
            self.notes.append(f"{left} points are not sent after {seconds:.0f} s, and nobody waits for them any longer. A "
                              "run that is resumed sends them.")
        elif left:
            self.notes.append(f"{left} points could not be sent. A run that is resumed sends them.")

    def run(self) -> None:
        while True:
            self.wake.wait(max(0.0, self._again - time.monotonic()) if self._again else None)
            self.wake.clear()
            status = self._status
            if status is None and time.monotonic() < self._again:
                continue
            try:
                self._open()
                self._send()
                self._again, self._tries = 0.0, 0
            except Exception as error:  # of the tracker, the network, the disk: whatever it is, the training goes on
                self._fail(error)
            if status is not None:
                self._close(status)
                return

    def _open(self):
        if self._is_open:
            return
        tracker, known = self.tracker, read_mark(self.mark)
        id = known.get("id") or tracker.id
        tracker.known = {}
        tracker.id = tracker.start(self.about, id)
        self._sent = 0
        if id is not None and tracker.id == id:
            received = tracker.received(known.get("sent", 0) + self._before)
            self._sent = min(max(received - self._before, 0), self.journal.count)
        self._place = len("".join(list(self.journal.lines())[:self._sent]).encode("utf-8"))
        self._is_open = True
        self._note_sent()
        atexit.register(_call, self._close_run)  # before what the tracker's package does there

    def _send(self):
        for path, kind in self.files:
            self.tracker.file(path, kind)
        self.files = []
        if not self.journal.path.exists():
            return
        with open(self.journal.path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._hand_over(json.loads(line))
                self._place += len(line)
                self._sent += 1
                self._tries = 0
                self._note_sent()

    def _hand_over(self, point):
        tracker, update, epoch, when = self.tracker, point.pop("update"), point.pop("epoch"), point.pop("time")
        tracker.number = self._before + self._sent
        if "text" in point:
            tracker.text(point["text"], point["content"], update, epoch)
        elif "picture" not in point:
            if tracker.known:
                point = {name: value for name, value in point.items()
                         if x_of(name, update, epoch) > tracker.known.get(name, -1)}
            if point:
                tracker.scalars(point, update, epoch, when)
        elif x_of(point["picture"], update, epoch) > tracker.known.get(point["picture"], -1):
            png = self.about.folder / point["file"]
            if png.exists() and zlib.crc32(png.read_bytes()) == point["crc"]:  # else a newer one has taken its place
                tracker.picture(point["picture"], png, update, epoch)

    def _note_sent(self):
        """In one write, so that a kill leaves the number before or this one."""
        content = json.dumps({"id": self.tracker.id, "sent": self._sent, "before": self._before}).ljust(200).encode() + b"\n"
        if self._mark_file is None:
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.mark, content)
            self._mark_file = open(self.mark, "r+b", buffering=0)
        self._mark_file.seek(0)
        self._mark_file.write(content)

    def _fail(self, error):
        self._again = time.monotonic() + RETRY_SECONDS
        self._tries += 1
        if not self._has_failed:
            self._has_failed = True
            self.notes.append(f"{type(error).__name__}: {str(error).strip()[:500]} The training goes on. It is tried again "
                              f"every {RETRY_SECONDS:.0f} s, and nothing is lost meanwhile.")
        if self._is_open and self._tries >= _MOST_TRIES and not self.files:
            self._leave_out_one()
        self.files = self.files[1:] if self._tries >= _MOST_TRIES else self.files

    def _leave_out_one(self):
        """The tracker does not take this point."""
        with open(self.journal.path, "rb") as file:
            file.seek(self._place)
            line = file.readline()
        if line.endswith(b"\n"):
            self._place, self._sent, self._tries = self._place + len(line), self._sent + 1, 0
            self._note_sent()

    def _close(self, status):
        try:
            if self._is_open:
                self.tracker.finish(status)
        except Exception as error:
            self._fail(error)
        if self._mark_file is not None:
            self._mark_file.close()
        self.tracker.run = None


def x_of(name: str, update: int, epoch: int) -> int:
    """Where a point of the curve ``name`` is on its axis: the epoch, or the update."""
    return epoch if name.startswith(("epoch/", "best/")) else update


def _call(reference):
    method = reference()
    if method is not None:
        method()
