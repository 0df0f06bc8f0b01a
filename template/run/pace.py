"""How long a run is, in epochs or in updates, and when it is evaluated in the middle of an epoch.

    for epoch in pace.rounds(epochs=30): …          # what trainer.epochs(30) is
    for epoch in pace.rounds(updates=20_000): …     # and trainer.updates(20_000), whose last epoch may end in its middle
    pace.is_time_to_evaluate()                      # behind an update: eval_per_steps

Whether an epoch is over, and how a run is left, stands in ``lifetime.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..data.nested import loader_length
from ..update.nominal_batch import accumulation_of

if TYPE_CHECKING:
    from ..template import TemplateModel
    from .lifetime import Lifetime


class Pace:
    """The length of one run.

    Args:
        trainer: whose counters these are.
        lifetime: that of the run; it asks here behind each update.
    """

    def __init__(self, trainer: TemplateModel, lifetime: Lifetime) -> None:
        self.trainer = trainer
        self.lifetime = lifetime
        self.epochs: int | None = None   # that the loop goes to
        self.updates: int | None = None  # or these
        self.is_evaluating = False  # an evaluation that eval_per_steps asked for
        self.evaluated_step = -1    # global_step of the newest one that was noted
        self.is_owed = False        # its time came with the end of an epoch or of the run, which are evaluated anyway

    # --- how long -------------------------------------------------------------------------------------------------

    def rounds(self, epochs: int | None = None, updates: int | None = None) -> Iterator[int]:
        """The numbers of the epochs that are left, and of one that begins and is not finished."""
        trainer, lifetime = self.trainer, self.lifetime
        self._set_goal(epochs, updates)
        lifetime.will_be_closed = True
        try:
            while lifetime.has_more(f"epochs({epochs})" if updates is None else f"updates({updates})"):
                before = trainer.epochs_done, trainer.global_step
                yield trainer.epochs_done + 1
                self.pay()
                lifetime.finish_epoch()
                lifetime.leave_when_asked()
                if before == (trainer.epochs_done, trainer.global_step):
                    raise RuntimeError(f"The body of `for epoch in trainer.{'epochs' if updates is None else 'updates'}(n)` "
                                       "must call trainer.train_loop().")
        finally:
            self.updates = None
            lifetime.close()

    def _set_goal(self, epochs, updates):
        """It tells the schedules, see assignments.py."""
        trainer = self.trainer
        self.epochs, self.updates = epochs, updates
        vars(trainer)["total_updates"] = None  # else the schedules would be told twice
        trainer.total_epochs = epochs if updates is None else self._epochs_of(updates)
        trainer.total_updates = updates
        if self.is_over or trainer.should_stop:
            done = f"{trainer.epochs_done} of {epochs} epochs" if updates is None else (
                f"{trainer.global_step} of {updates} updates")
            print(f"Nothing left to train: {done} are done"
                  f"{' and the run was stopped early' if trainer.should_stop else ''}.")
            if trainer.global_step:
                with self.lifetime.session():  # behind which the run ends as it did before: with its best weights, perhaps
                    pass

    @property
    def is_over(self) -> bool:
        """Whether as much was trained as was asked for."""
        if self.updates is not None:
            return self.trainer.global_step >= self.updates
        return self.epochs is not None and self.trainer.epochs_done >= self.epochs

    def _epochs_of(self, updates):
        """How many epochs it takes until so many updates are done, the last one perhaps in part; None: nobody knows."""
        trainer = self.trainer
        per_epoch = trainer.updates_per_epoch()
        if per_epoch is None:
            return None
        accumulation, batches = accumulation_of(trainer), loader_length(trainer.train_batches)
        done = trainer.batches_done // trainer.world.size
        begun = bool(done)  # an epoch, which counts however much is left of it
        left, first = updates - trainer.global_step, accumulation.ahead(batches - done)
        if left <= first:
            return trainer.epochs_done + (begun or left > 0)
        return trainer.epochs_done + accumulation.epochs_within(left - 1, batches - done, batches) + 1

    # --- behind an update -----------------------------------------------------------------------------------------

    def is_last_of_epoch(self) -> bool:
        """Whether no batch of the epoch is left, where the loader has a length. Beyond it, nobody knows."""
        batches = loader_length(self.trainer.train_batches)
        return batches is not None and self.trainer.batches_done // self.trainer.world.size == batches

    def is_at_goal(self) -> bool:
        """Whether the last update of the run is done, in the middle of an epoch. 0.1 us."""
        return self.updates is not None and self.trainer.global_step >= self.updates and not self.is_last_of_epoch()

    def wants_stop(self) -> bool:
        """Whether a callback of this rank wants the training to end here: the end of an epoch without one never comes."""
        stop = self.trainer.should_stop
        return bool(stop) and (stop == "now" or loader_length(self.trainer.train_batches) is None)

    def evaluate_when_due(self) -> None:
        """Every ``eval_per_steps`` updates; where the epoch or the run ends with this one, its own evaluation is enough."""
        trainer = self.trainer
        steps = trainer.eval_per_steps
        if not steps or trainer.global_step % steps or trainer.eval_loader is None:
            return
        if self.is_last_of_epoch() or self.is_at_goal():
            self.is_owed = True
            return
        stop, self.is_evaluating = trainer.should_stop, True
        try:
            trainer.eval(save_per_epochs=0)
        finally:
            self.is_evaluating = False
        if stop == "now":
            trainer.should_stop = stop  # a callback that wants to stop after the epoch does not put it off

    def note_evaluation(self) -> None:
        """The present weights were evaluated."""
        self.is_owed, self.evaluated_step = False, self.trainer.global_step

    def pay(self) -> None:
        """The evaluation that fell on the end of an epoch or of the run, where the loop did not call ``eval()``."""
        if self.is_owed and self.trainer.should_stop != "now":
            self.trainer.eval()
        self.is_owed = False
