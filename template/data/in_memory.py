"""Data that fits in memory, read by slicing whole tensors: no per-sample Python.

    train_loader = TensorLoader(images, labels, batch_size=512, shuffle=True, transform=crop_and_flip)
    train_loader = TensorLoader.from_dataset(dataset, batch_size=512, shuffle=True)     # reads every sample once

A ``DataLoader`` over a ``TensorDataset`` is read in the same way, unasked: see ``loaders.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Subset, TensorDataset, default_collate

from .seeding import ORDER, derive, own_generators, reseed, sample_rng

_SHARE_OF_FREE_MEMORY = 0.5  # of a GPU's, that the data may take
_BYTES_AT_ONCE = 2**18  # of one tensor, that stay in the cache; a batch that somebody keeps keeps these
_ALIGNED = 64           # bytes, of which the address of a new tensor is a multiple


class TensorLoader:
    """Batches of tensors that are in memory.

    Args:
        *tensors: with equal first dimensions N.
        batch_size: samples per batch.
        shuffle: a new order every epoch, from (seed, epoch).
        drop_last: leave out a short last batch.
        transform: called with the batch's tensors, on their device, returns the batch; its randomness is seeded per batch.
        device: where the tensors are moved as a whole. None: to the trainer's GPU where they take at most half of its free
            memory; else they stay where they are, and batches reach a GPU through pinned memory.

    Raises:
        ValueError: no tensors, different lengths, or a batch size below 1.
    """

    def __init__(self, *tensors: torch.Tensor, batch_size: int, shuffle: bool = False, drop_last: bool = False,
                 transform: Callable[..., Any] | None = None, device: str | torch.device | None = None) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"TensorLoader needs tensors of one length, got lengths {lengths}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        self.tensors = tuple(tensor.to(device) if device is not None else tensor for tensor in tensors)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.device = device

    @classmethod
    def from_dataset(cls, dataset: Any, num_workers: int = 0, **options: Any) -> TensorLoader:
        """Read every sample of a map-style dataset once, with a progress bar; random augmentation belongs in ``transform``.

        Args:
            dataset: samples are tensors, arrays or numbers, or tuples of these, of one shape each.
            num_workers: processes that read.
            **options: those of ``TensorLoader``.

        Raises:
            TypeError, ValueError: the samples are something else, or their shapes differ.
        """
        return cls(*_read_whole(dataset, num_workers), **options)

    def place(self, device: torch.device) -> None:
        """Move the tensors to a GPU unless they are too large; the trainer calls it."""
        size = sum(tensor.nbytes for tensor in self.tensors if tensor.device.type == "cpu")
        if self.device is None and device.type == "cuda" and size:
            if size <= _SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]:
                self.tensors = tuple(tensor.to(device) for tensor in self.tensors)

    def __len__(self) -> int:
        full, rest = divmod(len(self.tensors[0]), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """On its own, outside a trainer: an order from torch's global generator, as a ``DataLoader`` would."""
        return self.epoch(int(torch.randint(1 << 62, ())), 0)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Any]:
        """Batches of one epoch from batch ``start`` on."""
        return self.read(seed, epoch, list(enumerate(self.bounds()))[start:])

    def bounds(self, first: int = 0) -> list[range]:
        """Where in an epoch's order each batch lies, as ranges; those before the sample ``first`` are not dealt."""
        count = len(self.tensors[0])
        starts = range(first, count - self.batch_size + 1 if self.drop_last else count, self.batch_size)
        return [range(start, min(start + self.batch_size, count)) for start in starts]

    def read(self, seed: int, epoch: int, numbered: Iterable[tuple[int, range]]) -> Iterator[Any]:
        """Some batches of one epoch.

        Args:
            numbered: those that are wanted, as pairs of number and bounds.
        """
        order_N = self.order(seed, epoch)
        generators = own_generators(self.transform)
        together, most = None, 1 if torch.is_grad_enabled() else self._many()
        if most > 1:
            numbered = list(numbered)
            together = self._together(order_N, [bounds for _, bounds in numbered], most)
        for number, bounds in numbered:
            chosen = slice(bounds.start, bounds.stop)
            if together is not None:
                batch = next(together)
            elif self.shuffle:
                chosen_B = order_N[chosen]
                batch = tuple([tensor.index_select(0, chosen_B) for tensor in self.tensors])
            else:  # a slice is a view: what is done to the batch in place must not reach the data
                batch = tuple([tensor[chosen].clone() for tensor in self.tensors])
            if self.transform is not None:
                devices = {tensor.device for tensor in batch if tensor.is_cuda}
                reseed(generators, derive(seed, epoch, number))
                with sample_rng(derive(seed, epoch, number), devices):
                    batch = self.transform(*batch)
            yield batch

    def _together(self, order_N, all_bounds, most):
        """The same batches; those that follow one another in the order are copied at once, at most so many."""
        for run in _runs(all_bounds, most):
            chosen = slice(run[0].start, run[-1].stop)
            if self.shuffle:
                chosen_N = order_N[chosen]
                wholes = [tensor.index_select(0, chosen_N) for tensor in self.tensors]
            else:
                wholes = [tensor[chosen].clone() for tensor in self.tensors]
            yield from zip(*[_apart(whole, [len(bounds) for bounds in run]) for whole in wholes])

    def _many(self):
        """How many batches are copied at once in an evaluation, whose data nobody changes meanwhile. Only one where a batch
        would begin at another kind of address than a tensor of its own does: results of a product may depend on that."""
        sizes = [self.batch_size * tensor[:1].nbytes for tensor in self.tensors]
        return 1 if any(size % _ALIGNED for size in sizes) else max(1, _BYTES_AT_ONCE // max(1, *sizes))

    def order(self, seed: int, epoch: int) -> Any:
        """Permuted on the CPU, so that every device gives the same order."""
        if not self.shuffle:
            return None
        generator = torch.Generator().manual_seed(derive(seed, epoch, ORDER))
        order_N = torch.randperm(len(self.tensors[0]), generator=generator)
        return order_N.to(self.tensors[0].device)


def _runs(all_bounds, most):
    """Lists of ranges that follow one another, each of at most so many."""
    run: list[range] = []
    for bounds in all_bounds:
        if run and (len(run) == most or bounds.start != run[-1].stop):
            yield run
            run = []
        run.append(bounds)
    if run:
        yield run


def _apart(whole, sizes):
    """Its parts as tensors of which none knows of the others: what is done to one in place is no concern of theirs, which
    autograd would not know of views."""
    return [whole] if len(sizes) == 1 else [part.data for part in whole.split(sizes)]


def _read_whole(dataset, num_workers):
    """Tensors [N, …] of what a sample consists of."""
    wholes, filled = None, 0
    for batch in _with_bar(DataLoader(dataset, 256, num_workers=num_workers, collate_fn=_collate), len(dataset)):
        if wholes is None:
            wholes = [part.new_empty((len(dataset), *part.shape[1:])) for part in batch]
        end = filled + len(batch[0])
        for whole, part in zip(wholes, batch):
            if part.shape[1:] != whole.shape[1:]:
                raise ValueError(_of_one_shape([tuple(whole.shape[1:]), tuple(part.shape[1:])]))
            whole[filled:end] = part
        filled = end
    return wholes or []


def _collate(samples):
    try:
        batch = default_collate(samples)
    except RuntimeError as error:
        raise ValueError(_of_one_shape(error)) from error
    batch = [batch] if isinstance(batch, torch.Tensor) else batch
    if not isinstance(batch, (list, tuple)) or not all(isinstance(part, torch.Tensor) for part in batch):
        raise TypeError(
            "TensorLoader.from_dataset needs samples that are tensors, arrays or numbers, or tuples of these; got "
            f"{type(samples[0]).__name__}: {str(samples[0])[:100]}. Wrap the dataset so that "
            "it returns a tuple, or use a DataLoader."
        )
    return batch


def _of_one_shape(got):
    return f"TensorLoader.from_dataset needs samples of one shape, got {got}. Crop or pad them, or use a DataLoader."


def _with_bar(loader, num_samples):
    """A bar on stderr where that is a terminal and tqdm is there."""
    try:
        from tqdm.auto import tqdm  # type: ignore  # optional, without types
    except ImportError:
        return loader
    return tqdm(loader, desc=f"reading {num_samples:,} samples", unit="batch", leave=False, disable=None)


# --- a DataLoader over a TensorDataset --------------------------------------------------------------------------------


def can_be_sliced(loader):
    """Whether batches of a ``DataLoader`` are slices of tensors: a ``TensorDataset``, also through ``Subset``, collated by
    default, without workers, on code of torch's alone."""
    is_default = loader.num_workers == 0 and loader.batch_sampler is not None and loader.collate_fn is default_collate
    return is_default and tensors_behind(loader.dataset) is not None


def tensors_behind(dataset) -> Any:
    """The tensors of a ``TensorDataset`` or a ``Subset`` of one; None where slices would not be what collating gives."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset:
        return None
    tensors = dataset.tensors
    plain = all(type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.is_contiguous()
                and not tensor.is_quantized and tensor.device == tensors[0].device for tensor in tensors)
    return tensors if plain else None


def slices(loader, order, pin=False):
    """The batches that a ``DataLoader`` collates sample by sample.

    Args:
        loader: one that ``can_be_sliced``.
        order: the index lists of the batches, each a tensor [B] of int64.
        pin: put them into pinned memory.
    """
    tensors = tensors_behind(loader.dataset)
    for chosen_B in order:
        batch = [tensor.index_select(0, chosen_B) for tensor in tensors]
        yield [part.pin_memory() for part in batch] if pin else batch


def places_of(loader, first=0):
    """Run the sampler: ``[indices of a batch [B], …]`` into the tensors behind the dataset.

    Args:
        first: as many samples are left out before the first batch; only where batches are dealt one after another.
    """
    sampler = loader.batch_sampler
    if type(sampler) is BatchSampler:  # all indices at once: a list per batch costs ten times as much
        order_N = places(loader.dataset, torch.tensor(list(sampler.sampler), dtype=torch.int64))
        batches = order_N[first:].split(sampler.batch_size) if first < len(order_N) else ()
        return batches[:-1] if sampler.drop_last and batches and len(batches[-1]) < sampler.batch_size else batches
    return [places(loader.dataset, torch.tensor(list(indices), dtype=torch.int64)) for indices in sampler]


def places(dataset: Any, indices_N):
    """What indices into a dataset are in the tensors behind it; negative ones count from the end."""
    while True:
        indices_N = torch.where(indices_N < 0, indices_N + len(dataset), indices_N)
        if type(dataset) is not Subset:
            return indices_N.to(dataset.tensors[0].device)
        indices_N = torch.as_tensor(dataset.indices, dtype=torch.int64)[indices_N]
        dataset = dataset.dataset
