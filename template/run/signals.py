"""SIGTERM and Ctrl-C as a request that the loop reads between two updates.

    request = StopRequest().install()
    for batch in batches:
        …
        if request.signal: save, and leave with request.exit_code

The first one lets the running update finish, so that what is saved is exact; a second Ctrl-C interrupts at once. Cluster
schedulers send SIGTERM some time before they kill. What the loop raises then ends a script, but of a notebook only the cell.
"""

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress

from ..parallel.ranks import Alone

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_NOW = -1  # no signal: a callback asked for the end behind this update, which all ranks learn in the same way


def is_interactive():
    """Whether a person types the commands of this process: in a notebook, in IPython, under ``python -i``."""
    is_session = hasattr(sys, "ps1") or sys.flags.inspect  # the prompt of a script under -i comes after it
    return bool(is_session) and multiprocessing.parent_process() is None  # what a notebook starts inherits its modules


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ends a cell or a command of an interactive session, after the state was saved and that was said."""

    def _render_traceback_(self):  # what IPython shows in place of the frames
        return ["KeyboardInterrupt"]


class Left(SystemExit):
    """The process ends as it was asked to: what is to be saved and said was."""


class StopRequest:
    """Which signal asked training to stop. Handlers are installed in the main thread only: Python allows no other."""

    def __init__(self):
        self.world = Alone()
        self.came_twice = False  # a second Ctrl-C: it waits for nothing
        self._process = None
        self._before = {}

    @property
    def signal(self):
        """Its number, once one came and all ranks know of it."""
        return self.world.signal

    def ask(self, wish):
        """As if a signal had come, unless one has."""
        if self.world.wish is None:
            self.world.wish = wish

    def take(self):
        """Its number, once more: from now on nothing is asked for, the process may train again."""
        number = self.signal
        self.world.forget_signal()
        return number

    def drop_interrupt(self):
        """A Ctrl-C that has come is answered by what is raised now."""
        if self.world.wish == signal.SIGINT:
            self.world.forget_signal()

    def install(self):
        if not self._before and threading.current_thread() is threading.main_thread():
            self._process, self.came_twice = os.getpid(), False
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def restore(self):
        """Give the signals back to those that had them, unless somebody took them from us meanwhile."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number, frame):
        if os.getpid() != self._process:  # a worker that was forked: Ctrl-C is the parent's business, SIGTERM ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.world.wish is not None and number == signal.SIGINT and self.world.size == 1:  # torchrun repeats it
            self.restore()
            self.came_twice = True
            raise KeyboardInterrupt
        self.world.wish = number
        how = "; again: leaves at once" if number == signal.SIGINT and self.world.size == 1 else ""
        with suppress(AttributeError, OSError, ValueError):  # there is no stderr, or nothing behind it
            # not print(): the signal may have come in the middle of one
            os.write(sys.__stderr__.fileno(), f"\n{signal.Signals(number).name}: saves after this update{how}.\n".encode())


def ending(number):
    """What the loop raises after it saved for a signal.

    Returns:
        SystemExit with what a shell reports of a process that the signal ended, 143 for SIGTERM and 130 for Ctrl-C; in an
        interactive session, which goes on after a Ctrl-C, ``Interrupted``.
    """
    if is_interactive() and number == signal.SIGINT:
        return Interrupted()
    if is_interactive():  # where SystemExit ends nothing: the signal goes to whom it would have gone to without us
        sys.stdout.flush()
        signal.raise_signal(number)
    return Left(128 + number)
