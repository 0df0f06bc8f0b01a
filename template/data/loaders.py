"""Batches in an order that depends on (seed, epoch) alone, from any loader, starting at any batch.

    batches = make_batches(DataLoader(dataset, 32, shuffle=True), seed=1, device="cuda")
    for batch in batches.epoch(3, start=20):        # the third epoch from its 21st batch on; none before it is read
        ...

The user's ``DataLoader`` is read through a copy of it that takes its index lists from a seeded run of the user's own
sampler, and seeds the dataset's randomness per batch: the same stream for any number of workers and restarts.
Datasets that are iterated (``IterableDataset``, a list, a generator function's object) are replayed instead.

A ``TensorLoader``, and a ``DataLoader`` over a ``TensorDataset``, are read by slicing: see ``in_memory.py``.

Among several processes each gets its share of the same order: see ``shares.py``. Positions count the loader's own batches,
so that they mean the same for any number of processes.
"""

import itertools
import signal
from contextlib import contextmanager
from copy import copy

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, get_worker_info

from .in_memory import TensorLoader, can_be_sliced, order_of, slices, tensors_behind
from .nested import pinned, to_device
from .seeding import ORDER, derive, own_generators, reseed, sample_rng
from .shares import WHOLE, Uneven


def make_batches(loader, seed, device, slice_tensors=True, share=WHOLE):
    """Wrap what the user gave as a loader.

    Args:
        loader: a ``DataLoader``, a ``TensorLoader``, any iterable of batches, or a dict of these, which gives batches
            ``{name: batch}`` until the longest is through; the shorter ones start over.
        seed: integer; with the epoch it determines the order.
        device: ``torch.device`` where the batches go.
        slice_tensors: read a ``DataLoader`` over a ``TensorDataset`` by slicing; the batches are the same.
        share: this process's; where it is not the only one some batches come as ``Uneven(batch, is_spare)``.
    """
    if isinstance(loader, dict):
        return JointBatches({name: make_batches(part, seed, device, slice_tensors, share) for name, part in loader.items()},
                            share)
    if isinstance(loader, TensorLoader):
        return _TensorBatches(loader, seed, device, share)
    plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if plain and not isinstance(loader.dataset, IterableDataset):
        kind = _SlicedBatches if slice_tensors and can_be_sliced(loader) else _MapBatches
        return kind(loader, seed, device, share)
    return _ReplayedBatches(loader, seed, device, share)


class _Batches:
    """What the wrappers of all kinds of loaders share."""

    place = None  # the device where ``read`` leaves the batches, if that is known

    def __init__(self, loader, seed, device, share):
        self.loader, self.seed, self.share = loader, seed, share
        self.marks = []  # of the epoch's batches: None, or is_spare of ``Uneven``
        self.device = torch.empty(0, device=device).device  # "cuda" with its number
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.is_only_place = self.device.type == "cpu" and not has_gpu  # nothing needs to be moved

    def __len__(self):
        return self.share.rounds(len(self.loader))

    def epoch(self, epoch, start=0):
        """Batches of an epoch from batch ``start`` on, on the device."""
        batches = self.read(epoch, start)
        if not (self.place == self.device or self.is_only_place):
            batches = copied_ahead(batches, self.device)
        return map(_marked, batches, self.marks) if self.share.size > 1 and self.marks else batches

    def own(self, batches, start):
        """``[(number, indices), …]`` of this process's share; its marks are kept for ``epoch``."""
        found = self.share.of(batches[start:], start)
        self.marks = [is_spare for _, _, is_spare in found]
        return [(number, indices) for number, indices, _ in found]

    def read(self, epoch, start=0):
        """The same where the loader leaves them."""
        raise NotImplementedError

    def first(self):
        """A batch to look at, the same in every process."""
        return next(iter(make_batches(self.loader, self.seed, self.device).epoch(0)))

    def set_seed(self, seed):
        """The order follows this one from the next epoch on."""
        self.seed = seed

    def state_dict(self):
        """Position and whatever else of the loader is no function of (seed, epoch, batch)."""
        return {}

    def load_state_dict(self, state, start):
        """Put the loader back for the batch ``start`` of an epoch."""

    def is_at(self, start):
        """Whether ``state_dict`` now speaks of the batch ``start``: a loader with state may have been read ahead."""
        return True

    def notes(self):
        """What of this loader cannot be continued exactly, in words."""
        return []


