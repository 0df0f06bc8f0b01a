"""Which of a loader's batches belong to which rank: the first to rank 0, the second to rank 1, and so on round by round.

    share = Share(rank=1, size=2)
    share.of([[0, 1], [2, 3], [4, 5], [6, 7], [8]])         # indices of five batches, as in one process
    # [(1, [2, 3], None), (3, [6, 7], None), (5, [8], Uneven(is_spare=True))] …

A *round* is one batch of every rank: what the ranks see in it together is what one process would see in a batch ``size``
times as large. What is left for a last round is divided evenly among as many ranks as get two samples or more: BatchNorm and
``std()`` can do nothing with one. A rank that gets nothing takes a *spare*: it computes with the others, and what it
computes counts for nothing.
"""

from typing import Any, NamedTuple


class Uneven(NamedTuple):
    """A batch of a round in which it is not certain that all ranks have equally many samples."""

    batch: Any
    is_spare: bool


class Share:
    """Rank ``rank``'s of ``size``.

    Args:
        divides: share out the samples of a last round that is not complete (training); False leaves its batches whole, so
            that each is what it is in one process (evaluation).
        with_spares: a rank that has nothing in a round gets a spare; False: it gets nothing.
        gather: ``gather(value)`` gives the values of all ranks, see ``parallel/ranks.py``; None: nothing is compared.
        name: of the loader, in messages.
    """

    def __init__(self, rank=0, size=1, divides=True, with_spares=True, gather=None, name="the loader"):
        self.rank, self.size = rank, size
        self.divides = divides
        self.with_spares = with_spares
        self.gather = gather
        self.name = name

    def named(self, part):
        """The same of one loader in a dict."""
        return Share(self.rank, self.size, self.divides, self.with_spares, self.gather, f"{self.name}[{part!r}]")

    def rounds(self, count):
        """How many batches of ``count`` a rank gets: as many as every other, spares included."""
        return count if self.size == 1 else -(-count // self.size)

    def of(self, batches, first=0, is_dealt=True):
        """``[(number, indices, is_spare or None)]`` of this rank; None: all ranks have equally many in this round.

        Args:
            batches: index lists, tensors or consecutive ranges: slices of them and their ``len`` are asked for.
            first: number of the first in the epoch.
            is_dealt: each batch takes the next indices of an order. False: a sampler of somebody's own chose what belongs
                together, so no batch is divided.
        """
        if self.size == 1:
            return [(number, indices, None) for number, indices in enumerate(batches, first)]
        found = []
        for start in range(0, len(batches), self.size):
            part = batches[start:start + self.size]
            if self.divides and is_dealt and self._is_to_divide([_length(indices) for indices in part]):
                part = _divided(part, self.size)
            lengths = {_length(indices) for indices in part}
            is_even = len(part) == self.size and len(lengths) == 1 and lengths.isdisjoint({None, 0})
            own, is_spare = self._own(part)
            if own is not None:
                found.append((first + start + self.rank, own, None if is_even else is_spare))
        return found

    def _is_to_divide(self, lengths):
        """Some rank would have nothing, or a single sample beside others that have more."""
        return None not in lengths and (len(lengths) < self.size or lengths[-1] == 1 < max(lengths))

    def _own(self, part):
        own = part[self.rank] if self.rank < len(part) else None
        if own is not None and _length(own) != 0:
            return own, False
        return (part[0][:2] if _length(part[0]) is not None else part[0], True) if self.with_spares else (None, True)


WHOLE = Share()  # in a single process


def _divided(part, size):
    """The samples of some batches as ``size`` pieces: even, or longer by one, or empty. Of one sample are those alone of
    loaders whose batches are."""
    joined, is_single = _joined(part), all(_length(indices) == 1 for indices in part)
    lengths = divided_lengths(len(joined), size, is_single)
    ends = [sum(lengths[:number]) for number in range(size + 1)]
    return [joined[start:end] for start, end in zip(ends, ends[1:])]


def divided_lengths(count, size, is_single=False):
    """How ``count`` samples of a last round are divided among ``size`` ranks.

    Args:
        is_single: the loader's own batches are of one sample.
    """
    pieces = size if is_single else min(size, max(count // 2, 1))
    short, longer = divmod(count, pieces)
    return [short + (number < longer) for number in range(pieces)] + [0] * (size - pieces)


def _joined(part):
    if isinstance(part[0], range):
        return range(part[0].start, part[-1].stop)
    if hasattr(part[0], "new_empty"):
        return part[0].new_tensor([index for indices in part for index in indices.tolist()])
    return [index for indices in part for index in indices]


def _length(indices):
    """None where a batch is no list of indices but a single one (``batch_size=None``)."""
    return len(indices) if hasattr(indices, "__len__") else None
