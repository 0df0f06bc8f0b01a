"""Where this rank is, and whether it waits for ranks that will never come.

    watch = Watch(rank, size)
    watch.start(store)
    watch.call = "test()"                # the public call that this rank is in
    watch.exchanges += 1                 # before it tells the others something: it cannot go on without them
    watch.updates += 1                   # before the backward that exchanges gradients

A thread looks at these numbers once a second. Only when they stand still does it write them to the store that the processes
met in, and read those of the others. Two ranks are *apart* when each has begun something that the other one skipped: one
waits in an exchange, the other one in an update, and neither can ever go on. That ends the run. A rank that is merely slow
(long data loading, an evaluation on rank 0 alone, compiling, a debugger) has begun less than the others and skipped nothing:
the others say once where it is, and wait for it.
"""

import json
import os
import sys
import sysconfig
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

STANDS_SECONDS = 3.0     # without a step: the rank says where it is, and looks where the others are
TELLS_SECONDS = 10.0     # of waiting for a rank that is slow, which is said once for each call
GIVES_UP_SECONDS = 600.0  # of waiting for a rank that shows no sign of life
_DIES_SECONDS = 15.0     # after it is known that this rank waits in vain, where torch does not end the waiting
_FOREIGN = tuple(str(Path(folder).resolve()) for folder in
                 (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parent.parent)))


class RanksDiffer(RuntimeError):
    """The ranks have called different things, and would wait for each other for ever."""

    is_on_all = False  # every rank raises it


class Watch:
    """Of one process.

    Args:
        rank, size: number of this process, and of all.
    """

    def __init__(self, rank, size):
        self.rank, self.size = rank, size
        self.call = "check_init()"
        self.exchanges = self.updates = 0
        self.is_waiting = False     # in an exchange
        self.is_over = False        # training ended here: what this process does now is its own business
        self.place = lambda: None   # weak reference to a function that says how far the training is
        self.verdict = None         # why this rank waits in vain
        self._store = None
        self._thread_of_loop = threading.get_ident()
        self._told = set()          # calls of which it was said that they wait
        self._signs = 0             # of life
        self._seen = {}             # {rank: (its newest sign of life, when it came)}
        self._ends = threading.Event()
        self._thread = None

    def start(self, store):
        """Look from now on.

        Args:
            store: torch's, which all processes reach, with nothing in it.
        """
        self._store = store
        self._tell()
        self._thread = threading.Thread(target=self._run, name="watch of the ranks", daemon=True)
        self._thread.start()

    def begin_exchange(self):
        self.exchanges += 1
        self.is_waiting, self.is_over = True, False
        self._thread_of_loop = threading.get_ident()

    def end(self):
        """At the end of the process."""
        self._ends.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def know(self):
        """Tell that this rank knows why the run ends, and needs the store no more."""
        self._store.set(f"knows/{self.rank}", "")

    def wait_until_all_know(self, seconds):
        """On the rank that keeps the store, before it ends after a failure: the others read the reason there."""
        with suppress(RuntimeError):  # some never ask: they were killed, or stand in a debugger
            self._store.wait([f"knows/{rank}" for rank in range(self.size)], timedelta(seconds=seconds))

    def here(self):
        """Where this rank is, in words: line of the user's code, call, place in the training."""
        frame = sys._current_frames().get(self._thread_of_loop)
        line = "a thread that has ended" if frame is None else own_line(frame)
        place = self.place()
        return f"{line} (last call: {self.call}{f'; {place()}' if place is not None else ''})"

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self):
        before, since = None, time.monotonic()
        while not self._ends.wait(1.0):
            now = self.exchanges, self.updates, self.is_waiting
            if now != before or self.is_over:
                before, since = now, time.monotonic()
                continue
            seconds = time.monotonic() - since
            if seconds < STANDS_SECONDS:
                continue
            try:
                self._tell()
                self._look(seconds)
                if self.verdict is not None:
                    self.know()
            except RuntimeError:  # the store went with the process that kept it, and torch says that a rank is gone
                return
            if self.verdict is not None and not self.is_waiting:
                self._end_what_torch_does_not(now)

    def _tell(self):
        self._signs += 1
        self._store.set(f"at/{self.rank}", json.dumps([self.exchanges, self.updates, self._signs, self.here()]))

    def _look(self, seconds):
        """At the others: is one apart, or slow, or without a sign of life?"""
        keys = [f"at/{rank}" for rank in range(self.size)]
        if self.verdict is not None or not self._store.check(keys):
            return
        at = dict(enumerate(json.loads(text) for text in self._store.multi_get(keys)))
        at[self.rank][:2] = self.exchanges, self.updates
        if any(are_apart(at[self.rank], other) for other in at.values()):
            self.verdict = difference({rank: where for rank, (*_, where) in at.items()})
            return
        behind = [rank for rank, other in at.items() if self._waits_for(other)]
        ahead = min(rank for rank in at if rank not in behind)
        for rank in behind:
            if self._seen.get(rank, (None,))[0] != at[rank][2]:
                self._seen[rank] = at[rank][2], time.monotonic()
            if self.is_waiting and time.monotonic() - self._seen[rank][1] > GIVES_UP_SECONDS:
                self.verdict = f"Rank {rank} has shown no sign of life for {GIVES_UP_SECONDS / 60:.0f} minutes. It was " \
                               f"at {at[rank][3]}, and others wait for it at {self.here()}."
        if behind and seconds >= TELLS_SECONDS and self.rank == ahead and self.call not in self._told:
            self._told.add(self.call)
            places = "; ".join(f"{named(ranks)} at {where}" for where, ranks in by_place({r: at[r][3] for r in behind}))
            say(f"rank {self.rank} has been at {self.here()} for {seconds:.0f} s, and others have not come there yet: "
                f"{places}. It waits as long as they are at work, which is said once.")

    def _waits_for(self, other):
        """Whether ``other`` still has to come to where this rank is."""
        return other[0] < self.exchanges or other[1] < self.updates

    def _end_what_torch_does_not(self, stood):
        """The thread of the loop is inside of torch or NCCL, where nothing can be raised."""
        if self._ends.wait(_DIES_SECONDS) or stood != (self.exchanges, self.updates, self.is_waiting):
            return
        say(f"rank {self.rank} ends: {self.verdict}")
        os._exit(1)


