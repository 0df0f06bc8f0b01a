"""How many batches an update takes: always as many, or as many as make a nominal batch, rising during the warm-up.

    trainer.nominal_batch_size = 64     # with batches of 16: one batch per update at first, four behind the warm-up

With ``nominal_batch_size`` a rate and a weight decay that suit updates of 64 samples are right for any batch that fits into
memory. Behind ``k`` of the ``W`` updates of the warm-up, an update takes ``1 + (nominal / batch - 1) k / W`` batches, and
behind the warm-up ``nominal / batch``, rounded and at least 1. Weight decay is multiplied by the share of the nominal batch
that an update has then: 1, unless it cannot be divided evenly.

Source: the YOLOv5 training script (Ultralytics, 2020).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..data.chained import Chained
from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel


class Accumulation:
    """How many batches the updates of a run take.

    Args:
        steps: batches of an update behind the warm-up.
        share: nominal batch size over batch size, which ``steps`` was rounded from.
        warm_ups: the ``WarmUpLR`` objects during whose updates it rises from 1; none: it is always ``steps``.
    """

    def __init__(self, steps: int, share: float = 1.0, warm_ups: Any = ()) -> None:
        self.steps = steps
        self.share = share
        self.warm_ups = warm_ups

    @property
    def length(self) -> int:
        """Of the warm-up, in updates."""
        return max((one.total_epoch for one in self.warm_ups), default=0)

    @property
    def taken(self) -> int:
        """Updates of the warm-up that are done."""
        return max((one.last_epoch for one in self.warm_ups), default=0)

    def size(self, taken: int) -> int:
        """Batches of the update behind ``taken`` ones of the warm-up."""
        length = self.length
        return self.steps if taken >= length else max(1, round(1 + (self.share - 1) * taken / length))

    def ahead(self, batches: int, taken: int | None = None) -> int:
        """How many updates the next ``batches`` batches of an epoch make; the last one may have fewer batches.

        Args:
            taken: updates of the warm-up that are done by then; None: by now.
        """
        taken = self.taken if taken is None else taken
        updates = 0
        while batches > 0 and taken + updates < self.length:
            batches -= self.size(taken + updates)
            updates += 1
        return updates + max(math.ceil(batches / self.steps), 0)

    def behind(self, batches: int) -> int:
        """How many updates the last ``batches`` batches made, or are making. Where the warm-up ended among them, they count
        as if all of them came behind it."""
        taken, updates = self.taken, 0
        while batches > 0 and updates < taken < self.length:
            batches -= self.size(taken - updates - 1)
            updates += 1
        return updates + max(math.ceil(batches / self.steps), 0)

    def of_epochs(self, first: int, batches: int, epochs: int) -> int:
        """Updates of the next ``epochs`` epochs, of which the first has ``first`` batches and each other one ``batches``."""
        updates = self.ahead(first) if epochs > 0 else 0
        for done in range(1, epochs):
            if self.taken + updates >= self.length:
                return updates + (epochs - done) * self.ahead(batches, self.length)
            updates += self.ahead(batches, self.taken + updates)
        return updates

    def epochs_within(self, updates: int, first: int, batches: int) -> int:
        """How many of the next epochs are over behind ``updates`` updates, the first of ``first`` batches."""
        epochs, done = 0, self.ahead(first)
        while done <= updates:
            epochs += 1
            done += self.ahead(batches, self.taken + done)
        return epochs


def accumulation_of(trainer: TemplateModel, steps: int | None = None) -> Accumulation:
    """That of a trainer as it stands now; ``steps`` is ``accumulate_steps`` from now on."""
    rising = trainer.lr_schedule and trainer.lr_schedule.accumulation
    return rising or Accumulation(steps or trainer.accumulate_steps)


# --- a nominal batch ----------------------------------------------------------------------------------------------------


def follow_nominal_batch(trainer: TemplateModel) -> list[Callback]:
    """Set ``accumulate_steps`` and the weight decays to what ``nominal_batch_size`` asks for, with the ``train_loader`` that
    is there now. Returns the callbacks that have it rise during a warm-up, none where it is None.

    Raises:
        ValueError: the loader does not tell its batch size, or ``accumulate_steps`` was set too.
    """
    nominal = trainer.nominal_batch_size
    if nominal is None:
        return []
    steps = max(round(nominal / batch_of_all(trainer)), 1)
    if trainer.hooks is None and trainer.accumulate_steps not in (1, steps):
        raise ValueError(f"nominal_batch_size = {nominal} decides how many batches an update takes, here {steps}, and "
                         f"accumulate_steps = {trainer.accumulate_steps} says something else. Set one of them.")
    vars(trainer)["accumulate_steps"] = steps
    scale_decays(trainer)
    if trainer.lr_schedule is not None:
        follow_warm_up(trainer, trainer.lr_schedule)
    return [NominalBatch()]


def batch_of_all(trainer: TemplateModel, loader: Any = None) -> int:
    """Samples of a batch, those of all ranks together.

    Args:
        loader: that it is a batch of; None: ``train_loader``.

    Raises:
        ValueError: the loader does not tell it, or its loaders tell different numbers.
    """
    loader = trainer.train_loader if loader is None else loader
    parts = loader.loaders if isinstance(loader, Chained) else [loader]
    sizes = {_size(part) for part in (parts.values() if isinstance(parts, dict) else parts)}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise ValueError(
            f"nominal_batch_size = {trainer.nominal_batch_size} needs the number of samples of a batch, and train_loader (a "
            f"{type(loader).__name__}) has no one batch_size. Give it such an attribute, or set accumulate_steps instead.")
    return size * trainer.world.size


def _size(loader):
    found = getattr(loader, "batch_size", None)
    found = getattr(getattr(loader, "batch_sampler", None), "batch_size", None) if found is None else found
    return found if isinstance(found, int) and found > 0 else None


def warm_up_updates(trainer: TemplateModel, batches: int) -> int:
    """How many updates a warm-up of ``warm_up_epoch`` epochs has, of ``batches`` batches each."""
    wanted, share = trainer.warm_up_epoch * batches, _share(trainer)
    updates = max(1, round(wanted * 2 / (1 + max(share, 1.0))))  # a short last group takes less than the mean
    while (left := wanted - _taken_by(updates, trainer.accumulate_steps, share, batches)) > 0:
        updates += max(1, int(left / trainer.accumulate_steps))
    return updates


def _taken_by(updates, steps, share, batches):
    """Batches that a warm-up of so many updates takes, with epochs of ``batches`` batches."""
    plan, taken = Accumulation(steps, share, [_Planned(updates)]), 0
    for done in range(updates):
        taken += min(plan.size(done), batches - taken % batches)
    return taken


class _Planned:
    """A warm-up that is not built yet."""

    last_epoch = 0

    def __init__(self, total_epoch):
        self.total_epoch = total_epoch


def _share(trainer):
    return trainer.nominal_batch_size / batch_of_all(trainer)


def follow_warm_up(trainer: TemplateModel, schedule: Any) -> None:
    """Have the updates of ``schedule`` counted as they will be; one whose warm-up counts epochs has no rise."""
    warm_ups = schedule.warm_ups if schedule.warm_up_interval == "update" else ()
    schedule.accumulation = Accumulation(trainer.accumulate_steps, _share(trainer), warm_ups)


def scale_decays(trainer: TemplateModel) -> None:
    """Weight decay as of a nominal batch, once for each group, also for one that was added later. A group notes in
    "share_of_nominal_batch" what its decay was multiplied with."""
    share = trainer.accumulate_steps / _share(trainer)
    for optimizer in trainer.optimizer_list:
        for group in optimizer.param_groups:
            before = group.get("share_of_nominal_batch", 1.0)
            if "weight_decay" in group and before != share:
                group["weight_decay"] *= share / before
                group["share_of_nominal_batch"] = share


def note_on_nominal_batch(trainer: TemplateModel) -> list[str]:
    """What the run says of it."""
    if trainer.nominal_batch_size is None:
        return []
    steps, share = trainer.accumulate_steps, trainer.accumulate_steps / _share(trainer)
    rising = ", rising from 1 during the warm-up" if steps > 1 and accumulation_of(trainer).length else ""
    decay = "" if share == 1 else f"; weight decay is multiplied by {share:.3g}"
    return [f"nominal batch of {trainer.nominal_batch_size} samples: {steps} batch{'es' * (steps > 1)} of "
            f"{batch_of_all(trainer)} per update{rising}{decay}"]


class NominalBatch(Callback):
    """Looks at the beginning of each epoch how many batches an update takes, and at the weight decays of new groups."""

    def on_train_start(self, model):
        scale_decays(model)
        accumulation = model.lr_schedule.accumulation
        model.stepper.accumulate_steps = accumulation.size(accumulation.taken)
        if accumulation.taken < accumulation.length and not any(isinstance(one, Rising) for one in model.hooks.callbacks):
            model.hooks.set([*model.hooks.callbacks, Rising()])


class Rising(Callback):
    """Tells the stepper during the warm-up how many batches the next update takes, and is gone behind it. 5 us each."""

    def on_after_step(self, model):
        accumulation = model.lr_schedule.accumulation
        model.stepper.accumulate_steps = accumulation.size(accumulation.taken)
        if accumulation.taken >= accumulation.length:
            model.hooks.remove(self)
