"""Checkpoints written beside the training: copied in memory, written by a thread, failures told and tried again.

    saver = Saver()
    saver.save(path, state, lambda copy: checkpoint.write(copy, path), "epoch 3, update 120")
    saver.wait()

``save`` returns when the copy is made; the training may change the weights from then on. While the thread is busy, the
copies wait for it and the training does not: a state that only is the newest of its file gives its place to a newer one, and
a state that was promised (``epoch<N>.pth``) is kept until it is written. At most three states of one file lie in memory, and
more than one only where there is room, see ``memory.py``; behind that the training waits.

A save that failed (a full disk, a lost folder) is told loudly and ends nothing: the next one tries again, and when the last
one failed the process ends with exit code 1. Any other error of the writing is raised by the next ``save`` or ``wait``.
"""

import atexit
import io
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from ..output import forks
from .memory import has_room_for
from .plain_data import HostCopy, bytes_of, refuse_objects

IN_PLACE, BEHIND = "in place", "behind"  # where a newer state goes, when the older one of its file still waits
_MOST_COPIES = 3  # of one path: one that is written, and two that wait
_REMIND_EVERY_SECONDS = 60.0
_SAVERS: weakref.WeakSet["Saver"] = weakref.WeakSet()  # of this process


class SaveError(OSError):
    """A checkpoint could not be written, and the run was asked to stop when that happens."""


