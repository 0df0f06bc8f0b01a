"""Several loaders of training data, one after the other in each epoch: ``Chained``.

    self.train_loader = Chained({"clean": clean, "noisy": noisy})     # batches {"clean": batch}, then {"noisy": batch}
    self.train_loader = Chained([clean, noisy])                       # their batches as they are
    self.train_loader = {"clean": clean, "noisy": noisy}              # for comparison: one batch of each in every step

An epoch is over when the last of them is through. It continues in the middle like any other, see ``loaders.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .agreement import Divided
from .joint import SeveralBatches
from .nested import loader_length
from .shares import Uneven


class Chained:
    """Reads loaders one after the other.

    Args:
        loaders: a list of loaders whose batches are alike; or a dict, of which each batch comes as ``{name: batch}``, so
            that your code knows where it is from.

    Raises:
        TypeError, ValueError: it holds nothing, or something that is no loader with a length.
    """

    def __init__(self, loaders: Mapping[str, Iterable[Any]] | Sequence[Iterable[Any]]) -> None:
        if not isinstance(loaders, (Mapping, list, tuple)) or not loaders:
            raise TypeError(f"Chained takes a list or a dict of loaders, got {loaders!r}.")
        self.is_named = isinstance(loaders, Mapping)
        self.loaders: dict[Any, Any] = dict(loaders.items() if isinstance(loaders, Mapping) else enumerate(loaders))
        for name, loader in self.loaders.items():
            if isinstance(loader, (dict, Chained, Divided)) or not hasattr(loader, "__iter__"):
                raise TypeError("Chained takes a DataLoader, a TensorLoader or a list of batches for each entry; entry "
                                f"{name!r} is a {type(loader).__name__}.")
            if not loader_length(loader):
                raise ValueError("Chained needs loaders with a len() of at least 1, so that an epoch can go on in it; "
                                 f"entry {name!r}, a {type(loader).__name__}, has {loader_length(loader)}.")

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[Any]:
        """On its own, outside a trainer: in the loaders' own order."""
        for name, loader in self.loaders.items():
            for batch in loader:
                yield {name: batch} if self.is_named else batch


class ChainedBatches(SeveralBatches):
    """What ``make_batches`` makes of a ``Chained``.

    Args:
        is_named: batches come as ``{name: batch}``.
    """

    def __init__(self, parts, share, is_named):
        super().__init__(parts, share)  # begun: (epoch, step, number of a part, batch in it)
        self.is_named = is_named

    def __len__(self):
        return sum(len(part) for part in self.parts.values())

    def _read(self, epoch, start):
        self._begin(epoch, start)
        number, first, left = self._place(epoch, start // self.share.size)
        for name, part in list(self.parts.items())[number:]:
            count = 0
            for batch in part.epoch(epoch, first):
                count += 1
                self.reached += self.share.size
                yield self._as_asked(name, batch)
            if count != left and self.share.divides:
                raise ValueError(f"The loaders in Chained must have a true len(): {name!r} gave {count} batches where "
                                 f"{left} were expected. Return the number of batches from __len__.")
            first, left = 0, self._length_behind(name)

    def _length_behind(self, name):
        """Of the part behind one."""
        names = list(self.parts)
        return len(self.parts[names[names.index(name) + 1]]) if name != names[-1] else 0

    def _as_asked(self, name, batch):
        if not self.is_named:
            return batch
        return Uneven({name: batch.batch}, batch.is_spare) if type(batch) is Uneven else {name: batch}

    def _place(self, epoch, step):
        """``(number of the part, batch in it, steps left in it)`` of a step of an epoch."""
        parts, size = list(self.parts.values()), self.share.size
        number, first = 0, 0
        if self.begun and self.begun[0] == epoch and step >= self.begun[1]:
            _, before, number, first = self.begun
            step -= before
        while number < len(parts):
            left = self._left(parts[number], first)
            if step < left or number == len(parts) - 1:
                return number, first + step * size, left - step
            step, number, first = step - left, number + 1, 0
        return number, 0, 0

    def _left(self, part, batch):
        return len(part) if not batch else self.share.rounds(max(len(part.loader) - batch, 0))

    def position(self, epoch, start):
        """Where the parts are, see ``_Batches.position`` in ``loaders.py``."""
        number, first, _ = self._place(epoch, start // self.share.size)
        parts = {str(name): part.position(epoch, first if i == number else 0)
                 for i, (name, part) in enumerate(self.parts.items())}
        return {"chained": parts, "number": number}

    def go_on(self, position, epoch, start):
        """Go on in the part that was read, at the same sample; the parts before it are done."""
        self.begun = None
        if not position or not start:
            return start, []
        saved = list(position.get("chained", {}).items())
        if [name for name, _ in saved] != list(map(str, self.parts)):
            return start, [f"train_loader was another one than Chained({list(self.parts)}): the epoch goes on at the same "
                           "number of batches, of other samples"]
        number, parts = position["number"], list(self.parts.values())
        batch, notes = parts[number].go_on(saved[number][1], epoch, saved[number][1]["batch"])
        step = sum(map(len, parts[:number])) + len(parts[number]) - self._left(parts[number], batch)
        self.begun = epoch, step, number, batch
        return step * self.share.size, [f"{saved[number][0]}: {note}" for note in notes]

    def first(self):
        name, part = next(iter(self.parts.items()))
        return self._as_asked(name, part.first())

    def state_dict(self):
        return {str(name): part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state, start):
        number, first, _ = self._place(self.begun and self.begun[0], start // self.share.size)
        for i, (name, part) in enumerate(self.parts.items()):
            if i == number and 0 < first:  # the others begin anew
                part.load_state_dict((state or {}).get(str(name)), first)
        self.reached = start
