"""SIGTERM and Ctrl-C as a request that the loop reads between two updates.

    request = StopRequest().install()
    for batch in batches:
        …
        if request.signal: save, and leave with request.exit_code

The first one lets the running update finish, so that what is saved is exact; a second Ctrl-C interrupts at once. Cluster
schedulers send SIGTERM some time before they kill.
"""

import os
import signal
import sys
import threading

from ..parallel.ranks import Alone

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal asked training to stop. Handlers are installed in the main thread only: Python allows no other."""

    def __init__(self):
        self.world = Alone()
        self._process = None
        self._before = {}

    @property
    def signal(self):
        """Its number, once one came and all ranks know of it."""
        return self.world.signal

    @property
    def exit_code(self):
        """What a shell reports of a process that the signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signal

    def install(self):
        if not self._before and threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
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
            raise KeyboardInterrupt
        self.world.wish = number
        how = "; again: leaves at once" if number == signal.SIGINT and self.world.size == 1 else ""
        # not print(): the signal may have come in the middle of one
        os.write(sys.__stderr__.fileno(), f"\n{signal.Signals(number).name}: saves after this update{how}.\n".encode())
