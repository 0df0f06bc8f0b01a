"""What is accumulated over an epoch, and over ranks.

    def metric(self, pred, y):                       # pred [B, C] scores, y [B] labels
        confusion = Confusion(10).update(pred, y)
        return {
            "acc": confusion.accuracy(),
            "f1": confusion.f1("macro"),             # from the epoch's counts, not a mean of batch values
            "kappa": Stored(cohen_kappa_score).update(pred.argmax(1), y),
            "auc": Stored(partial(roc_auc_score, multi_class="ovr")).update(pred.softmax(1), y),
            "loss_per_word": Mean().update(loss, num_words),
            "top5": top5(pred, y),                   # a plain number or 0-dim tensor: mean over samples
        }

The objects may be made anew for each batch, as above, or once in ``__init__``; torchmetrics objects (made once, updated in
``metric``) work the same way. Nothing waits for the device until ``compute()``.

Shape legend: B batch, C classes, N samples of the epoch.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import confusion_scores

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

class Metric:
    """What the epoch needs of an accumulator: ``update``, ``merge``, ``compute``, ``reset``, and plain state.

    One of your own that adds numbers or tensors up names them in ``sums``, and writes ``update`` and ``compute``::

        class Bias(Metric):
            sums = ("total", "count")

            def update(self, pred, y):
                self.total = self.total + (pred - y).sum()      # not in place; it begins as 0
                self.count = self.count + y.numel()
                return self

            def compute(self):
                return self.total / self.count
    """

    sums: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.reset()

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def merge(self, other: Any) -> None:
        """Take in what ``other``, of the same kind, has seen: a later batch, or all that the next rank saw."""
        self._require_sums("merge")
        for name in self.sums:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
                mine = mine.to(theirs.device)  # a restored one is on the CPU
            setattr(self, name, mine + theirs)

    def compute(self) -> Any:
        raise NotImplementedError

    def reset(self) -> None:
        self._require_sums("reset")
        for name in self.sums:
            setattr(self, name, 0)

    def __add__(self, other: Any) -> Self:
        """What both have seen, as a new object."""
        total = self.fresh()
        total.merge(self)
        total.merge(other)
        return total

    def __radd__(self, other: Any) -> Self:
        """For ``sum(metrics)``, which begins with 0."""
        return self + self.fresh() if type(other) is int and other == 0 else NotImplemented

    def _require_sums(self, method):
        if not self.sums:
            raise NotImplementedError(f"{type(self).__name__} must name in `sums` the attributes that add up, or define "
                                      f"{method}(), merge(), reset(), state_dict() and load_state_dict() itself.")

    def fresh(self) -> Self:
        """An empty one of the same kind."""
        other = copy.deepcopy(self)
        other.reset()
        return other

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` of a metric built alike takes."""
        self._require_sums("state_dict")
        values = {name: getattr(self, name) for name in self.sums}
        return {name: value.detach().cpu() if isinstance(value, torch.Tensor) else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._require_sums("load_state_dict")
        for name in self.sums:
            setattr(self, name, state[name])


class Mean(Metric):
    """Weighted mean of scalars, summed in float64; what is on a device stays there until somebody asks.

    ``update`` is then an append: no kernel, no host sync. ``fetch`` brings everything to the host in one copy.
    """

    pending: list[Any]  # (value, weight), not yet brought to the host

    def __init__(self) -> None:
        self.reset()

    def update(self, value: Any, weight: Any = 1) -> Self:
        """Args: value: number or 0-dim tensor; weight: number of samples (or words, pixels, …) it is the mean of."""
        self.take(one_number(value, "value of a Mean"), one_number(weight, "weight of a Mean"))
        return self

    def take(self, value: Any, weight: Any) -> None:
        """The same of numbers that ``one_number`` has seen."""
        if isinstance(value, torch.Tensor) or isinstance(weight, torch.Tensor):
            self.pending.append((value, weight))
        elif weight:  # a mean of nothing is NaN, and says nothing
            self.total += value * weight
            self.weight += weight

    def fetch(self) -> None:
        """Bring what came since the last call to the host."""
        pending, self.pending = self.pending, []
        fetched = iter(to_floats([part for pair in pending for part in pair if isinstance(part, torch.Tensor)]))
        for pair in pending:
            self.take(*(next(fetched) if isinstance(part, torch.Tensor) else part for part in pair))

    def merge(self, other: Mean) -> None:
        self.pending += other.pending  # not fetched: a metric made anew for each batch is merged once a batch
        self.total += other.total
        self.weight += other.weight

    def compute(self) -> float:
        """The mean as a float; NaN when nothing was seen."""
        self.fetch()
        return self.total / self.weight if self.weight else float("nan")

    def reset(self) -> None:
        self.pending = []
        self.total: float = 0.0
        self.weight: float = 0

    def state_dict(self) -> dict[str, Any]:
        self.fetch()
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.total, self.weight = state["total"], state["weight"]


def one_number(value, what):
    """A float or int, if ``value`` is a number, or a tensor or array that holds one. A tensor on a device stays a tensor,
    detached: its value would be waited for. On the CPU a float costs less than to keep the tensor.

    Raises:
        ValueError: it is something else; ``what`` names in the message the value that was meant.
    """
    if type(value) in (int, float):
        return value
    if isinstance(value, torch.Tensor):
        if value.numel() == 1:
            if is_read_at_once(value):
                return float(value.item())
            value = value.detach() if value.requires_grad else value
            # what was written in place, such as a running sum, will be again before anybody fetches it
            return value.clone() if not value.is_inference() and value._version else value
    elif hasattr(value, "__float__") and getattr(value, "size", 1) == 1:
        return float(value.item() if hasattr(value, "item") else value)
    shape = getattr(value, "shape", None)
    got = repr(value) if shape is None else f"a {type(value).__name__} of shape {tuple(shape)}"
    raise ValueError(
        f"A loss or plain metric must be a single number; {what!r} is {got}. Reduce it, e.g. with .mean(), or return a "
        "Stored or Confusion from metric()."
    )


def is_read_at_once(tensor):
    """Whether ``one_number`` gives its value, for which nobody has to wait. Other classes may be spread over processes."""
    return tensor.is_cpu and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def to_floats(values):
    """Numbers and 0-dim tensors to floats, with one transfer for all tensors of one dtype and device.

    Per dtype, because a common one rounds: a count of 70001 beside a half-precision loss would become infinite.
    """
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    kinds = set(zip(map(_DTYPE, tensors), map(_DEVICE, tensors)))
    if len(kinds) == 1 and len(tensors) == len(values):  # as nearly always
        return _fetched(tensors)
    fetched = {kind: iter(_fetched([tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]))
               for kind in kinds}
    return [next(fetched[value.dtype, value.device]) if isinstance(value, torch.Tensor) else float(value)
            for value in values]


_DTYPE, _DEVICE = operator.attrgetter("dtype"), operator.attrgetter("device")


def _fetched(tensors):
    stacked = torch.stack([tensor.reshape(()) if tensor.dim() else tensor for tensor in tensors])
    return list(map(float, stacked.tolist()))


class Accuracy(Metric):
    """Right predictions over all labels that count: what the default ``metric`` returns.

    A batch may be read in two ways where its shapes allow it: the classes in dimension 1 of ``pred``, or in the last one.
    It is counted in both, and at the end the reading holds that other batches were certain of. Sums are exact.
    """

    READINGS = (1, -1)
    pending: list[Any]  # (right by reading, counted, unclear), not yet brought to the host
    right: list[float]
    certain: list[int]
    counted: float
    unclear: float

    def __init__(self) -> None:
        self.reset()

    def update(self, right: dict[int, Any], counted: Any, unclear: Any = 0) -> Self:
        """Args: right: by reading, how many predictions were right; counted: how many labels count; unclear: how many labels
        are no classes at all."""
        self.pending.append((right, counted, unclear))
        return self

    def fetch(self) -> None:
        """Bring what came since the last call to the host."""
        pending, self.pending = self.pending, []
        fetched = iter(to_floats([number for right, *rest in pending for number in (*right.values(), *rest)]))
        for right, *_ in pending:
            for reading in right:
                self.right[self.READINGS.index(reading)] += next(fetched)
            self.certain += [reading for reading in right if len(right) == 1 and reading not in self.certain]
            self.counted += next(fetched)
            self.unclear += next(fetched)

    def merge(self, other: Accuracy) -> None:
        self.pending += other.pending
        self.right = [mine + theirs for mine, theirs in zip(self.right, other.right)]
        self.certain += [reading for reading in other.certain if reading not in self.certain]
        self.counted += other.counted
        self.unclear += other.unclear

    def compute(self) -> float | dict[str, float]:
        """The accuracy; NaN when every label was one to ignore; nothing, ``{}``, when it is not certain what was right."""
        self.fetch()
        if self.unclear or len(self.certain) != 1:
            return {}
        return self.right[self.READINGS.index(self.certain[0])] / self.counted if self.counted else float("nan")

    def reset(self) -> None:
        self.pending = []
        self.right = [0.0, 0.0]
        self.certain = []
        self.counted = 0.0
        self.unclear = 0.0

    def state_dict(self) -> dict[str, Any]:
        self.fetch()
        return {"right": list(self.right), "certain": list(self.certain), "counted": self.counted, "unclear": self.unclear}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.right, self.certain = list(state["right"]), list(state["certain"])
        self.counted, self.unclear = state["counted"], state["unclear"]


class Stored(Metric):
    """Keeps every prediction and label of the epoch and calls ``fn`` once at its end, with all of them.

    For what has no sum, such as AUROC. Costs the memory of all predictions. They are in the order of the loader, also where
    several processes share an evaluation, so ``fn`` may pair them with a table by position.

    The names of the first two parameters of ``fn`` say what it takes first. ``fn(y_true, y_score)`` as in scikit-learn gets
    the labels first, ``fn(preds, target)`` as in torchmetrics the predictions. Names that say nothing, such as
    ``lambda a, b``, ``*args`` or those of a builtin, get ``fn(pred, y)``; so does a bare ``y`` beside such a name.

    Args:
        fn: takes predictions [N, …] and labels [N, …] as CPU tensors and returns a number. scikit-learn's and torchmetrics'
            functions fit as they are; bind their options with ``functools.partial(roc_auc_score, multi_class="ovr")``.
        device: where the predictions wait; None leaves them where they are, "cpu" spares GPU memory for one wait a batch.
    """

    def __init__(self, fn: Callable[..., Any], device: str | torch.device | None = None) -> None:
        self.fn = fn
        self.device = device
        self.reset()

    def update(self, pred: Any, y: Any) -> Self:
        self.preds.append(self._keep(pred))
        self.labels.append(self._keep(y))
        return self

    def _keep(self, tensor):
        tensor = torch.atleast_1d(torch.as_tensor(tensor).detach())
        return tensor.to(self.device or tensor.device, copy=True)  # a loader may fill the memory of its labels again

    def note_batch(self, number: int) -> None:
        """What came since the last call is of this rank's batch ``number``."""
        self.batches += [number] * (len(self.preds) - len(self.batches))

    def merge(self, other: Stored) -> None:
        if len(self.batches) == len(self.preds):
            self.batches += other.batches
        self.preds += other.preds
        self.labels += other.labels

    def compute(self) -> Any:
        if not self.preds:
            return float("nan")
        order = list(range(len(self.preds)))
        if len(self.batches) == len(order):  # merged rank by rank, and batches are dealt out in turn
            order.sort(key=self.batches.__getitem__)
        given = _joined([self.preds[i] for i in order]), _joined([self.labels[i] for i in order])
        # asked here, once an epoch: a metric that is made anew for each batch has no time for it
        return to_number(self.fn(*(reversed(given) if takes_labels_first(self.fn) else given)))

    def reset(self) -> None:
        self.preds: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.batches: list[int] = []  # which of a rank's batches each is of, as far as that was noted

    def fresh(self) -> Stored:
        return Stored(self.fn, self.device)  # not a copy of what fn may belong to

    def state_dict(self) -> dict[str, Any]:
        return {"preds": [pred.cpu() for pred in self.preds], "labels": [label.cpu() for label in self.labels],
                "batches": list(self.batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.preds, self.labels = list(state["preds"]), list(state["labels"])
        self.batches = list(state.get("batches", ()))


_OF_LABELS = {"true", "ytrue", "truth", "gt", "target", "targets", "label", "labels", "actual", "reference", "references"}
_OF_PREDICTIONS = {"pred", "preds", "ypred", "prediction", "predictions", "predicted", "hat", "yhat", "score", "scores",
                   "prob", "probs", "proba", "probas", "probabilities", "logit", "logits", "input", "output", "outputs"}


def takes_labels_first(fn: Callable[..., Any]) -> bool:
    """Whether the names of the first two parameters say that the labels come before the predictions."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # many builtins have none
        return False
    names = [parameter.name.lower() for parameter in parameters
             if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    if len(names) < 2:
        return False
    first, second = (_meaning(name) for name in names[:2])
    if first == "labels":
        return second != "labels"
    return second == "predictions" and first != "predictions"


def _meaning(name):
    """What a name speaks of, "labels" or "predictions" (``labels_pred``); None where it says neither."""
    words = set(name.split("_"))
    if words & {"true", "truth", "gt"}:
        return "labels"
    if words & _OF_PREDICTIONS:
        return "predictions"
    return "labels" if words & _OF_LABELS else None


def _joined(tensors):
    """One CPU tensor; half precision as float32, which numpy knows."""
    joined = torch.cat(on_one_device(tensors)).cpu()
    return joined.float() if joined.dtype in (torch.bfloat16, torch.float16) else joined


def on_one_device(tensors):
    """Where they are, if that is one place; else on the CPU, where restored ones are."""
    return tensors if len(set(map(_DEVICE, tensors))) == 1 else [tensor.cpu() for tensor in tensors]


class Confusion(Metric):
    """Counts of (true class, predicted class), and the scores that follow from them.

    Args:
        num_classes: C; labels and predictions are integers in ``[0, C)``.
        ignore_index: a label that does not count.
        names: of the classes, for scores per class; None: their numbers.
    """

    MOST_WAITING = 64, 2**16  # batches and labels; more are not kept before they are counted

    def __init__(self, num_classes: int, ignore_index: int | None = None, names: Sequence[str] | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._names = None if names is None else [str(name) for name in names]
        if self._names is not None and len(self._names) != num_classes:
            raise ValueError(f"names must have one entry for each of {num_classes} classes, got {self._names}.")
        self.reset()

    @property
    def names_of_classes(self) -> list[str]:
        return [str(number) for number in range(self.num_classes)] if self._names is None else self._names

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
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
        pred = pred.clone() if pred is received else pred  # a loader may fill the memory of its labels again
        self._take(((pred, y.clone()),), y.numel())
        return self

    def _take(self, batches, num_labels):
        """Batches are counted many at a time: a few operations for all of them, and not a dozen for each."""
        self._waiting += batches
        self._num_waiting += num_labels
        if len(self._waiting) >= self.MOST_WAITING[0] or self._num_waiting >= self.MOST_WAITING[1]:
            self._count()

    def _count(self):
        waiting, self._waiting, self._num_waiting = self._waiting, (), 0
        pred, y = (torch.cat(on_one_device([part if part.dim() == 1 else part.reshape(-1) for part in parts])).long()
                   for parts in zip(*waiting))
        classes = self.num_classes
        valid = (y >= 0) & (y < classes) & (pred >= 0) & (pred < classes)
        index = torch.where(valid, y * classes + pred, classes * classes)  # the last cell collects what is out of range
        if self._cells is None:
            self._cells = torch.zeros(classes * classes + 1, dtype=torch.int64, device=index.device)
        cells = self._cells.to(index.device)  # a restored state is on the CPU
        counts = torch.ones_like(index) if self.ignore_index is None else (y != self.ignore_index).long()
        self._cells = cells.index_add(0, index, counts)  # bincount would wait for the device

    @property
    def cells(self) -> torch.Tensor | None:
        """Counts [C * C + 1] on the device; None before the first."""
        if self._waiting:
            self._count()
        return self._cells

    @cells.setter
    def cells(self, cells: torch.Tensor | None) -> None:
        self._cells, self._waiting, self._num_waiting = cells, (), 0

    @property
    def counts_CC(self) -> torch.Tensor:
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

    def evidence(self) -> torch.Tensor:
        """What scores are computed from."""
        return self.counts_CC.double()

    def fresh(self) -> Self:
        return type(self)(self.num_classes, self.ignore_index, self._names)

    def __add__(self, other: Confusion) -> Self:
        total = object.__new__(type(self))    # ``fresh()`` takes longer, and a metric made anew comes here in each batch
        total.__dict__.update(self.__dict__)  # tensors and tuples, of which none is ever written in place
        if self._cells is None:
            total._cells = other._cells
        elif other._cells is not None:
            total._cells = self._cells.to(other._cells.device) + other._cells  # a restored one is on the CPU
        total._take(other._waiting, other._num_waiting)
        return total

    def merge(self, other: Confusion) -> None:
        self.cells = (self + other).cells

    def compute(self) -> torch.Tensor:
        return self.counts_CC

    def reset(self) -> None:
        self.cells = None

    def state_dict(self) -> dict[str, Any]:
        cells = self.cells
        return {"cells": None if cells is None else cells.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cells = state["cells"]

    # --- scores: each is computed from the counts at the epoch's end --------------------------------------------

    def accuracy(self) -> Score:
        return Score(self, confusion_scores.accuracy)

    def precision(self, average: str | None = "macro") -> Score:
        return self.fbeta(0.0, average)

    def recall(self, average: str | None = "macro") -> Score:
        return self.fbeta(float("inf"), average)

    def f1(self, average: str | None = "macro") -> Score:
        return self.fbeta(1.0, average)

    def fbeta(self, beta: float, average: str | None = "macro") -> Score:
        """F-beta; beta 0 is precision, infinity is recall. A class that neither occurs nor is predicted scores 0, and
        "macro" leaves it out of its mean, as scikit-learn does.

        Args:
            average: "micro" (all decisions pooled), "macro" (mean over classes), "weighted" (by true counts), "binary"
                (class 1 of two), or None: each class under its name, "f1/0", "f1/1", ….
        """
        return self._per_class(confusion_scores.fbeta, average, beta)

    def specificity(self, average: str | None = "macro") -> Score:
        """The share of right rejections; ``average`` as for ``fbeta``."""
        return self._per_class(confusion_scores.specificity, average)

    def iou(self, average: str | None = "macro") -> Score:
        """Intersection over union (Jaccard)."""
        return self._per_class(confusion_scores.iou, average)

    def dice(self, average: str | None = "macro") -> Score:
        """The same as F1, by the name that segmentation has for it."""
        return self.fbeta(1.0, average)

    def balanced_accuracy(self) -> Score:
        """Mean recall over the classes that occur."""
        return Score(self, confusion_scores.balanced_accuracy)

    def matthews(self) -> Score:
        """Matthews' correlation coefficient, -1 to 1."""
        return Score(self, confusion_scores.matthews)

    def kappa(self, weights: str | None = None) -> Score:
        """Cohen's kappa; ``weights`` "linear" or "quadratic" where classes are grades."""
        if weights not in (None, "linear", "quadratic"):
            raise ValueError(f"weights must be None, 'linear' or 'quadratic', got {weights!r}.")
        return Score(self, confusion_scores.kappa, weights)

    def _per_class(self, formula, average, *args):
        if average not in confusion_scores.AVERAGES:
            raise ValueError(f"average must be one of {list(confusion_scores.AVERAGES)}, got {average!r}.")
        if average == "binary" and self.num_classes != 2:
            raise ValueError(f"average='binary' needs two classes, got {self.num_classes}. Use 'macro' or 'micro'.")
        return Score(self, formula, average, self.names_of_classes if average is None else (), *args)


class Score(Metric):
    """One number of a ``Confusion``, or of another accumulator with ``evidence``; several scores may share one."""

    def __init__(self, confusion: Any, formula: Callable[..., Any], *args: Any) -> None:
        self.confusion = confusion
        self.formula = formula
        self.args = args

    def update(self, pred: torch.Tensor, y: torch.Tensor) -> Self:
        self.confusion.update(pred, y)
        return self

    def merge(self, other: Score) -> None:
        if other.confusion is not self.confusion:  # the same one when the user made it once and updates it
            self.confusion = self.confusion + other.confusion  # a new object: others may share the old one

    def compute(self) -> Any:
        return self.formula(self.confusion.evidence(), *self.args)

    def reset(self) -> None:
        self.confusion.reset()

    def fresh(self) -> Self:
        return type(self)(self.confusion.fresh(), self.formula, *self.args)

    def state_dict(self) -> dict[str, Any]:
        return self.confusion.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.confusion.load_state_dict(state)


def to_number(value):
    """A float where there is one number, else the value (a confusion matrix stays a tensor)."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else value.detach().cpu()
    return float(value) if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 else value
