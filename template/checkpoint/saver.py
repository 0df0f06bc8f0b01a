"""Checkpoints written beside the training: copied in memory, written by a thread, failures told and tried again.

    saver = Saver()
    saver.save(path, state, lambda copy: checkpoint.write(copy, path), "epoch 3, update 120")
    saver.wait()

``save`` returns when the copy is made; the training may change the weights from then on. A save that failed (a full disk, a
lost folder) is told loudly and ends nothing: the next one tries again, and when the last one failed the process ends with
exit code 1. Any other error of the writing is raised by the next ``save`` or ``wait``.
"""

import atexit
import os
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

from ..output import forks
from .plain_data import HostCopy, refuse_objects

_REMIND_EVERY_SECONDS = 60.0
_SAVERS: weakref.WeakSet["Saver"] = weakref.WeakSet()  # of this process


class SaveError(OSError):
    """A checkpoint could not be written, and the run was asked to stop when that happens."""


class Saver:
    """Writes files in turn, one thread for all; for each path there is one copy in memory, and the newest state counts."""

    def __init__(self):
        self.failed = {}      # {path: the error}: what should be on the disk and is not
        self._copies = {}     # {path: HostCopy}
        self._writes = {}     # {path: Future}
        self._unwritten = {}  # {path: (copy, write, where)} of what the thread is to write, or could not
        self._on_disk = {}    # {path: what the file holds, in words}
        self._told = 0.0      # when a failure was last printed, on time.monotonic's clock
        self._executor = None
        atexit.register(self._end_process)
        _SAVERS.add(self)
        forks.tell(self)

    def forked(self):
        """In a child of a fork: there is no thread that writes, and what is to be written is written by the parent."""
        atexit.unregister(self._end_process)
        self.forget()
        self._writes.clear()
        self._executor = None

    def forget(self):
        """What could not be written is not tried again."""
        self._unwritten.clear()
        self.failed.clear()

    def save(self, path, state, write, where, beside=True, keep=False):
        """Have ``write(state)`` called for the state as it is now.

        Args:
            path: the file that ``write`` makes; a newer save takes the place of one that failed.
            state: plain data.
            write: function that writes it; its OSError is told and tried again, every other error raised later.
            where: what the state is, in words: "epoch 3, update 120".
            beside: False writes here and now, without a copy.
            keep: with a copy all the same, so that a write that fails can be tried again by ``close``.

        Raises:
            TypeError: the state is no plain data.
            Exception: what an earlier ``write`` to this path raised, unless it was an OSError.
        """
        refuse_objects(state)
        self.wait(path)
        self._unwritten.pop(path, None)
        for other in tuple(self.failed):
            self.wait(other)
            if other in self._unwritten:
                (self._submit if beside else self._write)(other, *self._unwritten[other])
        copy = self._copy(path, state) if beside or keep else None
        if beside and copy is not None:
            self._submit(path, copy, write, where)
            return
        self.wait()
        if copy is not None:
            self._unwritten[path] = copy, write, where
        self._write(path, copy or state, write, where)

    def wait(self, *paths):
        """Until everything, or what goes to these paths, is written or has failed."""
        for path in paths or tuple(self._writes):
            if path in self._writes:
                self._writes.pop(path).result()

    def close(self):
        """Wait, try what failed once more, and give the memory of the copies back."""
        try:
            self.wait()
            for path, unwritten in tuple(self._unwritten.items()):
                self._write(path, *unwritten)
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

    def _copy(self, path, state):
        """None where there is no memory for it: then the training waits for the write, as it would without a thread."""
        try:
            return self._copies.setdefault(path, HostCopy()).fill(state)
        except (RuntimeError, MemoryError):
            del self._copies[path]
            return None

    def _submit(self, path, *unwritten):
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._unwritten[path] = unwritten
        self._writes[path] = self._executor.submit(self._write, path, *unwritten)

    def _write(self, path, state, write, where):
        try:
            write(state)
        except OSError as error:
            self.tell(path, where, error)
        except Exception as error:
            self._unwritten.pop(path, None)
            self.failed[path] = error
            raise
        else:
            self._unwritten.pop(path, None)
            self._on_disk[path] = where
            if self.failed.pop(path, None) is not None:
                print(f"Saving works again: {path} of {where} is written.")

    def tell(self, path, where, error):
        """That ``path`` could not be written, loudly; the exit code becomes 1 unless a later save of it works."""
        is_new = path not in self.failed
        self.failed[path] = error
        if is_new or time.monotonic() - self._told > _REMIND_EVERY_SECONDS:
            kept = f"The file of {self._on_disk[path]}" if path in self._on_disk else "What was there before"
            print(f"!!! SAVE FAILED: {path} of {where}: {_reason(error)}. {kept} is kept; training goes on, and the next "
                  "save tries again.")
            self._told = time.monotonic()

    def _end_process(self):
        """At the interpreter's exit, from where no other way leads to an exit code than ``os._exit``."""
        if self.failed:
            what = ", ".join(f"{path} ({_reason(error)})" for path, error in self.failed.items())
            print(f"The last save failed: {what}. Exit code 1.", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:  # under pythonw and in services there is none
                    stream.flush()
            os._exit(1)


def wait_for_others():
    """Until what any trainer of this process writes is written: its files may be the ones that are looked for now.

    What fails there is told there.
    """
    wait([write for saver in tuple(_SAVERS) for write in tuple(saver._writes.values())])


def _reason(error):
    """What an error has to say: of an OSError its text and its file, "No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return f"{type(error).__name__}: {error}"