class Saver:
    """Writes files in turn, one thread for all."""

    def __init__(self):
        self.failed = {}      # {path: the error}: what should be on the disk and is not
        self._copies = {}     # {path: [HostCopy]}
        self._writes = {}     # {path: [_Write]} that the thread was given, the oldest first, until somebody asked for them
        self._unwritten = {}  # {path: _Write} of the newest state, while it is not on the disk
        self._on_disk = {}    # {path: what the file holds, in words}
        self._told = 0.0      # when a failure was last printed, on time.monotonic's clock
        self._told_slow = _REMIND_EVERY_SECONDS  # a write that takes longer is told next
        self._turn = threading.Lock()  # held while it is settled whether a write begins or is replaced
        self._executor = None
        atexit.register(self._end_process)
        _SAVERS.add(self)
        forks.tell(self)

    def forked(self):
        """In a child of a fork: there is no thread that writes, and what is to be written is written by the parent."""
        atexit.unregister(self._end_process)
        self.forget()
        self._writes.clear()
        self._executor, self._turn = None, threading.Lock()

    def forget(self):
        """What could not be written is not tried again."""
        self._unwritten.clear()
        self.failed.clear()

    def save(self, path, state, write, where, beside=True, keep=False, replaced=None):
        """Have ``write(state)`` called for the state as it is now.

        Args:
            path: the file that ``write`` makes; a newer save takes the place of one that failed.
            state: plain data.
            write: function that writes it; its OSError is told and tried again, every other error raised later.
            where: what the state is, in words: "epoch 3, update 120".
            beside: False writes here and now, without a copy.
            keep: with a copy all the same, so that a write that fails can be tried again by ``close``.
            replaced: what a newer state of this path does, when this one still waits for the thread. None: both are
                written. ``BEHIND``: this one is dropped, and the newer one comes behind everything that waits.
                ``IN_PLACE``: the newer one is written in its turn, before the files that were saved behind it.

        Raises:
            TypeError: the state is no plain data.
            Exception: what an earlier ``write`` to this path raised, unless it was an OSError.
        """
        refuse_objects(state)
        if not beside:
            self.wait()
        self._hear(path)
        if path not in self._writes:
            self._unwritten.pop(path, None)
        self._try_again(beside)
        self._tell_slow()
        one = _Write(path, write, where, replaced)
        if beside and self._takes_turn_of_older(one, state):
            return
        has_copy = (beside or keep) and self._fill(one, state)
        if has_copy and beside:
            self._submit(one)
            return
        self.wait()
        if has_copy:
            self._unwritten[path] = one
        else:
            one.state = state
        self._write(one)

    def is_writing(self):
        """Whether anything is written or waits for its turn."""
        return any(not one.is_over() for row in self._writes.values() for one in row)

    def wait(self, *paths):
        """Until everything, or what goes to these paths, is written or has failed."""
        for path in paths or tuple(self._writes):
            row = self._writes.get(path, ())
            wait([one.future for one in row])  # an interrupt may end it, and the thread goes on with their memory
            self._writes.pop(path, None)
            for one in row:
                one.future.result()

    def close(self):
        """Wait, try what failed once more, and give the memory of the copies back."""
        try:
            self.wait()
            for one in tuple(self._unwritten.values()):
                self._write(one)
        finally:
            self.release()

    def release(self):
        """Let memory and thread go, once what is being written is written."""
        self._copies.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def raise_failure(self):
        """For runs that would rather stop than go on without checkpoints."""
        for path, error in self.failed.items():
            raise SaveError(f"{path} could not be written ({_reason(error)}), and stop_when_save_fails is set.") from error

    # --- the row of states that wait ------------------------------------------------------------------------------

    def _hear(self, path):
        """Forget the writes of a path that are over, and raise what was no OSError."""
        row = self._writes.pop(path, [])
        left = [one for one in row if not one.is_over()]
        if left:
            self._writes[path] = left
        for one in row:
            if one not in left:
                one.future.result()

    def _try_again(self, beside):
        """What failed, and is not tried again already."""
        for path in tuple(self.failed):
            self._hear(path)
            if path in self._unwritten and path not in self._writes:
                (self._submit if beside else self._write)(self._unwritten[path])

    def _takes_turn_of_older(self, one, state):
        """Whether this state is written in the turn of an older one that waits. One that only makes way is dropped here."""
        row = self._writes.get(one.path)
        with self._turn:  # the thread begins nothing meanwhile
            old = row[-1] if row else None
            if old is None or old.has_begun or old.replaced is None:
                return False
            if old.replaced == IN_PLACE and self._refill(old, state):
                old.write, old.where, old.replaced = one.write, one.where, one.replaced
                return True
            old.is_dropped = True
            row.remove(old)
            self._forget(old)
            return False

    def _refill(self, old, state):
        try:
            old.state = old.memory.fill(state)
        except (RuntimeError, MemoryError):  # some of it is overwritten
            self._copies[old.path].remove(old.memory)
            return False
        return True

    def _fill(self, one, state):
        """Copy the state into memory that no other one of its path uses. False where there is none: then the training waits
        for the write, as it would without a thread."""
        copies = self._copies.setdefault(one.path, [])
        while True:
            row = self._writes.get(one.path, [])
            used = [other.memory for other in row]
            free = next((copy for copy in copies if all(copy is not other for other in used)), None)
            if free is None and row and (len(copies) >= _MOST_COPIES or not has_room_for(bytes_of(state))):
                self._wait_for_first(one.path)
                continue
            if free is None:
                free = HostCopy()
                copies.append(free)
            try:
                one.memory, one.state = free, free.fill(state)
                return True
            except (RuntimeError, MemoryError):
                copies.remove(free)
                if not row:
                    return False
                self._wait_for_first(one.path)

    def _wait_for_first(self, path):
        wait([self._writes[path][0].future])
        self._hear(path)

    def _submit(self, one):
        if self._executor is None:
            # What this imports is there then: a fork within an import of the thread would leave a lock shut for ever.
            torch.save(None, io.BytesIO())
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._unwritten[one.path] = one
        one.has_begun, one.began = not self.is_writing(), time.monotonic()  # with nothing to wait for it is always written
        one.future = self._executor.submit(self._take_turn, one)
        self._writes.setdefault(one.path, []).append(one)

    def _take_turn(self, one):
        with self._turn:
            one.has_begun, one.began = True, time.monotonic()
        if not one.is_dropped:
            self._write(one)

    def _write(self, one):
        path = one.path
        try:
            one.write(one.state)
        except OSError as error:
            self.tell(path, one.where, error)
        except Exception as error:
            self._forget(one)
            self.failed[path] = error
            raise
        else:
            self._forget(one)
            self._on_disk[path] = one.where
            if self.failed.pop(path, None) is not None:
                print(f"Saving works again: {path} of {one.where} is written.")

    def _forget(self, one):
        if self._unwritten.get(one.path) is one:
            del self._unwritten[one.path]

    # --- words ----------------------------------------------------------------------------------------------------

    def tell(self, path, where, error):
        """That ``path`` could not be written, loudly; the exit code becomes 1 unless a later save of it works."""
        is_new = path not in self.failed
        self.failed[path] = error
        if is_new or time.monotonic() - self._told > _REMIND_EVERY_SECONDS:
            kept = f"The file of {self._on_disk[path]}" if path in self._on_disk else "What was there before"
            print(f"!!! SAVE FAILED: {path} of {where}: {_reason(error)}. {kept} is kept; training goes on, and the next "
                  "save tries again.")
            self._told = time.monotonic()

    def _tell_slow(self):
        """A disk that hangs does not stop the training, so it is said: after a minute, after two, after four."""
        for one in [one for row in self._writes.values() for one in row if one.has_begun and not one.is_over()]:
            seconds = time.monotonic() - one.began
            if seconds > self._told_slow:
                self._told_slow = 2 * seconds
                print(f"The disk is slow: {one.path} of {one.where} is not complete after {seconds:.0f} s. Training goes "
                      "on, and what is due meanwhile is written after it. A kill until then goes back to the save before.")

    def _end_process(self):
        """At the interpreter's exit, from where no other way leads to an exit code than ``os._exit``."""
        if self.failed:
            what = ", ".join(f"{path} ({_reason(error)})" for path, error in self.failed.items())
            print(f"The last save failed: {what}. Exit code 1.", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:  # under pythonw and in services there is none
                    stream.flush()
            os._exit(1)


class _Write:
    """One state and what is to be done with it."""

    def __init__(self, path, write, where, replaced):
        self.path, self.write, self.where, self.replaced = path, write, where, replaced
        self.state = self.memory = self.future = None
        self.began = 0.0  # on time.monotonic's clock
        self.has_begun = self.is_dropped = False

    def is_over(self):
        return self.future.done()


def wait_for_others():
    """Until what any trainer of this process writes is written: its files may be the ones that are looked for now.

    What fails there is told there.
    """
    wait([one.future for saver in tuple(_SAVERS) for row in tuple(saver._writes.values()) for one in tuple(row)])


def _reason(error):
    """What an error has to say: of an OSError its text and its file, "No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return f"{type(error).__name__}: {error}"
