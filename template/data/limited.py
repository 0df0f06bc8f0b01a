"""The first batches of each epoch alone, for a quick look: ``limit_train_batches = 20``, ``limit_eval_batches = 0.1``.

    batches = limited(make_batches(loader, seed, device), 20, "limit_train_batches")
    len(batches)                                # 20 in a single process

Which batches these are follows from (seed, epoch) as always, so a shuffled loader gives other ones in each epoch. The
rest of an epoch is not read. A loader without a length gets one by it: the epochs of an endless stream.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from .nested import Fresh, loader_length
from .shares import Uneven


def limited(batches: Any, limit: int | float | None, name: str) -> Any:
    """``batches``, cut short where ``limit`` is set.

    Args:
        batches: what ``make_batches`` gives.
        limit: a number of the loader's batches, a share of them as a float in (0, 1], or None.
        name: of the attribute, in messages.

    Raises:
        ValueError: a share is asked for of a loader that has no length.
    """
    return batches if limit is None else Limited(batches, limit, name)


class Limited:
    """What ``limited`` gives; whatever it does not define is that of the batches themselves."""

    def __init__(self, batches: Any, limit: int | float, name: str) -> None:
        self.batches = batches
        whole = loader_length(batches)  # in rounds: a batch of each rank
        if isinstance(limit, float) and whole is None:
            raise ValueError(f"{name} = {limit!r} is a share of an epoch, and this loader has no len(). Give the number of "
                             "batches instead.")
        whole = None if whole is None else loader_length(getattr(batches, "loader", None)) or whole * batches.share.size
        wanted = max(1, round(limit * whole)) if isinstance(limit, float) and whole is not None else int(limit)
        self.count = wanted if whole is None else min(wanted, whole)  # of the loader's own batches, which the ranks share
        self.is_cut = whole is None or wanted < whole

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return self.batches.share.rounds(self.count)

    def note_length(self, count):
        """Fewer than were asked for are the loader's own affair."""
        return [] if self.is_cut and count >= self.count else self.batches.note_length(count)

    def epoch(self, epoch, start=0):
        """The batches of an epoch from batch ``start`` on, until as many as wanted were read."""
        batches = self.batches.epoch(epoch, start)
        if not self.is_cut:
            return batches
        found = self._own(batches, start)
        return Fresh(found) if isinstance(batches, Fresh) else found

    def _own(self, batches, start):
        """In the last round some ranks may have nothing to do."""
        rank, size, with_spares = (getattr(self.batches.share, name) for name in ("rank", "size", "with_spares"))
        whole, rest = divmod(max(self.count - start, 0), size)
        yield from islice(batches, whole)
        for batch in islice(batches, int(rest > 0)):
            batch, is_spare = batch if type(batch) is Uneven else (batch, False)
            is_spare = is_spare or rank >= rest
            if with_spares or not is_spare:
                yield Uneven(batch, is_spare)
