"""What the workers of a ``DataLoader`` run, and when they end.

    DataLoader(SeededDataset(dataset, collate_fn, batched=True), batch_size=None, sampler=[(seed, indices), …],
               worker_init_fn=WorkerInit(None), num_workers=2)
    batches = own_iterator(iter(loader))        # its workers end with it, also after an error in a sample

Every batch is read with the dataset's randomness seeded for it, so that it is the same in any worker.
"""

import os
import signal
import weakref
from typing import Any

from torch.utils.data import get_worker_info

from .seeding import give_back, own_generators, reseed, seed_data


class SeededDataset:
    """Reads and collates one tagged batch with the dataset's randomness seeded; picklable for workers."""

    def __init__(self, dataset, collate_fn, batched):
        self.dataset, self.collate_fn, self.batched = dataset, collate_fn, batched
        self.generators = []  # those of the dataset's own

    def find_generators(self):
        """At the start of an epoch or of a worker, and only in the process that reads."""
        self.generators = own_generators([self.dataset, self.collate_fn])

    def __getitem__(self, tagged):
        seed, indices = tagged
        if self.generators:
            reseed(self.generators, seed)
        before = seed_data(seed)
        try:
            if not self.batched:
                return self.collate_fn(self.dataset[indices])
            if getattr(self.dataset, "__getitems__", None):
                return self.collate_fn(self.dataset.__getitems__(indices))
            return self.collate_fn([self.dataset[index] for index in indices])
        finally:
            give_back(before)

    def __len__(self):
        return len(self.dataset)


class WorkerInit:
    """The user's ``worker_init_fn``; it and the dataset find the user's dataset in ``get_worker_info()``."""

    def __init__(self, worker_init_fn):
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id):
        info = get_worker_info()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
        seeded = info.dataset
        object.__setattr__(info, "dataset", seeded.dataset)  # it is frozen
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
        seeded.find_generators()


_ITERATORS: weakref.WeakSet[Any] = weakref.WeakSet()  # of DataLoaders with workers


def own_iterator(iterator):
    """One with workers belongs to this process: a child of a fork neither ends them nor takes the batches away."""
    if not hasattr(iterator, "_shutdown_workers"):
        return iterator
    _ITERATORS.add(iterator)
    return iterator if iterator._persistent_workers else _ended_at_once(iterator)


def _ended_at_once(iterator):
    """An error that came from a worker holds itself, and the iterator with it, until Python looks for garbage. The workers
    could not be told any more that it is over, and five seconds would be waited for each of them."""
    try:
        yield from iterator
    finally:
        iterator._shutdown_workers()


def _leave_workers_alone():
    for iterator in tuple(_ITERATORS):
        iterator._shutdown = True  # as if they were ended already
        iterator._next_data = _refuse_in_child


def _refuse_in_child():
    raise RuntimeError("This process is a child, made by a fork, of the one that trains: the batches are the parent's. End "
                       "the child with os._exit(0) when its work is done.")


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_leave_workers_alone)
