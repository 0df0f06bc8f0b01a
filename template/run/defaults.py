"""What the default ``loss_per_batch``, ``eval_scores_per_batch`` and ``metric`` make of a batch.

    x, y = split_batch((images, labels), torch.float32)    # images in the dtype of the model
    loss = criterion(*criterion_inputs(criterion, pred, y))
    scores = default_metrics(criterion, pred, y)           # {"acc": …} where it is certain what is right

A subclass that overrides those methods never comes here.
"""

import functools
import inspect
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..checkpoint.state import unwrap
from ..metrics.accumulators import Accuracy

# losses of torch by name, as a module and as a function
CLASS_LOSSES = {"CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "cross_entropy", "nll_loss", "multi_margin_loss"}
INDEX_LOSSES = CLASS_LOSSES | {"MultiLabelMarginLoss", "CTCLoss", "LinearCrossEntropyLoss", "multilabel_margin_loss",
                               "ctc_loss", "linear_cross_entropy"}
LABELS = ("labels", "label")  # the entries of a dict that may be y
BINARY_THRESHOLDS = {"BCEWithLogitsLoss": 0.0, "binary_cross_entropy_with_logits": 0.0,
                     "BCELoss": 0.5, "binary_cross_entropy": 0.5}


def parameter_dtype(models):
    """The floating dtype of the first parameter that has one: what inputs are converted to. About 10 us: ask once."""
    return next((p.dtype for model in models for p in model.parameters() if p.is_floating_point()), torch.float32)


def call_model(model, x):
    """``model(x)``: of a dict the entries by name, of a plain tuple the parts one by one.

    A dict goes in as one where the model's ``forward`` has one input, with a name that is not in it. Named tuples and a
    ``PackedSequence`` go in as one, and so do lists that the model's ``forward`` cannot take apart. Other lists are taken
    apart like tuples: ``default_collate`` makes ``[x1, x2]`` of samples ``((x1, x2), y)``.
    """
    if isinstance(x, torch.Tensor):
        return model(x)
    if isinstance(x, Mapping):
        return model(x) if _takes_as_one(*_forward_of(model), tuple(x)) else model(**x)
    if type(x) is tuple or type(x) is list and _takes_apart(model, len(x)):
        return model(*x)
    return model(x)


def _takes_apart(model, count):
    return _takes(*_forward_of(model), count)


def _forward_of(model):
    """``forward`` as a function, and how many of its parameters are no inputs: of a method the first is the model itself."""
    forward = unwrap(model).forward
    function = getattr(forward, "__func__", None)
    return (forward, 0) if function is None else (function, 1)


@functools.lru_cache(maxsize=64)
def _takes_as_one(forward, skipped, names):
    """Whether ``forward`` must be given one input, and has none of these names."""
    parameters = _parameters(forward, skipped)
    if parameters is None:
        return False
    required = [p.kind for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return required in _ONE_BY_PLACE and not {p.name for p in parameters} & {*names}


def _parameters(forward, skipped):
    """Those that are inputs; None where nothing is known of them."""
    try:
        return list(inspect.signature(forward).parameters.values())[skipped:]
    except (TypeError, ValueError):
        return None


_ONE_BY_PLACE = [inspect.Parameter.POSITIONAL_ONLY], [inspect.Parameter.POSITIONAL_OR_KEYWORD]


@functools.lru_cache(maxsize=64)
def _takes(forward, skipped, count):
    """Whether ``forward`` takes ``count`` inputs, of which it has more than one; also where nothing is known of it."""
    parameters = _parameters(forward, skipped)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    inputs = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in inputs)
    return required > 1 or 1 < count <= len(inputs)


def split_batch(batch, dtype):
    """``(x, y)`` of a batch ``(x, y)`` or ``(x1, x2, …, y)``; several inputs stay a tuple. The ``y`` of a dict is its entry
    "labels" or "label", and the others are ``x``.

    Floating and uint8 inputs are converted to ``dtype``; other integers (tokens) stay.

    Raises:
        TypeError: the batch is neither a tuple or list of at least two nor a dict with labels.
    """
    if type(batch) in (list, tuple) and len(batch) == 2:  # nearly all are: what follows would cost an update 1 us
        x, y = batch
        return (x if isinstance(x, torch.Tensor) and x.dtype is dtype else _as_dtype(x, dtype)), y
    if isinstance(batch, Mapping) and (label := label_name(batch)):
        return {name: _as_dtype(part, dtype) for name, part in batch.items() if name != label}, batch[label]
    if not isinstance(batch, (list, tuple)) or len(batch) < 2 or isinstance(batch, PackedSequence):
        what = type(batch).__name__ + (f" with keys {list(batch)}" if isinstance(batch, Mapping) else "")
        raise TypeError(
            f"The default methods take batches (x, …, y), or dicts with an entry {' or '.join(LABELS)}; this one is a "
            f"{what}. Override loss_per_batch(batch) and eval_scores_per_batch(batch), or set criterion = None for a model "
            "that returns its own loss."
        )
    *inputs, y = batch
    return (_as_dtype(inputs[0], dtype) if len(inputs) == 1 else tuple(_as_dtype(x, dtype) for x in inputs)), y


def label_name(batch):
    """The name under which a dict holds the labels, or None."""
    return next((name for name in LABELS if name in batch), None)


def input_of(batch, dtype):
    """What of a batch goes into the models: ``x`` of ``x``, ``(x,)`` or ``(x, …, y)``, of that dtype; a mapping as it is."""
    if not isinstance(batch, (list, tuple)) or isinstance(batch, PackedSequence):
        return _as_dtype(batch, dtype)
    return _as_dtype(batch[0], dtype) if len(batch) == 1 else split_batch(batch, dtype)[0]


def _as_dtype(x, dtype):
    is_value = isinstance(x, torch.Tensor) and (x.is_floating_point() or x.dtype == torch.uint8)
    return x.to(dtype) if is_value else x


def torch_loss(criterion):
    """The loss of torch that a criterion is or derives from, by name: "CrossEntropyLoss", "cross_entropy"; else None."""
    if isinstance(criterion, nn.Module):
        return _loss_of_class(type(criterion._modules.get("_orig_mod", criterion)))  # below torch.compile
    function = _bare(criterion)
    return function.__name__ if getattr(function, "__module__", None) == "torch.nn.functional" else None


@functools.cache
def _loss_of_class(kind):
    losses = [base.__name__ for base in kind.__mro__
              if base.__module__ == "torch.nn.modules.loss" and issubclass(base, nn.modules.loss._Loss)]
    public = [name for name in losses if not name.startswith("_")]
    return public[-1] if public else None


def _bare(function):
    """Below ``functools.partial`` and decorators."""
    function = inspect.unwrap(function)
    return function.func if isinstance(function, functools.partial) else function


def ignored_label(criterion):
    """The label that does not count: the criterion's ``ignore_index``, else -100, which torch's functions ignore."""
    if not isinstance(criterion, nn.Module):
        criterion = inspect.unwrap(criterion)
    if isinstance(criterion, functools.partial) and "ignore_index" in criterion.keywords:
        return criterion.keywords["ignore_index"]
    label = getattr(criterion, "ignore_index", None)
    return label if type(label) is int else -100


def criterion_inputs(criterion, pred, y):
    """``(pred, y)`` as torch's criterion asks for them; those of a criterion of your own stay as they are.

    Class indices become int64. Other integer labels become float32, or ``pred``'s dtype where that is wider, and a ``pred``
    in half precision goes along, as under torch's autocast: in bfloat16 the label 1001 would be 1000.
    """
    if not isinstance(pred, torch.Tensor) or not isinstance(y, torch.Tensor) or y.dtype is pred.dtype:
        return pred, y
    loss = torch_loss(criterion)
    if loss is None:
        return pred, y
    if not y.is_floating_point():
        if loss in INDEX_LOSSES:
            return pred, y.long()
        y = y.to(torch.promote_types(pred.dtype, torch.float32))
    common = torch.promote_types(pred.dtype, y.dtype)
    return pred.to(common), y.to(common)


def criterion_loss(trainer, pred, y):
    """``criterion(pred, y)``, which the check before training may look at first."""
    given = criterion_inputs(trainer.criterion, pred, y)
    if trainer.lifetime.look_at_criterion is not None:
        trainer.lifetime.look_at_criterion(trainer.criterion, given)
    trainer.running_losses.metrics.see(pred, y)
    return trainer.criterion(*given)


def adds_up(trainer, criterion):
    """Whether the default ``loss_per_batch`` gives sums over the batch's samples: a criterion with ``reduction="sum"``."""
    if trainer.evaluator.writes_losses or "loss_per_batch" in vars(trainer):
        return False
    if isinstance(criterion, functools.partial) and "reduction" in criterion.keywords:
        return criterion.keywords["reduction"] == "sum"
    return getattr(criterion, "reduction", None) == "sum"


def follow_reduction(trainer, criterion):
    """From here on the updates follow the sum or the mean over their samples, as the criterion says. What is reported is the
    mean, which compares between batches of any size."""
    trainer.stepper.adds_up = adds_up(trainer, criterion)
    trainer.running_losses.adds_up = trainer.stepper.adds_up and not trainer.evaluator.writes_step


def class_dimensions(pred, y):
    """The dimensions of ``pred`` that may hold the classes of which ``y`` are the indices, as far as shapes tell: 1, where
    torch's criteria read them, and -1, the last one of three or more."""
    if pred.dim() == 2:
        return [1] if y.dim() == 1 and len(y) == len(pred) else []
    if not y.dim() == pred.dim() - 1 > 1:
        return []
    scored, labelled = tuple(pred.shape), tuple(y.shape)
    return [1] * (scored[:1] + scored[2:] == labelled) + [-1] * (scored[:-1] == labelled)


def default_metrics(criterion, pred, y, is_direct=True):
    """``{"acc": Accuracy}`` where it is certain what a right prediction is, else ``{}``.

    The criterion tells: a cross entropy takes classes [B, C, …] and has a label to ignore; BCEWithLogitsLoss takes one logit
    per sample [B] or [B, 1], which is above 0 for label 1, and BCELoss a probability, which is above 0.5. Other losses of
    torch have no accuracy. A criterion of your own with integer labels [B, …] scores classes, in the dimension that the
    shapes leave for them. Nothing waits for the device.

    Args:
        is_direct: the criterion is given this very ``pred``; else somebody's own code may have turned its dimensions.
    """
    if not isinstance(pred, torch.Tensor) or not isinstance(y, torch.Tensor) or not pred.is_floating_point():
        return {}
    loss = torch_loss(criterion)
    threshold = BINARY_THRESHOLDS.get(loss)
    if threshold is not None and _is_column(pred) and _is_column(y) and len(pred) == len(y):
        y = y.flatten()
        right = (pred.flatten() > threshold) == (y == 1)
        return {"acc": Accuracy().update({1: right.count_nonzero()}, len(y), ((y != 0) & (y != 1)).count_nonzero())}
    if y.is_floating_point() or not (loss in CLASS_LOSSES or threshold is not None or _is_plain(criterion, loss)):
        return {}
    readings = class_dimensions(pred, y)
    is_certain = is_direct and loss in CLASS_LOSSES and 1 in readings
    if is_certain:
        readings = [1]
    num_classes = pred.shape[readings[0]] if readings else 0
    if num_classes < 2:
        return {}
    y, ignored = y.long(), ignored_label(criterion)
    counts = y != ignored
    right = {}
    for reading in readings:
        hits = pred.argmax(reading) == y
        right[reading] = (hits & counts if 0 <= ignored < num_classes else hits).count_nonzero()  # sooner than sum()
    unclear = 0 if is_certain else (counts & ((y < 0) | (y >= num_classes))).count_nonzero()
    return {"acc": Accuracy().update(right, counts.count_nonzero(), unclear)}


def _is_column(tensor):
    """One value per sample: [B] or [B, 1]."""
    return tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[1] == 1)


