"""When learning rates change: warm-up first, then the schedule, per epoch or per update, each moment once.

    schedule = build_schedule(model, updates_per_epoch, "max")   # from a TemplateModel's attributes
    schedule.after_update()                                      # after each update
    schedule.after_epoch(3, key_metric=0.9, loss=0.3)            # after each epoch, a second time when it was evaluated
"""

import math
import warnings

from torch.optim.lr_scheduler import ReduceLROnPlateau

from .lr_scheduler import FACTORS, NamedSchedule, WarmUpLR, build_scheduler


def build_schedule(model, updates_per_epoch, key_mode):
    """The ``Schedule`` that a ``TemplateModel``'s attributes ask for; fills its two scheduler lists where they are None.

    Args:
        updates_per_epoch: None when the loader has no length.
        key_mode: whether more ("max") or less ("min") of ``key_metric`` is better.
    """
    interval = model.lr_scheduler_interval or ("update" if model.lr_scheduler_type in FACTORS else "epoch")
    watched = model.lr_scheduler_type if model.lr_scheduler_list is None else None
    if model.lr_scheduler_list is None:
        model.lr_scheduler_list = [build_scheduler(optimizer, model.lr_scheduler_type, model.lr_scheduler_args, key_mode)
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
        if not self.steps_per_update:
            return
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
