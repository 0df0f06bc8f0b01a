"""How long something still takes, from how far it has come.

    time_left = TimeLeft()
    time_left.mark(2.0)                  # epochs, or whatever is counted
    ...
    time_left.mark(3.5)
    time_left.seconds(of=30)             # None before it can be known
"""

import time
from collections import deque

_MARKS = 6  # whole steps that are looked back on: what was slow at the beginning is forgotten


class TimeLeft:
    """Measures on the host's clock; one that goes on after a pause begins anew."""

    def __init__(self):
        self._marks = deque(maxlen=_MARKS)  # (done, seconds), one for each whole step
        self._newest = None

    def mark(self, done):
        """So much is done now. A smaller number than before begins a new measurement."""
        now = done, time.perf_counter()
        if self._newest is not None and done < self._newest[0]:
            self._marks.clear()
        if not self._marks or int(done) > int(self._marks[-1][0]):
            self._marks.append(now)
        self._newest = now

    def seconds(self, of):
        """Until ``of`` is done, by the speed of the last few steps; None where that is not known yet."""
        if of is None or self._newest is None or self._newest[0] <= self._marks[0][0]:
            return None
        (first, started), (done, now) = self._marks[0], self._newest
        return max(of - done, 0) * (now - started) / (done - first)


def clock(seconds):
    """3725 -> "1:02:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
