"""When learning rates change: warm-up first, then the schedule, per epoch or per update, each moment once.

    schedule = build_schedule(model, updates_per_epoch, "max")   # from a TemplateModel's attributes
    schedule.begin_epoch(model)                                  # before an epoch's first update
    schedule.after_update()                                      # after each update
    schedule.after_epoch(3, key_metric=0.9, loss=0.3)            # after each epoch, a second time when it was evaluated
    schedule.replan(model)                                       # when the number of updates has changed

What the rates are stands in ``lr_scheduler.py``; what is known of schedulers that a person built, in ``user_schedulers.py``.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from ..data.nested import loader_length
from ..output.warn import warn
from .lr_scheduler import (
    FACTORS,
    NamedSchedule,
    WarmUpLR,
    build_scheduler,
    give_each_group_its_own_rate,
    has_bias_group,
    set_rate,
)
from .new_groups import take_in
from .nominal_batch import Accumulation, follow_warm_up, warm_up_updates
from .rates_by_hand import peaks_ahead, scale_rates
from .resumed_schedules import differences, kind_of
from .too_short import too_short
from .user_schedulers import Watched, counts_updates, length_of

if TYPE_CHECKING:
    from ..template import TemplateModel


def build_schedule(model: TemplateModel, updates_per_epoch: int | None, key_mode: str) -> Schedule:
    """The ``Schedule`` that a ``TemplateModel``'s attributes ask for; fills its two scheduler lists where they are None.

    Args:
        updates_per_epoch: None when the loader has no length.
        key_mode: whether more ("max") or less ("min") of ``key_metric`` is better.
    """
    for optimizer in model.optimizer_list:
        give_each_group_its_own_rate(optimizer)
    interval = model.lr_scheduler_interval or ("update" if model.lr_scheduler_type in FACTORS else "epoch")
    watched = model.lr_scheduler_type if model.lr_scheduler_list is None else None
    is_given = model.lr_scheduler_list is not None and model.lr_scheduler_interval is None
    if model.lr_scheduler_list is None:
        model.lr_scheduler_list = [build_scheduler(optimizer, model.lr_scheduler_type, model.lr_scheduler_args, key_mode)
                                   for optimizer in model.optimizer_list if model.lr_scheduler_type is not None]
    steps, warm_up_interval = _warm_up_length(model, interval, updates_per_epoch)
    if model.warm_up_scheduler_list is None:
        without = [] if not any(map(has_bias_group, model.optimizer_list)) else [
            optimizer for optimizer in model.optimizer_list if not has_bias_group(optimizer)]  # Muon's, beside AdamW's
        model.warm_up_scheduler_list = [
            WarmUpLR(optimizer, steps, model.warm_up_init_lr, model.warm_up_mode,
                     init_momentum=model.warm_up_momentum,
                     init_bias_lr=None if optimizer in without else model.warm_up_bias_lr)
            for optimizer in model.optimizer_list if steps
        ]
    schedule = Schedule(model.lr_scheduler_list, model.warm_up_scheduler_list, None if is_given else interval,
                        warm_up_interval, watched)
    if model.nominal_batch_size is not None:
        follow_warm_up(model, schedule)
    if model.eval_loader is None and not str(model.key_metric).startswith(("train/", "train_")):
        schedule.warn_without_evaluations()
    if model.total_epochs is not None or model.total_updates is not None:
        schedule.replan(model)
    return schedule


def _warm_up_length(model, interval, updates_per_epoch):
    """``(steps, their interval)``: whole epochs under a schedule per epoch, as in 2021; updates in all other cases."""
    if model.warm_up_updates is not None:
        return model.warm_up_updates, "update"
    if not model.warm_up_epoch:
        return 0, interval
    if interval == "epoch" and model.warm_up_epoch == int(model.warm_up_epoch) and model.nominal_batch_size is None:
        return int(model.warm_up_epoch), "epoch"
    if updates_per_epoch is None:
        raise ValueError(
            f"warm_up_epoch={model.warm_up_epoch} in updates needs the number of updates of an epoch, and this train_loader "
            "has no len(). Set warm_up_updates instead."
        )
    if model.nominal_batch_size is not None:
        return warm_up_updates(model, loader_length(model.train_batches)), "update"
    return max(1, round(model.warm_up_epoch * updates_per_epoch)), "update"


class Schedule:
    """Steps warm-up and schedulers at their moments; each moment counts once, however often it is announced.

    Args:
        schedulers: one scheduler per optimizer, or an empty list.
        warm_ups: one ``WarmUpLR`` per optimizer, or an empty list.
        interval: when the schedulers step, "epoch" or "update"; None: what suits each. Plateau schedules always step when an
            epoch is over: they look at its evaluation.
        warm_up_interval: the same for the warm-up.
        watched: "metric" when plateau schedules follow the key metric; otherwise the loss where their mode is "min".
    """

    def __init__(self, schedulers=(), warm_ups=(), interval: str | None = "epoch", warm_up_interval="epoch", watched=None):
        self.schedulers = list(schedulers)
        self.warm_ups = list(warm_ups)
        self.interval = interval
        self.warm_up_interval = warm_up_interval
        self.watched = watched
        self.intervals = [_interval_of(scheduler, interval) for scheduler in self.schedulers]  # None: not known yet
        self.accumulation: Accumulation | None = None  # of updates that take more and more batches; None: always as many
        self.planned: Any = None  # [total epochs or "… updates", updates per epoch] that the rates are planned for
        self.result: Any = None   # [epoch, key metric, loss] of the last evaluation before an epoch was over
        self.last_epoch_stepped = 0
        self.last_epoch_judged = 0       # by plateau schedules
        self.judged_within = 0           # the epoch that they judged in its middle, with eval_per_steps
        self.warm_up_just_ended = False  # by the last update: its epoch is still the warm-up's, not the schedule's
        self._named = [scheduler for scheduler in self.schedulers if isinstance(scheduler, NamedSchedule)]
        self._watched = [Watched(scheduler, f"lr_scheduler_list[{i}]") for i, scheduler in enumerate(self.schedulers)]
        self._watched_warm_ups = [Watched(one, f"warm_up_scheduler_list[{i}]") for i, one in enumerate(self.warm_ups)]
        self._told: set[str] = set()
        self._fitting: set[str] = set()  # schedulers of a person that ended with the run, as it was planned
        optimizers = {id(one.optimizer): one.optimizer for one in (*self.schedulers, *self.warm_ups)
                      if hasattr(one, "optimizer")}
        self._groups = [[optimizer, len(optimizer.param_groups)] for optimizer in optimizers.values()]  # that are scheduled
        self._sort()

    def _sort(self):
        """Which schedulers are asked at which moment."""
        pairs = list(zip(self.schedulers, self.intervals, self._watched))
        self._plateaus = [one for scheduler, _, one in pairs if isinstance(scheduler, ReduceLROnPlateau)]
        self._per_update = tuple(one for _, interval, one in pairs if interval == "update")
        self._per_epoch = [one for _, interval, one in pairs if interval != "update" and one not in self._plateaus]
        self.steps_per_update = bool(self._per_update or self.warm_ups and self.warm_up_interval == "update")

    @property
    def warming_up(self):
        return any(not warm_up.finished for warm_up in self.warm_ups)

    # --- the moments ----------------------------------------------------------------------------------------------

    def begin_epoch(self, trainer: TemplateModel) -> None:
        """An epoch's first update comes next, or one in its middle where a run goes on.

        Raises:
            ValueError: a schedule needs the length of the run, and it is not known.
        """
        for one in (*self._watched, *self._watched_warm_ups):
            one.begin()
            one.look()
        self.take_new_groups()
        self.replan(trainer)
        for scheduler in self._named:
            if not scheduler.total:
                raise ValueError(
                    f"lr_scheduler_type={scheduler.name!r} needs the length of the run and does not know it. Loop with "
                    "`for epoch in trainer.epochs(n)` or trainer.updates(n), or set total_epochs in __init__."
                )

    def after_update(self):
        """One optimizer update was done."""
        if not self.steps_per_update:
            return
        self.take_new_groups()
        self.warm_up_just_ended = False
        if self.warming_up:
            if self.warm_up_interval == "update":
                _step_all(self._watched_warm_ups)
                self.warm_up_just_ended = not self.warming_up
        else:
            _step_all(self._per_update)

    def note_result(self, epoch, key_metric=None, loss=None):
        """What is known of an epoch before it is over (an evaluation in its middle): it counts if nothing follows."""
        self.result = [epoch, key_metric, loss]

    def after_evaluation(self, epoch, key_metric=None, loss=None):
        """One of the evaluations that come every so many updates: plateau schedules step at each of them."""
        self.judged_within = epoch
        for one in () if self.warming_up else self._plateaus:
            value = self._plateau_value(one.scheduler, key_metric, loss)
            if value is not None:
                one.step(value)

    def after_epoch(self, epoch, key_metric=None, loss=None):
        """Epoch number ``epoch`` was trained, and evaluated where ``key_metric`` or ``loss`` is given.

        A plateau schedule waits for the evaluation; asked a second time for one epoch, nothing happens.
        """
        self.take_new_groups()
        if epoch > self.last_epoch_stepped:
            self.last_epoch_stepped = epoch
            if self.warming_up or self.warm_up_just_ended:
                self.last_epoch_judged = epoch  # it is the warm-up's
                if self.warming_up and self.warm_up_interval == "epoch":
                    _step_all(self._watched_warm_ups)
            else:
                _step_all(self._per_epoch)
        if epoch > self.last_epoch_judged and not (key_metric is None and loss is None):
            for one in self._plateaus:
                value = self._plateau_value(one.scheduler, key_metric, loss)
                if value is None:
                    raise ValueError(
                        "ReduceLROnPlateau needs a value: call update_lr_scheduler(key_metric=…) or (avg_batch_loss=…), or "
                        "leave it to eval()."
                    )
                one.step(value)
            self.last_epoch_judged = epoch

    def finish_epoch(self, epoch):
        """The epoch is over. Plateau schedules that saw no evaluation at its end take what came before: the last evaluation
        in its middle, or the training loss where there is nothing to evaluate."""
        if epoch <= max(self.last_epoch_judged, self.judged_within) or not self._plateaus:
            return
        if self.result is None or self.result[0] != epoch:
            self._tell("not evaluated", f"Epoch {epoch} was not evaluated, so plateau schedules did not step: they count "
                                        "the epochs that eval() sees.")
            return
        for one in self._plateaus:
            value = self._plateau_value(one.scheduler, *self.result[1:])
            if value is not None:
                one.step(value)
        self.last_epoch_judged = epoch

    def _plateau_value(self, scheduler, key_metric, loss):
        """A "max" plateau can only mean the key metric; a "min" one means the loss where there is one."""
        return loss if scheduler.mode == "min" and self.watched != "metric" and loss is not None else key_metric

    def warn_without_evaluations(self):
        """The training loss is no key metric."""
        deaf = [one for one in self._plateaus if one.scheduler.mode == "max" or self.watched == "metric"]
        if deaf:
            what = "lr_scheduler_type='metric'" if self.watched else f"{deaf[0].name} (ReduceLROnPlateau, mode='max')"
            warn(
                f"{what} follows an evaluation, and there is no eval_loader: the rate falls only when you call "
                "update_lr_scheduler(key_metric=…). Set eval_loader, or lr_scheduler_type='loss', which then follows the "
                "training loss.")

    def take_new_groups(self):
        """Groups that somebody added to an optimizer are scheduled from their own rate on, see ``new_groups.py``. 0.1 us
        where there are none."""
        for entry in self._groups:
            optimizer, known = entry
            if len(optimizer.param_groups) > known:
                warm_up = next((one for one in self.warm_ups if one.optimizer is optimizer and not one.finished), None)
                schedules = [one for one in (*self.schedulers, *self.warm_ups)
                             if getattr(one, "optimizer", None) is optimizer and one is not warm_up]
                take_in(optimizer, known, schedules, warm_up)
                entry[1] = len(optimizer.param_groups)

    # --- the length of the run ------------------------------------------------------------------------------------

    def replan(self, trainer: TemplateModel, total_epochs: int | None = None, accumulate_steps: int | None = None,
               total_updates: int | None = None) -> None:
        """How long the run is may have changed. A run that was made longer follows the longer schedule; where an epoch has
        another number of updates, the named schedules go on from the present rate and end with the run.

        Args:
            total_epochs: epochs of the whole run, counted from its very first; None: what the trainer has.
            accumulate_steps: batches per update from now on; None: what the trainer has.
            total_updates: updates of the whole run, where these are counted; None: what the trainer has.

        Raises:
            ValueError: a length is needed and not known.
        """
        before = self.planned[0] if self.planned is not None and isinstance(self.planned[0], int) else None
        left = Left(trainer, total_epochs or trainer.total_epochs or before, self.accumulation or Accumulation(
            accumulate_steps or trainer.accumulate_steps), total_updates)
        if None in self.intervals:
            self._decide(left)
        if trainer.hooks is not None:  # else there is no log yet
            self._tell_of_lengths(left)
        if left.length is None:
            return
        if left.total_updates is not None and left.updates_per_epoch is None and trainer.hooks is not None:
            for name in [type(one.scheduler).__name__ for one in self._per_epoch]:
                self._tell(name, f"{name} steps at the end of an epoch, which a loader without a length may never reach. "
                                 'Set lr_scheduler_interval = "update", and its lengths in updates.')
        if trainer.hooks is not None:
            total_updates = left.total_updates or left.updates_of_run
            for line in too_short(self, left.total_epochs, left.updates_per_epoch, total_updates):
                self._tell(line, line)
        is_other_run = self.planned is None or self.planned[0] != left.length
        is_other_epoch = not is_other_run and self.planned[1] != left.updates_per_epoch
        self.planned = [left.length, left.updates_per_epoch]
        for scheduler in self._named:
            end = max(scheduler.last_epoch + self._steps_left(left), 1)
            if is_other_run:
                self._follow(scheduler, end)
            elif end != scheduler.total and (is_other_epoch or not left.is_mid_epoch):
                scheduler.end_at(end)

    def _follow(self, scheduler, end):
        is_changed = scheduler.total not in (0, end)
        scheduler.follow(end)
        if is_changed and not self.warming_up:  # the end of the shorter run left the rate too low
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr()):
                set_rate(group, rate)

    def _steps_left(self, left):
        """Of the named schedules, the warm-up taken off."""
        interval = self.interval or "epoch"
        warm_up = max((one.total_epoch - one.last_epoch for one in self.warm_ups), default=0)
        mixed = bool(self.warm_ups) and interval != self.warm_up_interval
        if interval == "epoch" and left.total_epochs is None:
            raise ValueError(
                f"lr_scheduler_type={self._named[0].name!r} per epoch needs the number of epochs, and {left.total_updates} "
                "updates of this train_loader, which has no len(), make no number of epochs. Set lr_scheduler_interval = "
                "'update'."
            )
        if left.updates is None and interval == "update" or left.updates_per_epoch is None and mixed:
            raise ValueError(
                f"lr_scheduler_type={self._named[0].name!r} per update needs the number of updates of an epoch, and this "
                "train_loader has no len(). Count updates, with trainer.updates(n) or fit(updates=n), set "
                "lr_scheduler_interval='epoch', or give the loader a __len__."
            )
        if interval == "update":
            return max(left.updates - max(warm_up, 0), 0)
        epochs = left.total_epochs - max(left.trained, self.last_epoch_stepped)
        if not mixed:
            return max(epochs - max(warm_up, 0), 0)
        if warm_up > 0 and (within := left.epochs_within(warm_up)):  # the present epoch is the warm-up's to its end
            epochs -= within
        elif warm_up <= 0 and self.warm_up_just_ended and left.is_mid_epoch:
            epochs -= 1
        return max(epochs, 0)

    def _decide(self, left):
        """Whether the steps of a user's ``OneCycleLR`` are updates; from then on it stays so, also in a longer run."""
        self.intervals = [
            interval or ("update" if counts_updates(scheduler, left.total_epochs, left.updates_per_epoch) else "epoch")
            for scheduler, interval in zip(self.schedulers, self.intervals)
        ]
        self._sort()

    def _tell_of_lengths(self, left):
        """Say once where a scheduler that a person built does not end with the run."""
        if left.total_epochs is None or left.updates_per_epoch is None:
            return
        per_update = [one for one in self.warm_ups if self.warm_up_interval == "update"]
        warm_up = max((one.total_epoch - one.last_epoch for one in per_update), default=0)
        for scheduler, interval, one in zip(self.schedulers, self.intervals, self._watched):
            steps = length_of(scheduler)
            what = f"{one.name} ({type(scheduler).__name__})"
            if steps is None or one.is_theirs or isinstance(scheduler, NamedSchedule):
                continue
            updates, batches = (left.total_epochs * number for number in (left.updates_per_epoch, left.batches_per_epoch))
            if interval == "epoch" and self.interval is None and left.total_epochs < steps and steps in (updates, batches):
                self._tell(one.name, f"{what} has {steps} steps, as many as this run has "
                                     f"{'updates' if steps == updates else 'batches'}, but it steps once per epoch and "
                                     f"takes {left.total_epochs} of them. Set lr_scheduler_interval = \"update\".")
            if interval != "update":
                continue
            updates = scheduler.last_epoch + left.updates - max(warm_up, 0)
            if steps == updates:
                self._fitting.add(one.name)
            elif isinstance(scheduler, OneCycleLR) or one.name in self._fitting:
                end = "its end is not reached" if steps > updates else "it is over before the run is"
                self._tell(one.name, f"{what} steps once per update. It has {steps} steps and the run has {updates} updates "
                                     f"for it, so {end}. Build it for {updates} steps, or set lr_scheduler_interval = "
                                     "\"epoch\" if its steps are epochs.")

    def _tell(self, key, line):
        if key not in self._told:
            self._told.add(key)
            print(line)

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self):
        self.take_new_groups()
        for one in (*self._watched, *self._watched_warm_ups):
            one.look()
        return {
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "kinds": [kind_of(scheduler) for scheduler in self.schedulers],
            "warm_ups": [warm_up.state_dict() for warm_up in self.warm_ups],
            "intervals": list(self.intervals),
            "planned": self.planned,
            "result": self.result,
            "last_epoch_stepped": self.last_epoch_stepped,
            "last_epoch_judged": self.last_epoch_judged,
            "judged_within": self.judged_within,
            "warm_up_just_ended": self.warm_up_just_ended,
        }

    def what_holds(self, state):
        """Messages about what is another one in ``state``, before it is loaded."""
        return differences(self, state)

    def load_state_dict(self, state):
        self.take_new_groups()
        for own, saved in ((self._watched, state["schedulers"]), (self._watched_warm_ups, state["warm_ups"])):
            for one, scheduler_state in zip(own, saved):
                one.scheduler.load_state_dict(scheduler_state)
                one.forget()
        for warm_up in () if state["warm_ups"] else self.warm_ups:  # it belongs to the beginning of a run
            warm_up.last_epoch = warm_up.total_epoch
            for group, rate in zip(warm_up.optimizer.param_groups, warm_up.get_lr()):
                set_rate(group, rate)
        intervals = state.get("intervals", [interval or "epoch" for interval in self.intervals])
        if self.interval is None and len(intervals) == len(self.intervals):
            self.intervals = list(intervals)
            self._sort()
        self.planned = state.get("planned")
        self.result = state.get("result")
        self.last_epoch_stepped = state["last_epoch_stepped"]
        self.last_epoch_judged = state.get("last_epoch_judged", self.last_epoch_stepped)
        self.judged_within = state.get("judged_within", 0)
        self.warm_up_just_ended = state["warm_up_just_ended"]

    def fast_forward(self, epochs, updates):
        """Take the steps of ``epochs`` epochs and ``updates`` updates at once, for a checkpoint that kept no schedule.

        Plateau schedules start afresh: what they saw is not known.
        """
        self.intervals = [interval or "epoch" for interval in self.intervals]  # as in 2021
        self._sort()
        for one in (*self._watched, *self._watched_warm_ups):
            one.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: "lr_scheduler.step() before optimizer.step()"
            for _ in range(updates if self.steps_per_update else 0):
                self.after_update()
            for epoch in range(1, epochs + 1):
                self.after_epoch(epoch)

    def rescale(self, index, ratios):
        """Optimizer ``index`` had each group's rate multiplied by ``ratios``: later rates keep that ratio.

        While a warm-up or a one-cycle rises, the new rates become its goal: in proportion to 1e-6, or to a 25th, they would
        end many times too high.
        """
        warm_up: Any = self.warm_ups[index] if index < len(self.warm_ups) else None
        scheduler: Any = self.schedulers[index] if index < len(self.schedulers) else None
        warming_up = warm_up is not None and not warm_up.finished
        if warming_up:
            ratios = _ratios(warm_up.optimizer, warm_up.base_lrs)
        elif goals := peaks_ahead(scheduler):
            groups = scheduler.optimizer.param_groups
            before = [float(group["lr"]) / ratio for group, ratio in zip(groups, ratios)]
            ratios = _ratios(scheduler.optimizer, goals)
            for group, rate, ratio in zip(groups, before, ratios):
                set_rate(group, rate * ratio)
        for one in (scheduler, warm_up):
            if one is not None:
                scale_rates(one, ratios)
        if warming_up:
            for group, rate in zip(warm_up.optimizer.param_groups, warm_up.get_lr()):
                set_rate(group, rate)


