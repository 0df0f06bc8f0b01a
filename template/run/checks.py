"""Mistakes found before the hour of training.

``check_attributes`` looks at what a subclass set, without running anything. ``Preflight`` rides along on the first real
training batch: no extra forward, no second start of the workers; then it removes itself. Neither changes a bit of the
training. What certainly breaks the run is an error, what may be meant is a ``UserWarning``.
"""

import difflib
import sys
import warnings

import torch
from torch import nn

from ..data.loaders import numbers_of_workers
from ..data.nested import loader_length
from ..data.seeding import capture_rng, restore_rng
from ..hooks import Callback
from ..metrics.best import ask_for_direction, better_when
from ..parallel.gradients import MODES
from ..update import lr_scheduler
from ..update.guard import fetch_losses
from .defaults import BINARY_THRESHOLDS, CLASS_LOSSES, INDEX_LOSSES, class_dimensions, ignored_label, torch_loss
from .prepare import COMPILE_MODES, MATMUL_PRECISIONS, check_device

_NAMES_SHOWN = 5
_NOT_CALLED_BY_TRAINING = {"epochs", "fit", "test", "predict"}


# --- without running anything ---------------------------------------------------------------------------------------


def check_attributes(model):
    """Everything that can be seen from the attributes of a ``TemplateModel``."""
    _check_types(model)
    check_device(model.device)
    _check_choices(model)
    check_loader(model.train_loader, "train_loader")
    for name in ("eval_loader", "test_loader"):
        if getattr(model, name) is not None:
            check_loader(getattr(model, name), name)
    _check_same_data(model)
    _check_parameters(model)
    _check_hidden_methods(model)
    _check_misspelled(model)


def _check_types(model):
    for name, kind in (("model_list", nn.Module), ("optimizer_list", torch.optim.Optimizer)):
        value = getattr(model, name)
        if isinstance(value, kind) and not isinstance(value, nn.ModuleList):
            raise TypeError(f"{name} must be a list, got one {type(value).__name__}. Write self.{name} = [it].")
        if not isinstance(value, (list, tuple, nn.ModuleList)) or not all(isinstance(part, kind) for part in value):
            raise TypeError(f"{name} must be a list of {kind.__name__}, got {short(value)}. Set it in __init__.")
        if not len(value):
            raise ValueError(f"{name} must not be empty. Set it in __init__, after super().__init__().")
    check_criterion(model.criterion)
    if model.train_loader is None:
        raise ValueError("train_loader must be set: a DataLoader, a TensorLoader or any iterable of batches.")


def check_criterion(criterion):
    if criterion is not None and not callable(criterion):
        raise TypeError(f"criterion must be callable as criterion(pred, y), or None, got {short(criterion)}.")


def check_callbacks(callbacks):
    if callbacks is not None and not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks must be a list, got {short(callbacks)}.")


