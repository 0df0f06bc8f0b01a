"""Learning rates over a run: warm-up and the named schedules. When each one steps stands in ``schedule.py``.

    trainer.lr_scheduler_type = "cosine"                  # one of SCHEDULES
    trainer.lr_scheduler_args = {"final_ratio": 0.01}     # ends at 1% of the optimizer's rate
    trainer.warm_up_epoch = 0.5                           # half an epoch, update by update

The schedule starts when the warm-up is over: its first rate is the optimizer's own. Rates are set *before* the update
they belong to, so the first update already runs at the warmed-up rate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR

WARM_UP_MODES = ("linear", "exponential", "constant")
INTERVALS = ("epoch", "update")


class WarmUpLR(LRScheduler):
    """Raise every group's rate from ``init_lr`` to its own over ``total_epoch`` steps.

    With k steps taken and base rate b: linear ``init + (b - init) k / total``, exponential ``init (b / init)^(k / total)``,
    constant ``init``; from ``k = total`` on exactly b.

    Args:
        optimizer: the optimizer whose rates are the goal.
        total_epoch: number of steps, epochs or updates, whichever the caller counts.
        init_lr: rate of the first step, smaller than every group's rate.
        mode: "linear", "exponential" or "constant".
        last_epoch: index of the last step taken, -1 for none.
        verbose: accepted because the 2021 signature has it; has no effect.
        init_momentum: momentum (or Adam's first beta) of the first step, brought linearly to each group's own; None
            leaves momentum alone.
        init_bias_lr: rate of the first step for the groups that are marked ``{"params": …, "name": "bias"}`` or
            "head/bias", brought linearly to their own; it may lie above it. None treats them as all others.

    Raises:
        ValueError: unknown mode, ``init_lr`` not below a group's rate, ``init_bias_lr`` without a group named "bias", or
            ``init_momentum`` for an optimizer that has none.

    Source: momentum and bias warm-up as in the YOLOv5 training script (Ultralytics, 2020).
    """

    def __init__(self, optimizer: Optimizer, total_epoch: int, init_lr: float = 1e-6, mode: str = "linear",
                 last_epoch: int = -1, verbose: bool = False, init_momentum: float | None = None,
                 init_bias_lr: float | None = None) -> None:
        if mode not in WARM_UP_MODES:
            raise ValueError(f"Warm-up mode must be one of {list(WARM_UP_MODES)}, got {mode!r}.")
        for group in optimizer.param_groups:
            base_lr = group.get("initial_lr", group["lr"])
            if not 0 < init_lr < base_lr:
                raise ValueError(
                    f"Warm-up raises the rate, so init_lr must lie in (0, {base_lr:g}), the group's rate; got {init_lr:g}. "
                    "Lower init_lr or raise the optimizer's lr."
                )
        self.total_epoch = total_epoch
        self.init_lr = init_lr
        self.mode = mode
        self.init_momentum = init_momentum
        self.init_bias_lr = init_bias_lr
        self.base_momenta = [momentum_of(group) for group in optimizer.param_groups]
        if init_bias_lr is not None and not has_bias_group(optimizer):
            raise ValueError(
                f"warm_up_bias_lr={init_bias_lr:g} needs parameter groups named 'bias'; this optimizer has none. "
                'Give the optimizer groups like {"params": biases, "name": "bias"}, or leave warm_up_bias_lr at None.'
            )
        if init_momentum is not None and not all("momentum" in g or "betas" in g for g in optimizer.param_groups):
            raise ValueError(
                f"warm_up_momentum={init_momentum:g} needs an optimizer with momentum or betas; "
                f"{type(optimizer).__name__} has neither. Leave warm_up_momentum at None."
            )
        super().__init__(optimizer, last_epoch)

    @property
    def finished(self) -> bool:
        return self.last_epoch >= self.total_epoch

    def get_lr(self) -> list[Any]:
        self._set_momentum()
        return [self._rate(base, group) for base, group in zip(self.base_lrs, self.optimizer.param_groups)]

    def _rate(self, base, group):
        if self.finished:
            return base
        share = self.last_epoch / self.total_epoch
        if self.init_bias_lr is not None and _is_of_biases(group):
            return self.init_bias_lr + (base - self.init_bias_lr) * share
        if self.mode == "constant":
            return self.init_lr
        if self.mode == "linear":
            return self.init_lr + (base - self.init_lr) * share
        return self.init_lr * (base / self.init_lr) ** share

    def _set_momentum(self):
        if self.init_momentum is None:
            return
        share = min(self.last_epoch / self.total_epoch, 1.0)
        for group, base in zip(self.optimizer.param_groups, self.base_momenta):
            value = base if self.finished else self.init_momentum + (base - self.init_momentum) * share
            if "momentum" in group:
                group["momentum"] = value
            elif "betas" in group:
                group["betas"] = (value, *group["betas"][1:])


def has_bias_group(optimizer: Optimizer) -> bool:
    """Whether a group of it is named "bias", or "head/bias"."""
    return any(map(_is_of_biases, optimizer.param_groups))


def _is_of_biases(group):
    return str(group.get("name")).rpartition("/")[2] == "bias"


def momentum_of(group: dict[str, Any]) -> float:
    """The momentum of a parameter group, or Adam's first beta; 0 where it has neither."""
    return group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0]


