"""What is printed also stands in a file.

    with Logger("log.txt"):
        print("to the console and to log.txt")

    sys.stdout = Logger("log.txt")          # the 2021 way still works

Only stdout is copied. What is drawn over a line with a carriage return (progress bars) stays out of the file, and so do
warnings and tracebacks, which go to stderr; an exception that leaves the ``with`` block is written to the file. What else is
asked of a stdout is passed on to the console: ``reconfigure``, or ``set_parent``, which tells that of a notebook its cell.

The Loggers of trainers take turns: each file holds what was printed while its own trainer was at work, and after that until
another one is. What a child of a fork prints (a worker) goes to the console alone.
"""

from __future__ import annotations

import atexit
import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import forks
from .patient_file import PatientFile

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"\r[^\n]+")  # what one write draws over a line; text that a later write puts there is none of it


class _Nowhere(io.TextIOBase):
    """The console of a program that has none: ``sys.stdout`` is None under ``pythonw`` and in services."""

    def write(self, message):
        return len(message)


_NOWHERE = _Nowhere()
_MISSING = object()
_AT_WORK: Logger | None = None  # that of the trainer which works now, or did last


class Logger:
    """A stdout that also appends to ``filename`` (UTF-8), one whole line at a time, from any thread.

    Args:
        filename: path of the log, opened for appending at once so that a bad path fails early.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, filename: str | Path) -> None:
        self.filename = str(filename)
        self.log: Any = self._opened()  # a PatientFile; None while stdout is given back
        self._lock = threading.RLock()
        self._unfinished: dict[int, str] = {}  # thread: the line that it has not finished yet
        self._in_place = False  # it took stdout, or was given it, and did not give it back
        self._sessions: list[int] = []  # the thread of each session of its trainer that is open
        self._over: Logger | None = None  # that of a trainer in whose midst this one is at work
        self._outer: list[bool] = []  # for each open `with` block, whether it found this already at work
        self.before_line: Any = None  # called before a line begins on the console: a progress bar makes room for it
        self._begins_line = True      # the console stands at the beginning of a line
        self._bottom: Any = _bottom()  # the console below all Loggers, at the beginning
        self.console: Any = _stdout()  # the last one here: from now on other names are passed on to it
        atexit.register(self.restore)
        forks.tell(self)

    # --- the file-like side: everything print(), tqdm and pdb ask of a stdout -----------------------------------

    def write(self, message: str) -> int:
        with self._lock:
            if not self._in_place:  # each assignment goes by __setattr__
                self._in_place = True
            self._show(message)
            if self.log is not None:
                self._take(message)
        return len(message)

    def _show(self, message):
        """On the console, as far as it can show it: one that knows GBK or ASCII alone gets ? for the rest."""
        if getattr(self.console, "closed", False):  # at the interpreter's exit it may be
            return
        with suppress(OSError):  # nohup's file on a full disk, a terminal that was closed: training goes on
            if self.before_line is not None and self._begins_line:
                self.before_line()
            if self._begins_line != message.endswith("\n"):
                self._begins_line = not self._begins_line
            try:
                self.console.write(message)
            except UnicodeEncodeError:
                encoding = self.encoding
                self.console.write(message.encode(encoding, "replace").decode(encoding))

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
        self._show(message + "\n")

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._lock:
            with suppress(OSError):
                self.console.flush()
            if self.log is not None:
                self.log.flush()

    def isatty(self) -> bool:
        return self.console.isatty()

    def fileno(self) -> int:
        return self.console.fileno()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        return getattr(self.console, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        return getattr(self.console, "errors", None) or "strict"

    @property
    def buffer(self) -> Any:
        return self.console.buffer  # bytes go to the console alone: the file holds text

    @property
    def closed(self) -> bool:
        return False  # a stdout that says it is closed makes print() raise

    def close(self) -> None:
        """Give stdout back; the console stays open."""
        self.restore()

    def __getattr__(self, name: str) -> Any:
        # Not a list of names: every console has its own, and a notebook's change with its version. A typo is an error still.
        value = _MISSING if name.startswith("__") else getattr(vars(self).get("console"), name, _MISSING)
        if value is _MISSING:
            below = type(vars(self).get("console")).__name__
            raise AttributeError(f"Neither Logger nor the stdout below it, a {below}, has an attribute {name!r}.")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        console = vars(self).get("console")
        is_own = name in vars(self) or hasattr(type(self), name) or not hasattr(console, name)
        if is_own:
            object.__setattr__(self, name, value)
        else:
            setattr(console, name, value)

    def clean(self) -> None:
        """Empty the file."""
        with self._lock:
            self._unfinished.clear()
            os.truncate(self.filename, 0)

    # --- taking stdout's place and giving it back ---------------------------------------------------------------

    def install(self) -> Logger:
        """Become ``sys.stdout``. Returns itself.

        Whatever was put on top meanwhile (another Logger, colorama, ``redirect_stdout``) is left there: most of it passes on
        to here, and going on top of it again would print in a circle.
        """
        with self._lock:
            if self.log is None:
                self.log = PatientFile(self.filename, self._tell)
                atexit.register(self.restore)
            if not self._is_in_chain():
                self.console = _stdout()
                sys.stdout = self
            self._in_place = True
        return self

    def install_for_cell(self) -> Logger:
        """``install``, and in IPython give stdout back when the running cell ends: what other cells print is not this run's,
        and a ``%%capture`` around one cell does not change where the next one prints."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if shell is not None:
            shell.events.register("post_execute", self._end_cell)  # once, however often
        return self._take_turn()

    @contextmanager
    def session(self) -> Iterator[None]:
        """While its trainer is at work. Afterwards what is printed still comes here, unless the trainer was at work in the
        midst of another one, as in a callback."""
        self.install_for_cell()
        self._sessions.append(threading.get_ident())
        try:
            yield
        finally:
            self._sessions.pop()
            if not self._sessions and self._over is not None:
                before, self._over = self._over, None
                if before._sessions:
                    self.restore()
                    before._take_turn()

    @contextmanager
    def lines(self) -> Iterator[None]:
        """For some lines of its trainer, in the midst of whatever goes on."""
        before, is_at_work = _AT_WORK, self.log is not None and self._is_in_chain()
        self._take_turn()
        try:
            yield
        finally:
            if not is_at_work:
                self.restore()
            if before is not None and before is not self:
                before._take_turn()

    def _take_turn(self):
        """``install`` in the place of another trainer's Logger; but one that works in another thread needs its place."""
        global _AT_WORK
        other, _AT_WORK = _AT_WORK, self
        if other is not None and other is not self and other._sessions[-1:] in ([], [threading.get_ident()]):
            self._over = other if other._sessions else None
            other.restore()
            _AT_WORK = self
        return self.install()

    def forked(self) -> None:
        """In a child of a fork: the file is the parent's, and a thread of it may have been in the midst of a line."""
        self._lock = threading.RLock()
        self._unfinished.clear()
        self.filename = os.devnull
        if self.log is not None:
            self.log = self._opened()
        atexit.unregister(self.restore)

    def _end_cell(self):
        sys.modules["IPython"].get_ipython().events.unregister("post_execute", self._end_cell)
        self.restore()
        if not _leads_to(sys.stdout, self):
            self._in_place = False

    def _is_in_chain(self):
        """Whether this is stdout, or was and something is on top of it that does not lead past it to an earlier console."""
        if _leads_to(sys.stdout, self):
            return True
        consoles = (self.console, self._bottom, sys.__stdout__)
        return self._in_place and not any(_leads_to(_stdout(), console) for console in consoles)

    def restore(self) -> None:
        """Give stdout back and close the file. Safe to call twice.

        A Logger that another one was put on top of stays in the chain and passes text on to the console alone.
        """
        global _AT_WORK
        if _AT_WORK is self:
            _AT_WORK = None
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
        if isinstance(self.console, Logger) and self.console.log is None:
            return self.console._give_back()
        return None if self.console is _NOWHERE else self.console

    def move(self, filename: str | Path) -> None:
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
            if self.log.waiting:  # else a file that somebody deleted would be begun anew to hold nothing
                self.log.flush()
            if self.log.waiting:
                self._tell(f"!!! {self.filename} lacks its last {len(self.log.waiting)} bytes.")
            self.log.close()
            self.log = None

    def write_traceback(self, error: BaseException) -> None:
        """Into the file only: the console gets it from Python."""
        self.note("".join(traceback.format_exception(error)))

    def note(self, text: str) -> None:
        """Whole lines into the file only, which the console does not get, or gets from somebody else."""
        with self._lock:
            if self.log is not None:
                self._write_lines(text.splitlines())

    def __enter__(self) -> Logger:
        self._outer.append(self.log is not None and self._is_in_chain())
        return self.install()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.write_traceback(error)
        if not self._outer.pop():
            self.restore()


def _stdout():
    return _NOWHERE if sys.stdout is None else sys.stdout


def _bottom():
    stream = _stdout()
    while isinstance(stream, Logger):
        stream = stream.console
    return stream


def _leads_to(stream, other, depth=4):
    """Whether what is written to ``stream`` may come to ``other``: it is it, or holds it, or holds something that does."""
    if stream is other:
        return True
    held = tuple(getattr(stream, "__dict__", {}).values()) if depth else ()
    return any(_leads_to(part, other, depth - 1) for part in held if hasattr(part, "write"))
