"""Whether all ranks read the same data in the same order: if not, samples come twice and never, and no number shows it.

    require_same(world.gather, "train_loader", facts_of(loader) | order_of_first(index_lists, loader.dataset))

Compared are lengths, the first index lists of an epoch, and what a data set holds for each of its samples (tensors, file
names, labels) at a few places. No sample is read for it. What comes out of an ``IterableDataset`` or a list is known only
when it is read, so there the first batch of an epoch is compared, which every rank reads anyway.

Where a loader gives every rank a part of its own, the person says so: ``Divided(loader)``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DistributedSampler, Subset

from .nested import loader_length

_PLACES = 16  # where something long is looked at
_LISTS = 8    # the first ones of an epoch
_PLAIN = (int, float, str, bool, bytes, type(None))


class Divided:
    """A loader from which every rank gets a part of its own, instead of its share of what all read.

        self.train_loader = Divided(DataLoader(WebDataset(urls, nodesplitter=split_by_node), 32))

    Ranks may have different numbers of batches: one that is through first goes along until all are, and what it computes
    then counts for nothing. Where a loader has no length, they ask each other before every batch whether one is left. A run
    goes on in the middle of an epoch only with the same number of ranks. In a single process it is the loader itself.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:  # ``dataset``, ``batch_size``, ``num_workers``
        if name == "loader":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.loader, name)


def refuse_distributed_sampler(loader: Any, name: str) -> None:
    """Ranks take their shares by themselves.

    Raises:
        ValueError: a ``DistributedSampler`` would divide the data a second time.
    """
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise ValueError(f"{name} has a DistributedSampler, which would divide the data among the ranks a second time. Give "
                         "the DataLoader shuffle=True instead, or set parallel = None.")


# --- what is compared -------------------------------------------------------------------------------------------------


def facts_of(loader: Any) -> dict[str, Any]:
    """What is known of a loader without reading it, in words and plain data."""
    dataset = getattr(loader, "dataset", None)
    options = {f"its {name}": getattr(loader, name, None) for name in ("batch_size", "shuffle", "drop_last")}
    return {"its type": type(loader).__name__, "the length of its data set": loader_length(dataset),
            "its number of batches": loader_length(loader), **options,
            **_of_each_sample(loader if dataset is None else dataset, "its data set" if dataset is not None else "it")}


def order_of_first(lists: Sequence[Any], dataset: Any) -> dict[str, Any]:
    """The first index lists of an epoch, as indices of what lies behind any ``Subset``."""
    return {"what its first batches hold": [_plain(_behind(indices, dataset)) for indices in islice(lists, _LISTS)]}


def _plain(indices):
    if isinstance(indices, torch.Tensor):
        return indices[:_PLACES].tolist()
    indices = list(indices[:_PLACES]) if hasattr(indices, "__len__") else [indices]
    return [index if type(index) is int else repr(index) for index in indices]


def _behind(indices, dataset):
    """Indices of a ``Subset``, perhaps of another one, as those of the whole."""
    if isinstance(indices, torch.Tensor) or type(dataset) is not Subset:
        return indices
    single = not isinstance(indices, (list, tuple, range))
    places = [indices] if single else list(indices[:_PLACES])
    while type(dataset) is Subset:
        places = [dataset.indices[index] for index in places]
        dataset = dataset.dataset
    return [int(place) if hasattr(place, "__index__") else place for place in places]


def _of_each_sample(part: Any, where: str, depth: int = 0) -> dict[str, Any]:
    """What an object holds as many of as it has samples, at a few places."""
    found: dict[str, Any] = {}
    count = loader_length(part) if not hasattr(part, "tensors") else len(part.tensors[0])
    for name, value in list(getattr(part, "__dict__", {}).items())[:_PLACES * 4]:
        columns = {name: value}
        if isinstance(value, (list, tuple)) and len(value) != count and len(value) <= _PLACES:
            columns = {f"{name}[{number}]": column for number, column in enumerate(value)}
        for label, column in columns.items():
            if (values := _at_a_few_places(column, count)) is not None:
                found[f"what {label} of {where} holds"] = values
    inner = part.datasets[:_PLACES] if isinstance(part, ConcatDataset) else [getattr(part, "dataset", None)]
    for number, dataset in enumerate(inner):
        if dataset is not None and depth < 4 and not isinstance(dataset, Mapping):
            which = f"number {number} of the data sets in {where}" if len(inner) > 1 else f"the data set in {where}"
            found |= _of_each_sample(dataset, which, depth + 1)
    return found


def _at_a_few_places(column, count):
    """Plain values of something that has ``count`` entries; None: it is no such thing."""
    column = getattr(column, "index", None) if hasattr(column, "iloc") else column  # of a table of pandas
    column = getattr(column, "values", column) if type(column).__module__.startswith("pandas") else column
    if not isinstance(column, (list, tuple, np.ndarray, torch.Tensor)) or not count or len(column) != count:
        return None
    if isinstance(column, torch.Tensor) and column.layout is not torch.strided:
        return None
    return [value for place in _places(count) for value in _values(column[place])]


