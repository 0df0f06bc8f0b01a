"""Metrics of the training, of the predictions that its losses are computed of: ``train_metrics = True``.

    self.train_metrics = True                                    # what metric() gives on training batches
    self.train_metrics = {"acc": Confusion(3).accuracy()}        # or these, updated with (pred, y)

They stand beside the losses: "train/acc" in history.csv, in TensorBoard and in the line of the epoch. Nothing is computed
twice. The template's own ``loss_per_batch`` passes its ``(pred, y)`` on. Of one that a subclass wrote, the outputs of the
models are recorded, and ``eval_scores_per_batch`` finds them again, see ``metrics/loss_forward.py``. Where that cannot be
known, ``self.note_predictions(pred, y)`` in ``loss_per_batch`` or ``train_step`` says it.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ..data.seeding import rng_kept
from ..metrics.accumulators import to_floats
from ..metrics.epoch import NoTrainMetrics, all_of, has_one_for_each_loader, is_accumulator, updated
from ..metrics.loss_forward import ForwardUnknown, LossForward, detached
from ..metrics.modes import eval_mode, unchanged
from ..metrics.train_totals import TrainTotals
from ..output.warn import warn
from ..parallel.ranks import ALONE
from .defaults import score_dict, split_batch

if TYPE_CHECKING:
    from ..template import TemplateModel


def set_train_metrics(trainer: TemplateModel, asked: Any) -> None:
    """Have the epoch's losses come with these metrics.

    Raises:
        TypeError, ValueError: it is neither True, False nor a dict of accumulators.
    """
    check_train_metrics(trainer, asked)
    trainer.running_losses.metrics = TrainMetrics(trainer, asked) if asked else NoTrainMetrics()


def check_train_metrics(trainer, asked):
    """Raises: TypeError, ValueError: see ``set_train_metrics``."""
    if isinstance(asked, dict):
        for name, metric in asked.items():
            if not is_accumulator(metric):
                raise TypeError("train_metrics must be True, False or a dict of accumulators, as Confusion(3).accuracy(); "
                                f"its entry {name!r} is a {type(metric).__name__}. For numbers, set train_metrics = True "
                                "and override metric().")
            if any(metric is other for other in all_of(trainer.eval_metrics)):
                raise ValueError(f"train_metrics and eval_metrics share the object {name!r}, which would count batches of "
                                 "both. Make one for each.")
    elif not isinstance(asked, bool):
        raise TypeError(f"train_metrics must be True, False or a dict of accumulators, got {asked!r}.")
    elif asked and has_one_for_each_loader(trainer.eval_metrics):
        raise ValueError(f"train_metrics = True takes eval_metrics, which has metrics of {list(trainer.eval_metrics)} each. "
                         "Say which ones the training has: train_metrics = {name: accumulator}.")


class TrainMetrics:
    """Of one ``TemplateModel``, for ``RunningLosses``, which asks it for the same things as for the losses.

    Args:
        trainer: whose ``metric`` and ``eval_scores_per_batch`` are asked.
        asked: True, or ``{name: accumulator}``.
    """

    def __init__(self, trainer: TemplateModel, asked: Any):
        self.trainer, self.is_dict = trainer, isinstance(asked, dict)
        evaluator = trainer.evaluator
        is_default = not trainer._overrides("metric") and not evaluator.writes_scores
        self.own = asked if self.is_dict else copy.deepcopy(trainer.eval_metrics) if is_default else {}
        for part in self.own.values():
            if isinstance(part, torch.nn.Module):
                part.to(torch.device(trainer.device))
        self.totals = TrainTotals(self.own, self._make)
        self.needs_batch = evaluator.writes_losses or evaluator.writes_scores or trainer.criterion is None
        self.forwards = LossForward(trainer.model_list)
        self.seen: Any = None   # (pred, y) of the template's own loss
        self.noted: Any = None  # (pred, y) that the user's code gave
        self.batch: Any = None  # whose forward is recorded
        self.is_told = False

    # --- during a batch -------------------------------------------------------------------------------------------

    def see(self, pred, y):
        if torch.is_grad_enabled() and (self.seen is None or self.seen[1] is not y):  # a closure comes again, behind take()
            self.seen = detached(pred), y

    def note(self, pred, y):
        if torch.is_grad_enabled():
            self.noted = detached(pred), y

    def recording(self, batch):
        """Around ``loss_per_batch`` of a batch."""
        self.seen = self.noted = None
        if not self.needs_batch:
            return nullcontext()
        self.batch = batch
        return self.forwards.recording()

    def take(self, losses, num_samples):
        """A batch was trained on; of a rank that had nothing in its share, nothing counts."""
        given, batch = self.noted or (None if self.needs_scores else self.seen), self.batch
        try:
            if num_samples and not self._is_skipped(losses):
                with self.trainer.autocast(), torch.no_grad():
                    values = self._values(given, batch)
                if values is not None:
                    if not self.totals.num_batches:
                        _refuse_shared_names(losses, values)
                    self.totals.update(values, num_samples)
                    self.forwards.compares = False
        finally:
            self.forget()

    @property
    def needs_scores(self):
        """Whether the scores are more than ``metric(pred, y)``."""
        return self.trainer.evaluator.writes_scores and not self.is_dict

    def _values(self, given, batch):
        """``{name: value}``; None of a later batch of which nothing is known."""
        if given is not None:
            return self._scores(*given)
        if batch is None and not self.totals.num_batches:
            raise ValueError(f"train_metrics needs the predictions of the training, and train_step gave none. {_SAY_IT}")
        if batch is None:
            return None
        try:
            if not self.forwards.is_complete:
                raise ForwardUnknown("nothing can be recorded of a scripted model")
            with self.forwards.replaying():
                values = self._scores_of(batch)
        except ForwardUnknown as error:
            raise ValueError("train_metrics needs the predictions that the loss is computed of. They are not known, because "
                             f"{error}. {_SAY_IT}") from None
        if self.forwards.other_inputs and not self.is_told and self.trainer.is_main:
            self.is_told = True
            warn(f"loss_per_batch gave the model {self.forwards.other_inputs} other inputs than those of the batch (mixed "
                 "or noisy ones, perhaps). The metrics of the training are of what it predicted for these.")
        return values

    def _scores_of(self, batch):
        """Asking the models for their outputs, which are known or, in ``_make``, computed."""
        if self.trainer.evaluator.writes_scores and not self.is_dict:
            return score_dict(self.trainer.eval_scores_per_batch(batch))
        try:
            x, y = split_batch(batch, self.trainer.input_dtype)
        except TypeError:
            raise ForwardUnknown("the batch is not (x, …, y)") from None
        return self._scores(self.trainer.inference(x), y)

    def _scores(self, pred, y):
        if not self.own:
            return score_dict(self.trainer.metric(pred, y))
        return updated(self.own, pred, y)

    def _is_skipped(self, losses):
        """Updates whose loss is not finite count in no mean. Where they are skipped, each update is waited for anyway."""
        return bool(self.trainer.skip_non_finite) and not all(map(math.isfinite, to_floats(losses.values())))

    def _make(self):
        """Values of one batch, whose numbers do not count: a run goes on behind the last batch of an epoch."""
        trainer = self.trainer
        kept = nullcontext() if trainer.is_sharded else unchanged(trainer.model_list)
        try:
            with rng_kept(), kept, eval_mode(trainer.model_list), torch.no_grad(), trainer.autocast():
                return dict(self._scores_of(trainer.train_batches.first()))
        except Exception as error:
            print(f"The metrics of the training of epoch {trainer.epoch} are not known, because the run goes on behind its "
                  f"last batch and they could not be asked for again: {type(error).__name__}: {error}")
            return {}

    # --- as RunningLosses -----------------------------------------------------------------------------------------

    def names(self):
        """As far as the batches until now tell."""
        return [name for own, total in self.totals.totals.items() for name in getattr(total, "names", [own])]

    def fetch(self):
        self.totals.fetch()

    def forget(self):
        self.seen = self.noted = self.batch = None
        self.forwards.records.clear()

    def compute(self, world=ALONE):
        return self.totals.compute(world)

    def reset(self):
        self.forget()
        self.totals.reset()

    def state_dict(self, world=ALONE):
        return {"metrics": self.totals.state_dict(world)}

    def load_state_dict(self, state, world=ALONE):
        if "metrics" in state:
            self.totals.load_state_dict(state["metrics"], world)


_SAY_IT = ("Call self.note_predictions(pred, y) in loss_per_batch or train_step, with what metric(pred, y) shall be "
           "given, or set train_metrics = False.")


def _refuse_shared_names(losses, values):
    both = sorted(losses.keys() & values.keys())
    if both:
        raise ValueError(f"A loss and a metric must not share a name; both the losses of the training and its metrics have "
                         f"{both}. Rename one of them, or set train_metrics = False.")
