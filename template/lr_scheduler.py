"""Learning rates over a run: warm-up, the named schedules, and when each one steps.

    trainer.lr_scheduler_type = "cosine"                  # one of SCHEDULES
    trainer.lr_scheduler_args = {"final_ratio": 0.01}     # ends at 1% of the optimizer's rate
    trainer.warm_up_epoch = 0.5                           # half an epoch, update by update

The schedule starts when the warm-up is over: its first rate is the optimizer's own. Rates are set *before* the update
they belong to, so the first update already runs at the warmed-up rate.
"""

import math
import warnings

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
        init_bias_lr: rate of the first step for the groups that are marked ``{"params": …, "name": "bias"}``, brought
            linearly to their own; it may lie above it. None treats them as all others.

    Raises:
        ValueError: unknown mode, ``init_lr`` not below a group's rate, ``init_bias_lr`` without a group named "bias", or
            ``init_momentum`` for an optimizer that has none.

    Source: momentum and bias warm-up as in the YOLOv5 training script (Ultralytics, 2020).
    """

    def __init__(self, optimizer, total_epoch, init_lr=1e-6, mode="linear", last_epoch=-1, verbose=False,
                 init_momentum=None, init_bias_lr=None):
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
        self.base_momenta = [_momentum(group) for group in optimizer.param_groups]
        if init_bias_lr is not None and not any(group.get("name") == "bias" for group in optimizer.param_groups):
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
    def finished(self):
        return self.last_epoch >= self.total_epoch

    def get_lr(self):
        self._set_momentum()
        return [self._rate(base, group) for base, group in zip(self.base_lrs, self.optimizer.param_groups)]

    def _rate(self, base, group):
        if self.finished:
            return base
        share = self.last_epoch / self.total_epoch
        if self.init_bias_lr is not None and group.get("name") == "bias":
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


def _momentum(group):
    return group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0]


# --- the named schedules: factor of the base rate at share s in [0, 1] of the run -----------------------------------


def _cosine(s, final_ratio=0.0):
    return final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * s)) / 2


def _linear(s, final_ratio=0.0):
    return 1 + (final_ratio - 1) * s


def _exponential(s, final_ratio=0.01):
    return final_ratio**s


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


_FACTORS = {
    "cosine": _cosine,
    "linear": _linear,
    "exponential": _exponential,
    "polynomial": _polynomial,
    "onecycle": _onecycle,
}
SCHEDULES = ("metric", "loss", "step", "annealing", *_FACTORS)


class NamedSchedule(LRScheduler):
    """base rate x factor(steps taken / total), a closed form: any step can be asked for or restored on its own.

    Args:
        optimizer: the optimizer whose present rates are the base.
        name: "cosine", "linear", "exponential", "polynomial" or "onecycle".
        total: number of steps of the run after the warm-up; 0 while it is not known yet.
        **args: ``final_ratio`` (last rate / base rate; for onecycle ``pct_start``, ``div_factor``,
            ``final_div_factor``) and ``power`` (polynomial).
    """

    def __init__(self, optimizer, name, total=0, **args):
        self.name = name
        self.total = total
        self.args = args
        super().__init__(optimizer)

    def get_lr(self):
        share = min(self.last_epoch / self.total, 1.0) if self.total else 0.0
        factor = _FACTORS[self.name](share, **self.args)
        return [base * factor for base in self.base_lrs]

    def load_state_dict(self, state_dict):
        """A length that is known already stays: a resumed run may be longer than it was planned."""
        super().load_state_dict({**state_dict, "total": self.total or state_dict.get("total", 0)})


def build_scheduler(optimizer, kind, args, key_metric_mode="max"):
    """One scheduler of the given type; the first four are what the 2021 template built, with its defaults.

    Raises:
        ValueError: unknown type, or arguments that give no usable rates.
        TypeError: an argument the type does not take.
    """
    if kind in _FACTORS:
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
        factors = [_FACTORS[kind](share, **args) for share in (0.0, 0.5, 1.0)]
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


def build_schedule(model, updates_per_epoch):
    """The ``Schedule`` that a ``TemplateModel``'s attributes ask for; fills its two scheduler lists where they are None."""
    interval = model.lr_scheduler_interval or ("update" if model.lr_scheduler_type in _FACTORS else "epoch")
    watched = model.lr_scheduler_type if model.lr_scheduler_list is None else None
    if model.lr_scheduler_list is None:
        mode = model.better_when(model.key_metric)
        model.lr_scheduler_list = [build_scheduler(optimizer, model.lr_scheduler_type, model.lr_scheduler_args, mode)
                                   for optimizer in model.optimizer_list if model.lr_scheduler_type is not None]
    steps, warm_up_interval = _warm_up_length(model, interval, updates_per_epoch)
    if model.warm_up_scheduler_list is None:
        model.warm_up_scheduler_list = [
            WarmUpLR(optimizer, steps, model.warm_up_init_lr, model.warm_up_mode,
                     init_momentum=model.warm_up_momentum, init_bias_lr=model.warm_up_bias_lr)
            for optimizer in model.optimizer_list if steps
        ]
    schedule = Schedule(model.lr_scheduler_list, model.warm_up_scheduler_list, interval, warm_up_interval, watched)
    if model.total_epochs is not None:
        schedule.set_total(model.total_epochs, updates_per_epoch)
    return schedule


