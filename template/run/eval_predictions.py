"""What callbacks hear of each eval batch: predictions, labels and per-sample losses, of the forward that was done anyway.

    class Worst(Callback):
        def on_eval_predictions(self, model, batch, predictions, labels, losses):
            indices = model.evaluator.sample_indices       # of the batch's samples in the data
            …

**Predictions and labels** are known where the losses or the scores are the template's own: these pass on what ``inference``
gave. A subclass that wrote ``loss_per_batch`` *and* ``eval_scores_per_batch`` may tell them by a line in either of the two:
``self.note_predictions(pred, y)``, or ``note_predictions(pred, y, losses)`` with losses [N] of its own. Otherwise they are
None.

**Losses** are the criterion's with ``reduction="none"``, one for each sample:

- Several values of a sample (pixels, words, outputs) become their mean, or their sum where the criterion adds up. Pixels
  whose label is to be ignored do not count in it, and a sample of such pixels alone has the loss 0, as in torch.
- Class weights are applied as torch does: weight times loss, not divided by the sum of the weights.
- Where the subclass wrote ``loss_per_batch``, the criterion is asked only if it gives, on the first batch, one of the losses
  that ``loss_per_batch`` returned. Otherwise the losses are None, as with a criterion that has no ``reduction``.

**Indices** say where a sample is in ``loader.dataset`` or in the tensors of a ``TensorLoader``, for a shuffled loader and
for several processes too. Data that is only iterated has running numbers; of a ``Divided`` loader each rank counts its own.
The same holds where a collate function makes more or fewer samples than it was given.

With nobody listening, nothing of this is computed or kept.
"""

from __future__ import annotations

import copy
import functools
import inspect
from contextlib import nullcontext

import torch
from torch import nn

from ..data.nested import first_tensor, to_device
from ..data.seeding import rng_kept
from .defaults import (
    BINARY_THRESHOLDS,
    CLASS_LOSSES,
    class_dimensions,
    criterion_inputs,
    criterion_loss,
    ignored_label,
    own_loss,
    split_batch,
    torch_loss,
)

_REDUCTIONS = ("none", "mean", "sum", "batchmean")


class Nobody:
    """Nobody listens."""

    def ways(self, trainer):
        """``(loss_per_batch, eval_scores_per_batch)`` to score with."""
        return trainer.loss_per_batch, trainer.eval_scores_per_batch

    def note(self, predictions, labels=None, losses=None):
        """What is known of the batch that is scored."""

    def tell(self, batch):
        """The batch was scored."""

    def skip(self):
        """A batch did not count."""


NOBODY = Nobody()


class Heard(Nobody):
    """Tells the listeners of an ``Evaluator`` about the batches of one loader.

    Args:
        prefix: of the loader's results.
        numbers: a deque with the indices of each batch's samples, in the order of the batches.
    """

    def __init__(self, evaluator, prefix, numbers):
        self.evaluator, self.trainer, self.numbers = evaluator, evaluator.trainer, numbers
        evaluator.prefix = prefix
        self.known = None, None, None  # predictions, labels, losses of the batch that is scored
        self.reported = {}             # what a loss_per_batch of the user's own returned for it
        self.count = 0                 # samples until now
        self.by_sample = losses_by_sample(self.trainer.criterion)
        self.fits = None if evaluator.writes_losses else True  # the criterion gives the losses; None: not looked yet

    def ways(self, trainer):
        evaluator = self.evaluator
        return (self._written_losses if evaluator.writes_losses else self._default_losses,
                trainer.eval_scores_per_batch if evaluator.writes_scores else self._default_scores)

    def _written_losses(self, batch):
        self.reported = self.trainer.loss_per_batch(batch)
        return self.reported

    def _default_losses(self, batch):
        """``TemplateModel.loss_per_batch``, which tells what it sees."""
        trainer = self.trainer
        if trainer.criterion is None:
            output = trainer.inference(batch)
            self.note(output)
            return own_loss(output)
        x, y = split_batch(batch, trainer.input_dtype)
        pred = trainer.inference(x)
        self.note(pred, y)
        return {"tol_loss": criterion_loss(trainer, pred, y)}

    def _default_scores(self, batch):
        """``TemplateModel.eval_scores_per_batch``, likewise."""
        trainer = self.trainer
        if trainer.criterion is None and not trainer._overrides("metric") and not trainer.eval_metrics:
            return {}
        x, y = split_batch(batch, trainer.input_dtype)
        pred = trainer.inference(x)
        if self.known[0] is None:  # else the user's own code has told
            self.note(pred, y)
        return trainer.metric(pred, y)

    def note(self, predictions, labels=None, losses=None):
        self.known = predictions, labels, losses

    def skip(self):
        self.known, self.reported = (None, None, None), {}
        if self.numbers:
            self.numbers.popleft()

    def tell(self, batch):
        (predictions, labels, losses), reported = self.known, self.reported
        self.known, self.reported = (None, None, None), {}
        if losses is None and isinstance(predictions, torch.Tensor) and isinstance(labels, torch.Tensor):
            losses = self._losses_of(predictions, labels, reported)
        numbers = self.numbers.popleft() if self.numbers else None
        self.evaluator.sample_indices = self._indices(numbers, losses, predictions, labels)
        for call in self.evaluator.listeners:
            call(self.trainer, batch, predictions, labels, losses)

    def _indices(self, numbers, *parts):
        known = first_tensor([part for part in parts if part is not None])
        if isinstance(numbers, torch.Tensor):
            numbers = numbers.tolist()
        elif isinstance(numbers, int):  # batch_size=None: each sample is a batch
            numbers = [numbers]
        if known is None:
            return numbers
        before, self.count = self.count, self.count + len(known)
        return numbers if numbers is not None and len(numbers) == len(known) else range(before, self.count)

    def _losses_of(self, predictions, labels, reported):
        if self.by_sample is None or self.fits is False:
            return None
        with self.trainer.stepper.autocast():
            if self.fits is None:
                self.fits = gives(self.trainer.criterion, predictions, labels, reported)
            return self.by_sample(predictions, labels) if self.fits else None


