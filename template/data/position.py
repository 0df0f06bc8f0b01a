"""Where in an epoch a run stands, counted in samples, and where it goes on when its loader is another one by then.

    position = {"order": order_of(loader), "samples": 16}          # stands in the checkpoint
    batch, samples, notes = go_on(position, 2, order_of(DataLoader(dataset, 5)))
    # 3 16 ['batch_size 8 -> 5: the 24 samples that are left of the epoch come in batches of 5, each once']

The same loader goes on at the same batch. With another batch size the rest of the epoch's order is dealt anew, and every
sample comes once. With another order there is no exact place to go on at: the run goes on as far into the new order as it
was in the old one. That costs least. The number of updates stays as planned, and a data set that only grew at its end and is
not shuffled still gives every sample once. To begin the epoch again would train on many samples twice for certain.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from .in_memory import TensorLoader
from .nested import loader_length

_DEALING = {"batch_size", "drop_last", "batch_sampler"}  # what does not change the order of the samples
AT_THIS_BATCH = "the epoch goes on at the same number of batches, of other samples"
_WORDS = {"train_loader": "train_loader", "dataset": "length of the data set", "samples": "samples per epoch",
          "batches": "batches per epoch"}


def order_of(loader: Any) -> dict[str, Any]:
    """What decides the order of a loader's samples and how they are dealt into batches, as plain data.

    "samples" of an epoch are known where each batch takes the next ``batch_size`` ones of an order; else it is None, and
    positions count batches. The length of a data set that workers read is None where only we would ask for it here: its
    ``__len__`` may open the file.
    """
    if isinstance(loader, TensorLoader):
        count = len(loader.tensors[0])
        return {"train_loader": "TensorLoader", "dataset": count, "samples": count, "batch_size": loader.batch_size,
                "shuffle": loader.shuffle, "drop_last": loader.drop_last, "batches": len(loader)}
    is_map = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if not is_map or type(loader).__iter__ is not DataLoader.__iter__:
        size = getattr(loader, "batch_size", None)
        return {"train_loader": type(loader).__name__, "samples": None, "batch_size": size if type(size) is int else None,
                "num_workers": getattr(loader, "num_workers", None), "batches": loader_length(loader)}
    batches, sampler, size, drop_last = loader.batch_sampler, loader.sampler, loader.batch_size, loader.drop_last
    is_dealt = batches is None or type(batches) is BatchSampler
    if type(batches) is BatchSampler:  # which may have been given as it is
        sampler, size, drop_last = batches.sampler, batches.batch_size, batches.drop_last
    elif batches is not None:
        size = getattr(batches, "batch_size", None)
    asks = loader.num_workers == 0 or isinstance(sampler, (RandomSampler, SequentialSampler))  # as torch does
    return {
        "train_loader": "DataLoader", "dataset": loader_length(loader.dataset) if asks else None,
        "samples": loader_length(sampler) if is_dealt else None, "sampler": type(sampler).__name__ if is_dealt else None,
        "batch_size": size if type(size) is int else None, "drop_last": drop_last,
        "batch_sampler": None if batches is None else type(batches).__name__, "batches": loader_length(loader),
    }


def batches_of(samples: int, order: dict[str, Any]) -> int:
    """How many batches so many samples make."""
    size = order["batch_size"] or 1
    return samples // size if order["drop_last"] and order["batch_size"] else -(-samples // size)


def go_on(position: dict[str, Any], batch: int, own: dict[str, Any]) -> tuple[int, int | None, list[str]]:
    """Where a run goes on in the middle of an epoch.

    Args:
        position: of the checkpoint.
        batch: how many batches of the epoch were done there.
        own: ``order_of`` the loader that there is now.

    Returns:
        (batches, samples) of the present loader's epoch that count as done, and what has changed, in words. The samples are
        None where they are not known.
    """
    saved, samples = position["order"], position["samples"]
    changed = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    if _is_same_data(saved, own):
        changed = [name for name in changed if name != "dataset"]
    if own["samples"] is not None and saved["samples"] is not None:
        changed = [name for name in changed if name != "batches"]  # which follows from the others
    if not changed:
        return batch, samples, []
    if saved["batches"] is not None and batch >= saved["batches"]:  # nothing is left of this epoch
        return (batch if own["batches"] is None else own["batches"]), own["samples"], []
    what = "; ".join(f"{_WORDS.get(name, name)} {saved.get(name)} -> {own.get(name)}" for name in changed)
    if own["samples"] is None or samples is None:
        batch = _by_batches(saved, batch, own)
        return batch, None, [f"{what}: the epoch goes on after the first {batch} batches of the loader as it is now, so "
                             "samples may come twice in this epoch or not at all"]
    samples = min(samples, own["samples"])
    left = own["samples"] - samples
    if set(changed) <= _DEALING:
        return _done(left, own), samples, [f"{what}: the {left} samples that are left of the epoch come in batches of "
                                           f"{own['batch_size'] or 1}, each once"]
    return _done(left, own), samples, [f"{what}: the epoch goes on after the first {samples} samples of the order as it is "
                                       "now, so samples may come twice in this epoch or not at all"]


def _done(left, order):
    """How many batches count as done where so many samples are left."""
    return max(order["batches"] - batches_of(left, order), 0)


def _by_batches(saved, batch, own):
    """The same place as far as it is known; rather a little before it, so that nothing is left out."""
    if own["batch_size"] and saved["batch_size"]:
        batch = batch * saved["batch_size"] // own["batch_size"]
    elif own["batches"] and saved["batches"] and _is_same_data(saved, own):
        batch = batch * own["batches"] // saved["batches"]
    return batch if own["batches"] is None else min(batch, own["batches"])


def _is_same_data(saved, own):
    """As far as its length tells, where that was asked for."""
    lengths = saved.get("dataset"), own.get("dataset")
    return "dataset" in saved and "dataset" in own and (None in lengths or lengths[0] == lengths[1])
