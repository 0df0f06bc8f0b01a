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
import os
import signal
import weakref
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate, get_worker_info

from .agreement import Divided, facts_of, first_batch, order_of_first, refuse_distributed_sampler, require_same
from .chained import Chained, ChainedBatches
from .in_memory import TensorLoader, can_be_sliced, places, places_of, slices, tensors_behind
from .nested import Fresh, copied, count_samples, is_on, loader_length, pinned, to_device
from .open_files import tell_of_open_files
from .position import batches_of, go_on, order_of
from .seeding import GENERATORS, ORDER, derive, own_generators, put_back, reseed, sample_rng, state_of
from .shares import WHOLE, Uneven, divided_lengths


def make_batches(loader, seed, device, slice_tensors=True, share=WHOLE):
    """Wrap what the user gave as a loader.

    Args:
        loader: a ``DataLoader``, a ``TensorLoader``, any iterable of batches, or a dict of these, which gives batches
            ``{name: batch}`` until the longest is through; the shorter ones start over. Or several one by one: ``Chained``.
        seed: integer; with the epoch it determines the order.
        device: ``torch.device`` where the batches go.
        slice_tensors: read a ``DataLoader`` over a ``TensorDataset`` by slicing; the batches are the same.
        share: this process's; where it is not the only one some batches come as ``Uneven(batch, is_spare)``.
    """
    if isinstance(loader, dict):
        return JointBatches({name: make_batches(part, seed, device, slice_tensors, share.named(name))
                             for name, part in loader.items()}, share)
    if isinstance(loader, Chained):
        parts = {name: make_batches(part, seed, device, slice_tensors, share.named(name))
                 for name, part in loader.loaders.items()}
        return ChainedBatches(parts, share, loader.is_named)
    if isinstance(loader, Divided):
        return make_batches(loader.loader, seed, device, slice_tensors) if share.size == 1 else _DividedBatches(
            loader, seed, device, share)
    if share.size > 1:
        refuse_distributed_sampler(loader, share.name)
    if isinstance(loader, TensorLoader):
        return _TensorBatches(loader, seed, device, share)
    plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if plain and not isinstance(loader.dataset, IterableDataset):
        kind = _SlicedBatches if slice_tensors and can_be_sliced(loader) else _MapBatches
        return kind(loader, seed, device, share)
    return _ReplayedBatches(loader, seed, device, share)


def numbers_of_workers(loader):
    """The ``num_workers`` of a loader, or of each one in a dict of loaders; 0 where there is no such thing."""
    return [getattr(part, "num_workers", 0) for part in _parts(loader)]


def _parts(loader):
    """The loaders in a dict or a ``Chained``, or the only one there is."""
    several = loader.loaders if isinstance(loader, Chained) else loader
    return list(several.values()) if isinstance(several, dict) else [loader]


def batch_sizes(loader, num_ranks=1):
    """``(how many samples a batch of a loader may have, whether these are all)``, as far as the loader itself tells.

    Args:
        loader: as for ``make_batches``, or None.
        num_ranks: the last batches are divided among so many processes.
    """
    if loader is None:
        return set(), True
    if isinstance(loader, (dict, Chained)):
        parts = [batch_sizes(part, num_ranks) for part in _parts(loader)]
        return set().union(*(sizes for sizes, _ in parts)), all(are_all for _, are_all in parts)
    if isinstance(loader, Divided):
        return batch_sizes(loader.loader)[0], False
    size, count = _size_and_count(loader)
    if size is None or count is None:
        return {size} - {None}, False
    count -= count % size if loader.drop_last else 0
    found, in_last_round = {size, count % size or size}, count % (size * num_ranks)
    return found | set(divided_lengths(in_last_round, num_ranks, size == 1)) - {0}, True


def _size_and_count(loader):
    """``(samples of a batch, samples that an epoch takes)``, None where that is not known. Without a size no data set is
    asked for its length."""
    size = getattr(loader, "batch_size", None)
    if not isinstance(size, int) or size < 1:
        return None, None
    if isinstance(loader, TensorLoader):
        return size, len(loader.tensors[0])
    is_map = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return size, loader_length(loader.sampler) if is_map else None