def _is_plain(criterion, loss):
    """A criterion of one's own that takes scores of classes, as far as can be seen: one with a weight matrix classifies
    embeddings itself."""
    return loss is None and not (isinstance(criterion, nn.Module) and any(p.dim() > 1 for p in criterion.parameters()))


def own_loss(output):
    """The loss in what a model returned: entry or attribute "loss", the first of a tuple, or the tensor itself."""
    if isinstance(output, Mapping) and "loss" in output:
        return output["loss"]
    if getattr(output, "loss", None) is not None:
        return output.loss
    if isinstance(output, (list, tuple)):
        return output[0]
    return output


def loss_dict(losses, needs_total=True):
    """A bare loss as ``{"tol_loss": loss}``. In a dict "loss" is another name of "tol_loss"; of an object with a ``loss``
    that is what counts.

    Args:
        needs_total: False where only ``train_step`` knows which losses there are: a dict may have any names then.

    Raises:
        TypeError, ValueError: neither a loss nor a dict with ``tol_loss``.
    """
    if isinstance(losses, dict) and "tol_loss" in losses:
        return losses
    if type(losses) not in (dict, torch.Tensor) and isinstance(getattr(losses, "loss", None), torch.Tensor):
        losses = losses.loss
    if isinstance(losses, dict):
        if "loss" in losses:
            return {"tol_loss" if name == "loss" else name: value for name, value in losses.items()}
        if needs_total:
            raise ValueError(
                f"The dict of losses must hold 'tol_loss' (or 'loss'), the one that is trained on; it holds {list(losses)}. "
                "Add it, for instance as the sum of the others."
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


def eval_losses(losses):
    """What ``loss_per_batch`` gave in an evaluation: None and ``{}`` where a model has no loss in eval mode."""
    return {} if losses is None else loss_dict(losses, needs_total=False)


def score_dict(scores):
    """What ``metric`` or ``eval_scores_per_batch`` gave; None of a method that is only ``pass`` holds no score.

    Raises:
        TypeError: it is no dict.
    """
    if scores is None:
        return {}
    if not hasattr(scores, "items"):
        what = f"a tensor shaped {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise TypeError(f"metric() and eval_scores_per_batch() return a dict of names and values, got {what}. Write "
                        'return {"acc": …}, with the name of your metric.')
    return scores
