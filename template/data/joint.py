"""Several loaders of training data, one batch of each in every step: a dict of loaders.

    self.train_loader = {"clean": clean, "noisy": noisy}              # batches {"clean": batch, "noisy": batch}

What is read one after the other (``chained.py``) shares ``SeveralBatches`` with it.
"""

from __future__ import annotations

import itertools

from .nested import Fresh, copied
from .position import AT_THIS_BATCH
from .seeding import derive
from .shares import Uneven


class SeveralBatches:
    """What both ways to read several loaders share.

    Args:
        parts: ``{name: batches}``, as ``make_batches`` gives them.
        share: of this process, see ``shares.py``.
    """

    def __init__(self, parts, share):
        self.parts, self.share = parts, share
        self.reached = 0   # the batch that is read next
        self.begun = None  # (epoch, step, …) where a run goes on
        self.may_reuse = any(part.may_reuse for part in parts.values())

    def note_length(self, count):
        """A part that gives another number of batches than it says is told of, or refused, while it is read."""
        return []

    def epoch(self, epoch, start=0):
        """Batches of an epoch from batch ``start`` on, on the device."""
        batches = self._read(epoch, start)
        return batches if self.may_reuse else Fresh(batches)

    def _read(self, epoch, start):
        raise NotImplementedError

    def _begin(self, epoch, start):
        """A loop that counts its epochs itself may have another number for the one in which a run goes on."""
        if self.begun and self.begun[0] != epoch:
            self.begun = (epoch, *self.begun[1:]) if 0 < start == self.begun[1] * self.share.size else None
        self.reached = start

    def agree(self):
        """Compare the loaders with those of the other ranks."""
        for part in self.parts.values():
            part.agree()

    def state_dict(self):
        """Whatever of the loaders is no function of (seed, epoch, batch)."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def is_at(self, start):
        """Whether ``state_dict`` now speaks of the batch ``start``."""
        return self.reached == start or all(part.is_at(None) for part in self.parts.values())

    def set_seed(self, seed):
        """The order follows this one from the next epoch on."""
        for part in self.parts.values():
            part.set_seed(seed)

    def notes(self):
        """What of the loaders cannot be continued exactly, in words."""
        return [f"{name}: {note}" for name, part in self.parts.items() for note in part.notes()]


def _of_round(epoch, number):
    """In the place of an epoch's number where a loader of several starts over."""
    return derive(epoch, number) if number else epoch


class JointBatches(SeveralBatches):
    """One batch of each loader per step, ``{name: batch}``; a shorter loader starts over in another order."""

    def __init__(self, parts, share):
        if any(part.is_divided for part in parts.values()):
            raise ValueError(f"{share.name} is a dict of loaders, in which Divided(loader) cannot be used: ranks would "
                             "start the shorter loaders over at different moments. Give the loader by itself.")
        super().__init__(parts, share)  # begun: (epoch, step, {name: (round, batch in it, steps left in it)})

    def __len__(self):
        return max(len(part) for part in self.parts.values())

    def _read(self, epoch, start):
        self._begin(epoch, start)
        step = start // self.share.size
        places = {name: self._place(name, epoch, step) for name in self.parts}
        rounds = {name: self._endless(part, epoch, *places[name][:2]) for name, part in self.parts.items()}
        is_one_loader = self.may_reuse and len({id(part.loader) for part in self.parts.values()}) < len(self.parts)
        own = copied if is_one_loader else _as_it_is
        longest = [name for name, (number, _, left) in places.items() if number == 0 and left == len(self) - step]
        for _ in range(step, len(self)):
            self.reached += self.share.size
            batch = {name: own(next(batches)) for name, batches in rounds.items()}
            uneven = {name: part.is_spare for name, part in batch.items() if type(part) is Uneven}
            if uneven:  # a spare of a shorter loader, which starts over anyway, must not cost a longer one its samples
                batch = {name: part.batch if name in uneven else part for name, part in batch.items()}
            yield Uneven(batch, all(uneven.get(name) for name in longest)) if uneven else batch

    @staticmethod
    def _endless(part, epoch, first_round, start):
        for number in itertools.count(first_round):
            part.starts_over = number > first_round
            yield from part.epoch(_of_round(epoch, number), start)
            start = 0

    def _place(self, name, epoch, step):
        """``(round, batch in it, steps left in it)`` of a part, where the epoch is at ``step``."""
        length, size = len(self.parts[name]), self.share.size
        number, start, left = 0, 0, length
        if self.begun and self.begun[0] == epoch and step >= self.begun[1]:
            (number, start, left), step = self.begun[2][name], step - self.begun[1]
        if step >= left:
            more, step = divmod(step - left, length)
            number, start, left = number + 1 + more, 0, length
        return number, start + step * size, left - step

    def position(self, epoch, start):
        """Where each part is, see ``_Batches.position`` in ``loaders.py``."""
        parts = {}
        for name, part in self.parts.items():
            number, batch, _ = self._place(name, epoch, start // self.share.size)
            parts[name] = {"round": number, **part.position(_of_round(epoch, number), batch)}
        return {"parts": parts}

    def go_on(self, position, epoch, start):
        """Go on with every part where it was, until the longest one is through; see ``_Batches.go_on``."""
        self.begun = None
        if not position or not (start or any(part["samples"] for part in position.get("parts", {}).values())):
            return start, []
        if "parts" not in position:
            return start, [f"train_loader {position['order']['train_loader']} -> a dict of loaders: {AT_THIS_BATCH}"]
        places, notes, size = {}, [], self.share.size
        for name, part in self.parts.items():
            saved = position["parts"].get(name, {"round": 0, "batch": 0})
            batch, told = part.go_on(saved, _of_round(epoch, saved["round"]), saved["batch"])
            left = self.share.rounds(max(len(part.loader) - batch, 0))
            places[name] = (saved["round"], batch, left) if left else (saved["round"] + 1, 0, len(part))
            notes += [f"{name}: {note}" for note in told]
        if position["parts"].keys() != self.parts.keys():
            notes.append(f"loaders {list(position['parts'])} -> {list(self.parts)}: a new one begins at its first batch")
        step = len(self) - max((left for number, _, left in places.values() if number == 0), default=0)
        self.begun = epoch, step, places
        return step * size, notes

    def first(self):
        return {name: part.first() for name, part in self.parts.items()}

    def load_state_dict(self, state, start):
        step, epoch = start // self.share.size, self.begun and self.begun[0]
        if 0 < step < len(self):  # at the start of an epoch all begin anew
            for name, part in self.parts.items():
                part.load_state_dict((state or {}).get(name), self._place(name, epoch, step)[1])
            self.reached = start


def _as_it_is(batch):
    return batch