def check_count(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def check_skip(limit):
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ValueError("skip_non_finite is the number of updates in a row that may be skipped, 0 or more (0 stops at the "
                         f"first); got {limit!r}.")


def _check_choices(model):
    choices = {
        "lr_scheduler_type": (None, *lr_scheduler.SCHEDULES),
        "lr_scheduler_interval": (None, *lr_scheduler.INTERVALS),
        "warm_up_mode": lr_scheduler.WARM_UP_MODES,
        "parallel": MODES,
        "compile": (False, True, *COMPILE_MODES),
        "channels_last": (False, True),
        "matmul_precision": (None, *MATMUL_PRECISIONS),
    }
    for name, accepted in choices.items():
        if getattr(model, name) not in accepted:
            raise ValueError(f"{name} must be one of {list(accepted)}, got {getattr(model, name)!r}.")
    modes = model.key_metric_mode
    for mode in modes.values() if isinstance(modes, dict) else [modes]:
        if mode not in (None, "max", "min"):
            raise ValueError(f"key_metric_mode must be 'max', 'min' or a dict of these, got {model.key_metric_mode!r}.")
    for name in ("log_per_step", "accumulate_steps", "save_per_steps", "keep_checkpoints", "warm_up_updates"):
        if getattr(model, name) is not None:
            check_count(name, getattr(model, name))
    check_skip(model.skip_non_finite)
    seconds = model.save_per_seconds
    if seconds is not None and (not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds <= 0):
        raise ValueError(f"save_per_seconds must be a positive number of seconds or None, got {seconds!r}.")
    if not isinstance(model.warm_up_epoch, (int, float)) or model.warm_up_epoch < 0:
        raise ValueError(f"warm_up_epoch must be a number of epochs, 0 or more, got {model.warm_up_epoch!r}.")
    if model.lr_scheduler_type == "onecycle" and (model.warm_up_epoch or model.warm_up_updates):
        raise ValueError("'onecycle' warms up by itself. Leave warm_up_epoch and warm_up_updates at 0 and None.")
    for name in ("lr_scheduler_list", "warm_up_scheduler_list"):
        schedulers = getattr(model, name)
        if schedulers is not None and not isinstance(schedulers, (list, tuple)):
            raise TypeError(f"{name} must be a list of schedulers, got {short(schedulers)}.")
    for warm_up in model.warm_up_scheduler_list or []:
        if not isinstance(warm_up, lr_scheduler.WarmUpLR):
            raise TypeError(f"warm_up_scheduler_list must hold WarmUpLR objects, got {short(warm_up)}.")
    check_callbacks(model.callbacks)
    if model.sync_batchnorm and torch.device(model.device).type != "cuda":
        raise ValueError("sync_batchnorm = True needs GPUs: torch has no SyncBatchNorm for the CPU. Set it to False there.")


def check_loader(loader, name):
    """That it can be read, again and again, and holds something.

    Raises:
        TypeError, ValueError: it cannot.
    """
    for part in loader.values() if isinstance(loader, dict) else [loader]:
        if not hasattr(part, "__iter__"):
            raise TypeError(f"{name} must be an iterable of batches, got {short(part)}.")
        if type(part).__module__ in ("builtins", "itertools") and iter(part) is part:
            raise ValueError(
                f"{name} is a {type(part).__name__} that can be read once only; the second epoch would be empty. Give a "
                "DataLoader, a list, or an object whose __iter__ starts anew."
            )
        if loader_length(part) == 0:
            raise ValueError(
                f"{name} is empty: it has 0 batches. Look at the size of the dataset, and at drop_last with a batch_size "
                "larger than the dataset."
            )
        if isinstance(loader, dict) and loader_length(part) is None and name == "train_loader":
            raise ValueError("The loaders in a dict need a len(), so that the longest one can end the epoch.")


def _check_same_data(model):
    train, evaluation = (getattr(loader, "dataset", loader) for loader in (model.train_loader, model.eval_loader))
    if train is evaluation:
        _warn(
            "train_loader and eval_loader read one dataset, so the metrics say how well it is remembered, not what was "
            "learned. Hold out a part of it for eval_loader."
        )


def _check_parameters(model):
    named = _parameter_names(model)
    in_models = set(named)
    for attribute, value in vars(model).items():  # what else the user may have put into an optimizer
        if isinstance(value, nn.Module):
            for name, p in value.named_parameters():
                named.setdefault(p, f"{attribute}.{name}")
        elif isinstance(value, nn.Parameter):
            named.setdefault(value, attribute)
    owners = {}
    for index, optimizer in enumerate(model.optimizer_list):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for p in held:
            owners.setdefault(p, []).append(index)
        if not any(p in named for p in held):
            raise ValueError(
                f"optimizer_list[{index}] holds parameters of no model in model_list, so its steps change nothing. Was the "
                "model replaced or copied after the optimizer was made? Build it from the models that are in the list."
            )
        if outside := [named.get(p, "?") for p in held if p not in in_models]:
            _warn(f"{_some(outside)} of optimizer_list[{index}] belong to no model in model_list; they are updated, but "
                  "stand in no checkpoint.")
    twice = [named.get(p, "?") for p, indices in owners.items() if len(indices) > 1]
    if twice:
        _warn(f"{_some(twice)} are in more than one optimizer, which all update them. Give each parameter to one.")
    left_out = [name for p, name in named.items() if p in in_models and p.requires_grad and p not in owners]
    if left_out:
        _warn(f"{_some(left_out)} are trainable but in no optimizer, so they never change. Add them to one, or freeze them "
              "with requires_grad_(False).")


def _parameter_names(model):
    """``{parameter: where it is}`` of the models, and of a criterion that has some: it is saved with them."""
    modules = {f"model_list[{i}]": part for i, part in enumerate(model.model_list)}
    if isinstance(model.criterion, nn.Module):
        modules["criterion"] = model.criterion
    return {p: f"{prefix}.{name}" for prefix, part in modules.items() for name, p in part.named_parameters()}


def _check_hidden_methods(model):
    """``self.epochs = 30`` ends in "int is not callable", a method called ``callbacks`` would never be called."""
    hidden = [name for name, value in vars(model).items()
              if callable(getattr(type(model), name, None)) and not callable(value)]
    if set(hidden) - _NOT_CALLED_BY_TRAINING:
        raise ValueError(f"An attribute must not have the name of a method, which it hides: {hidden}. Rename one of them.")
    if hidden:  # subclasses of 2021, with a loop of their own, may have such names
        _warn(f"The attributes {hidden} hide the methods of these names, which cannot be called. Rename them.")


def _check_misspelled(model):
    """``self.warmup_epoch = 5`` would otherwise be silently ignored."""
    known = [name for base in type(model).__mro__ if base.__module__.endswith(".template") for name in vars(base)]
    known += model.attribute_names
    plain = {_plain(name): name for name in known if not name.startswith("_")}
    plain["lrscheduler"] = "lr_scheduler_list or lr_scheduler_type"
    for name in set(vars(model)) - set(known):
        close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.93)
        if close and not name.startswith("_") and not name[-1].isdigit():
            _warn(f"self.{name} is no attribute of TemplateModel and has no effect there. Did you mean {plain[close[0]]}?")


