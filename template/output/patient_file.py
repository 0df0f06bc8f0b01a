"""A file that is appended to at once, and that waits when the disk does not take what is written.

    log = PatientFile("log.txt")
    log.write(b"epoch 1\\n")         # never raises; what a full disk refuses is written by the next call that can

Log and TensorBoard events are beside the training: it must not end of them, and they must lose nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import forks


class PatientFile:
    """An unbuffered file that is opened for appending when first needed: what was written is there after a kill.

    Args:
        path: of the file; its folder is made.
        tell: called with a message when writing begins to fail; once, until it works again.
    """

    def __init__(self, path: str | Path, tell: Callable[[str], object] = print) -> None:
        self.path = Path(path)
        self.waiting = b""   # what was not written yet
        self._tell = tell
        self._fails = False
        self._file: Any = None
        self._lock = threading.RLock()
        self._is_in_child = False
        forks.tell(self)

    def forked(self):
        """In a child of a fork: what waits is written by the parent, and what comes there is none of the run's."""
        self._lock, self.waiting, self._is_in_child = threading.RLock(), b"", True

    def open(self):
        """Open it now, for those who want to hear of a bad path at once.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = open(self.path, "ab", buffering=0)
        weakref.finalize(self, self._file.close).atexit = False  # in a circle, before the file's own __del__

    def write(self, data):
        with self._lock:
            self.waiting += data
            self.flush()

    def flush(self):
        with self._lock:
            if self._is_in_child:
                self.waiting = b""
                return
            try:
                self._make_sure_it_is_there()
                while self.waiting:
                    self.waiting = self.waiting[self._file.write(self.waiting):]
                self._fails = False
            except OSError as error:
                if not self._fails:
                    self._fails = True
                    self._tell(f"!!! {self.path} cannot be written: {error.strerror}. What belongs there waits in memory.")

    def _make_sure_it_is_there(self):
        """Somebody may delete the folder of a run that goes on."""
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            self.close()
            self._tell(f"!!! {self.path} was deleted. It is begun anew.")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.open()

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self):
        self.close()  # with its owner: a run that goes on after its end goes on in the same file