def _places(count):
    """The first, the last, and some between them; they say the most about a data set that somebody split or shuffled."""
    return sorted({place * (count - 1) // (_PLACES - 1) for place in range(_PLACES)})


def _values(entry, depth=0) -> list[Any]:
    """An entry or a batch as a few plain values."""
    if isinstance(entry, torch.Tensor):
        if entry.layout is not torch.strided or entry.is_quantized or entry.is_meta or not entry.numel():
            return list(entry.shape)
        values = entry.detach().reshape(-1)
        return [*entry.shape, *values[torch.tensor(_places(entry.numel()), device=entry.device)].tolist()]
    if isinstance(entry, (np.ndarray, np.generic)):
        flat = np.asarray(entry).reshape(-1)
        return [*np.shape(entry), *(flat[_places(len(flat))].tolist() if len(flat) and flat.dtype.kind in "biufSU" else [])]
    if isinstance(entry, _PLAIN):
        return [entry[:200] if isinstance(entry, (str, bytes)) else entry]
    if isinstance(entry, PurePath):
        return [str(entry)]
    if isinstance(entry, Mapping):
        return [value for key in entry for value in (str(key), *_values(entry[key], depth + 1))] if depth < 4 else []
    if isinstance(entry, (list, tuple)):
        some = [entry[place] for place in _places(len(entry))] if entry and depth < 4 else ()
        return [len(entry), *(value for part in some for value in _values(part, depth + 1))]
    return [type(entry).__name__]


def first_batch(batch: Any) -> dict[str, Any]:
    """What is compared of a loader that is read by every rank as a whole."""
    return {"the first batch that is read from it": _values(batch)}


# --- comparing --------------------------------------------------------------------------------------------------------


def require_same(gather: Callable[[Any], list[Any]], name: str, facts: dict[str, Any]) -> None:
    """Every rank has to call this at the same place.

    Args:
        gather: as in ``parallel/ranks.py``.
        name: of the loader.
        facts: what it is called in words, and plain data.

    Raises:
        ValueError: on every rank, if the facts of one are different; the message names it.
    """
    by_rank = gather({"which loader it is": name, **facts})
    for what in dict.fromkeys(what for found in by_rank for what in found):
        values = [found.get(what) for found in by_rank]
        if not all(_alike(value, values[0]) for value in values):
            raise ValueError("All ranks must read the same data in the same order, because each trains on its share of it. "
                             f"{name} differs: {what} is {_by_value(values)}. {_WHAT_TO_DO}")


def require_parts(gather: Callable[[Any], list[Any]], name: str, found: int | None) -> None:
    """Every rank has to call this at the same place, for what each says to have a part of its own of.

    Args:
        gather, name: as in ``require_same``.
        found: the checksum of this rank's first batch; None: there is none.

    Raises:
        ValueError: on every rank, if two have the same.
    """
    by_rank = gather(found)
    for number in dict.fromkeys(by_rank):
        ranks = [rank for rank, other in enumerate(by_rank) if other == number]
        if number is not None and len(ranks) > 1:
            raise ValueError(
                f"Divided() is for a loader that gives each rank data of its own, and {name} begins with the same batch on "
                f"ranks {', '.join(map(str, ranks[:8]))}{', …' if len(ranks) > 8 else ''}: its samples would count more "
                "than once. The random numbers of torch, numpy and Python are the same on all ranks, and so is data that "
                "is made of them. Leave Divided() away, then each rank gets its share of what all read. Or divide the data "
                "by rank in __iter__ of the dataset; for random data make a generator there, from the rank and the epoch.")


def checksum(batch: Any) -> int | None:
    """Of all numbers and texts in a batch; None: it has none that can be looked at."""
    if isinstance(batch, torch.Tensor):
        if batch.layout is not torch.strided or batch.is_quantized or batch.is_meta or not batch.numel():
            return None
        batch = batch.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(batch, (np.ndarray, np.generic)) and np.asarray(batch).dtype.kind != "O":
        return zlib.crc32(np.ascontiguousarray(batch).tobytes())
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        parts = [part for part in map(checksum, batch) if part is not None]
        return zlib.crc32(repr(parts).encode()) if parts else None
    return zlib.crc32(repr(batch).encode()) if isinstance(batch, _PLAIN) and batch is not None else None


_WHAT_TO_DO = (
    "Build the same loaders on every rank. Give whatever splits or shuffles the data a seed, such as random_split(data, "
    "lengths, generator=torch.Generator().manual_seed(0)), or call seed_everything(0) before it. If each rank is meant to "
    "have data of its own, because the dataset divides it by RANK (split_by_node) or makes it up, say so with "
    "Divided(loader).")


def _alike(one, other):
    """Computed numbers may differ in their last digits between two kinds of machine."""
    if type(one) is float and type(other) is float:
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6) or math.isnan(one) and math.isnan(other)
    if type(one) is list and type(other) is list:
        return len(one) == len(other) and all(map(_alike, one, other))
    return one == other


def _by_value(values):
    """ "32 on rank 0 and 40 on rank 1": each value with the ranks that have it, of long ones the part that differs."""
    groups: list[tuple[Any, list[int]]] = []
    for rank, value in enumerate(values):
        ranks = next((ranks for known, ranks in groups if _alike(known, value)), None)
        if ranks is None:
            groups.append((value, [rank]))
        else:
            ranks.append(rank)
    return " and ".join(f"{_short(value)} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}"
                        f"{', …' if len(ranks) > 8 else ''}" for value, ranks in groups[:4])


def _short(value):
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''}"
