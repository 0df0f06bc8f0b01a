"""Schedulers that a person built: how long they are, whether their steps are updates, and who steps them.

    length_of(CosineAnnealingLR(optimizer, T_max=40))        # 40; None where it is not certain
    counts_updates(one_cycle, total_epochs, per_epoch)       # OneCycleLR: per update, as torch's documentation says
    watched = Watched(scheduler, "lr_scheduler_list[0]")
    watched.step()                                           # unless the person's own code steps it

When each one steps stands in ``schedule.py``.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from .lr_scheduler import set_rate

_SET_BY_SCHEDULERS = ("lr", "momentum", "betas")


# --- how long a scheduler is ------------------------------------------------------------------------------------------


def length_of(scheduler: Any) -> int | None:
    """The number of steps after which a scheduler of torch is at its end; None where it has none, or where it is not
    certain. Of ``LambdaLR`` it is known when its function is a partial one of ``num_training_steps``."""
    if isinstance(scheduler, OneCycleLR):
        return scheduler.total_steps
    if isinstance(scheduler, CosineAnnealingLR):
        return scheduler.T_max
    if isinstance(scheduler, (LinearLR, ConstantLR, PolynomialLR)):
        return scheduler.total_iters
    if isinstance(scheduler, SequentialLR):
        last = length_of(scheduler._schedulers[-1])
        return None if last is None else scheduler._milestones[-1] + last
    if isinstance(scheduler, ChainedScheduler):
        lengths = [length_of(part) for part in scheduler._schedulers]
        return None if None in lengths else max(lengths)  # type: ignore[type-var]
    if isinstance(scheduler, LambdaLR) and isinstance(scheduler.lr_lambdas[0], functools.partial):
        return scheduler.lr_lambdas[0].keywords.get("num_training_steps")
    return None


def counts_updates(scheduler: OneCycleLR, total_epochs: int | None, updates_per_epoch: int | None) -> bool:
    """Whether the steps of a ``OneCycleLR`` are updates: they are wherever there are more of them than epochs.

    Where the number of epochs is not known, they are when they make whole epochs.
    """
    if total_epochs is not None:
        return scheduler.total_steps > total_epochs
    return updates_per_epoch is not None and scheduler.total_steps % max(updates_per_epoch, 1) == 0


_LENGTHS = ("T_max", "T_0", "T_mult", "step_size", "milestones", "total_steps", "total_iters")


def other_lengths(name: str, scheduler: Any, saved: Any) -> list[str]:
    """What a person is told whose scheduler has other lengths than the one in a file, which hold.

    Args:
        name: what the messages call it.
        saved: its state in the file.
    """
    own = vars(scheduler)
    return [f"{name} ({type(scheduler).__name__}) goes on with {key} = {saved[key]!r} of the file, not with {own[key]!r}. "
            f"To change it, set it after load_state(): trainer.{name}.{key} = …" for key in _LENGTHS
            if key in own and key in saved and own[key] != saved[key]]


def is_at_end(scheduler: Any) -> bool:
    """Whether torch would refuse, or make nonsense of, one step more: the last rate stays."""
    return isinstance(scheduler, OneCycleLR) and scheduler.last_epoch >= scheduler.total_steps - 1


# --- who steps it -----------------------------------------------------------------------------------------------------


class Watched:
    """A scheduler that we step, until somebody else's step of it is seen: from then on it is left to them.

    Our own step may have come before their first one (``train_loop`` ends with it, and ``scheduler.step()`` stands behind
    it). Such a step is taken back.

    Args:
        scheduler: anything with ``step()``; one without ``last_epoch`` cannot be watched.
        name: what the message calls it.
    """

    def __init__(self, scheduler: Any, name: str):
        self.scheduler = scheduler
        self.name = name
        self.is_theirs = False
        self._count: int | None = None  # of its steps, as we left it; None: the training has not begun
        self._num_ours = 0              # steps that we took since
        self._before: Any = None        # the state before our step, while that is the only one
        self._is_endless = not isinstance(scheduler, OneCycleLR) and hasattr(scheduler, "last_epoch")

    def begin(self) -> None:
        """The training begins or goes on. What was done to the scheduler before is no stepping: it was loaded, or wound
        forward."""
        if self._count is None:
            self._count = _count(self.scheduler)

    def forget(self) -> None:
        """A state is loaded: watching begins anew."""
        self._count, self._num_ours, self._before = None, 0, None

    def look(self) -> None:
        """Leave the scheduler to its owner if it moved without us."""
        if self._count is None or self.is_theirs:
            return
        moved = _count(self.scheduler) - self._count
        if moved > 0:
            self._leave(moved)
        elif moved:  # somebody loaded a state of it
            self.forget()

    def step(self, *value: float) -> None:
        """
        Args:
            value: what a plateau schedule looks at; nothing for all others.
        """
        if self._num_ours > 1 and self._is_endless and self.scheduler.last_epoch == self._count:  # as a rule
            self.scheduler.step(*value)
            self._count = self.scheduler.last_epoch
            return
        self.look()
        if self.is_theirs:
            return
        if self._count is None:
            step_quietly(self.scheduler, *value)
            return
        self._before = Moment(self.scheduler) if self._num_ours == 0 else None
        self._num_ours += 1
        step_quietly(self.scheduler, *value)
        self._count = _count(self.scheduler)

    def _leave(self, moved):
        self.is_theirs, self._num_ours = True, 0
        if self._before is not None and moved == int(moved):  # a place that they named is theirs already
            seen = getattr(self.scheduler, "best", None)
            self._before.come_back()
            for _ in range(int(moved)):
                step_quietly(self.scheduler, *([seen] if isinstance(self.scheduler, ReduceLROnPlateau) else []))
        print(f"{self.name} ({type(self.scheduler).__name__}) is stepped by your own code, so it is left to that from here "
              "on: stepped here as well, it would go twice as fast. Remove one of the two: that step(), or the scheduler "
              "from the list.")


class Moment:
    """The state of a scheduler, and what it has set in its optimizer."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.groups = scheduler.optimizer.param_groups if hasattr(scheduler, "optimizer") else []
        self.state = _copied(scheduler.state_dict()) if hasattr(scheduler, "state_dict") else None
        self.values = [{name: _copied(group[name]) for name in _SET_BY_SCHEDULERS if name in group} for group in self.groups]

    def come_back(self):
        if self.state is not None:
            self.scheduler.load_state_dict(self.state)
        for group, values in zip(self.groups, self.values):
            group.update({name: value for name, value in values.items() if name != "lr"})
            set_rate(group, values["lr"])


def step_quietly(scheduler: Any, *value: Any) -> None:
    """torch warns where no step of the optimizer came before the first of its scheduler; fp16 may have skipped that one, or
    a ``train_step`` left this optimizer out."""
    if is_at_end(scheduler):
        return
    if getattr(scheduler, "last_epoch", 1) > 0:
        scheduler.step(*value)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        scheduler.step(*value)


def _count(scheduler):
    """How often it was stepped; always 0 for one that does not tell. Of ``step(epoch + i / n)`` ``last_epoch`` keeps only
    the whole epochs."""
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        return scheduler.last_epoch + scheduler.T_cur % 1
    parts = getattr(scheduler, "_schedulers", None)
    return getattr(scheduler, "last_epoch", None) or (_count(parts[0]) if parts else 0)


def _copied(value):
    """Of what a state holds and a step changes."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if type(value) is list else value
