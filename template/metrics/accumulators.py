"""What is accumulated over an epoch, and over ranks.

    def metric(self, pred, y):                       # pred [B, C] scores, y [B] labels
        confusion = Confusion(10).update(pred, y)
        return {
            "acc": confusion.accuracy(),
            "f1": confusion.f1("macro"),             # from the epoch's counts, not a mean of batch values
            "auc": Stored(roc_auc_score).update(pred, y),
            "loss_per_word": Mean().update(loss, num_words),
            "top5": top5(pred, y),                   # a plain number or 0-dim tensor: mean over samples
        }

The objects may be made anew for each batch, as above, or once in ``__init__``; torchmetrics objects (made once, updated in
``metric``) work the same way. Nothing waits for the device until ``compute()``.

Shape legend: B batch, C classes, N samples of the epoch.
"""

import copy

import torch

AVERAGES = ("micro", "macro", "weighted", "binary")


class Metric:
    """What the epoch needs of an accumulator: ``update``, ``merge``, ``compute``, ``reset``, and plain state."""

    def update(self, *args):
        raise NotImplementedError

    def merge(self, other):
        """Take in what ``other``, of the same kind, has seen."""
        raise NotImplementedError

    def compute(self):
        raise NotImplementedError

    def reset(self):
        raise NotImplementedError

    def fresh(self):
        """An empty one of the same kind."""
        other = copy.deepcopy(self)
        other.reset()
        return other

    def state_dict(self):
        """Plain data that ``load_state_dict`` of a metric built alike takes."""
        raise NotImplementedError

    def load_state_dict(self, state):
        raise NotImplementedError


class Mean(Metric):
    """Weighted mean of scalars; values stay on the device until somebody asks.

    ``update`` is an append: no kernel, no host sync. ``fetch`` brings everything to the host in one copy and sums in
    float64 there.
    """

    def __init__(self):
        self.reset()

    def update(self, value, weight=1):
        """Args: value: number or 0-dim tensor; weight: number of samples (or words, pixels, …) it is the mean of."""
        weight = weight if type(weight) is int else one_number(weight, "weight of a Mean")
        self.pending.append((one_number(value, "value of a Mean"), weight))
        return self

    def fetch(self):
        """Bring what came since the last call to the host."""
        pending, self.pending = self.pending, []
        fetched = iter(to_floats([number for pair in pending for number in pair]))
        for value, weight in zip(fetched, fetched):
            self.total += value * weight
            self.weight += weight

    def merge(self, other):
        self.pending += other.pending  # not fetched: a metric made anew for each batch is merged once a batch
        self.total += other.total
        self.weight += other.weight

    def compute(self):
        """The mean as a float; NaN when nothing was seen."""
        self.fetch()
        return self.total / self.weight if self.weight else float("nan")

    def reset(self):
        self.pending = []
        self.total = 0.0
        self.weight = 0

    def state_dict(self):
        self.fetch()
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state):
        self.reset()
        self.total, self.weight = state["total"], state["weight"]


