"""Parameter groups that join an optimizer while its learning rates are scheduled already.

    optimizer.add_param_group({"params": body.parameters(), "lr": 1e-4})   # in epoch 3 of a cosine
    take_in(optimizer, known=1, schedules=[cosine])                        # before the next step of the schedule

A new group starts at the rate that it was given, and from there on it moves in proportion with the groups that were there,
down to the same end. While rates still rise (a warm-up, the first part of a one-cycle), the given rate is the one that it
rises to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from .lr_scheduler import WarmUpLR, give_each_group_its_own_rate, momentum_of, set_rate
from .rates_by_hand import RATES, RATES_OF_GROUP
from .user_schedulers import Moment, step_quietly

# what schedulers keep of each group: in lists of their own, and in the groups of the optimizer
_RATES = (*RATES, "warmup_steps", "_last_lr")
_OTHERS = ("lr_lambdas", "min_lrs", "base_momentums", "max_momentums")
_OTHERS_OF_GROUP = ("base_momentum", "max_momentum")


def take_in(optimizer: torch.optim.Optimizer, known: int, schedules: list[Any], warm_up: WarmUpLR | None = None) -> None:
    """Have the schedules of an optimizer take in the groups behind the first ``known`` ones.

    Args:
        schedules: that step this optimizer, at least one of them or ``warm_up``. A warm-up among them is over.
        warm_up: the one that raises its rates now; the schedules wait for its end.
    """
    groups = optimizer.param_groups
    give_each_group_its_own_rate(optimizer)
    model = next((i for i in range(known) if float(groups[i]["lr"])), 0)  # the group that the new ones move with
    rate = float(groups[model]["lr"])
    is_rising = warm_up is not None or any(_is_rising(one, optimizer, known, model) for one in schedules)
    followed = warm_up or schedules[0]
    for index in range(known, len(groups)):
        own = float(groups[index]["lr"])
        ratio = own / ((0.0 if is_rising else rate) or _goal(followed, groups[model], model) or own or 1.0)
        for name in RATES_OF_GROUP:
            if name in groups[model]:
                groups[index].setdefault(name, float(groups[model][name]) * ratio)
        for name in _OTHERS_OF_GROUP:
            if name in groups[model]:
                groups[index].setdefault(name, groups[model][name])
        for one in (*schedules, *([] if warm_up is None else [warm_up])):
            _extend(one, index, model, ratio, groups[index])
        if warm_up is not None:
            set_rate(groups[index], warm_up.get_lr()[index])
        elif is_rising:
            set_rate(groups[index], rate * ratio)


def _extend(scheduler, known, model, ratio, group):
    """The lists of ``scheduler`` that have an entry of each of ``known`` groups get one more."""
    for part in getattr(scheduler, "_schedulers", ()):
        _extend(part, known, model, ratio, group)
    for name in (*_RATES, *_OTHERS):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == known:
            setattr(scheduler, name, [*values, values[model] * ratio if name in _RATES else values[model]])
    if isinstance(scheduler, WarmUpLR) and len(scheduler.base_momenta) == known:
        scheduler.base_momenta = [*scheduler.base_momenta, momentum_of(group)]


def _goal(scheduler, group, index):
    """The rate that a schedule which rises leads a group to."""
    if isinstance(scheduler, OneCycleLR):
        return float(group["max_lr"])
    rates = getattr(scheduler, "max_lrs", None) or getattr(scheduler, "base_lrs", None) or getattr(
        scheduler, "base_values", None)
    return float(rates[index] if rates else group.get("initial_lr", group["lr"]))


def _is_rising(scheduler, optimizer, known, model):
    """Whether the next step raises the rate: it is taken, looked at, and taken back."""
    if isinstance(scheduler, (ReduceLROnPlateau, WarmUpLR)) or not hasattr(scheduler, "last_epoch"):
        return False
    groups = optimizer.param_groups
    new = groups[known:]
    del groups[known:]  # of which the scheduler knows nothing yet
    moment, before = Moment(scheduler), float(groups[model]["lr"])
    try:
        step_quietly(scheduler)
        return float(groups[model]["lr"]) > before
    finally:
        moment.come_back()
        groups.extend(new)
