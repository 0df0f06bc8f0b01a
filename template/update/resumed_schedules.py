"""What a person is told whose schedules are others than those in the file that a run goes on from.

    lines = differences(schedule, state["schedule"])     # before the state is loaded

Where both have a schedule, that of the file holds, with its lengths: a run goes on as it began. What can be changed is
changed after ``load_state``, and the line says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .lr_scheduler import NamedSchedule
from .user_schedulers import other_lengths

if TYPE_CHECKING:
    from .schedule import Schedule


def kind_of(scheduler: Any) -> str:
    """What a checkpoint calls it: "cosine", or the name of its class."""
    return scheduler.name if isinstance(scheduler, NamedSchedule) else type(scheduler).__name__


def differences(schedule: Schedule, state: dict[str, Any]) -> list[str]:
    """Messages about what is another one in ``state``, as ``Schedule.state_dict`` gave it."""
    saved = state["schedulers"]
    kinds = state.get("kinds") or [None if one is None else one.get("name") for one in saved]  # older files: named ones
    lines = [line for i, (own, old, kind) in enumerate(zip(schedule.schedulers, saved, kinds))
             for line in _of_one(f"lr_scheduler_list[{i}]", own, old or {}, kind)]
    lines += [f"lr_scheduler_list[{i}] ({kind_of(schedule.schedulers[i])}) begins with its first step: the file holds no "
              "state of it" for i in range(len(saved), len(schedule.schedulers))]
    lines += [f"the state of lr_scheduler_list[{i}] ({kinds[i] or 'a scheduler'}) is not used: there is none now, and the "
              "rate stays where it was in the file" for i in range(len(schedule.schedulers), len(saved))]
    return lines + _of_warm_ups(schedule.warm_ups, state["warm_ups"])


def _of_one(what, own, old, kind):
    if kind is not None and kind != kind_of(own):
        if isinstance(own, NamedSchedule) and "share_since" in old:
            return [f"{what} goes on as {kind!r}, as in the file, not as {own.name!r}. To change it, set it after "
                    f"load_state(): trainer.{what}.name = {own.name!r}"]
        return [f"{what} was {kind} in the file and is {kind_of(own)} now: it goes on from the rate and the step of the "
                "file"]
    if isinstance(own, NamedSchedule) and old.get("args", own.args) != own.args:
        return [f"{what} goes on with lr_scheduler_args = {old['args']} of the file, not with {own.args}. To change it, set "
                f"it after load_state(): trainer.{what}.args = {own.args}"]
    return other_lengths(what, own, old) if hasattr(own, "__dict__") else []


def _of_warm_ups(own, saved):
    under_way = [one for one in saved if one["last_epoch"] < one["total_epoch"]]
    if own and not saved:
        return ["the warm-up is left out: it belongs to the beginning of a run, and the file has none"]
    if under_way and not own:
        return ["the file is in the midst of a warm-up, and there is none now: the rate stays where it was in the file "
                "until the schedule changes it"]
    if under_way and own[0].total_epoch != under_way[0]["total_epoch"]:
        return [f"the warm-up goes on over the {under_way[0]['total_epoch']} steps of the file, not over "
                f"{own[0].total_epoch}"]
    return []