def set_rate(group: dict[str, Any], rate: Any) -> None:
    """Set the rate of a parameter group; one that is a tensor stays that tensor, which compiled steps and graphs hold."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def give_each_group_its_own_rate(optimizer: Optimizer) -> None:
    """torch hands one tensor to all groups that take the optimizer's rate; a rate set for one would be the others' too."""
    seen = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor) and id(group["lr"]) in seen:
            group["lr"] = group["lr"].clone()
        seen.add(id(group["lr"]))


# --- the named schedules: factor of the base rate at share s in [0, 1] of the run -----------------------------------


def _cosine(s, final_ratio=0.0):
    return final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * s)) / 2


def _linear(s, final_ratio=0.0):
    return 1 + (final_ratio - 1) * s


def _exponential(s, final_ratio=0.01, decay=None):
    """By the same factor at each step; or with ``decay``, in (0, 1), what is left of the way to the final rate is that share
    of it at the end, and the curve is stretched to reach it."""
    return final_ratio**s if decay is None else final_ratio + (1 - final_ratio) * (decay**s - decay) / (1 - decay)


def _polynomial(s, final_ratio=0.0, power=2.0):
    return final_ratio + (1 - final_ratio) * (1 - s) ** power


def _onecycle(s, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
    """Up from 1/div_factor to 1, then down to 1/(div_factor final_div_factor), both along a cosine.

    Source: Smith and Topin, "Super-Convergence", 2018; arguments as in ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    low, final = 1 / div_factor, 1 / (div_factor * final_div_factor)
    if s < pct_start:
        return low + (1 - low) * (1 - math.cos(math.pi * s / pct_start)) / 2
    return _cosine((s - pct_start) / (1 - pct_start), final)


FACTORS = {
    "cosine": _cosine,
    "linear": _linear,
    "exponential": _exponential,
    "polynomial": _polynomial,
    "onecycle": _onecycle,
}
SCHEDULES = ("metric", "loss", "step", "annealing", *FACTORS)


class NamedSchedule(LRScheduler):
    """base rate x factor(share of the run that is done), a closed form: any step can be asked for or restored on its own.

    Args:
        optimizer: the optimizer whose present rates are the base.
        name: "cosine", "linear", "exponential", "polynomial" or "onecycle".
        total: number of steps of the run after the warm-up; 0 while it is not known yet.
        **args: ``final_ratio`` (last rate / base rate; for onecycle ``pct_start``, ``div_factor``,
            ``final_div_factor``) and ``power`` (polynomial).
    """

    def __init__(self, optimizer, name, total=0, **args):
        self.name = name
        self.total = total       # the step at which the run ends
        self.since = 0           # the step from which on it is planned to end there
        self.share_since = 0.0   # of the run that was done by then
        self.earlier = None      # [since, share_since, total] of the plan that this one replaced at step ``since``
        self.args = args
        super().__init__(optimizer)

    def get_lr(self):
        factor = FACTORS[self.name](self.share(), **self.args)
        return [base * factor for base in self.base_lrs]

    def share(self):
        """How much of the run is done, in [0, 1]."""
        if not self.total:
            return 0.0
        if self.last_epoch >= self.total:
            return 1.0
        return self.share_since + (1 - self.share_since) * (self.last_epoch - self.since) / (self.total - self.since)

    def follow(self, total):
        """The run ends at step ``total``, and the schedule is that of such a run from its first step on."""
        self.since, self.share_since, self.earlier, self.total = 0, 0.0, None, total

    def end_at(self, total):
        """The run ends at step ``total``: from the present rate on the schedule goes there faster or slower.

        Of several changes between two steps only the last one counts.
        """
        is_again = self.earlier is not None and self.since == self.last_epoch
        before = self.earlier if is_again else [self.since, self.share_since, self.total]
        self.since, self.share_since, self.total = before
        self.earlier = None
        share = self.share()
        if share >= 1.0:  # it was at its end, too early
            self.follow(total)
        elif total != self.total:
            self.since, self.share_since, self.earlier, self.total = self.last_epoch, share, list(before), total

    def load_state_dict(self, state_dict):
        super().load_state_dict({"since": 0, "share_since": 0.0, "earlier": None, **state_dict})