def gives(criterion, predictions, labels, losses):
    """Whether ``criterion(predictions, labels)`` is one of ``losses``, a tensor or a dict of them. It is asked on the CPU:
    what does not fit is an error there, where a GPU would be of no use any more."""
    cpu = torch.device("cpu")
    try:
        on_cpu = copy.deepcopy(criterion).to(cpu) if isinstance(criterion, nn.Module) else criterion
        predictions, labels = to_device((predictions.detach().float(), labels), cpu)
        value = on_cpu(*criterion_inputs(on_cpu, predictions, labels))
    except (RuntimeError, ValueError, TypeError, IndexError):  # the user's code gives it something else
        return False
    found = losses.values() if isinstance(losses, dict) else [getattr(losses, "loss", losses)]
    numbers = [float(loss) for loss in found if isinstance(loss, (torch.Tensor, float, int)) and _is_one(loss)]
    return _is_one(value) and any(abs(float(value) - number) <= 1e-3 * max(abs(number), 1e-3) for number in numbers)


def _is_one(value):
    return not isinstance(value, torch.Tensor) or value.numel() == 1


def losses_by_sample(criterion):
    """A function of ``(predictions, labels)`` that gives losses [N], float, or None where there is no loss for each sample;
    None for a criterion of which nobody knows how it reduces its values."""
    raw = _unreduced(criterion)
    if raw is None:
        return None
    loss, ignored = torch_loss(criterion), ignored_label(criterion)
    adds = _reduction(criterion) in ("sum", "batchmean")
    surroundings = nullcontext if loss else rng_kept  # one of the user's own may draw random numbers

    def by_sample(predictions, labels):
        with surroundings():
            values = raw(*criterion_inputs(criterion, predictions, labels))
        if not isinstance(values, torch.Tensor) or not values.dim() or not labels.dim() or len(values) != len(labels):
            return None
        values, labels = values.detach().float(), labels.detach()
        if values.dim() == 1:
            return values
        if adds:
            return values.flatten(1).sum(1)
        if loss in CLASS_LOSSES and values.shape == labels.shape and not labels.is_floating_point():
            return values.flatten(1).sum(1) / (labels != ignored).flatten(1).sum(1).clamp(min=1)
        return values.flatten(1).mean(1)

    return by_sample


def _reduction(criterion):
    if isinstance(criterion, functools.partial):
        return criterion.keywords.get("reduction", "mean")
    return getattr(criterion, "reduction", "mean")


def _unreduced(criterion):
    """The criterion with ``reduction="none"``, or None. The user's object is not touched."""
    if isinstance(criterion, nn.Module):
        criterion = criterion._modules.get("_orig_mod", criterion)  # below torch.compile
        is_known = not isinstance(criterion, torch.jit.ScriptModule) and getattr(criterion, "reduction", None) in _REDUCTIONS
        if not is_known or torch_loss(criterion) is None and any(True for _ in criterion.buffers()):
            return None  # one of the user's own may write to its buffers
        other = copy.copy(criterion)
        other.reduction = "none"
        return other
    try:
        parameters = inspect.signature(inspect.unwrap(criterion)).parameters if callable(criterion) else {}
    except (TypeError, ValueError):  # some builtins have none
        return None
    return functools.partial(criterion, reduction="none") if "reduction" in parameters else None


def predicted_classes(criterion, predictions, labels):
    """``(predicted classes shaped like the labels [N, …], number of classes)``, or None where that is not certain.

    Scores [N, C, …] beside integer labels [N, …], the largest wins; or one logit or probability per sample [N] or [N, 1] of
    a binary loss.
    """
    if not isinstance(predictions, torch.Tensor) or not isinstance(labels, torch.Tensor):
        return None
    threshold = BINARY_THRESHOLDS.get(torch_loss(criterion)) if criterion is not None else None
    if threshold is not None:
        is_column = all(part.dim() == 1 or part.dim() == 2 and part.shape[1] == 1 for part in (predictions, labels))
        if is_column and len(predictions) == len(labels):
            return (predictions.reshape(labels.shape) > threshold).long(), 2
        return None
    if labels.is_floating_point() or not predictions.is_floating_point():
        return None
    readings = class_dimensions(predictions, labels)
    if not readings or len(readings) == 2 and torch_loss(criterion) not in CLASS_LOSSES:
        return None
    return predictions.argmax(readings[0]), predictions.shape[readings[0]]
