"""A child of a fork is not the run: it inherits the run's objects, but not its threads, its place or its files.

    class Saver:
        def __init__(self):
            forks.tell(self)

        def forked(self):            # called in the child of a fork, before anything else runs there
            self.is_in_child = True

``os.fork()`` in a callback, ``multiprocessing`` by fork and the workers of a ``DataLoader`` all copy the process as it is at
that instant: a lock that a thread held is never given back, and what was to be written is there twice.
"""

import multiprocessing.process
import os
import weakref
from typing import Any

_PARTS: weakref.WeakSet[Any] = weakref.WeakSet()


def tell(part):
    """Have ``part.forked()`` called in every child of a fork, as long as ``part`` is there."""
    _PARTS.add(part)


def _in_child():
    # The parent's. multiprocessing empties this set in the children that it makes itself; one of os.fork() would end the
    # parent's processes when it exits.
    getattr(multiprocessing.process, "_children", set()).clear()
    for part in tuple(_PARTS):
        part.forked()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_in_child)
