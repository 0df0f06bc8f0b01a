"""Whether a criterion is given what it takes: shapes that would broadcast, labels out of range, a softmax too many.

    check_criterion_inputs(nn.CrossEntropyLoss(), (pred, y))     # ValueError with the cure, a warning, or nothing
"""

import torch
from torch import nn

from ..output.warn import warn
from .defaults import BINARY_THRESHOLDS, CLASS_LOSSES, INDEX_LOSSES, class_dimensions, ignored_label, torch_loss


def check_criterion_inputs(criterion, args, ignore_index=None):
    """What a criterion is about to receive.

    Args:
        args: its positional arguments, ``(pred, y, …)``.
        ignore_index: label that does not count; None: the criterion's own, which for torch's functions is -100.

    Raises:
        ValueError: it would compute something else than meant, or end in a device-side assert.
    """
    if len(args) < 2 or not all(isinstance(arg, torch.Tensor) for arg in args[:2]):
        return
    pred, y = args[:2]
    loss = torch_loss(criterion)
    is_module = isinstance(criterion, nn.Module)
    name = type(criterion).__name__ if is_module else getattr(criterion, "__name__", loss or "criterion")
    if loss in CLASS_LOSSES:
        _check_class_labels(name, loss, pred, y, ignored_label(criterion) if ignore_index is None else ignore_index)
    elif _mixes_samples(pred, y, loss):
        shape, cure = tuple(pred.shape), "Make the shapes equal, e.g. with y.unsqueeze(1) or pred.squeeze(1)."
        if loss is not None:
            _refuse(f"{name} would broadcast pred {shape} against y {tuple(y.shape)} and compare every prediction with "
                    f"other samples' labels. {cure}")
        warn(f"{name} is given pred {shape} and y {tuple(y.shape)}. If it combines them as they are, every prediction is "
             f"compared with other samples' labels. {cure} If {name} does so itself, all is well.")
    if loss in BINARY_THRESHOLDS and y.numel():
        low, high = y.min().item(), y.max().item()
        if low < 0 or high > 1:
            _refuse(f"{name} needs labels in [0, 1], got values from {low:g} to {high:g}.")
    if BINARY_THRESHOLDS.get(loss) == 0.0 and type(pred.grad_fn).__name__ == "SigmoidBackward0":
        warn(f"The inputs of {name} come out of a sigmoid. It applies one itself, learns slowly on top of another one, and "
              "every prediction would count as label 1. Remove the model's sigmoid.")
    if loss in ("MultiLabelMarginLoss", "multilabel_margin_loss") and y.numel() and y.min() >= 0:
        warn(f"{name} takes the numbers of the classes that a sample has, and -1 behind the last: [2, 0, -1, -1]. There is "
              "no -1 in y. If y has a 0 or 1 for each class, use MultiLabelSoftMarginLoss or BCEWithLogitsLoss.")


def _check_class_labels(name, loss, pred, y, ignore_index):
    if pred.dim() < 1 or y.dim() != max(pred.dim() - 1, 0):
        return  # class probabilities, or a shape that torch itself explains
    dimension = _dimension_of_classes(name, pred, y)
    if dimension is None:
        return  # torch itself explains
    classes = pred.shape[dimension]
    if y.is_floating_point():
        _refuse(
            f"{name} needs class indices as integers shaped {tuple(y.shape)}, or probabilities shaped {tuple(pred.shape)}; "
            f"got {y.dtype} shaped {tuple(y.shape)}. Convert the labels with y.long()."
        )
    y = y.long()  # -100 would be 156 among uint8 labels
    labels = y[y != ignore_index]
    if labels.numel() and (labels.min() < 0 or labels.max() >= classes):
        cure = "For one logit per sample use BCEWithLogitsLoss" if classes == 1 else (
            "Number the classes from 0, or widen the model's last layer")
        _refuse(
            f"{name} got labels from {labels.min().item()} to {labels.max().item()}, but pred has {classes} "
            f"class{'es' * (classes > 1)}, so labels must lie in [0, {classes}). {cure}."
        )
    _check_scores(name, loss, pred, classes)


