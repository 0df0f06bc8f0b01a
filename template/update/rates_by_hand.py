"""What a rate that is set by hand does to the schedules of its optimizer: ``trainer.change_lr([0.01])``.

    goals = peaks_ahead(scheduler)       # of a one-cycle that still rises, one for each group; else []
    scale_rates(scheduler, [0.1, 0.1])   # from now on a tenth of what it would have been
"""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import OneCycleLR

from .lr_scheduler import NamedSchedule

RATES = ("base_lrs", "max_lrs", "base_values")            # one for each group, in lists of the scheduler
RATES_OF_GROUP = ("initial_lr", "max_lr", "min_lr")       # and in the groups, from where OneCycleLR takes them


def peaks_ahead(scheduler: Any) -> list[float]:
    """The rates that a one-cycle, ours or torch's, rises to in each group. Empty where it falls, or is another schedule."""
    if isinstance(scheduler, NamedSchedule):
        rises = scheduler.name == "onecycle" and scheduler.share() < scheduler.args.get("pct_start", 0.3)
        return [float(rate) for rate in scheduler.base_lrs] if rises else []
    if isinstance(scheduler, OneCycleLR) and scheduler.last_epoch < scheduler._schedule_phases[0]["end_step"]:
        return [float(group["max_lr"]) for group in scheduler.optimizer.param_groups]
    return []


def scale_rates(scheduler: Any, ratios: list[float]) -> None:
    """Later rates of each group are multiplied by its ratio, also those of schedulers within a chain or a sequence."""
    for part in getattr(scheduler, "_schedulers", ()):
        scale_rates(part, ratios)
    for name in RATES:
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list):
            setattr(scheduler, name, [rate * ratio for rate, ratio in zip(rates, ratios)])
    if isinstance(scheduler, OneCycleLR):
        for group, ratio in zip(scheduler.optimizer.param_groups, ratios):
            group.update({name: group[name] * ratio for name in RATES_OF_GROUP})