def notes_on_last_round(loader, num_ranks):
    """In words, that some ranks have nothing to do in the last update of an epoch, and what ``drop_last`` would change."""
    size, count = _size_and_count(loader) if num_ranks > 1 else (None, None)
    if count is None or loader.drop_last or not count % size:
        return []
    left = count % (size * num_ranks)
    idle = divided_lengths(left, num_ranks, size == 1).count(0)
    if not idle:
        return []
    single = " BatchNorm can do nothing with a single sample." if left == 1 else ""
    return [f"The last update of an epoch has {left} sample{'s' * (left > 1)} for {num_ranks} ranks, and {idle} of them "
            f"compute{'s' * (idle == 1)} what does not count.{single} drop_last=True in train_loader leaves out the last "
            f"batch, of {count % size} sample{'s' * (count % size > 1)}, in every epoch."]


class _Batches:
    """What the wrappers of all kinds of loaders share."""

    place = None       # the device where ``read`` leaves the batches, if that is known
    may_reuse = False  # somebody's own code makes the batches, and may fill the same memory again
    starts_over = False  # a shorter loader of several, within an epoch
    makes_as_many = True  # a batch has as many samples as indices; somebody's own code may leave some out

    def __init__(self, loader, seed, device, share):
        self.loader, self.seed, self.share = loader, seed, share
        self.begun = None  # (epoch, batch, samples) where a run goes on at a place that is no multiple of the batch size
        self.counted = None  # (what len() of the loader says, how many batches an epoch has) where these differ
        self.is_whole = False  # the epoch that was read last was read from its first batch on
        self.marks = []  # of the epoch's batches: None, or is_spare of ``Uneven``
        self.numbers = None  # where somebody asks, a deque: of each batch that was read, which samples of the data it holds
        self._facts = None  # of the loader, see agreement.py
        self.device = torch.empty(0, device=device).device  # "cuda" with its number
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.is_only_place = self.device.type == "cpu" and not has_gpu  # nothing needs to be moved

    def __len__(self):
        length = len(self.loader)
        return self.share.rounds(self.counted[1] if self.counted and self.counted[0] == length else length)

    def note_length(self, count):
        """An epoch is over, in which ``count`` batches were read. Where ``len()`` says another number, the count is true
        from now on, and the first time it is said in words."""
        length = loader_length(self.loader)
        if length is None or not self.is_whole or len(self) * self.share.size == count:
            return []
        if self.share.rounds(length) * self.share.size == count:
            self.counted = None
            return []
        is_new, self.counted = self.counted is None, (length, count)
        return [f"gave {count} batches, and its len() says {length}. Learning rates and progress go by {count} from now on; "
                "return the true number from __len__, so that the first epoch is planned with it too."] if is_new else []

    def epoch(self, epoch, start=0):
        """Batches of an epoch from batch ``start`` on, on the device."""
        self.is_whole = start == 0
        if self.begun and self.begun[0] != epoch:  # a loop that counts its epochs itself may have another number
            self.begun = (epoch, *self.begun[1:]) if 0 < start == self.begun[1] else None
        batches = self.read(epoch, start)
        if not (self.place == self.device or self.is_only_place):
            batches = copied_ahead(batches, self.device, self.may_reuse)
        batches = map(_marked, batches, self.marks) if self.share.size > 1 and self.marks else batches
        return batches if self.may_reuse else Fresh(batches)

    def own(self, batches, start, is_dealt=True):
        """``[(number, indices), …]`` of this process's share of the batches from ``start`` on; its marks are kept for
        ``epoch``."""
        if self.share.size > 1:
            self.agree(order_of_first(batches, getattr(self.loader, "dataset", None)))
        found = self.share.of(batches, start, is_dealt)
        self.marks = [bool(is_spare) if not self.makes_as_many else is_spare for _, _, is_spare in found]
        if self.numbers is not None:
            self.numbers.extend(indices for _, indices, _ in found)
        return [(number, indices) for number, indices, _ in found]

    def read(self, epoch, start=0):
        """The same where the loader leaves them."""
        raise NotImplementedError

    def agree(self, order=None):
        """Compare the loader with those of the other ranks.

        Args:
            order: what else is compared, see ``agreement.py``; None: how an epoch begins.

        Raises:
            ValueError: on every rank: one has other data, or another order.
        """
        if self.share.gather is None or self.starts_over:
            return
        if self._facts is None:
            self._facts = facts_of(self.loader)
        require_same(self.share.gather, self.share.name, self._facts | (self._beginning() if order is None else order))

    def _beginning(self):
        """Of the first epoch's order, what is known without reading the data."""
        return {}

    def first(self):
        """A batch to look at, the same in every process."""
        return next(iter(make_batches(self.loader, self.seed, self.device).epoch(0)))

    def set_seed(self, seed):
        """The order follows this one from the next epoch on."""
        self.seed = seed

    def position(self, epoch, start):
        """Where the batch ``start`` of an epoch is, as plain data that is the same for any number of processes."""
        order = order_of(self.loader)
        count, samples = order["samples"], self.samples_before(epoch, start)
        if count is not None and samples is None:
            samples = start * (order["batch_size"] or 1)
        counted = {"counted": self.counted[1]} if self.counted else {}
        return {"order": order, "batch": start, "samples": None if count is None else min(samples, count), **counted}

    def go_on(self, position, epoch, start):
        """Go on in an epoch of which ``start`` batches were done, perhaps of a loader that was another one.

        Args:
            position: of the checkpoint; None: it has none, and its batches count.

        Returns:
            The number of batches that are done of this loader's epoch, and what has changed since and what it means.
        """
        self.begun = None
        if position and "counted" in position and position["order"]["batches"] == loader_length(self.loader):
            self.counted = position["order"]["batches"], position["counted"]
        if not position or not (start or position.get("samples")):
            return start, []
        if "order" not in position:
            return start, [f"train_loader a dict of loaders -> {type(self.loader).__name__}: {_AT_THIS_BATCH}"]
        order = order_of(self.loader)
        batch, samples, notes = go_on(position, start, order)
        if samples is not None:
            if notes:  # rounds of all processes, so that as many are left as there will be
                rounds = self.share.rounds
                batch = (rounds(order["batches"]) - rounds(batches_of(order["samples"] - samples, order))) * self.share.size
            if samples != min(batch * (order["batch_size"] or 1), order["samples"]):
                self.begun = epoch, batch, samples
        return batch, notes

    def samples_before(self, epoch, start):
        """How many samples of an epoch come before the batch ``start``, where that is not ``start`` times the batch size."""
        if self.begun is None or self.begun[0] != epoch or start < self.begun[1]:
            return None
        _, batch, samples = self.begun
        return samples + (start - batch) * (order_of(self.loader)["batch_size"] or 1)

    def state_dict(self):
        """Whatever of the loader is no function of (seed, epoch, batch)."""
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
        self.may_reuse = not (isinstance(loader, (list, tuple)) or _makes_new_batches(loader))
        self.has_state = all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))
        self.is_placed = False  # the loader itself goes on at the right batch
        self.reached = 0       # the next batch of the epoch

    def state_dict(self):
        return {"loader": self.loader.state_dict()} if self.has_state else {}

    def load_state_dict(self, state, start):
        if self.has_state and state:
            self.loader.load_state_dict(state["loader"])
            self.is_placed, self.reached = True, start

    def go_on(self, position, epoch, start):
        batch, notes = super().go_on(position, epoch, start)
        if self.has_state:  # which says where it is
            return start, [note.split(": ")[0] + ": the loader goes on as its own state says" for note in notes]
        return batch, notes

    def is_at(self, start):
        return not self.has_state or self.reached == start

    def notes(self):
        loader = self.loader
        if self.has_state or isinstance(loader, (list, tuple)):
            return []
        if any(type(part).__module__.split(".")[0] == "webdataset" for part in (loader, getattr(loader, "dataset", None))):
            keep = f" Keep num_workers={loader.num_workers} too." if getattr(loader, "num_workers", 0) else ""
            return ["webdataset shuffles with random numbers of its own, which nobody else can set. If you continue in the "
                    "middle of an epoch, some of its samples may come twice and others not at all. To be exact, continue "
                    "from the end of an epoch, or give a seed to both shuffles, WebDataset(…, shardshuffle=100, seed=1)"
                    f".shuffle(1000, seed=1): then every epoch has the same order.{keep}"]
        if not isinstance(loader, DataLoader):
            return [f"a run that goes on in the middle of an epoch reads {type(loader).__name__} from its start again, and "
                    "leaves out the batches that it has trained on. This is exact if the same batches come again: if their "
                    "order follows the random numbers of torch, numpy or Python, or set_epoch()."]
        notes = []
        if loader.num_workers:
            notes.append(f"go on with num_workers={loader.num_workers}: the order of an IterableDataset depends on it.")
        if loader.num_workers and loader.persistent_workers:
            notes.append("persistent workers take their random numbers from one epoch into the next. If your "
                         "IterableDataset draws random numbers, set persistent_workers=False to go on exactly.")
        return notes

    def epoch(self, epoch, start=0):
        if not self.has_state:
            return super().epoch(epoch, start)
        self.is_whole = start == 0
        batches = (to_device(batch, self.device) for batch in self.read(epoch, start))  # never ahead of its state
        return batches if self.may_reuse else Fresh(batches)

    def read(self, epoch, start=0):
        first, self.is_placed = (start if self.is_placed else 0), False
        self.reached = start
        for part in (self.loader, getattr(self.loader, "dataset", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        seed = derive(self.seed, epoch, ORDER)
        if isinstance(self.loader, DataLoader) and self.loader.num_workers and self.loader._iterator is None:
            tell_of_open_files(self.loader)
        if not self.has_state:
            reseed(own_generators(self._parts()), seed)
        with sample_rng(seed):
            iterator = _own(iter(self.loader))
        batches = self._numbered(iterator, epoch, first, start)
        if self.numbers is not None:
            batches = self._counted(batches)
        return batches if self.share.size == 1 else self._shared(batches)

    def _counted(self, batches):
        """The samples of such data have no numbers but those in which they come."""
        count = 0
        for batch in batches:
            before, count = count, count + count_samples(batch)
            self.numbers.append(range(before, count))
            yield batch

    def _keep_number(self, count, place):
        """Of the last ``count`` batches, this process gives the one at ``place``; None: a spare."""
        if self.numbers is not None:
            read = [self.numbers.pop() for _ in range(count)][::-1]
            self.numbers.append(None if place is None else read[place])

    def _numbered(self, iterator, epoch, first, start):
        for number in itertools.count(first):
            with sample_rng(derive(self.seed, epoch, number)):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            self.reached = number + 1
            if number >= start:
                yield batch

    def first(self):
        batch = super().first()
        if self.share.size > 1:
            self.agree(first_batch(batch))
        return batch

    def _shared(self, batches):
        """Every process reads all of them, and gives its own; reading on may overwrite it."""
        rank, size, is_first = self.share.rank, self.share.size, True
        while True:
            count, own, batch = 0, None, None
            for count, batch in enumerate(itertools.islice(batches, size), 1):
                if is_first:
                    self.agree(first_batch(batch))
                    is_first = False
                if count == rank + 1:
                    own = copied(batch) if self.may_reuse and count < size else batch
            if not count:
                return
            is_spare = rank >= count
            self._keep_number(count, None if is_spare else rank)
            if not is_spare or self.share.with_spares:
                yield Uneven(batch if is_spare else own, is_spare)

    def _parts(self):
        """What may hold generators; a ``DataLoader`` itself changes while it is read."""
        loader = self.loader
        return [loader.dataset, loader.sampler, loader.generator] if isinstance(loader, DataLoader) else loader


class _DividedBatches(_ReplayedBatches):
    """A loader that gives every rank a part of its own; see ``Divided``. Batches are numbered as if they were dealt out in
    turn, so ``start`` is the number of ranks times that of the rounds that were done."""

    def __init__(self, loader, seed, device, share):
        if share.gather is None:
            raise ValueError("Divided() is for what a trainer reads among several processes.")
        super().__init__(loader.loader, seed, device, share)
        self.has_state = False  # a checkpoint would hold the state of one rank
        self.rounds_done = 0
        self.rounds = None      # of an epoch, where all ranks know their lengths: as many as the longest one's

    def __len__(self):
        if self.rounds is None:
            raise TypeError(f"{self.share.name} has no length on some rank.")
        return self.rounds

    def agree(self, order=None):
        """The data is not compared. Rates and progress need one length, though."""
        lengths = self.share.gather(loader_length(self.loader))
        self.rounds = None if None in lengths else max(lengths)

    def notes(self):
        return [f"{self.share.name} is Divided: keep the number of ranks, or samples come twice in the epoch that is under "
                "way, or not at all."]

    def position(self, epoch, start):
        return {"order": order_of(self.loader) | {"samples": None}, "batch": start, "samples": None}

    def go_on(self, position, epoch, start):
        self.begun = None
        return start, []

    def read(self, epoch, start=0):
        for part in (getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        self.rounds_done = start // self.share.size
        return super().read(epoch)

    def _shared(self, batches):
        """A batch of every rank in each round. Where they have to go along and no lengths say it, the ranks ask each other
        whether one is left."""
        last = None
        for batch in itertools.islice(batches, self.rounds_done):
            last = batch  # it may be all that this rank has
        for number in itertools.count(self.rounds_done):
            batch = next(batches, _NO_MORE)
            is_spare = batch is _NO_MORE
            if not self.share.with_spares:
                is_over = is_spare
            else:
                is_over = (self.rounds is None or number >= self.rounds) and all(self.share.gather(is_spare))
            if is_over:
                return
            if is_spare and last is None:
                raise ValueError(f"Each rank needs a batch in every epoch, and {self.share.name} gave rank "
                                 f"{self.share.rank} none. Divide the data among the ranks in smaller parts.")
            if is_spare:
                self._keep_number(0, None)
            last = last if is_spare else batch
            yield Uneven(last, is_spare)


_NO_MORE = object()


class _MapBatches(_Batches):
    """A ``DataLoader`` over a map-style dataset."""

    def __init__(self, loader, seed, device, share):
        super().__init__(loader, seed, device, share)
        self.may_reuse = not _makes_new_batches(loader)
        self.makes_as_many = loader.batch_sampler is not None and loader.collate_fn is default_collate
        self.is_dealt = type(loader.batch_sampler) is BatchSampler  # else a sampler of somebody's own makes the batches
        self.indices = []  # of the epoch's remaining batches; what the copy below iterates over
        self.dataset = _SeededDataset(loader.dataset, loader.collate_fn, batched=loader.batch_sampler is not None)
        self.pins = loader.pin_memory and torch.cuda.is_available()
        self.copy = None

    def read(self, epoch, start=0):
        own = self.own(self._lists(epoch, start, self.samples_before(epoch, start)), start, self.is_dealt)
        tagged = [(derive(self.seed, epoch, number), indices) for number, indices in own]
        if self.loader.num_workers == 0:
            self.dataset.find_generators()
            if not self.pins:
                return map(self.dataset.__getitem__, tagged)  # what the loader's copy would do, 20 us a batch faster
        self.indices[:] = tagged
        if self.copy is None:
            self.copy = self._copy_of_loader(self.indices)
        return self._read_copy(self.copy, epoch)

    def _beginning(self):
        with self._seeded_sampler(1) as sampler:
            return order_of_first([copy(indices) for indices in itertools.islice(sampler, 8)], self.loader.dataset)

    def first(self):
        """The first batch of "epoch 0". Where the loader has workers, one is started for it and ended: what the dataset
        opens at its first sample must not be open here, because all workers that are forked later would share it."""
        tagged = derive(self.seed, 0, 0), self._lists(0)[0]
        if self.loader.num_workers:
            batch, = self._read_copy(self._copy_of_loader([tagged], num_workers=1, persistent_workers=False), 0)
        else:
            self.dataset.find_generators()
            batch = self.dataset[tagged]
        return to_device(batch, self.device)

    def _read_copy(self, loader, epoch):
        if loader.num_workers and loader._iterator is None:  # else persistent workers are there
            tell_of_open_files(self.loader)
        loader.generator.manual_seed(derive(self.seed, epoch, ORDER))  # workers' base seed; never the global one
        return _own(iter(loader))

    def notes(self):
        loader, notes = self.loader, []
        samplers = (loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        own = [part for part in samplers if part is not None and not type(part).__module__.startswith("torch.utils.data")]
        if own and not _equal(self._lists(1), self._lists(1)):
            notes.append(f"{type(own[0]).__name__} gave two different orders for the same epoch, so a run that goes on "
                         "reads other samples. Let it draw from the random numbers of torch, numpy or Python, from a "
                         "generator that is its attribute, or from set_epoch().")
        if loader.num_workers and not getattr(loader, "in_order", True):
            notes.append("with in_order=False batches come as the workers finish them, which nobody can repeat. Set "
                         "in_order=True to go on exactly.")
        return notes

    def _lists(self, epoch, start=0, samples=None):
        """The index lists of an epoch's batches from ``start`` on, those of all processes.

        Args:
            samples: those before the batch ``start``; None: what the batches before it hold.
        """
        with self._seeded_sampler(epoch) as sampler:
            own = type(sampler) is not BatchSampler  # such a one may fill one list again and again
            if samples is None:
                return [copy(indices) if own else indices for indices in sampler][start:]
            if self.loader.batch_sampler is None:
                return list(sampler)[samples:]
            order, size = list(sampler.sampler), sampler.batch_size
            starts = range(samples, len(order) - (size - 1 if sampler.drop_last else 0), size)
            return [order[start:start + size] for start in starts]

    @contextmanager
    def _seeded_sampler(self, epoch):
        """The user's sampler under the epoch's seed."""
        loader, seed = self.loader, derive(self.seed, epoch, ORDER)
        sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        parts = [sampler, loader.sampler, getattr(sampler, "sampler", None)]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        held = [value for part in parts for value in getattr(part, "__dict__", {}).values()]
        own = [loader.generator, *(getattr(part, "generator", None) for part in parts), *held]
        with sample_rng(seed), _reseeded([part for part in own if isinstance(part, GENERATORS)], seed):
            yield sampler

    def _copy_of_loader(self, tagged, **changed):
        loader = self.loader
        options = {name: getattr(loader, name) for name in _KEPT_OPTIONS if hasattr(loader, name)}
        return DataLoader(self.dataset, batch_size=None, sampler=tagged, collate_fn=_unchanged,
                          worker_init_fn=_WorkerInit(loader.worker_init_fn), generator=torch.Generator(),
                          **{**options, **changed})


_KEPT_OPTIONS = ("num_workers", "pin_memory", "timeout", "multiprocessing_context", "prefetch_factor",
                 "persistent_workers", "in_order")


class _SlicedBatches(_MapBatches):
    """A ``DataLoader`` over a ``TensorDataset``: the same batches without looking at samples one by one."""

    @property
    def place(self):
        return tensors_behind(self.loader.dataset)[0].device

    def read(self, epoch, start=0):
        samples = self.samples_before(epoch, start)
        if self.numbers is not None:  # they are those of the loader's own dataset, not of the tensors behind a Subset
            lists = self._lists(epoch, start, samples)
            order = [places(self.loader.dataset, torch.tensor(list(indices), dtype=torch.int64)) for indices in lists]
            own = self.own(order, start, self.is_dealt)
            self.numbers.clear()
            self.numbers.extend(lists[number - start] if number - start < len(lists) else None for number, _ in own)
            return slices(self.loader, [indices_B for _, indices_B in own], self.pins)
        with self._seeded_sampler(epoch):
            order = places_of(self.loader, samples or 0)
        own = self.own(order[start:] if samples is None else order, start, self.is_dealt)
        return slices(self.loader, [indices_B for _, indices_B in own], self.pins)


class _WorkerInit:
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


def _own(iterator):
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


def _unchanged(batch):
    return batch


def _makes_new_batches(loader):
    """Whether every batch of a loader is new memory: collated by default, or brought by a worker."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    return loader.num_workers > 0 or loader.batch_sampler is not None and loader.collate_fn is default_collate


def _equal(one, other):
    """Of nested lists of indices, some of which may be tensors."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if isinstance(one, torch.Tensor) else one == other


@contextmanager
def _reseeded(generators, seed):
    """A generator that the user gave to loader or sampler decides the order: seed it meanwhile."""
    generators = list({id(generator): generator for generator in generators}.values())
    states = [state_of(generator) for generator in generators]
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        else:
            reseed([generator], seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states):
            put_back(generator, state)


class _SeededDataset:
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
        with sample_rng(seed):
            if not self.batched:
                return self.collate_fn(self.dataset[indices])
            if getattr(self.dataset, "__getitems__", None):
                return self.collate_fn(self.dataset.__getitems__(indices))
            return self.collate_fn([self.dataset[index] for index in indices])

    def __len__(self):
        return len(self.dataset)


def _of_round(epoch, number):
    """In the place of an epoch's number where a loader of several starts over."""
    return derive(epoch, number) if number else epoch


class JointBatches:
    """One batch of each loader per step, ``{name: batch}``; a shorter loader starts over in another order."""

    def __init__(self, parts, share):
        if any(isinstance(part, _DividedBatches) for part in parts.values()):
            raise ValueError(f"{share.name} is a dict of loaders, in which Divided(loader) cannot be used: ranks would "
                             "start the shorter loaders over at different moments. Give the loader by itself.")
        self.parts = parts
        self.share = share
        self.reached = 0   # the batch that is read next
        self.begun = None  # (epoch, step, {name: (round, batch in it, steps left in it)}) where a run goes on
        self.may_reuse = any(part.may_reuse for part in parts.values())

    def __len__(self):
        return max(len(part) for part in self.parts.values())

    def note_length(self, count):
        """It always gives as many as it says."""
        return []

    def epoch(self, epoch, start=0):
        batches = self._joined(epoch, start)
        return batches if self.may_reuse else Fresh(batches)

    def _joined(self, epoch, start):
        if self.begun and self.begun[0] != epoch:
            self.begun = (epoch, *self.begun[1:]) if 0 < start == self.begun[1] * self.share.size else None
        step, self.reached = start // self.share.size, start
        places = {name: self._place(name, epoch, step) for name in self.parts}
        rounds = {name: self._endless(part, epoch, *places[name][:2]) for name, part in self.parts.items()}
        is_one_loader = self.may_reuse and len({id(part.loader) for part in self.parts.values()}) < len(self.parts)
        own = copied if is_one_loader else _unchanged
        longest = [name for name, (number, _, left) in places.items() if number == 0 and left == len(self) - step]
        for _ in range(step, len(self)):
            self.reached += self.share.size
            batch = {name: own(next(batches)) for name, batches in rounds.items()}
            uneven = {name: part.is_spare for name, part in batch.items() if type(part) is Uneven}
            if uneven:  # a spare of a shorter loader, which starts over anyway, must not cost a longer one its samples
                batch = {name: part.batch if name in uneven else part for name, part in batch.items()}
            yield Uneven(batch, all(uneven.get(name) for name in longest)) if uneven else batch

    @staticmethod
    def _endless(part, epoch, first_round, start):
        for number in itertools.count(first_round):
            part.starts_over = number > first_round
            yield from part.epoch(_of_round(epoch, number), start)
            start = 0

    def _place(self, name, epoch, step):
        """``(round, batch in it, steps left in it)`` of a part, where the epoch is at ``step``."""
        length, size = len(self.parts[name]), self.share.size
        number, start, left = 0, 0, length
        if self.begun and self.begun[0] == epoch and step >= self.begun[1]:
            (number, start, left), step = self.begun[2][name], step - self.begun[1]
        if step >= left:
            more, step = divmod(step - left, length)
            number, start, left = number + 1 + more, 0, length
        return number, start + step * size, left - step

    def position(self, epoch, start):
        """Where each part is, see ``_Batches.position``."""
        parts = {}
        for name, part in self.parts.items():
            number, batch, _ = self._place(name, epoch, start // self.share.size)
            parts[name] = {"round": number, **part.position(_of_round(epoch, number), batch)}
        return {"parts": parts}

    def go_on(self, position, epoch, start):
        """Go on with every part where it was, until the longest one is through; see ``_Batches.go_on``."""
        self.begun = None
        if not position or not (start or any(part["samples"] for part in position.get("parts", {}).values())):
            return start, []
        if "parts" not in position:
            return start, [f"train_loader {position['order']['train_loader']} -> a dict of loaders: {_AT_THIS_BATCH}"]
        places, notes, size = {}, [], self.share.size
        for name, part in self.parts.items():
            saved = position["parts"].get(name, {"round": 0, "batch": 0})
            batch, told = part.go_on(saved, _of_round(epoch, saved["round"]), saved["batch"])
            left = self.share.rounds(max(len(part.loader) - batch, 0))
            places[name] = (saved["round"], batch, left) if left else (saved["round"] + 1, 0, len(part))
            notes += [f"{name}: {note}" for note in told]
        if position["parts"].keys() != self.parts.keys():
            notes.append(f"loaders {list(position['parts'])} -> {list(self.parts)}: a new one begins at its first batch")
        step = len(self) - max((left for number, _, left in places.values() if number == 0), default=0)
        self.begun = epoch, step, places
        return step * size, notes

    def agree(self):
        for part in self.parts.values():
            part.agree()

    def first(self):
        return {name: part.first() for name, part in self.parts.items()}

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state, start):
        step, epoch = start // self.share.size, self.begun and self.begun[0]
        if 0 < step < len(self):  # at the start of an epoch all begin anew
            for name, part in self.parts.items():
                part.load_state_dict((state or {}).get(name), self._place(name, epoch, step)[1])
            self.reached = start

    def is_at(self, start):
        return self.reached == start or all(part.is_at(None) for part in self.parts.values())

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
        self.may_reuse = loader.transform is not None
        self.makes_as_many = loader.transform is None

    def read(self, epoch, start=0):
        samples = self.samples_before(epoch, start)
        bounds = self.loader.bounds()[start:] if samples is None else self.loader.bounds(samples)
        if self.numbers is not None and self.loader.shuffle:
            order = self.loader.order(self.seed, epoch).tolist()
            own = self.own(bounds, start)
            self.numbers.clear()
            self.numbers.extend(order[part.start:part.stop] for _, part in own)
            return self.loader.read(self.seed, epoch, own)
        batches = self.loader.read(self.seed, epoch, self.own(bounds, start))
        return map(pinned, batches) if self.device.type == "cuda" != self.place.type else batches


_AT_THIS_BATCH = "the epoch goes on at the same number of batches, of other samples"


def _marked(batch, is_spare):
    return batch if is_spare is None else Uneven(batch, is_spare)


def copied_ahead(batches, device, may_reuse=False):
    """Batches on ``device``. A GPU copies the next one on a stream of its own while it computes with this one.

    Args:
        may_reuse: reading the next batch may overwrite this one, where it is on the device already.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)

    def begin(batch):
        stream.wait_stream(torch.cuda.current_stream(device))  # it is done with the memory that this copy may get
        with torch.cuda.stream(stream):
            return to_device(batch, device), stream.record_event()

    def finish(batch, copied):
        torch.cuda.current_stream().wait_event(copied)
        return batch

    yield from one_ahead(batches, begin, finish, may_reuse and (lambda batch: is_on(batch, device)))


def one_ahead(batches, begin, finish, needs_no_copy):
    """``finish(*begin(batch))`` of each batch, begun one batch before it is asked for.

    Args:
        needs_no_copy: function of a batch: nothing is begun, so it must be handed over before the next one is read; False
            where that cannot hurt.
    """
    waiting = None
    for batch in batches:
        begun = begin(batch)
        if waiting is not None:
            yield finish(*waiting)
        waiting = begun
        if needs_no_copy and needs_no_copy(batch):
            yield finish(*waiting)
            waiting = None
    if waiting is not None:
        yield finish(*waiting)