class _ReplayedBatches(_Batches):
    """Any iterable: its order is its own, seeded per epoch as far as it uses the global generators.

    One with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``) is put back where it was; else what
    was already trained on is read again and left out.
    """

    def __init__(self, loader, seed, device, share):
        super().__init__(loader, seed, device, share)
        self.has_state = all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))
        self.is_placed = False  # the loader itself goes on at the right batch
        self.position = 0       # the next batch of the epoch

    def state_dict(self):
        return {"loader": self.loader.state_dict()} if self.has_state else {}

    def load_state_dict(self, state, start):
        if self.has_state and state:
            self.loader.load_state_dict(state["loader"])
            self.is_placed, self.position = True, start

    def is_at(self, start):
        return not self.has_state or self.position == start

    def notes(self):
        loader = self.loader
        if self.has_state or isinstance(loader, (list, tuple)):
            return []
        if not isinstance(loader, DataLoader):
            return [f"{type(loader).__name__} is read from its start again: the same batches if its order depends "
                    "on nothing but the global generators of torch, numpy and random, or on set_epoch()."]
        notes = []
        if loader.num_workers:
            notes.append(f"the order of an IterableDataset depends on num_workers: keep {loader.num_workers}.")
        if loader.num_workers and loader.persistent_workers:
            notes.append("persistent workers take their random numbers from one epoch into the next; with an "
                         "IterableDataset that draws some, set persistent_workers=False.")
        return notes

    def epoch(self, epoch, start=0):
        if not self.has_state:
            return super().epoch(epoch, start)
        return (to_device(batch, self.device) for batch in self.read(epoch, start))  # never ahead of its state

    def read(self, epoch, start=0):
        first, self.is_placed = (start if self.is_placed else 0), False
        self.position = start
        for part in (self.loader, getattr(self.loader, "dataset", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        seed = derive(self.seed, epoch, ORDER)
        if not self.has_state:
            reseed(own_generators(self._parts()), seed)
        with sample_rng(seed):
            iterator = iter(self.loader)
        batches = self._numbered(iterator, epoch, first, start)
        return batches if self.share.size == 1 else self._shared(batches)

    def _numbered(self, iterator, epoch, first, start):
        for number in itertools.count(first):
            with sample_rng(derive(self.seed, epoch, number)):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            self.position = number + 1
            if number >= start:
                yield batch

    def _shared(self, batches):
        """Every process reads all of them, and gives its own."""
        while group := list(itertools.islice(batches, self.share.size)):
            is_spare = self.share.rank >= len(group)
            if not is_spare or self.share.with_spares:
                yield Uneven(group[0 if is_spare else self.share.rank], is_spare)

    def _parts(self):
        """What may hold generators; a ``DataLoader`` itself changes while it is read."""
        loader = self.loader
        return [loader.dataset, loader.sampler, loader.generator] if isinstance(loader, DataLoader) else loader


class _MapBatches(_Batches):
    """A ``DataLoader`` over a map-style dataset."""

    def __init__(self, loader, seed, device, share):
        super().__init__(loader, seed, device, share)
        self.indices = []  # of the epoch's remaining batches; what the copy below iterates over
        self.dataset = _SeededDataset(loader.dataset, loader.collate_fn, batched=loader.batch_sampler is not None)
        self.pins = loader.pin_memory and torch.cuda.is_available()
        self.copy = None

    def read(self, epoch, start=0):
        tagged = [(derive(self.seed, epoch, number), indices) for number, indices in self.own(self._lists(epoch), start)]
        self.dataset.generators = own_generators([self.loader.dataset, self.loader.collate_fn])
        if self.loader.num_workers == 0 and not self.pins:
            return map(self.dataset.__getitem__, tagged)  # what the loader's copy would do, 20 us a batch faster
        self.indices[:] = tagged
        if self.copy is None:
            self.copy = self._copy_of_loader()
        self.copy.generator.manual_seed(derive(self.seed, epoch, ORDER))  # workers' base seed; never the global one
        return iter(self.copy)

    def first(self):
        """The first batch of "epoch 0", read in this process: no worker is started for it."""
        self.dataset.generators = own_generators([self.loader.dataset, self.loader.collate_fn])
        return to_device(self.dataset[derive(self.seed, 0, 0), self._lists(0)[0]], self.device)

    def notes(self):
        loader, notes = self.loader, []
        samplers = (loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        own = [part for part in samplers if part is not None and not type(part).__module__.startswith("torch.utils.data")]
        if own and not _equal(self._lists(1), self._lists(1)):
            notes.append(f"{type(own[0]).__name__} gave two orders for one (seed, epoch). Let it draw from the global "
                         "generators of torch, numpy or random, from an attribute `generator`, or from set_epoch().")
        if loader.num_workers and not getattr(loader, "in_order", True):
            notes.append("with in_order=False batches come as the workers finish them; set in_order=True.")
        return notes

    def _lists(self, epoch):
        """The index lists of an epoch's batches, those of all processes."""
        with self._seeded_sampler(epoch) as sampler:
            own = type(sampler) is not BatchSampler  # such a one may fill one list again and again
            return [copy(indices) if own else indices for indices in sampler]

    @contextmanager
    def _seeded_sampler(self, epoch):
        """The user's sampler under the epoch's seed."""
        loader, seed = self.loader, derive(self.seed, epoch, ORDER)
        sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        parts = [sampler, loader.sampler, getattr(sampler, "sampler", None)]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        own = [loader.generator, *(getattr(part, "generator", None) for part in parts)]
        with sample_rng(seed), _reseeded([generator for generator in own if generator is not None], seed):
            yield sampler

    def _copy_of_loader(self):
        loader = self.loader
        options = {name: getattr(loader, name) for name in _KEPT_OPTIONS if hasattr(loader, name)}
        return DataLoader(self.dataset, batch_size=None, sampler=self.indices, collate_fn=_unchanged,
                          worker_init_fn=_WorkerInit(loader.worker_init_fn), generator=torch.Generator(), **options)


_KEPT_OPTIONS = ("num_workers", "pin_memory", "timeout", "multiprocessing_context", "prefetch_factor",
                 "persistent_workers", "in_order")


class _SlicedBatches(_MapBatches):
    """A ``DataLoader`` over a ``TensorDataset``: the same batches without looking at samples one by one."""

    @property
    def place(self):
        return tensors_behind(self.loader.dataset)[0].device

    def read(self, epoch, start=0):
        with self._seeded_sampler(epoch):
            order = order_of(self.loader)
        return slices(self.loader, [indices_B for _, indices_B in self.own(order, start)], self.pins)


class _WorkerInit:
    """The user's ``worker_init_fn``; it and the dataset find the user's dataset in ``get_worker_info()``."""

    def __init__(self, worker_init_fn):
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id):
        info = get_worker_info()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it is frozen
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


def _unchanged(batch):
    return batch


def _equal(one, other):
    """Of nested lists of indices, some of which may be tensors."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if isinstance(one, torch.Tensor) else one == other


@contextmanager
def _reseeded(generators, seed):
    """A generator that the user gave to loader or sampler decides the order: seed it meanwhile."""
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states):
            generator.set_state(state)


class _SeededDataset:
    """Reads and collates one tagged batch with the dataset's randomness seeded; picklable for workers."""

    def __init__(self, dataset, collate_fn, batched):
        self.dataset, self.collate_fn, self.batched = dataset, collate_fn, batched
        self.generators = []  # those of the dataset's own, looked for at each start of an epoch

    def __getitem__(self, tagged):
        seed, indices = tagged
        if self.generators:
            reseed(self.generators, seed)
        with sample_rng(seed):
            if not self.batched:
                return self.collate_fn(self.dataset[indices])
            if getattr(self.dataset, "__getitems__", None):
                return self.collate_fn(self.dataset.__getitems__(indices))
            return self.collate_fn([self.dataset[index] for index in indices])

    def __len__(self):
        return len(self.dataset)


class JointBatches:
    """One batch of each loader per step, ``{name: batch}``; a shorter loader starts over in another order."""

    def __init__(self, parts, share):
        self.parts = parts
        self.share = share
        self.position = 0

    def __len__(self):
        return max(len(part) for part in self.parts.values())

    def epoch(self, epoch, start=0):
        step, self.position = start // self.share.size, start
        rounds = {name: self._endless(part, epoch, step) for name, part in self.parts.items()}
        longest = [name for name, part in self.parts.items() if len(part) == len(self)]
        for _ in range(step, len(self)):
            self.position += self.share.size
            batch = {name: next(batches) for name, batches in rounds.items()}
            uneven = {name: part.is_spare for name, part in batch.items() if type(part) is Uneven}
            if uneven:  # a spare of a shorter loader, which starts over anyway, must not cost a longer one its samples
                batch = {name: part.batch if name in uneven else part for name, part in batch.items()}
            yield Uneven(batch, all(uneven.get(name) for name in longest)) if uneven else batch

    @staticmethod
    def _endless(part, epoch, step):
        first_round, step = divmod(step, len(part))
        for number in itertools.count(first_round):
            yield from part.epoch(derive(epoch, number) if number else epoch, step * part.share.size)
            step = 0

    def first(self):
        return {name: part.first() for name, part in self.parts.items()}

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state, start):
        step = start // self.share.size
        if 0 < step < len(self):  # at the start of an epoch all begin anew
            for name, part in self.parts.items():
                part.load_state_dict((state or {}).get(name), step % len(part) * self.share.size)
            self.position = start

    def is_at(self, start):
        return self.position == start or all(part.is_at(None) for part in self.parts.values())

    def set_seed(self, seed):
        for part in self.parts.values():
            part.set_seed(seed)

    def notes(self):
        return [f"{name}: {note}" for name, part in self.parts.items() for note in part.notes()]


class _TensorBatches(_Batches):
    def __init__(self, loader, seed, device, share):
        super().__init__(loader, seed, device, share)
        loader.place(self.device)
        self.place = loader.tensors[0].device

    def read(self, epoch, start=0):
        batches = self.loader.read(self.seed, epoch, self.own(self.loader.bounds(), start))
        return map(pinned, batches) if self.device.type == "cuda" != self.place.type else batches


def _marked(batch, is_spare):
    return batch if is_spare is None else Uneven(batch, is_spare)


def copied_ahead(batches, device):
    """Batches on ``device``. A GPU copies the next one on a stream of its own while it computes with this one."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        stream.wait_stream(torch.cuda.current_stream(device))  # it is done with the memory that this copy may get
        with torch.cuda.stream(stream):
            copied = to_device(batch, device), stream.record_event()
        if waiting is not None:
            yield _handed_over(*waiting)
        waiting = copied
    if waiting is not None:
        yield _handed_over(*waiting)


def _handed_over(batch, copied):
    torch.cuda.current_stream().wait_event(copied)
    return batch
