"""How an evaluation is scored: every loader under its prefix, the ranks together, nothing of the training changed.

    evaluator = Evaluator(trainer, overrides)
    evaluator.set_loader(trainer.eval_loader)
    result = evaluator.score(trainer.hooks.on_eval_batch)        # {"tol_loss": …, "acc": …}

A batch costs one forward where losses and scores are the template's own: the predictions are passed on. It costs one as well
where the subclass wrote ``loss_per_batch`` alone, see ``metrics/one_forward.py``. What a subclass wrote in both
``loss_per_batch`` and ``eval_scores_per_batch`` is run as written, which is two, unless it sets ``one_forward = True``.
What callbacks hear of the predictions stands in ``eval_predictions.py``. What is done with the result (best values,
schedules, files) stands in ``lifetime.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.agreement import require_same
from ..data.limited import limited
from ..data.loaders import make_batches
from ..data.nested import loader_length
from ..data.seeding import rng_kept
from ..data.shares import Share, Uneven
from ..hooks import run_all
from ..metrics.epoch import EpochMetrics, per_sample
from ..metrics.modes import eval_mode, unchanged
from ..metrics.one_forward import OneForward
from ..parallel.gradients import let_go
from ..parallel.ranks import ALONE
from .checks import joined
from .defaults import adds_up, criterion_loss, eval_losses, ignored_label, input_of, loss_dict, score_dict, split_batch
from .eval_predictions import NOBODY, Heard, predicted_classes

if TYPE_CHECKING:
    from ..template import TemplateModel


class Evaluator:
    """Scores the models of a ``TemplateModel``.

    Args:
        trainer: whose ``loss_per_batch`` and ``eval_scores_per_batch`` are asked.
        overrides: function of a method's name: whether the subclass has one of its own.
    """

    def __init__(self, trainer: TemplateModel, overrides: Callable[[str], bool]):
        self.trainer = trainer
        self.writes_losses = overrides("loss_per_batch")
        self.writes_scores = overrides("eval_scores_per_batch")
        self.writes_step = overrides("train_step")
        self.loader_name = ""                # of the loader that is read, where eval_loader is a dict of them
        self.batches: dict[str, Any] = {}    # by prefix of their results
        self.test_batches: dict[str, Any] = {}
        self.is_computing = False            # numbers from what was collected; True after an error in it
        self.asked_about: set[str] = set()   # names whose direction nobody knows, see metrics/best.py
        self.num_batches: int | None = None  # of the evaluation that runs; None where a loader has no length
        self.told_weights = False            # predict said which weights it takes, see predictions.py
        self.listeners: Any = ()             # to predictions, in an evaluation that callbacks hear of
        self.heard: Any = NOBODY             # what they are told of the present loader, see eval_predictions.py
        self.sample_indices: Any = None      # where in the data the samples are that on_eval_predictions speaks of
        self.prefix = ""                     # of that loader's results
        self.is_test = False                 # the loader of the last evaluation was that of test()
        self.is_complete = False             # that evaluation came to its end
        self.told_rule_of: str | None = None  # the metric of which it was said what counts as best

    def set_loader(self, loader, limit=None):
        """What ``score`` reads from now on, of each loader up to ``limit`` batches: see ``limit_eval_batches``."""
        self.batches = {prefix: limited(batches, limit, "limit_eval_batches")
                        for prefix, batches in self.by_prefix(loader, "eval_loader").items()}

    def set_test_loader(self, loader):
        """What ``score_test`` reads from now on; None: what ``score`` reads."""
        self.test_batches = self.by_prefix(loader, "test_loader")

    def agree(self):
        """Whether every rank has the same loaders, see ``data/agreement.py``; whatever is read is compared then, too."""
        trainer = self.trainer
        if trainer.world.size > 1:
            loaders = {"eval_loader": list(self.batches), "test_loader": list(self.test_batches)}
            require_same(trainer.world.gather, "what there is to evaluate", loaders)
            for batches in (*self.batches.values(), *self.test_batches.values()):
                batches.agree()

    def set_seed(self, seed):
        """A continued run goes on with the seed that it began with."""
        for batches in (*self.batches.values(), *self.test_batches.values()):
            batches.set_seed(seed)

    def by_prefix(self, loader, called):
        """``{prefix of the results: batches}``; one loader has no prefix."""
        trainer = self.trainer
        loaders = loader if isinstance(loader, dict) else {} if loader is None else {"": loader}
        share = Share(trainer.world.rank, trainer.world.size, divides=False, with_spares=trainer.is_sharded,
                      gather=trainer.world.gather, name=called)
        return {f"{name}/" if name else "":
                make_batches(part, trainer.seed, torch.device(trainer.device), trainer.slice_tensors,
                             share.named(name) if name else share)
                for name, part in loaders.items()}

    def score(self, on_eval_batch=()):
        """Losses and metrics by name.

        Raises:
            ValueError: a loader gave no batch.
        """
        return self._score_all(self.batches, on_eval_batch, is_test=False)

    def score_test(self, on_eval_batch=(), loader=None):
        """The same of ``loader``, or else of the test loader, or else of the evaluation's."""
        batches = self.by_prefix(loader, "test(loader)") if loader is not None else self.test_batches or self.batches
        return self._score_all(batches, on_eval_batch, is_test=True)

    def classes_of(self, predictions, labels):
        """``(predicted classes shaped like labels, how many classes there are)``, or None, see ``eval_predictions.py``."""
        return predicted_classes(self.trainer.criterion, predictions, labels)

    def without_ignored(self, labels):
        """The labels, with -1 in place of what the criterion ignores."""
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
            return labels
        return labels.masked_fill(labels == ignored_label(self.trainer.criterion), -1)

    def _score_all(self, batches, on_eval_batch, is_test):
        lengths = [loader_length(part) for part in batches.values()]
        self.num_batches = None if None in lengths else sum(lengths)
        self.is_test, self.is_complete = is_test, False
        for part in batches.values():
            part.numbers = deque() if self.listeners else None
        with rng_kept():  # also from the order of the data, which is drawn first
            read = {prefix: self.trainer.lifetime.until_asked_to_leave(part.epoch(0)) for prefix, part in batches.items()}
            numbers = {prefix: part.numbers for prefix, part in batches.items()}
            result = self._score(read, on_eval_batch, self.trainer.world, numbers)
            self.is_complete = True
            return result

    def score_first_batch(self, before):
        """The same of one batch of each loader, for the check before training: callbacks do not see it, and the models and
        the criterion keep nothing of it.

        Args:
            before: function of a batch that is about to be scored.
        """
        trainer = self.trainer
        modules = [*trainer.model_list, *([trainer.criterion] if isinstance(trainer.criterion, nn.Module) else [])]
        kept = nullcontext() if trainer.is_sharded else unchanged(modules)
        with rng_kept(), kept:
            return self._score({prefix: _first_of(part, before) for prefix, part in self.batches.items()}, (), ALONE)

    @contextmanager
    def events(self):
        """Around an evaluation that callbacks hear of, of weights for use; their clean-up comes also after an error."""
        with self.trainer.lifetime.weights.for_use():
            try:
                self.listeners = self.trainer.hooks.on_eval_predictions
                for call in self.trainer.hooks.on_eval_start:
                    call(self.trainer)
                yield
            finally:
                self.listeners = ()
                run_all(self.trainer.hooks.on_eval_end, self.trainer)

    def _score(self, batches_by_prefix, on_eval_batch, world, numbers=None):
        trainer = self.trainer
        result, trainer.eval_loss_names, self.is_computing = {}, set(), False
        if trainer.stepper.parallel is not None:
            trainer.stepper.parallel.before_evaluation()
        passes_on = trainer.one_forward or self.writes_losses and not self.writes_scores
        # not inference_mode: it saves 2%, and what a model keeps from its first evaluation could not be trained with
        with (eval_mode(trainer.model_list), torch.no_grad(),
              OneForward(trainer.model_list if passes_on else ()) as forwards):
            for prefix, batches in batches_by_prefix.items():
                if numbers is not None and self.listeners:
                    self.heard = Heard(self, prefix, numbers[prefix])
                losses, metrics = self._score_batches(prefix, batches, forwards, on_eval_batch, world)
                trainer.eval_loss_names |= {prefix + name for name in losses}
                result |= {prefix + name: value for name, value in joined(losses, metrics).items()}
        if trainer.is_sharded:
            let_go(trainer.model_list)  # or the gathered weights would stay the parameters of the models
        return result

    def _score_batches(self, prefix, batches, forwards, on_eval_batch, world):
        """Losses and metrics of one loader: no wait for the device before the end."""
        trainer, score, heard = self.trainer, self._way_to_score(forwards), self.heard
        losses, metrics, count, self.loader_name = EpochMetrics(), EpochMetrics(), 0, prefix.rstrip("/")
        try:
            for batch in batches:
                batch, is_spare = batch if type(batch) is Uneven else (batch, False)
                if is_spare:
                    self.forward(batch)
                    heard.skip()
                    continue
                score(batch, trainer.count_samples(batch), losses, metrics)
                trainer.global_step_eval += 1
                count += 1
                for call in on_eval_batch:
                    call(trainer, batch)
                heard.tell(batch)
            if not sum(world.gather(count)):
                name = f"{prefix.rstrip('/')!r} of the loaders" if prefix else "the loader"
                raise ValueError(f"An evaluation needs batches, and {name} gave none. Look at the size of its dataset, and "
                                 "whether it can be read only once.")
            self.is_computing = True
            computed = losses.compute(world), metrics.compute(world)
            self.is_computing = False
            return computed
        finally:
            metrics.reset()
            self.heard, self.loader_name = NOBODY, ""

    def _way_to_score(self, forwards):
        """A function of (batch, its number of samples, losses, metrics), chosen once for all batches."""
        trainer, autocast, note = self.trainer, self.trainer.stepper.autocast, self.heard.note
        losses_of, scores_of = self.heard.ways(trainer)
        are_sums = adds_up(trainer, trainer.criterion)

        def means(losses, num_samples):
            return per_sample(losses, num_samples) if are_sums else losses

        def passing_on(batch, num_samples, losses, metrics):
            with autocast():
                x, y = split_batch(batch, trainer.input_dtype)
                pred = trainer.inference(x)
                note(pred, y)
                losses.update(means(loss_dict(criterion_loss(trainer, pred, y)), num_samples), num_samples)
                metrics.update(score_dict(trainer.metric(pred, y)), num_samples)

        def as_written(batch, num_samples, losses, metrics):
            if self.has_loss:
                with autocast(), forwards.recording():
                    own = dict(batch) if type(batch) is dict else batch  # it may take the labels out: batch.pop("labels")
                    losses.update(means(eval_losses(losses_of(own)), num_samples), num_samples)
            with autocast(), forwards.replaying():
                metrics.update(score_dict(scores_of(batch)), num_samples)

        is_our_own = not self.writes_losses and not self.writes_scores and trainer.criterion is not None
        return passing_on if is_our_own else as_written

    @property
    def has_loss(self):
        """False where only ``train_step`` knows the losses."""
        return self.writes_losses or not (self.writes_step and self.trainer.criterion is None)

    def forward(self, batch):
        """The forward of a batch whose results do not count: the other ranks need this one's part of the weights, or layers
        gather statistics."""
        with self.trainer.stepper.autocast():
            if self.has_loss:
                self.trainer.loss_per_batch(batch)
            else:
                self.trainer.inference(input_of(batch, self.trainer.input_dtype))


def _first_of(batches, before):
    with suppress(StopIteration):
        batch = batches.first()
        before(batch)
        yield batch
