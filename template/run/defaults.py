"""What the default ``loss_per_batch`` and ``eval_scores_per_batch`` make of a batch.

    x, y = split_batch((images, labels), torch.float32)    # images in the dtype of the model
    loss = criterion(pred, fitting_labels(criterion, pred, y))

A subclass that overrides those two methods never comes here.
"""

import torch
from torch import nn

CLASS_INDEX_CRITERIA = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)


def parameter_dtype(models):
    """The floating dtype of the first parameter that has one: what inputs are converted to. About 10 us: ask once."""
    return next((p.dtype for model in models for p in model.parameters() if p.is_floating_point()), torch.float32)


def split_batch(batch, dtype):
    """``(x, y)`` of a batch ``(x, y)`` or ``(x1, x2, …, y)``; several inputs stay a tuple.

    Floating and uint8 inputs are converted to ``dtype``; other integers (tokens) stay.

    Raises:
        TypeError: the batch is no tuple or list of at least two.
    """
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        what = f"a dict with keys {list(batch)}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise TypeError(
            f"The default methods take batches (x, …, y); this one is {what}. Override loss_per_batch(batch) and "
            "eval_scores_per_batch(batch), or set criterion = None for a model that returns its own loss."
        )
    if len(batch) == 2:
        x, y = batch
        return (x if isinstance(x, torch.Tensor) and x.dtype is dtype else _as_dtype(x, dtype)), y
    *inputs, y = batch
    return tuple(_as_dtype(x, dtype) for x in inputs), y


def input_of(batch, dtype):
    """What of a batch goes into the models: ``x`` of ``x``, ``(x,)`` or ``(x, …, y)``; a dict as it is."""
    if not isinstance(batch, (list, tuple)):
        return batch
    return batch[0] if len(batch) == 1 else split_batch(batch, dtype)[0]


def _as_dtype(x, dtype):
    is_value = isinstance(x, torch.Tensor) and (x.is_floating_point() or x.dtype == torch.uint8)
    return x.to(dtype) if is_value else x


def fitting_labels(criterion, pred, y):
    """Integer labels in the dtype that torch's criterion asks for: int64 class indices, or ``pred``'s floats."""
    if not isinstance(y, torch.Tensor) or y.is_floating_point() or not isinstance(pred, torch.Tensor):
        return y
    if isinstance(criterion, CLASS_INDEX_CRITERIA):
        return y.long()
    return y.to(pred.dtype) if isinstance(criterion, nn.modules.loss._Loss) else y


def own_loss(output):
    """The loss in what a model returned: entry or attribute "loss", the first of a tuple, or the tensor itself."""
    if isinstance(output, dict) and "loss" in output:
        return output["loss"]
    if getattr(output, "loss", None) is not None:
        return output.loss
    if isinstance(output, (list, tuple)):
        return output[0]
    return output


def loss_dict(losses):
    """A bare loss as ``{"tol_loss": loss}``; a dict must hold that entry.

    Raises:
        TypeError, ValueError: neither a loss nor a dict with ``tol_loss``.
    """
    if isinstance(losses, dict):
        if "tol_loss" not in losses:
            raise ValueError(
                f"The dict of losses must hold 'tol_loss', the one that is trained on; it holds {list(losses)}. Add it, "
                "for instance as the sum of the others."
            )
        return losses
    if not isinstance(losses, (torch.Tensor, float, int)):
        raise TypeError(f"loss_per_batch and train_step return a tensor or a dict with 'tol_loss', got {losses!r}.")
    if isinstance(losses, torch.Tensor) and losses.numel() != 1:
        raise ValueError(
            f"The loss must be a single number, got shape {tuple(losses.shape)}. Reduce it, e.g. with .mean(); with "
            "criterion = None the model itself must return its loss."
        )
    return {"tol_loss": losses}