def one_number(value, what):
    """``value``, detached, if it is a number or a tensor or array that holds one.

    Raises:
        ValueError: it is something else; ``what`` names in the message the value that was meant.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() == 1:
            return value.detach() if value.requires_grad else value
    elif hasattr(value, "__float__") and getattr(value, "size", 1) == 1:
        return value
    shape = getattr(value, "shape", None)
    got = repr(value) if shape is None else f"a {type(value).__name__} of shape {tuple(shape)}"
    raise ValueError(
        f"A loss or plain metric must be a single number; {what!r} is {got}. Reduce it, e.g. with .mean(), or return a "
        "Stored or Confusion."
    )


def to_floats(values):
    """Numbers and 0-dim tensors to floats, with one transfer for all tensors of one dtype and device.

    Per dtype, because a common one rounds: a count of 70001 beside a half-precision loss would become infinite.
    """
    by_kind = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            by_kind.setdefault((value.dtype, value.device), []).append(value.reshape(()) if value.dim() else value)
    fetched = {kind: iter(torch.stack(tensors).tolist()) for kind, tensors in by_kind.items()}
    return [float(next(fetched[value.dtype, value.device]) if isinstance(value, torch.Tensor) else value)
            for value in values]


class Stored(Metric):
    """Keeps every prediction and label of the epoch and calls ``fn(pred, y)`` once at its end.

    For what has no sum, such as AUROC. Costs the memory of all predictions.

    Args:
        fn: takes ``pred`` [N, …] and ``y`` [N, …] as CPU tensors, returns a number; scikit-learn's functions fit.
        device: where the predictions wait; None leaves them where they are, "cpu" spares GPU memory for one wait a batch.
    """

    def __init__(self, fn, device=None):
        self.fn = fn
        self.device = device
        self.reset()

    def update(self, pred, y):
        self.preds.append(self._keep(pred))
        self.labels.append(self._keep(y))
        return self

    def _keep(self, tensor):
        tensor = torch.atleast_1d(torch.as_tensor(tensor).detach())
        return tensor.to(self.device) if self.device is not None else tensor

    def merge(self, other):
        self.preds += other.preds
        self.labels += other.labels

    def compute(self):
        if not self.preds:
            return float("nan")
        return to_number(self.fn(_joined(self.preds), _joined(self.labels)))

    def reset(self):
        self.preds = []
        self.labels = []

    def fresh(self):
        return Stored(self.fn, self.device)  # not a copy of what fn may belong to

    def state_dict(self):
        return {"preds": [pred.cpu() for pred in self.preds], "labels": [label.cpu() for label in self.labels]}

    def load_state_dict(self, state):
        self.preds, self.labels = list(state["preds"]), list(state["labels"])


def _joined(tensors):
    """One CPU tensor; half precision as float32, which numpy knows."""
    joined = torch.cat(tensors).cpu()
    return joined.float() if joined.dtype in (torch.bfloat16, torch.float16) else joined


class Confusion(Metric):
    """Counts of (true class, predicted class), and the scores that follow from them.

    Args:
        num_classes: C; labels and predictions are integers in ``[0, C)``.
    """

    def __init__(self, num_classes):
        self.num_classes = num_classes
        self.reset()

    def update(self, pred, y):
        """Count one batch.

        Args:
            pred: class scores ``[B, C, …]`` (the largest wins) or class indices shaped like ``y``.
            y: class indices ``[B, …]``, integer.

        Raises:
            ValueError: the shapes or dtypes are not these.
        """
        received = pred
        if pred.dim() == y.dim() + 1 >= 2 and pred.shape[1] == self.num_classes:
            pred = pred.argmax(dim=1)
        if pred.shape != y.shape or pred.is_floating_point() or y.is_floating_point():
            raise ValueError(
                f"Confusion({self.num_classes}) takes pred as scores [B, {self.num_classes}, …] or integer classes "
                f"shaped like y, and y as integer classes; got pred {tuple(received.shape)} {received.dtype} and "
                f"y {tuple(y.shape)} {y.dtype}. For one score per sample pass (score > threshold).long()."
            )
        pred, y = pred.detach().reshape(-1).long(), y.detach().reshape(-1).long()
        classes = self.num_classes
        valid = (y >= 0) & (y < classes) & (pred >= 0) & (pred < classes)
        index = torch.where(valid, y * classes + pred, classes * classes)  # the last cell collects what is out of range
        if self.cells is None:
            self.cells = torch.zeros(classes * classes + 1, dtype=torch.int64, device=index.device)
        cells = self.cells.to(index.device)  # a restored state is on the CPU
        self.cells = cells.index_add(0, index, torch.ones_like(index))  # bincount would wait for the device
        return self

    @property
    def counts_CC(self):
        """Row: true class, column: predicted class; int64 on the CPU."""
        if self.cells is None:
            return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        *cells, out_of_range = self.cells.tolist()
        if out_of_range:
            raise ValueError(
                f"Confusion({self.num_classes}) saw {out_of_range} labels or predictions outside "
                f"[0, {self.num_classes}). Raise num_classes, or leave those samples out before update()."
            )
        return torch.tensor(cells).reshape(self.num_classes, self.num_classes)

    def fresh(self):
        return Confusion(self.num_classes)

    def __add__(self, other):
        total = self.fresh()
        parts = [part.cells for part in (self, other) if part.cells is not None]
        total.cells = sum(parts) if parts else None
        return total

    def merge(self, other):
        self.cells = (self + other).cells

    def compute(self):
        return self.counts_CC

    def reset(self):
        self.cells = None

    def state_dict(self):
        return {"cells": None if self.cells is None else self.cells.cpu()}

    def load_state_dict(self, state):
        self.cells = state["cells"]

    # --- scores: each is computed from the counts at the epoch's end --------------------------------------------

    def accuracy(self):
        return Score(self, _accuracy)

    def precision(self, average="macro"):
        return self.fbeta(0.0, average)

    def recall(self, average="macro"):
        return self.fbeta(float("inf"), average)

    def f1(self, average="macro"):
        return self.fbeta(1.0, average)

    def fbeta(self, beta, average="macro"):
        """F-beta; beta 0 is precision, infinity is recall. A class that neither occurs nor is predicted scores 0, and
        "macro" leaves it out of its mean, as scikit-learn does.

        Args:
            average: "micro" (all decisions pooled), "macro" (mean over classes), "weighted" (by true counts) or
                "binary" (class 1 of two).
        """
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {list(AVERAGES)}, got {average!r}.")
        if average == "binary" and self.num_classes != 2:
            raise ValueError(f"average='binary' needs two classes, got {self.num_classes}. Use 'macro' or 'micro'.")
        return Score(self, _fbeta, beta, average)


class Score(Metric):
    """One number of a ``Confusion``; several scores may share one."""

    def __init__(self, confusion, formula, *args):
        self.confusion = confusion
        self.formula = formula
        self.args = args

    def update(self, pred, y):
        self.confusion.update(pred, y)
        return self

    def merge(self, other):
        if other.confusion is not self.confusion:  # the same one when the user made it once and updates it
            self.confusion = self.confusion + other.confusion  # a new object: others may share the old one

    def compute(self):
        return self.formula(self.confusion.counts_CC.double(), *self.args)

    def reset(self):
        self.confusion.reset()

    def fresh(self):
        return Score(self.confusion.fresh(), self.formula, *self.args)

    def state_dict(self):
        return self.confusion.state_dict()

    def load_state_dict(self, state):
        self.confusion.load_state_dict(state)


def _accuracy(counts_CC):
    total = counts_CC.sum()
    return float(counts_CC.diagonal().sum() / total) if total else float("nan")


def _fbeta(counts_CC, beta, average):
    """Source: van Rijsbergen, "Information Retrieval", 1979: F = ((1 + b²) PR) / (b² P + R), written in counts."""
    correct, true, predicted = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    if average == "micro":
        correct, true, predicted = correct.sum(), true.sum(), predicted.sum()
    if beta == float("inf"):
        denominator = true
    else:
        correct, denominator = (1 + beta**2) * correct, beta**2 * true + predicted
    score = torch.where(denominator > 0, correct / denominator.clamp(min=1e-300), 0.0)
    if average == "micro":
        return float(score)
    if average == "binary":
        return float(score[1])
    if average == "weighted":
        return float((score * true).sum() / true.sum()) if true.sum() else float("nan")
    seen = (true + predicted) > 0
    return float(score[seen].mean()) if seen.any() else float("nan")


def to_number(value):
    """A float where there is one number, else the value (a confusion matrix stays a tensor)."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else value.detach().cpu()
    return float(value) if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 else value
