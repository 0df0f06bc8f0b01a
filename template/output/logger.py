"""What is printed also stands in a file.

    with Logger("log.txt"):
        print("to the console and to log.txt")

    sys.stdout = Logger("log.txt")          # the 2021 way still works

Only stdout is copied. What is drawn over a line with a carriage return (progress bars) stays out of the file, and so do
warnings and tracebacks, which go to stderr; an exception that leaves the ``with`` block is written to the file.
"""

import atexit
import os
import re
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from .patient_file import PatientFile

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"\r[^\n]+")  # what one write draws over a line; text that a later write puts there is none of it


class Logger:
    """A stdout that also appends to ``filename`` (UTF-8), one whole line at a time, from any thread.

    Args:
        filename: path of the log, opened for appending at once so that a bad path fails early.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, filename):
        self.filename = str(filename)
        self.console = sys.stdout
        self.log = self._opened()
        self._lock = threading.RLock()
        self._unfinished = {}   # thread: the line that it has not finished yet
        self._in_place = False  # it took stdout, or was given it, and did not give it back
        self._outer = []        # for each open `with` block, whether it found this already at work
        atexit.register(self.restore)

    # --- the file-like side: everything print(), tqdm and pdb ask of a stdout -----------------------------------

    def write(self, message):
        with self._lock:
            self._in_place = True
            with suppress(OSError):  # nohup's file on a full disk, a terminal that was closed: training goes on
                self.console.write(message)
            if self.log is not None:
                self._take(message)
        return len(message)

    def _take(self, message):
        """Whole lines go to the file; the rest waits, for each thread on its own, until its line is finished."""
        thread = threading.get_ident()
        *lines, rest = (self._unfinished.pop(thread, "") + _BAR.sub("\r\r", message)).split("\n")
        self._write_lines(lines)
        if rest:
            _, redrawn, shown = rest[:-1].rpartition("\r")
            self._unfinished[thread] = redrawn + shown + rest[-1]  # a bar of many updates does not pile up

    def _write_lines(self, lines):
        for line in lines:
            _, redrawn, shown = line.removesuffix("\r").rpartition("\r")
            shown = _ANSI.sub("", shown)
            if shown or not redrawn:
                self.log.write((shown + "\n").encode("utf-8", "replace"))

    def _tell(self, message):
        """On the console alone: it is the file that does not work."""
        with suppress(OSError):
            self.console.write(message + "\n")

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        with self._lock:
            with suppress(OSError):
                self.console.flush()
            if self.log is not None:
                self.log.flush()

    def isatty(self):
        return self.console.isatty()

    def fileno(self):
        return self.console.fileno()

    def readable(self):
        return False

    def writable(self):
        return True

    @property
    def encoding(self):
        return getattr(self.console, "encoding", None) or "utf-8"

    @property
    def errors(self):
        return getattr(self.console, "errors", None) or "strict"

    @property
    def buffer(self):
        return self.console.buffer  # bytes go to the console alone: the file holds text

    @property
    def closed(self):
        return False  # a stdout that says it is closed makes print() raise

    def clean(self):
        """Empty the file."""
        with self._lock:
            self._unfinished.clear()
            os.truncate(self.filename, 0)

    # --- taking stdout's place and giving it back ---------------------------------------------------------------

    def install(self):
        """Become ``sys.stdout``. Returns itself.

        Whatever was put on top meanwhile (another Logger, colorama, ``redirect_stdout``) is left there: most of it passes on
        to here, and going on top of it again would print in a circle.
        """
        with self._lock:
            if self.log is None:
                self.log = PatientFile(self.filename, self._tell)
                atexit.register(self.restore)
            if not self._is_in_chain():
                self.console = sys.stdout
                sys.stdout = self
            self._in_place = True
        return self

    def _is_in_chain(self):
        """Whether this is stdout, or was and something else than what had been there before is now on top of it."""
        before = sys.stdout is self.console or sys.stdout is sys.__stdout__
        return sys.stdout is self or self._in_place and not before

    def restore(self):
        """Give stdout back and close the file. Safe to call twice.

        A Logger that another one was put on top of stays in the chain and passes text on to the console alone.
        """
        with self._lock:
            if self.log is not None:
                self._write_lines(list(self._unfinished.values()))
                self._unfinished.clear()
                self._close()
            if sys.stdout is self:
                sys.stdout = self._give_back()
            atexit.unregister(self.restore)

    def _give_back(self):
        """The console below, past Loggers that were restored while they were covered."""
        self._in_place = False
        covered = isinstance(self.console, Logger) and self.console.log is None
        return self.console._give_back() if covered else self.console

    def move(self, filename):
        """Continue in another file, taking along what this one holds. The old file is left for the caller."""
        with self._lock:
            was_open = self.log is not None
            held = Path(self.filename).read_bytes()
            if was_open:
                held, self.log.waiting = held + self.log.waiting, b""
            self._close()
            self.filename = str(filename)
            self.log = self._opened()
            self.log.write(held)
            if not was_open:
                self._close()

    def _opened(self):
        file = PatientFile(self.filename, self._tell)
        file.open()
        return file

    def _close(self):
        if self.log is not None:
            self.log.flush()
            if self.log.waiting:
                self._tell(f"!!! {self.filename} lacks its last {len(self.log.waiting)} bytes.")
            self.log.close()
            self.log = None

    def write_traceback(self, error):
        """Into the file only: the console gets it from Python."""
        with self._lock:
            if self.log is not None:
                self._write_lines("".join(traceback.format_exception(error)).splitlines())

    def __enter__(self):
        self._outer.append(self.log is not None and self._is_in_chain())
        return self.install()

    def __exit__(self, kind, error, trace):
        if error is not None:
            self.write_traceback(error)
        if not self._outer.pop():
            self.restore()
