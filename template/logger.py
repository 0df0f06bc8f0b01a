"""What is printed also stands in a file.

    with Logger("log.txt"):
        print("to the console and to log.txt")

    sys.stdout = Logger("log.txt")          # the 2021 way still works

Only stdout is copied. Lines that are redrawn with a carriage return (progress bars) stay out of the file, and so do
warnings and tracebacks, which go to stderr; an exception that leaves the ``with`` block is written to the file.
"""

import atexit
import re
import sys
import threading
import traceback

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


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
        self.log = open(self.filename, "a", encoding="utf-8")
        self._lock = threading.RLock()
        self._partial = ""  # the line that is not finished yet
        self._outer = []    # for each open `with` block, whether it found this already installed
        atexit.register(self.restore)

    # --- the file-like side: everything print(), tqdm and pdb ask of a stdout -----------------------------------

    def write(self, message):
        with self._lock:
            self.console.write(message)
            if self.log is not None:
                *lines, self._partial = (self._partial + message).split("\n")
                self._write_lines(lines)
        return len(message)

    def _write_lines(self, lines):
        for line in lines:
            line = _ANSI.sub("", line.removesuffix("\r"))
            if "\r" not in line:
                self.log.write(line + "\n")
        if lines:
            self.log.flush()  # a killed process has its last line in the file

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        with self._lock:
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
            self._partial = ""
            self.log.truncate(0)

    # --- taking stdout's place and giving it back ---------------------------------------------------------------

    def install(self):
        """Become ``sys.stdout``; does nothing when it already is. Returns itself."""
        if sys.stdout is not self:
            self.console = sys.stdout
            if self.log is None:
                self.log = open(self.filename, "a", encoding="utf-8")
            sys.stdout = self
            atexit.register(self.restore)
        return self

    def restore(self):
        """Give stdout back and close the file. Safe to call twice.

        A Logger that another one was put on top of stays in the chain and passes text on to the console alone.
        """
        with self._lock:
            if self.log is not None:
                if self._partial:
                    self._write_lines([self._partial])
                    self._partial = ""
                self.log.close()
                self.log = None
            if sys.stdout is self:
                sys.stdout = self.console
            atexit.unregister(self.restore)

    def move(self, filename):
        """Continue in another file, taking along what this one holds. The old file is left for the caller."""
        with self._lock:
            self.log.close()
            with open(self.filename, encoding="utf-8") as old:
                held = old.read()
            self.filename = str(filename)
            self.log = open(self.filename, "a", encoding="utf-8")
            self.log.write(held)
            self.log.flush()

    def write_traceback(self, error):
        """Into the file only: the console gets it from Python."""
        with self._lock:
            if self.log is not None:
                self._write_lines("".join(traceback.format_exception(error)).splitlines())

    def __enter__(self):
        self._outer.append(sys.stdout is self)
        return self.install()

    def __exit__(self, kind, error, trace):
        if error is not None:
            self.write_traceback(error)
        if not self._outer.pop():
            self.restore()
