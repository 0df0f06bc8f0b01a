"""Perplexity of a language model, over the tokens of an epoch: ``Perplexity``.

    return {"perplexity": Perplexity(ignore_index=0).update(logits, tokens)}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from .accumulators import Metric

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class Perplexity(Metric):
    """exp of the mean cross entropy over all tokens of the epoch, which is not the mean of the batches' perplexities.

    Args:
        ignore_index: the label of tokens that do not count (padding).
        class_dim: dimension of ``pred`` that has the vocabulary: -1 for [B, T, V], 1 for [B, V, T], as in torch's criteria.
    """

    sums = ("total", "count")
    total: Any  # of cross entropies
    count: Any  # of tokens

    def __init__(self, ignore_index: int = -100, class_dim: int = -1) -> None:
        self.ignore_index = ignore_index
        self.class_dim = class_dim
        super().__init__()

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        """Add one batch.

        Args:
            pred: logits [B, T, V].
            y: tokens [B, T].

        Raises:
            ValueError: the shapes are not these.
        """
        logits = pred.detach().movedim(self.class_dim, -1)
        if logits.shape[:-1] != y.shape:
            raise ValueError(f"Perplexity takes logits [B, T, V] and tokens [B, T]; got {tuple(pred.shape)} and "
                             f"{tuple(y.shape)}. For logits [B, V, T] write Perplexity(class_dim=1).")
        logits_NV, y_N = logits.reshape(-1, logits.shape[-1]).float(), y.detach().reshape(-1).long()
        losses_N = functional.cross_entropy(logits_NV, y_N, ignore_index=self.ignore_index, reduction="none")
        wide = torch.float32 if losses_N.device.type == "mps" else torch.float64  # mps has no float64
        self.total = self.total + losses_N.sum(dtype=wide)
        self.count = self.count + (y_N != self.ignore_index).sum()
        return self

    def compute(self) -> float:
        """NaN when nothing was seen."""
        if not self.count:
            return float("nan")
        return float(torch.as_tensor(float(self.total) / float(self.count), dtype=torch.float64).exp())
