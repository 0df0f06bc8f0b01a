"""Several labels per sample, each of which is there or not: ``MultiLabel``.

    multi = MultiLabel(14)                                     # labels; pred and y are [B, 14]
    return {"f1": multi.update(pred, y).f1("macro"), "exact": multi.exact_match(), "acc": multi.accuracy()}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import confusion_scores
from .accumulators import Confusion, Score

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class MultiLabel(Confusion):
    """Counts, for each of L labels, of (is there, is predicted). F1, precision, recall, IoU, Dice and specificity are asked
    for as of a ``Confusion``; "micro" pools all labels. "macro" is the mean over all labels, as in scikit-learn: the F1 of
    one that neither occurs nor is predicted is 0. Only a label that is nowhere known is left out.

    Args:
        num_labels: L.
        ignore_index: what stands in ``y`` where a label is not known; it does not count.
        names: of the labels, for scores per label.
        threshold: scores above it predict the label: 0 for logits, 0.5 for probabilities.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = None, names: Sequence[str] | None = None,
                 threshold: float = 0.0) -> None:
        super().__init__(num_labels, ignore_index, names)
        self.threshold = threshold

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        """Count one batch.

        Args:
            pred: scores [B, L, …], or decisions as integers or booleans.
            y: 1 where the label is there, else 0, shaped like ``pred``; of any dtype.

        Raises:
            ValueError: the shapes are not these.
        """
        labels = self.num_classes
        if pred.shape != y.shape or pred.dim() < 2 or pred.shape[1] != labels:
            raise ValueError(f"MultiLabel({labels}) takes pred and y of one shape [B, {labels}, …]; got pred "
                             f"{tuple(pred.shape)} and y {tuple(y.shape)}.")
        said = pred.detach() > self.threshold if pred.is_floating_point() else pred.detach() != 0
        said_NL, y_NL = (tensor.movedim(1, -1).reshape(-1, labels) for tensor in (said, y.detach()))
        counts_NL = torch.ones_like(y_NL, dtype=torch.bool) if self.ignore_index is None else y_NL != self.ignore_index
        is_label_NL = (y_NL == 0) | (y_NL == 1)
        places_NL = torch.arange(labels, device=y.device) * 4 + 2 * (y_NL == 1) + said_NL
        cells = torch.zeros(labels * 4 + 3, dtype=torch.int64, device=y.device)
        cells = cells.index_add(0, places_NL.reshape(-1), counts_NL.reshape(-1).long())
        outside = (counts_NL & ~is_label_NL).sum()
        exact = ((said_NL == (y_NL == 1)) | ~counts_NL).all(1) & counts_NL.any(1)
        cells[-3:] = torch.stack([outside, exact.sum(), counts_NL.any(1).sum()])
        self.cells = cells if self.cells is None else self.cells.to(cells.device) + cells
        return self

    def evidence(self) -> torch.Tensor:
        return self._read()[0].double()

    def compute(self) -> torch.Tensor:
        """Counts [L, 2, 2] on the CPU: row: whether the label is there, column: whether it is predicted."""
        return self._read()[0]

    def _read(self):
        """``(counts [L, 2, 2], exact matches, samples)``."""
        labels = self.num_classes
        if self.cells is None:
            return torch.zeros(labels, 2, 2, dtype=torch.int64), 0, 0
        *cells, outside, exact, samples = self.cells.tolist()
        if outside:
            raise ValueError(f"MultiLabel({labels}) saw {outside} labels that are neither 0 nor 1. Set ignore_index where "
                             "one means 'not known'.")
        return torch.tensor(cells).reshape(labels, 2, 2), exact, samples

    def fresh(self) -> Self:
        return type(self)(self.num_classes, self.ignore_index, self._names, self.threshold)

    def accuracy(self) -> Score:
        """The share of right decisions, over all labels: 1 minus the Hamming loss."""
        return Score(self, confusion_scores.share_of_right_decisions)

    def exact_match(self) -> Score:
        """The share of samples of which every label is right."""
        return _ExactMatch(self, confusion_scores.accuracy)

    def balanced_accuracy(self) -> Score:
        """Mean over the labels of the mean of recall and specificity."""
        return Score(self, confusion_scores.balanced_per_label)

    def matthews(self) -> Score:
        """Raises: ValueError: it is not defined for several labels."""
        raise ValueError("Matthews' coefficient and Cohen's kappa are of classes that exclude each other. For a label, use "
                         "a Confusion(2) of its own.")

    def kappa(self, weights: str | None = None) -> Score:
        return self.matthews()


class _ExactMatch(Score):
    """It does not follow from the counts of each label."""

    def compute(self) -> float:
        _, exact, samples = self.confusion._read()
        return exact / samples if samples else float("nan")
