"""How well scores part two classes, without a threshold: ``BinaryScores``.

    scores = BinaryScores().update(pred, y)         # one score per sample; what is larger speaks for label 1
    return {"auc": scores.auroc(), "ap": scores.average_precision(), "ks": scores.ks()}
    return {"scores": scores}                       # all three, by the names auroc, average_precision and ks
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .accumulators import Metric, Score

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class BinaryScores(Metric):
    """AUROC, average precision and Kolmogorov-Smirnov, exact: every score of the epoch is kept and sorted once at its end.

    Args:
        ignore_index: a label that does not count.
    """

    names = ("auroc", "average_precision", "ks")

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        super().__init__()

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        """Keep one batch.

        Args:
            pred: scores [B, …] or [B, 1]; or of both classes, [B, 2], whose difference counts.
            y: 0 or 1, [B, …].

        Raises:
            ValueError: the shapes are not these.
        """
        scores = pred.detach()
        if scores.dim() == 2 and scores.shape == (len(y), 2) and y.dim() == 1:
            scores = scores[:, 1] - scores[:, 0]
        if scores.numel() != y.numel() or scores.squeeze().shape != y.squeeze().shape:
            raise ValueError("BinaryScores takes one score per label, [B] or [B, 1], or those of two classes, [B, 2]; got "
                             f"pred {tuple(pred.shape)} and y {tuple(y.shape)}.")
        self.scores.append(scores.reshape(-1).clone())
        self.labels.append(y.detach().reshape(-1).clone())  # a loader may fill the memory of its labels again
        return self

    def merge(self, other: BinaryScores) -> None:
        self.scores += other.scores
        self.labels += other.labels

    def reset(self) -> None:
        self.scores: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"scores": [part.cpu() for part in self.scores], "labels": [part.cpu() for part in self.labels]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores, self.labels = list(state["scores"]), list(state["labels"])

    def fresh(self) -> BinaryScores:
        return BinaryScores(self.ignore_index)

    def compute(self) -> dict[str, float]:
        evidence = self.evidence()
        return dict(zip(self.names, (formula(evidence) for formula in (_auroc, _average_precision, _ks))))

    def evidence(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(samples of label 1, samples of label 0)`` with at least that score, for each score that occurs, from above."""
        if not self.scores:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        score_N = torch.cat([part.cpu().double() for part in self.scores])
        y_N = torch.cat([part.cpu() for part in self.labels])
        if self.ignore_index is not None:
            score_N, y_N = score_N[y_N != self.ignore_index], y_N[y_N != self.ignore_index]
        if outside := int(((y_N != 0) & (y_N != 1)).sum()):
            raise ValueError(f"BinaryScores saw {outside} labels that are neither 0 nor 1. Set ignore_index where one means "
                             "'does not count'.")
        if unknown := int(score_N.isnan().sum()):
            raise ValueError(f"BinaryScores saw {unknown} scores that are NaN, which cannot be sorted. Look at the model.")
        score_N, order_N = score_N.sort(descending=True)
        is_one_N = (y_N == 1)[order_N].double()
        is_last_N = torch.ones_like(score_N, dtype=torch.bool)
        is_last_N[:-1] = score_N[1:] != score_N[:-1]  # equal scores are told apart by no threshold
        return is_one_N.cumsum(0)[is_last_N], (1 - is_one_N).cumsum(0)[is_last_N]

    def auroc(self) -> Score:
        """The share of pairs of both classes that are in order, equal ones half; NaN where a class does not occur."""
        return Score(self, _auroc)

    def average_precision(self) -> Score:
        """The precisions at each score, weighted by the recall that it adds; NaN where label 1 does not occur."""
        return Score(self, _average_precision)

    def ks(self) -> Score:
        """The largest distance between the classes' shares above a threshold; NaN where a class does not occur."""
        return Score(self, _ks)

    def __add__(self, other: BinaryScores) -> BinaryScores:
        total = self.fresh()
        total.scores, total.labels = self.scores + other.scores, self.labels + other.labels
        return total


def _auroc(evidence):
    ones, zeros = evidence
    if not len(ones) or not ones[-1] or not zeros[-1]:
        return float("nan")
    steps = torch.diff(zeros, prepend=zeros.new_zeros(1))
    heights = ones + torch.cat([ones.new_zeros(1), ones[:-1]])
    return float((steps * heights).sum() / 2 / ones[-1] / zeros[-1])


def _average_precision(evidence):
    ones, zeros = evidence
    if not len(ones) or not ones[-1]:
        return float("nan")
    return float((torch.diff(ones, prepend=ones.new_zeros(1)) * ones / (ones + zeros)).sum() / ones[-1])


def _ks(evidence):
    ones, zeros = evidence
    if not len(ones) or not ones[-1] or not zeros[-1]:
        return float("nan")
    return float((ones / ones[-1] - zeros / zeros[-1]).abs().max())