def _ratios(optimizer, goals):
    return [float(group["lr"]) / float(goal) for group, goal in zip(optimizer.param_groups, goals)]


class Left:
    """How much of a run is left, as its trainer stands now.

    Args:
        total_epochs: of the whole run; None when it is not known.
        accumulation: how many batches the updates take.
        total_updates: of the whole run; None: the trainer's, or they are not counted.
    """

    def __init__(self, trainer: TemplateModel, total_epochs: int | None, accumulation: Accumulation,
                 total_updates: int | None = None):
        self._accumulation, self._left = accumulation, 0  # batches of the present epoch, or of the next one
        batches, open_epoch = loader_length(trainer.train_batches), trainer.lifetime.open_epoch
        self.total_epochs = total_epochs
        self.batches_per_epoch: Any = batches
        self.updates_per_epoch: Any = None if batches is None else math.ceil(batches / accumulation.steps)
        self.trained = trainer.epochs_done if open_epoch is None else open_epoch  # epochs, evaluated or not
        done = trainer.batches_done // trainer.world.size
        self.is_mid_epoch = open_epoch is None and done > 0
        self.updates_of_epoch: Any = None  # that are left of the present epoch, or of the next one
        self.updates: Any = None           # that are left of the run
        self.updates_of_run: Any = None    # of all of it, where a warm-up has others than the epochs behind it
        if batches is not None and self.updates_per_epoch is not None and total_epochs is not None:
            self._left = batches - done if self.is_mid_epoch else batches
            self.updates_of_epoch = accumulation.ahead(self._left)
            self.updates = accumulation.of_epochs(self._left, batches, total_epochs - self.trained)
            if accumulation.length:
                self.updates_of_run = trainer.global_step + self.updates
        self.total_updates = total_updates or trainer.total_updates
        self.length: Any = total_epochs  # of the run, as a checkpoint notes it
        if self.total_updates is not None:
            self.updates, self.length = max(self.total_updates - trainer.global_step, 0), f"{self.total_updates} updates"

    def epochs_within(self, updates):
        """How many of the next epochs are over behind so many updates."""
        return self._accumulation.epochs_within(updates, self._left, self.batches_per_epoch)


def _interval_of(scheduler, interval):
    if isinstance(scheduler, ReduceLROnPlateau):
        return "epoch"
    return interval or (None if isinstance(scheduler, OneCycleLR) else "epoch")


def _step_all(watched):
    for one in watched:
        one.step()