def build_scheduler(optimizer, kind, args, key_metric_mode="max"):
    """One scheduler of the given type; the first four are what the 2021 template built, with its defaults.

    Raises:
        ValueError: unknown type, or arguments that give no usable rates.
        TypeError: an argument the type does not take.
    """
    if kind in FACTORS:
        _check_factors(kind, args)
        return NamedSchedule(optimizer, kind, **args)
    if kind in ("metric", "loss"):
        mode = key_metric_mode if kind == "metric" else "min"
        return ReduceLROnPlateau(optimizer, **{"mode": mode, "factor": 0.1, "patience": 5, "cooldown": 5,
                                               "min_lr": 1e-9, **args})
    if kind == "step":
        return StepLR(optimizer, **{"step_size": 15, "gamma": 0.1, **args})
    if kind == "annealing":
        return CosineAnnealingLR(optimizer, **{"T_max": 15, "eta_min": 0.0, **args})
    raise ValueError(f"lr_scheduler_type must be None or one of {list(SCHEDULES)}, got {kind!r}.")


def _check_factors(kind, args):
    """Find at the start what would otherwise stop a run, or its learning, at the end."""
    try:
        factors = [FACTORS[kind](share, **args) for share in (0.0, 0.5, 1.0)]
    except TypeError as error:
        raise TypeError(f"lr_scheduler_args={args!r} does not suit lr_scheduler_type={kind!r}: {error}") from None
    except ArithmeticError as error:
        factors = [error]
    usable = all(isinstance(factor, (int, float)) and 0 <= factor < math.inf for factor in factors)
    if not usable or factors[1] == 0:
        raise ValueError(
            f"lr_scheduler_args={args!r} gives lr_scheduler_type={kind!r} no usable rates: at the start, half-way and at "
            f"the end they are {factors} times the optimizer's. They must be finite, never negative, and not 0 half-way."
        )


# --- rates to show ----------------------------------------------------------------------------------------------------

_MOST_SHOWN = 3  # rates in a line


def rates_by_name(optimizers) -> dict[str, float]:
    """The present rate of every parameter group: ``{"backbone": 1e-5, "head": 1e-3}``.

    A group is called by its entry "name". Without one it is the number of its optimizer, "0", or where that has several
    groups "0.0", "0.1", ….
    """
    found: dict[str, float] = {}
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            number = str(i) if len(optimizer.param_groups) == 1 else f"{i}.{j}"
            name = str(group.get("name", number))
            found[name if name not in found else f"{number}.{name}"] = float(group["lr"])  # a tensor would change
    return found


def rates_line(optimizers) -> str:
    """The rates in a line: "1.00e-03", "backbone 1.00e-05 head 1.00e-03", or the lowest and the highest of many."""
    rates = rates_by_name(optimizers)
    different = sorted(set(rates.values()))
    if len(different) == 1:
        return f"{different[0]:.2e}"
    if len(rates) > _MOST_SHOWN:
        return f"{different[0]:.2e} to {different[-1]:.2e}"
    return " ".join(f"{rate:.2e}" if name[0].isdigit() else f"{name} {rate:.2e}" for name, rate in rates.items())
