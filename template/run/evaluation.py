"""How an evaluation is scored: one forward per batch, every loader under its prefix, the ranks together.

    evaluator = Evaluator(trainer, has_loss=True)
    evaluator.set_loader(trainer.eval_loader)
    result = evaluator.score(trainer.hooks.on_eval_batch)        # {"tol_loss": …, "acc": …}

What is done with the result (best values, schedules, files) stands in ``TemplateModel.eval``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..data.loaders import make_batches
from ..data.shares import Share, Uneven
from ..hooks import run_all
from ..metrics.epoch import EpochMetrics
from ..metrics.one_forward import OneForward, eval_mode
from ..parallel.ranks import ALONE
from .checks import joined
from .defaults import input_of, loss_dict

if TYPE_CHECKING:
    from ..template import TemplateModel


class Evaluator:
    """Scores the models of a ``TemplateModel``.

    Args:
        trainer: whose ``loss_per_batch`` and ``eval_scores_per_batch`` are asked.
        has_loss: there is a loss of a batch to report; False where only ``train_step`` knows the losses.
    """

    def __init__(self, trainer: TemplateModel, has_loss: bool):
        self.trainer = trainer
        self.has_loss = has_loss
        self.batches: dict[str, Any] = {}  # by prefix of their results

    def set_loader(self, loader):
        """What ``score`` reads from now on."""
        self.batches = self.by_prefix(loader)

    def set_seed(self, seed):
        """A continued run goes on with the seed that it began with."""
        for batches in self.batches.values():
            batches.set_seed(seed)

    def by_prefix(self, loader):
        """``{prefix of the results: batches}``; one loader has no prefix."""
        trainer = self.trainer
        loaders = loader if isinstance(loader, dict) else {} if loader is None else {"": loader}
        share = Share(trainer.world.rank, trainer.world.size, divides=False, with_spares=trainer.is_sharded)
        return {f"{name}/" if name else "":
                make_batches(part, trainer.seed, torch.device(trainer.device), trainer.slice_tensors, share)
                for name, part in loaders.items()}

    def score(self, on_eval_batch=(), loader=None):
        """Losses and metrics by name, of ``loader`` or else of the one that was set."""
        batches = self.batches if loader is None else self.by_prefix(loader)
        read = {prefix: self.trainer.lifetime.until_asked_to_leave(part.epoch(0)) for prefix, part in batches.items()}
        return self._score(read, on_eval_batch, self.trainer.world)

    def score_first_batch(self):
        """The same of one batch of each loader, for the check before training: callbacks do not see it."""
        return self._score({prefix: [part.first()] for prefix, part in self.batches.items()}, (), ALONE)

    @contextmanager
    def events(self):
        """Around an evaluation that callbacks hear of; their clean-up comes also after an error."""
        try:
            for call in self.trainer.hooks.on_eval_start:
                call(self.trainer)
            yield
        finally:
            run_all(self.trainer.hooks.on_eval_end, self.trainer)

    def _score(self, batches_by_prefix, on_eval_batch, world):
        trainer = self.trainer
        result, trainer.eval_loss_names = {}, set()
        if trainer.stepper.parallel is not None:
            trainer.stepper.parallel.before_evaluation(trainer.model_list)
        # not inference_mode: it saves 2%, and what a model keeps from its first evaluation could not be trained with
        with eval_mode(trainer.model_list), torch.no_grad(), OneForward(trainer.model_list) as forwards:
            for prefix, batches in batches_by_prefix.items():
                losses, metrics = self._score_batches(batches, forwards, on_eval_batch, world)
                trainer.eval_loss_names |= {prefix + name for name in losses}
                result |= {prefix + name: value for name, value in joined(losses, metrics).items()}
        return result

    def _score_batches(self, batches, forwards, on_eval_batch, world):
        """Losses and metrics of one loader: no wait for the device before the end."""
        trainer, autocast = self.trainer, self.trainer.stepper.autocast
        losses, metrics = EpochMetrics(), EpochMetrics()
        try:
            for batch in batches:
                batch, is_spare = batch if type(batch) is Uneven else (batch, False)
                if is_spare:
                    self._join_in(batch)
                    continue
                num_samples = trainer.count_samples(batch)
                if self.has_loss:
                    with autocast(), forwards.recording():
                        losses.update(loss_dict(trainer.loss_per_batch(batch)), num_samples)
                with autocast(), forwards.replaying():
                    metrics.update(trainer.eval_scores_per_batch(batch), num_samples)
                trainer.global_step_eval += 1
                for call in on_eval_batch:
                    call(trainer, batch)
            return losses.compute(world), metrics.compute(world)
        finally:
            metrics.reset()

    def _join_in(self, batch):
        """The forward of a batch that does not count: the other ranks need this one's part of the weights."""
        with self.trainer.stepper.autocast():
            if self.has_loss:
                self.trainer.loss_per_batch(batch)
            else:
                self.trainer.inference(input_of(batch, self.trainer.input_dtype))