def _plain(name):
    return name.replace("_", "").lower()


# --- on the first batch ---------------------------------------------------------------------------------------------


def preflight(model):
    """The callbacks that look at the first batch: one, or none when ``model.preflight`` is off."""
    return [Preflight()] if model.preflight else []


class Preflight(Callback):
    """Scores one eval batch before the first update, listens to the criterion on the first training batches, and looks at
    their gradients; after the first update it is gone."""

    def __init__(self):
        self.undo = []
        self.has_gradient = set()
        self.is_to_score = False

    def on_train_start(self, model):
        self._listen_to_criterion(model)
        self.is_to_score = model.eval_loader is not None
        if not (any(numbers_of_workers(model.train_loader)) and 0 in numbers_of_workers(model.eval_loader)):
            self._score_one_batch(model)

    def on_batch(self, model, batch):
        """Only here where the evaluation is read in this process: files that it opens must not be open yet when the workers
        of the training are started."""
        self._score_one_batch(model)

    def _listen_to_criterion(self, model):
        """A module tells what it is given; a function is seen where the default ``loss_per_batch`` calls it."""
        if isinstance(model.criterion, nn.Module):
            handle = model.criterion.register_forward_pre_hook(check_criterion_inputs)  # it can be pickled
            self.undo.append(handle.remove)
        elif model.criterion is not None:
            model.lifetime.look_at_criterion = check_criterion_inputs
            self.undo.append(lambda: setattr(model.lifetime, "look_at_criterion", None))

    def _score_one_batch(self, model):
        """``metric()`` that raises or lacks ``key_metric`` shows itself now. RNG, counters and metrics are put back."""
        if not self.is_to_score:
            return
        self.is_to_score = False
        rng, counter, key = capture_rng(), model.global_step_eval, model.key_metric
        try:
            result = model.evaluator.score_first_batch()
            resolve_key(model, result)
        except Exception:
            print("The evaluation of one batch failed, before training began (preflight = False skips this):",
                  file=sys.stderr)
            raise
        finally:
            restore_rng(rng)
            model.global_step_eval, model.key_metric = counter, key

    def on_before_step(self, model):
        self.has_gradient.update(p for p in model.stepper.parameters() if p.grad is not None)

    def on_after_step(self, model):
        self._remove(model)
        fetch_losses(model)
        self._check_gradients(model)

    def _check_gradients(self, model):
        names = _parameter_names(model)
        optimized = [p for p in model.stepper.parameters() if p.requires_grad]
        without = [names.get(p, "?") for p in optimized if p not in self.has_gradient]
        if without:
            _warn(f"{_some(without)} got no gradient from the first update, so they are not trained. Look for parts that "
                  "forward() does not use, for .detach() or for an early return.")
        left = [names.get(p, "?") for p in optimized if p.grad is not None]
        if left:
            _warn(f"{_some(left)} still hold gradients after the update, which leak into the next one: a loss that was not "
                  "theirs went through them. Name the optimizer in train_step: backward(loss, i).")

    def on_exit(self, model):
        self._remove(model)

    def _remove(self, model):
        while self.undo:
            self.undo.pop()()
        model.hooks.remove(self)


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
        _refuse(
            f"{name} would broadcast pred {tuple(pred.shape)} against y {tuple(y.shape)} and compare every prediction with "
            f"other samples' labels. Make the shapes equal, e.g. with y.unsqueeze(1) or pred.squeeze(1)."
        )
    if loss in BINARY_THRESHOLDS and y.numel():
        low, high = y.min().item(), y.max().item()
        if low < 0 or high > 1:
            _refuse(f"{name} needs labels in [0, 1], got values from {low:g} to {high:g}.")
    if BINARY_THRESHOLDS.get(loss) == 0.0 and type(pred.grad_fn).__name__ == "SigmoidBackward0":
        _warn(f"The inputs of {name} come out of a sigmoid. It applies one itself, learns slowly on top of another one, and "
              "every prediction would count as label 1. Remove the model's sigmoid.")
    if loss in ("MultiLabelMarginLoss", "multilabel_margin_loss") and y.numel() and y.min() >= 0:
        _warn(f"{name} takes the numbers of the classes that a sample has, and -1 behind the last: [2, 0, -1, -1]. There is "
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
        _warn(message)
    return readings[0] if 1 in readings or 0 in readings else None


def _check_scores(name, loss, pred, classes):
    """Scores that are something else than the criterion takes, as far as their values tell."""
    if loss in ("NLLLoss", "nll_loss") and pred.numel() and pred.max() > 0:
        _warn(f"{name} takes log-probabilities, which are never above 0; pred reaches {pred.max().item():g}. End the model "
              "in log_softmax(1), or use CrossEntropyLoss, which applies it itself.")
    if loss in ("CrossEntropyLoss", "cross_entropy") and pred.dim() > 1:
        scores = pred.detach().float()
        sums_to_one = (scores.sum(1) - 1).abs().max() < 1e-3
        if classes > 1 and sums_to_one and scores.min() >= 0:
            _warn(
                f"The inputs of {name} look like probabilities: every row is in [0, 1] and sums to 1. It applies "
                "log-softmax itself and learns slowly on top of another one. Remove the model's softmax."
            )
        elif classes == 1:
            _warn(f"{name} got pred {tuple(pred.shape)}: with one class the loss is always 0, and nothing is learned. For "
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
    """Whether an element of ``pred`` would meet labels of other samples: the shapes differ in the first dimension or in
    the number of dimensions, and still broadcast."""
    is_elementwise = pred.is_floating_point() and y.is_floating_point() or loss is not None and loss not in INDEX_LOSSES
    is_aligned = pred.dim() == y.dim() and (pred.dim() == 0 or pred.shape[0] == y.shape[0])
    return is_elementwise and not is_aligned and _broadcasts(pred, y)


def _refuse(message):
    raise ValueError(f"{message} If it is meant, preflight = False skips this check.")


def _broadcasts(pred, y):
    try:
        torch.broadcast_shapes(pred.shape, y.shape)
    except RuntimeError:
        return False
    return True


# --- at the door of public methods ----------------------------------------------------------------------------------


def require_init(model):
    if model.hooks is None:
        raise RuntimeError("Call check_init() once before training, evaluating or continuing.")


def require_no_init(model):
    if model.hooks is not None:
        raise RuntimeError("check_init() was called already, and set up folder, log and callbacks. Make a new trainer.")


def require_eval_loader(model):
    if model.eval_loader is None:
        raise ValueError("There is nothing to evaluate: eval_loader (or test_loader) is not set.")


def require_batches(model):
    """An epoch in which nothing was trained is no epoch. One of another length than ``len(train_loader)`` is told of, and
    schedules take its true length.

    Raises:
        ValueError: ``train_loader`` gave no batch.
    """
    if not model.batches_done:
        raise ValueError(
            f"An epoch needs batches, and train_loader (a {type(model.train_loader).__name__}) gave none in epoch "
            f"{model.epoch}. If it can be read only once, give an object whose __iter__ starts anew, or a list; else look "
            "at the size of its dataset."
        )
    for note in model.train_batches.note_length(model.batches_done):
        if model.is_main:
            print(f"  train_loader (a {type(model.train_loader).__name__}) {note}")


def resolve_key(model, result):
    """The name in ``result`` that decides what is best; noted in ``model.key_metric``.

    Raises:
        ValueError: ``key_metric`` names nothing that was returned, or it is not set and there are several metrics.
    """
    numbers = [name for name, value in result.items() if isinstance(value, float)]
    key = model.key_metric
    if key is None:
        metrics = [name for name in numbers if name not in model.eval_loss_names]
        if len(metrics) > 1:
            raise ValueError(f"metric() returned {metrics}. Set self.key_metric to the one that decides what is best.")
        key = (metrics or [name for name in numbers if name.endswith("tol_loss")] or [None])[0]
    if key not in numbers:  # with a dict of loaders "acc" means the first loader's
        key = next((name for name in numbers if name.endswith(f"/{key}")), key)
    if key not in numbers:
        raise ValueError(
            f"key_metric {key!r} was not returned by metric() or loss_per_batch(); the evaluation gave {numbers}. Set "
            "self.key_metric to one of these."
        )
    best = better_when(model, key)
    built = model.lr_schedule.schedulers[0].mode if model.lr_scheduler_type == "metric" else None
    if built not in (None, best):
        raise ValueError(
            f"lr_scheduler_type='metric' was built to wait for a {built}imum, and of {key!r} the {best}imum is best. Set "
            "key_metric in __init__, so that it is known then, or lr_scheduler_type='loss'."
        )
    ask_for_direction(model, key)
    if model.evaluator.told_rule_of != key:
        model.evaluator.told_rule_of = key
        print(f"  best = {'highest' if best == 'max' else 'lowest'} {key}")
    model.key_metric = key
    return key


def joined(losses, metrics):
    """Losses and metrics of an evaluation in one dict.

    Raises:
        ValueError: a name stands for both.
    """
    both = sorted(losses.keys() & metrics.keys())
    if both:
        raise ValueError(f"A loss and a metric must not share a name; both loss_per_batch and metric() return {both}.")
    return {**losses, **metrics}


def _warn(message):
    warnings.warn(message, UserWarning, stacklevel=2)


def _some(names):
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)} parameter{'s' * (len(names) > 1)} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"


def short(value):
    """A value as messages show it."""
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