def _warm_up_length(model, interval, updates_per_epoch):
    """``(steps, their interval)``: whole epochs under a schedule per epoch, as in 2021; updates in all other cases."""
    if model.warm_up_updates is not None:
        return model.warm_up_updates, "update"
    if not model.warm_up_epoch:
        return 0, interval
    if interval == "epoch" and model.warm_up_epoch == int(model.warm_up_epoch):
        return int(model.warm_up_epoch), "epoch"
    if updates_per_epoch is None:
        raise ValueError(
            f"warm_up_epoch={model.warm_up_epoch} in updates needs the number of updates of an epoch, and this train_loader "
            "has no len(). Set warm_up_updates instead."
        )
    return max(1, round(model.warm_up_epoch * updates_per_epoch)), "update"


class Schedule:
    """Steps warm-up and schedulers at their moments; each moment counts once, however often it is announced.

    Args:
        schedulers: one scheduler per optimizer, or an empty list.
        warm_ups: one ``WarmUpLR`` per optimizer, or an empty list.
        interval: when the schedulers step, "epoch" or "update".
        warm_up_interval: the same for the warm-up.
        watched: "metric" when plateau schedules follow the key metric; otherwise the loss where their mode is "min".
    """

    def __init__(self, schedulers=(), warm_ups=(), interval="epoch", warm_up_interval="epoch", watched=None):
        self.schedulers = list(schedulers)
        self.warm_ups = list(warm_ups)
        self.interval = interval
        self.warm_up_interval = warm_up_interval
        self.watched = watched
        self.last_epoch_stepped = 0
        self.warm_up_just_ended = False  # by the last update: its epoch is still the warm-up's, not the schedule's
        self.steps_per_update = bool(self.schedulers and interval == "update"
                                     or self.warm_ups and warm_up_interval == "update")

    @property
    def warming_up(self):
        return any(not warm_up.finished for warm_up in self.warm_ups)

    def set_total(self, total_epochs, updates_per_epoch):
        """Tell the named schedules how long the run is, the warm-up taken off.

        Args:
            total_epochs: epochs of the whole run, counted from its very first.
            updates_per_epoch: optimizer updates per epoch; None when the loader has no length.

        Raises:
            ValueError: a length is needed and not known.
        """
        named = [scheduler for scheduler in self.schedulers if isinstance(scheduler, NamedSchedule)]
        if not named:
            return
        mixed = bool(self.warm_ups) and self.interval != self.warm_up_interval
        if updates_per_epoch is None and (self.interval == "update" or mixed):
            raise ValueError(
                f"lr_scheduler_type={named[0].name!r} per update needs the number of updates of an epoch, and this "
                "train_loader has no len(). Set lr_scheduler_interval='epoch', or give the loader a __len__."
            )
        scale = {"epoch": 1, "update": updates_per_epoch}
        total = total_epochs * scale[self.interval]
        if self.warm_ups:
            total -= math.floor(self.warm_ups[0].total_epoch * scale[self.interval] / scale[self.warm_up_interval])
        for scheduler in named:
            changed = scheduler.total not in (0, max(total, 1))
            scheduler.total = max(total, 1)
            if changed and not self.warming_up:  # the end of the shorter run left the rate too low
                for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr()):
                    group["lr"] = rate

    def require_total(self):
        for scheduler in self.schedulers:
            if isinstance(scheduler, NamedSchedule) and not scheduler.total:
                raise ValueError(
                    f"lr_scheduler_type={scheduler.name!r} needs the length of the run and does not know it. Loop with "
                    "`for epoch in trainer.epochs(n)` or set total_epochs in __init__."
                )

    def after_update(self):
        """One optimizer update was done."""
        self.warm_up_just_ended = False
        if self.warming_up:
            if self.warm_up_interval == "update":
                self._step_all(self.warm_ups)
                self.warm_up_just_ended = not self.warming_up
        elif self.interval == "update":
            self._step_all(self.schedulers)

    def after_epoch(self, epoch, key_metric=None, loss=None):
        """Epoch number ``epoch`` was trained, and evaluated where ``key_metric`` or ``loss`` is given.

        A plateau schedule waits for the evaluation; asked a second time for one epoch, nothing happens.
        """
        if epoch <= self.last_epoch_stepped:
            return
        waits_for_result = any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in self.schedulers)
        has_result = key_metric is not None or loss is not None
        if self.warming_up:
            if self.warm_up_interval == "epoch":
                self.last_epoch_stepped = epoch
                self._step_all(self.warm_ups)
        elif self.warm_up_just_ended:
            self.last_epoch_stepped = epoch
        elif self.interval == "epoch" and self.schedulers and has_result >= waits_for_result:
            self.last_epoch_stepped = epoch
            for scheduler in self.schedulers:
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(self._plateau_value(scheduler, key_metric, loss))
                else:
                    _step(scheduler)

    def _plateau_value(self, scheduler, key_metric, loss):
        """A "max" plateau can only mean the key metric; a "min" one means the loss where there is one."""
        value = loss if scheduler.mode == "min" and self.watched != "metric" and loss is not None else key_metric
        if value is None:
            raise ValueError(
                "ReduceLROnPlateau needs a value: call update_lr_scheduler(key_metric=…) or (avg_batch_loss=…), or leave "
                "it to eval()."
            )
        return value

    @staticmethod
    def _step_all(schedulers):
        for scheduler in schedulers:
            _step(scheduler)

    def state_dict(self):
        return {
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "warm_ups": [warm_up.state_dict() for warm_up in self.warm_ups],
            "last_epoch_stepped": self.last_epoch_stepped,
            "warm_up_just_ended": self.warm_up_just_ended,
        }

    def load_state_dict(self, state):
        for own, saved in ((self.schedulers, state["schedulers"]), (self.warm_ups, state["warm_ups"])):
            for scheduler, scheduler_state in zip(own, saved):
                scheduler.load_state_dict(scheduler_state)
        self.last_epoch_stepped = state["last_epoch_stepped"]
        self.warm_up_just_ended = state["warm_up_just_ended"]

    def fast_forward(self, epochs, updates):
        """Take the steps of ``epochs`` epochs and ``updates`` updates at once, for a checkpoint that kept no schedule.

        Plateau schedules start afresh: what they saw is not known.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: "lr_scheduler.step() before optimizer.step()"
            for _ in range(updates if self.steps_per_update else 0):
                self.after_update()
            for epoch in range(1, epochs + 1):
                self.after_epoch(epoch)

    def rescale(self, index, ratios):
        """Optimizer ``index`` had each group's rate multiplied by ``ratios``: later rates keep that ratio.

        During a warm-up the new rates become its goal: in proportion to 1e-6 they would end thousands of times too high.
        """
        warm_up = self.warm_ups[index] if index < len(self.warm_ups) else None
        warming_up = warm_up is not None and not warm_up.finished
        if warming_up:
            ratios = [group["lr"] / base for group, base in zip(warm_up.optimizer.param_groups, warm_up.base_lrs)]
        for schedulers in (self.schedulers, self.warm_ups):
            if index < len(schedulers) and hasattr(schedulers[index], "base_lrs"):
                scheduler = schedulers[index]
                scheduler.base_lrs = [base * ratio for base, ratio in zip(scheduler.base_lrs, ratios)]
        if warming_up:
            for group, rate in zip(warm_up.optimizer.param_groups, warm_up.get_lr()):
                group["lr"] = rate


def _step(scheduler):
    """torch warns where no step of the optimizer came before the first of its scheduler; fp16 may have skipped that one, or
    a ``train_step`` left this optimizer out."""
    if getattr(scheduler, "last_epoch", 1) > 0:
        scheduler.step()
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        scheduler.step()