def are_apart(one, other):
    """Whether each of two ranks has begun something that the other one skipped. Old news of the other one will do: what is
    apart stays apart."""
    return (one[0] - other[0]) * (one[1] - other[1]) < 0


def difference(places):
    """The message for ranks that are apart.

    Args:
        places: ``{rank: where it is, in words}``.
    """
    found = ". ".join(f"{named(ranks).capitalize()} {'is' if len(ranks) == 1 else 'are'} at {where}"
                      for where, ranks in by_place(places))
    return (f"Every rank has to make the same calls in the same order, and these are in different ones. {found}. Look "
            "for `if trainer.is_main:`, break or return around one of these calls, and make it on every rank. One rank "
            "alone may call save_state, save_model and predict, except under parallel='fsdp'.")


def by_place(places):
    """``[(place, its ranks)]``."""
    found = {}
    for rank, where in places.items():
        found.setdefault(where, []).append(rank)
    return found.items()


def named(ranks):
    """Ranks in words: "rank 3", "ranks 1, 2, 3 and 12 more"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - 5} more" if len(ranks) > 5 else ""
    return f"ranks {', '.join(map(str, ranks[:5]))}{more}"


def own_line(frame):
    """The innermost line of somebody's own code: not of Python, of a package or of this folder."""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)  # innermost first
    mine = [line for line in stack if not line.filename.startswith("<") and not _is_foreign(line.filename)]
    line = (mine or list(stack)[-1:])[0]
    return f"{os.path.basename(line.filename)}:{line.lineno} in {line.name}"


def _is_foreign(filename):
    return str(Path(filename).resolve()).startswith(_FOREIGN)


def say(text):
    """On stderr, also from a rank whose output is not shown."""
    with suppress(AttributeError, OSError, ValueError):  # there is no stderr, or nothing behind it
        os.write(sys.__stderr__.fileno(), f"{text}\n".encode())
