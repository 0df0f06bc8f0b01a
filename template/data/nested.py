"""Nested batches: tuples, lists and dicts of tensors, however deep.

    batch = to_device({"image": x, "target": (y, z)}, "cuda")
    batch_size = first_tensor(batch).shape[0]
"""

import torch


def to_device(batch, device):
    """The same nesting of tuples, lists and dicts with every tensor on ``device``; the rest is passed through.

    What has a ``to`` of its own (graphs, ``PackedSequence``, …) knows best which of its parts move.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if type(batch) in (list, tuple):
        return type(batch)([to_device(value, device) for value in batch])
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, dict):
        moved = batch.copy()
        moved.update((key, to_device(value, device)) for key, value in batch.items())
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def pinned(batch):
    """A tuple or list with its host tensors in pinned memory, from where they are copied to a GPU without a wait."""
    if not isinstance(batch, (list, tuple)):
        return batch
    return type(batch)([part.pin_memory() if isinstance(part, torch.Tensor) and part.device.type == "cpu" else part
                        for part in batch])


def first_tensor(batch):
    """The first tensor with at least one dimension in a nested batch, or None."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.dim() else None
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return None
    for part in batch:
        if isinstance(part, torch.Tensor):
            if part.dim():
                return part
        elif (tensor := first_tensor(part)) is not None:
            return tensor
    return None


def loader_length(loader):
    """``len(loader)``, or None where there is none."""
    try:
        return len(loader)
    except TypeError:
        return None
