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
from contextlib import contextmanager
from copy import copy

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from .agreement import (
    Divided,
    checksum,
    facts_of,
    first_batch,
    order_of_first,
    refuse_distributed_sampler,
    require_parts,
    require_same,
)
from .chained import Chained, ChainedBatches
from .copied_ahead import copied_ahead
from .in_memory import TensorLoader, can_be_sliced, places, places_of, slices, tensors_behind
from .joint import JointBatches
from .nested import Fresh, copied, count_samples, loader_length, pinned, to_device
from .open_files import tell_of_open_files
from .position import AT_THIS_BATCH, batches_of, go_on, order_of
from .seeding import (
    GENERATORS,
    ORDER,
    derive,
    give_back,
    host_rng_kept,
    own_generators,
    reseed,
    reseeded,
    sample_rng,
    seed_data,
    seeds_from,
)
from .shares import WHOLE, Uneven
from .workers import SeededDataset, WorkerInit, own_iterator


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
        batches = kind(loader, seed, device, share)
        return _EndlessBatches(loader, seed, device, share) if batches.never_ends() else batches
    return _ReplayedBatches(loader, seed, device, share)


class _Batches:
    """What the wrappers of all kinds of loaders share."""

    place = None       # the device where ``read`` leaves the batches, if that is known
    may_reuse = False  # somebody's own code makes the batches, and may fill the same memory again
    starts_over = False  # a shorter loader of several, within an epoch
    is_divided = False  # every rank has a part of the data of its own
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
            return start, [f"train_loader a dict of loaders -> {type(self.loader).__name__}: {AT_THIS_BATCH}"]
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
        notes, is_iterated = [], isinstance(loader.dataset, IterableDataset)
        if loader.num_workers:
            what = "the order of an IterableDataset" if is_iterated else "what the dataset draws at random"
            notes.append(f"go on with num_workers={loader.num_workers}: {what} depends on it.")
        if loader.num_workers and loader.persistent_workers:
            notes.append("persistent workers take their random numbers from one epoch into the next. If your "
                         f"{'IterableDataset' if is_iterated else 'dataset'} draws random numbers, set "
                         "persistent_workers=False to go on exactly.")
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
        for part in (self.loader, getattr(self.loader, "dataset", None), *_samplers_of(self.loader)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        seed = derive(self.seed, epoch, ORDER)
        if isinstance(self.loader, DataLoader) and self.loader.num_workers and self.loader._iterator is None:
            tell_of_open_files(self.loader)
        if not self.has_state:
            reseed(own_generators(self._parts()), seed)
        if type(self.loader) in (list, tuple):  # no code of anybody's runs that could draw random numbers
            batches = itertools.islice(self.loader, start, None)
        else:
            with sample_rng(seed):
                iterator = own_iterator(iter(self.loader))
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
        for number, seed in enumerate(seeds_from(first, self.seed, epoch), first):
            before = seed_data(seed)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                give_back(before)
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
        if not isinstance(loader, DataLoader):
            return loader
        return [loader.dataset, loader.sampler, loader.generator, loader.batch_sampler]


class _EndlessBatches(_ReplayedBatches):
    """A ``DataLoader`` whose sampler has no end, whatever ``len()`` says: all its indices cannot be asked for at once."""

    def __len__(self):
        raise TypeError(f"{self.share.name} has no length: its sampler does not end.")


class _DividedBatches(_ReplayedBatches):
    """A loader that gives every rank a part of its own; see ``Divided``. Batches are numbered as if they were dealt out in
    turn, so ``start`` is the number of ranks times that of the rounds that were done."""

    is_divided = True

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
            if not number:
                require_parts(self.share.gather, self.share.name, None if is_spare else checksum(batch))
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
        self.dataset = SeededDataset(loader.dataset, loader.collate_fn, batched=loader.batch_sampler is not None)
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

    def never_ends(self):
        """Whether a sampler of somebody's own goes on and on: its batches are then read one by one."""
        if not _own_samplers(self.loader):
            return False
        most = 2 * (loader_length(self.loader) or _MOST_BATCHES // 2)
        with self._seeded_sampler(1) as sampler:
            return next(itertools.islice(sampler, most, None), None) is not None

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
        return own_iterator(iter(loader))

    def notes(self):
        loader, notes = self.loader, []
        own = _own_samplers(loader)
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
        """The user's sampler under the epoch's seed. What a training step draws from numpy and ``random`` goes on behind it
        as it would have without: where a run goes on within an epoch, these come from the checkpoint."""
        loader, seed = self.loader, derive(self.seed, epoch, ORDER)
        sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        parts = [sampler, loader.sampler, getattr(sampler, "sampler", None)]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        held = [value for part in parts for value in getattr(part, "__dict__", {}).values()]
        own = [loader.generator, *(getattr(part, "generator", None) for part in parts), *held]
        with host_rng_kept(), sample_rng(seed), reseeded([part for part in own if isinstance(part, GENERATORS)], seed):
            yield sampler

    def _copy_of_loader(self, tagged, **changed):
        loader = self.loader
        options = {name: getattr(loader, name) for name in _KEPT_OPTIONS if hasattr(loader, name)}
        return DataLoader(self.dataset, batch_size=None, sampler=tagged, collate_fn=_unchanged,
                          worker_init_fn=WorkerInit(loader.worker_init_fn), generator=torch.Generator(),
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


def _unchanged(batch):
    return batch


def _samplers_of(loader):
    """Those that a loader of any kind has, the one that makes the batches first."""
    batches = getattr(loader, "batch_sampler", None)
    found = batches, getattr(loader, "sampler", None), getattr(batches, "sampler", None)
    return [part for part in found if part is not None]


def _own_samplers(loader):
    """The samplers that are not torch's."""
    return [part for part in _samplers_of(loader) if not type(part).__module__.startswith("torch.utils.data")]


_MOST_BATCHES = 2**15  # of a sampler without a length, in an epoch; one that gives more is taken to have no end


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


def _marked(batch, is_spare):
    return batch if is_spare is None else Uneven(batch, is_spare)