def _dimension_of_classes(name, pred, y):
    """Where the criterion reads the classes of ``pred``; None where the shapes do not fit at all. Classes that stand in the
    last dimension instead are refused, or warned of where that is not certain."""
    readings = class_dimensions(pred, y) or ([] if pred.dim() > 1 else [0])
    if readings == [-1] or (len(readings) == 2 and _features_are_last(pred)):
        last = pred.dim() - 2
        turn = "transpose(1, 2)" if pred.dim() == 3 else "movedim(-1, 1)"
        message = (f"{name} takes the classes in dimension 1; in pred {tuple(pred.shape)} with y {tuple(y.shape)} they "
                   f"{'are' if len(readings) == 1 else 'seem to be'} in the last one, and softmax would run over another. "
                   f"Give it pred.flatten(0, {last}), y.flatten(0, {last}), or pred.{turn} and y.")
        if len(readings) == 1:
            _refuse(message)
        warn(message)
    return readings[0] if 1 in readings or 0 in readings else None


def _check_scores(name, loss, pred, classes):
    """Scores that are something else than the criterion takes, as far as their values tell."""
    if loss in ("NLLLoss", "nll_loss") and pred.numel() and pred.max() > 0:
        warn(f"{name} takes log-probabilities, which are never above 0; pred reaches {pred.max().item():g}. End the model "
              "in log_softmax(1), or use CrossEntropyLoss, which applies it itself.")
    if loss in ("CrossEntropyLoss", "cross_entropy") and pred.dim() > 1:
        scores = pred.detach().float()
        sums_to_one = (scores.sum(1) - 1).abs().max() < 1e-3
        if classes > 1 and sums_to_one and scores.min() >= 0:
            warn(
                f"The inputs of {name} look like probabilities: every row is in [0, 1] and sums to 1. It applies "
                "log-softmax itself and learns slowly on top of another one. Remove the model's softmax."
            )
        elif classes == 1:
            warn(f"{name} got pred {tuple(pred.shape)}: with one class the loss is always 0, and nothing is learned. For "
                  "one logit per sample use BCEWithLogitsLoss.")


def _features_are_last(pred):
    """Whether ``pred`` comes straight from a layer that puts its outputs into the last dimension, as nn.Linear does.

    Where both dimensions have one size, shapes and strides do not tell [B, T, C] from [B, C, T]. The way that autograd
    recorded does: an nn.Linear, an nn.Embedding or a softmax over the last dimension, below operations that move nothing.
    A transpose, a convolution or anything unknown is no evidence, and neither is a pred without gradients.
    """
    node, is_flat = pred.grad_fn, False
    for _ in range(20):
        kind = type(node).__name__
        if kind in ("LinearBackward0", "EmbeddingBackward0"):
            return not is_flat
        if kind in ("LogSoftmaxBackward0", "SoftmaxBackward0"):
            return not is_flat and getattr(node, "_saved_dim", None) in (pred.dim() - 1, 2**64 - 1)  # the last is -1
        if kind in ("AddmmBackward0", "MmBackward0"):  # Linear on [B·T, F], or on [B, F] with a view to [B, T, C]
            return getattr(node, "_saved_mat2_sym_sizes", (0, 0))[1] == pred.shape[-1]
        if kind not in _MOVING_NOTHING or not node.next_functions:
            return False
        is_flat = is_flat or kind in _RESHAPING
        node = node.next_functions[0][0]
    return False


_RESHAPING = ("ViewBackward0", "UnsafeViewBackward0")
_MOVING_NOTHING = ("ToCopyBackward0", "CloneBackward0", "AliasBackward0", "AddBackward0", "SubBackward0", "MulBackward0",
                   "DivBackward0", "TanhBackward0", *_RESHAPING)


def _mixes_samples(pred, y, loss):
    """Whether broadcasting would cross the batch dimension: each of the two is repeated along a dimension of the other, as
    [B, 1] with [B] is, or the labels [B] come to stand along another dimension of ``pred`` [B, B] than the first. Quantiles
    [B, Q] with [B, 1] and ensembles [M, B] with [B] are no mistake: there the labels alone are repeated."""
    is_elementwise = pred.is_floating_point() and y.is_floating_point() or loss is not None and loss not in INDEX_LOSSES
    if not is_elementwise or not _broadcasts(pred, y) or not pred.dim() or not y.dim():
        return False
    dims = max(pred.dim(), y.dim())
    pairs = list(zip((1,) * (dims - pred.dim()) + tuple(pred.shape), (1,) * (dims - y.dim()) + tuple(y.shape)))
    is_shifted = pred.dim() > y.dim() and len(pred) == len(y) > 1
    return any(a < b for a, b in pairs) and any(a > b for a, b in pairs) or is_shifted


def _refuse(message):
    raise ValueError(f"{message} If it is meant, preflight = False skips this check.")


def _broadcasts(pred, y):
    try:
        torch.broadcast_shapes(pred.shape, y.shape)
    except RuntimeError:
        return False
    return True
