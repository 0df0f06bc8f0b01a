"""Whether the right class is among the k largest scores: ``TopK``.

    return {"top5": TopK(5).update(pred, y)}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .accumulators import Metric

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class TopK(Metric):
    """The share of labels whose class has one of the ``k`` largest scores. Of equal scores that of the first class counts as
    larger, so a model that gives every class the same score gets no credit for it. A score that is NaN is never right.

    Args:
        k: at least 1; with k = 1 it is the accuracy.
        ignore_index: a label that does not count.
    """

    sums = ("right", "counted", "outside")
    right: Any
    counted: Any
    outside: Any

    def __init__(self, k: int, ignore_index: int | None = None) -> None:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {k!r}.")
        self.k = k
        self.ignore_index = ignore_index
        super().__init__()

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        """Count one batch.

        Args:
            pred: scores [B, C, …].
            y: class indices [B, …].

        Raises:
            ValueError: the shapes are not these.
        """
        if pred.dim() != y.dim() + 1 or pred.shape[:1] + pred.shape[2:] != y.shape or y.is_floating_point():
            raise ValueError(f"TopK({self.k}) takes pred [B, C, …] and integer labels y [B, …]; got pred "
                             f"{tuple(pred.shape)} and y {tuple(y.shape)} {y.dtype}.")
        scores_NC = pred.detach().movedim(1, -1).reshape(-1, pred.shape[1])
        y_N = y.detach().reshape(-1).long()
        counts_N = torch.ones_like(y_N, dtype=torch.bool) if self.ignore_index is None else y_N != self.ignore_index
        is_class_N = (y_N >= 0) & (y_N < pred.shape[1])
        own_N1 = torch.where(is_class_N, y_N, 0)[:, None]
        score_N1 = scores_NC.gather(1, own_N1)
        is_before_NC = torch.arange(pred.shape[1], device=y.device) < own_N1
        larger_N = (~(scores_NC <= score_N1) | (scores_NC == score_N1) & is_before_NC).sum(1)
        right_N = (larger_N < self.k) & ~score_N1.isnan()[:, 0] & is_class_N & counts_N
        self.right = self.right + right_N.sum()
        self.counted = self.counted + counts_N.sum()
        self.outside = self.outside + (counts_N & ~is_class_N).sum()
        return self

    def compute(self) -> float:
        if self.outside:
            raise ValueError(f"TopK({self.k}) saw {int(self.outside)} labels that are no classes of the scores. Set "
                             "ignore_index where one means 'does not count'.")
        return float(self.right) / float(self.counted) if self.counted else float("nan")
