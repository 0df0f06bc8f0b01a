"""Scores that follow from the counts of a ``Confusion`` or a ``MultiLabel``: the formulas.

    iou(counts_CC.double(), "macro")        # rows are true classes, columns predicted ones

Each is checked against scikit-learn. A class that neither occurs nor is predicted is left out of "macro", as there; one of
several labels counts with its 0, as there too.

Shape legend: C classes.
"""

import torch

AVERAGES = ("micro", "macro", "weighted", "binary", None)


class Parts(dict):
    """What a metric computes to where it is several numbers: their names follow its own, "iou/0", "iou/1"."""


def decisions(counts):
    """``(hits, misses, false alarms, right rejections)`` of each class, [C] each.

    Args:
        counts: [C, C] of classes that exclude each other, or [C, 2, 2] of labels that do not; true ones first.
    """
    if counts.dim() == 3:
        return counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1], counts[:, 0, 0]
    counts_CC = counts
    hits, true, predicted = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    return hits, true - hits, predicted - hits, counts_CC.sum() - true - predicted + hits


def seen(counts):
    """Which classes "macro" is the mean of, [C]."""
    hits, misses, false, right = decisions(counts)
    return hits + misses + false + (right if counts.dim() == 3 else 0) > 0


def averaged(numerator, denominator, weights, counted, average, names):
    """A ratio per class as one number, or as ``Parts``. 0 where the denominator is."""
    if average == "micro":
        return _ratio(numerator.sum(), denominator.sum())
    score = torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), 0.0)
    if average is None:
        return Parts((name, float(value)) for name, value in zip(names, score))
    if average == "binary":
        return float(score[1])
    if average == "weighted":
        return _ratio((score * weights).sum(), weights.sum())
    return float(score[counted].mean()) if counted.any() else float("nan")


def _ratio(numerator, denominator):
    return float(numerator / denominator) if denominator else float("nan")


def fbeta(counts, average, names, beta):
    """Source: van Rijsbergen, "Information Retrieval", 1979: F = ((1 + b²) PR) / (b² P + R), written in counts."""
    hits, misses, false, _ = decisions(counts)
    if beta == float("inf"):
        numerator, denominator = hits, hits + misses
    else:
        numerator, denominator = (1 + beta**2) * hits, (1 + beta**2) * hits + beta**2 * misses + false
    if average == "micro" and not denominator.sum():
        return 0.0
    return averaged(numerator, denominator, hits + misses, seen(counts), average, names)


def specificity(counts, average, names):
    """Of what is not of the class, the share that was not taken for it."""
    hits, misses, false, right = decisions(counts)
    return averaged(right, right + false, hits + misses, seen(counts), average, names)


def iou(counts, average, names):
    """Intersection over union, Jaccard."""
    hits, misses, false, _ = decisions(counts)
    return averaged(hits, hits + misses + false, hits + misses, seen(counts), average, names)


def accuracy(counts_CC):
    return _ratio(counts_CC.diagonal().sum(), counts_CC.sum())


def balanced_accuracy(counts_CC):
    """Mean recall over the classes that occur."""
    true = counts_CC.sum(1)
    return float((counts_CC.diagonal()[true > 0] / true[true > 0]).mean()) if true.any() else float("nan")


def share_of_right_decisions(counts):
    """Over all labels: 1 minus the Hamming loss."""
    hits, _, _, right = decisions(counts)
    return _ratio((hits + right).sum(), counts.sum())


def balanced_per_label(counts):
    """Mean over labels of their balanced accuracy, where both answers occur."""
    hits, misses, false, right = decisions(counts)
    both = (hits + misses > 0) & (right + false > 0)
    scores = (hits / (hits + misses) + right / (right + false)) / 2
    return float(scores[both].mean()) if both.any() else float("nan")


def matthews(counts_CC):
    """Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004."""
    total, true, predicted = counts_CC.sum(), counts_CC.sum(1), counts_CC.sum(0)
    covariance = counts_CC.diagonal().sum() * total - true @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float(covariance / spread.sqrt()) if spread > 0 else 0.0 if total else float("nan")


def kappa(counts_CC, weights):
    """Source: Cohen, "Weighted kappa", 1968. 1 minus the ratio of what disagrees to what would by chance."""
    total = counts_CC.sum()
    place_C = torch.arange(len(counts_CC), dtype=counts_CC.dtype)
    distance_CC = (place_C[:, None] - place_C).abs()
    weight_CC = {None: (distance_CC > 0).double(), "linear": distance_CC, "quadratic": distance_CC**2}[weights]
    by_chance = (weight_CC * torch.outer(counts_CC.sum(1), counts_CC.sum(0))).sum() / total
    return float(1 - (weight_CC * counts_CC).sum() / by_chance) if by_chance > 0 else float("nan")
