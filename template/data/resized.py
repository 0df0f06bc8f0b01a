"""The same data in batches of another size.

    loader = with_batch_size(DataLoader(dataset, 32, shuffle=True), 256)

Data set, order, collate function, workers and ``drop_last`` stay. The loader that was given is not touched.
"""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from .in_memory import TensorLoader
from .nested import loader_length

_KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
         "prefetch_factor", "pin_memory_device", "in_order")


def batch_size_of(loader: Any) -> int:
    """Samples per batch.

    Raises:
        ValueError: no loader whose batches can be made larger or smaller from outside.
    """
    if isinstance(loader, TensorLoader):
        return loader.batch_size
    is_plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if is_plain and isinstance(loader.batch_size, int):
        is_own = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
        if not is_own:
            return loader.batch_size
    what = type(loader).__name__
    if isinstance(loader, DataLoader):
        what += " whose batches a sampler or data set of its own makes" if is_plain else ", a subclass of DataLoader"
    raise ValueError("Another batch size needs a DataLoader with a batch_size, or a TensorLoader; got "
                     f"{what}. Build the loader with a batch_size for this, and put yours back afterwards.")


def with_batch_size(loader: Any, batch_size: int, drop_last: bool | None = None) -> Any:
    """A loader like ``loader`` with so many samples in a batch.

    Args:
        drop_last: leave out a short last batch; None: as ``loader`` does.

    Raises:
        ValueError: as ``batch_size_of``.
    """
    batch_size_of(loader)
    drop_last = loader.drop_last if drop_last is None else drop_last
    if isinstance(loader, TensorLoader):
        other = copy.copy(loader)
        other.batch_size, other.drop_last = batch_size, drop_last
        return other
    options = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    if not options["num_workers"]:
        options = {name: value for name, value in options.items() if name not in ("prefetch_factor", "timeout")}
    if not options.get("pin_memory_device"):
        options.pop("pin_memory_device", None)
    order = {} if isinstance(loader.dataset, IterableDataset) else {"sampler": loader.sampler}
    return DataLoader(loader.dataset, batch_size, drop_last=drop_last, **order, **options)


def num_samples_of(loader: Any) -> int | None:
    """Of an epoch; None where nobody knows it."""
    if isinstance(loader, TensorLoader):
        return len(loader.tensors[0])
    return None if isinstance(loader.dataset, IterableDataset) else loader_length(loader.sampler)
