"""A loss or gradient that is not finite: the run stops with the batch named, or the update is skipped.

    fetch_losses(trainer)                    # at a log point: raises where a loss was not finite

    guard = SkipGuard(limit=5, tell=print)   # skip_non_finite = 5
    guard.watch(loss)                        # of each micro-batch
    if guard.allows(parameters):             # a wait for the device
        optimizer.step()
    guard.finish_group()

A skipped update changes no weight. What the forward pass changed (statistics of BatchNorm, random numbers) stays changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..parallel.ranks import ALONE

if TYPE_CHECKING:
    from ..template import TemplateModel


def fetch_losses(trainer: TemplateModel):
    """Bring the losses of the window to the host and refuse to go on from one that is not finite. Where such updates are
    skipped, their losses count in no mean.

    Raises:
        FloatingPointError: a loss was not finite.
    """
    window = trainer.running_losses.fetch()
    if trainer.skip_non_finite:
        window[:] = [entry for entry in window if math.isfinite(_sum(entry[0]))]
    for position, (losses, num_samples) in enumerate(window):
        if num_samples and not math.isfinite(_sum(losses)):  # a mean over nothing is no number
            batch = trainer.batches_done - len(window) + position + 1
            raise FloatingPointError(
                f"The loss must stay finite; it is {_sum(losses)} in epoch {trainer.epoch}, batch {batch} (all "
                f"entries: {losses}), seen at update {trainer.global_step}. Training stops; the files on disk are from "
                "before. Lower the learning rate, warm up, clip gradients, look at that batch, or set skip_non_finite."
            )


def _sum(losses):
    """What is not finite when the loss is not: ``tol_loss``, or all losses of a ``train_step`` that has none."""
    return losses["tol_loss"] if "tol_loss" in losses else sum(losses.values())


def tell_skipped(trainer: TemplateModel, in_a_row: int):
    """Say that an update was skipped; refuse to go on where skipping does not help.

    Raises:
        FloatingPointError: too many in a row, or a buffer of a model became NaN, which skipping cannot undo.
    """
    where = f"epoch {trainer.epoch}, update {trainer.global_step + 1}, up to batch {trainer.batches_done}"
    spoiled = [name for model in trainer.model_list for name, buffer in model.named_buffers() if buffer.isnan().any()]
    if in_a_row > trainer.skip_non_finite or spoiled:
        reason = f"the buffers {spoiled} are NaN, which no skipped update can undo" if spoiled else \
            f"{in_a_row} updates in a row are not, and skip_non_finite is {trainer.skip_non_finite}"
        raise FloatingPointError(
            f"Loss and gradients must stay finite; {reason} ({where}). Training stops; the files on disk are from "
            "before. Lower the learning rate, warm up, clip gradients, or look at the data."
        )
    print(f"Skipped an update: loss or gradient was not finite ({where}); {trainer.skipped_updates} so far.")


class SkipGuard:
    """Skips updates, up to ``limit`` in a row.

    Args:
        limit: at least 1.
        tell: called after each skipped update with the number of them in a row.
        world: the ranks, which skip an update together.
    """

    def __init__(self, limit, tell, world=ALONE):
        self.limit = limit
        self.tell = tell
        self.world = world
        self.skipped = 0     # by this one
        self._in_a_row = 0
        self._losses = []    # of the group
        self._refused = False

    def watch(self, loss):
        self._losses.append(loss.detach())

    def allows(self, parameters):
        """Whether the losses of the group and the gradients of ``parameters`` are finite."""
        gradients = [_values(p.grad) for p in parameters if p.grad is not None]
        is_finite = [values.isfinite().all() for values in (*self._losses, *gradients)]
        fine = not self.world.any(not all(torch.stack(group).all().item() for group in _by_device(is_finite)))
        self._refused = self._refused or not fine
        return fine

    def forget_group(self):
        """An error cut it short."""
        self._losses, self._refused = [], False

    def finish_group(self):
        self._losses = []
        self._in_a_row = self._in_a_row + 1 if self._refused else 0
        if self._refused:
            self._refused = False
            self.skipped += 1
            self.tell(self._in_a_row)


def make_guard(trainer: TemplateModel, limit: int) -> SkipGuard | None:
    """The guard of a ``TemplateModel`` that skips up to ``limit`` updates in a row; None where it shall skip none."""
    return SkipGuard(limit, lambda in_a_row: tell_skipped(trainer, in_a_row), trainer.world) if limit else None


def _values(gradient):
    """What of a gradient is on this rank."""
    if gradient.is_sparse:
        return gradient.coalesce().values()
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _by_device(tensors):
    groups = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups.values()
