"""Updates from a loss or gradient that is not finite, skipped. Without a guard they reach the check that stops the run.

    guard = SkipGuard(limit=5, tell=print)
    guard.watch(loss)                        # of each micro-batch
    if guard.allows(parameters):             # a wait for the device
        optimizer.step()
    guard.finish_group()

A skipped update changes no weight. What the forward pass changed (statistics of BatchNorm, random numbers) stays changed.
"""

import torch

from ..parallel.ranks import ALONE


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

    def finish_group(self):
        self._losses = []
        self._in_a_row = self._in_a_row + 1 if self._refused else 0
        if self._refused:
            self._refused = False
            self.skipped += 1
            self.tell(self._in_a_row)


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
