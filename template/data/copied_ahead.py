"""Batches on the device; a GPU copies the next one while it computes with this one."""

import torch

from .nested import is_on, to_device


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
