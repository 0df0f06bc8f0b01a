"""Which warm-up or schedule never does anything, because the run is shorter than it.

    for line in too_short(schedule, total_epochs=5, updates_per_epoch=100):
        print(line)
"""

from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau, StepLR


def too_short(schedule, total_epochs, updates_per_epoch, total_updates=None):
    """What a person is told of it.

    Args:
        schedule: a ``Schedule``.
        total_epochs: of the whole run; None: not known.
        updates_per_epoch: None where the loader has no length.
        total_updates: of the whole run, where these are counted.
    """
    if total_updates is None and updates_per_epoch is not None and total_epochs is not None:
        total_updates = total_epochs * updates_per_epoch
    steps_of_run = {"epoch": total_epochs, "update": total_updates}
    per, lines = schedule.warm_up_interval, []
    warm_up = max((one.total_epoch for one in schedule.warm_ups), default=0)
    if warm_up and steps_of_run[per]:
        lengths = f"The warm-up takes {warm_up} {per}s, and the run has {steps_of_run[per]}"
        if warm_up > steps_of_run[per]:
            lines.append(f"{lengths}: the learning rate that you set is never reached. Make the warm-up shorter.")
        elif warm_up == steps_of_run[per] and schedule.schedulers:
            lines.append(f"{lengths}, so the schedule after it never begins. Make the warm-up shorter.")
    if not lines:
        for scheduler, per in zip(schedule.schedulers, schedule.intervals):
            left = steps_of_run[per or "epoch"]
            if left and warm_up and per == schedule.warm_up_interval:
                left -= warm_up
            first = _first_fall(scheduler)
            if left and first is not None and first >= left:
                name = type(scheduler).__name__
                lines.append(f"{name} first lowers the learning rate after {first} {per or 'epoch'}s, and "
                             f"the run has {left} for it, so it never does. Make it sooner, or leave the schedule out.")
    return lines


def _first_fall(scheduler):
    """The number of steps behind which a scheduler changes the rate for the first time, at the earliest; None: at once."""
    if isinstance(scheduler, StepLR):
        return scheduler.step_size
    if isinstance(scheduler, MultiStepLR):
        return min(scheduler.milestones, default=None)
    if isinstance(scheduler, ReduceLROnPlateau):
        return scheduler.patience + 2  # the first value is the best so far
    return None
