"""Mistakes found before the hour of training, without running anything: in what a subclass set, and at the door of the
public methods.

``check_attributes`` changes nothing. What certainly breaks the run is an error, what may be meant is a ``UserWarning``. What
needs data is in ``preflight.py``.
"""

import difflib
import inspect
import warnings

import torch
from torch import nn

from ..data.nested import loader_length
from ..metrics.best import ask_for_direction, better_when
from ..parallel.gradients import MODES
from ..update import lr_scheduler
from .class_attributes import check_properties
from .prepare import COMPILE_MODES, MATMUL_PRECISIONS, check_device

_NAMES_SHOWN = 5
_NOT_CALLED_BY_TRAINING = {"epochs", "fit", "test", "predict"}


# --- without running anything ---------------------------------------------------------------------------------------


def check_attributes(model):
    """Everything that can be seen from the attributes of a ``TemplateModel``."""
    check_properties(model)
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
            raise TypeError(f"{name} must be a list of {kind.__name__}, got {short(value)}. Set it in __init__, after "
                            "super().__init__().")
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
        warn(
            "train_loader and eval_loader read one dataset, so the metrics say how well it is remembered, not what was "
            "learned. Hold out a part of it for eval_loader."
        )


def _check_parameters(model):
    named = parameter_names(model)
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
            warn(f"{some(outside)} of optimizer_list[{index}] belong to no model in model_list; they are updated, but "
                  "stand in no checkpoint.")
    twice = [named.get(p, "?") for p, indices in owners.items() if len(indices) > 1]
    if twice:
        warn(f"{some(twice)} are in more than one optimizer, which all update them. Give each parameter to one.")
    left_out = [name for p, name in named.items() if p in in_models and p.requires_grad and p not in owners]
    if left_out:
        warn(f"{some(left_out)} are trainable but in no optimizer, so they never change. Add them to one, or freeze them "
              "with requires_grad_(False).")


def parameter_names(model):
    """``{parameter: where it is}`` of the models, and of a criterion that has some: it is saved with them."""
    modules = {f"model_list[{i}]": part for i, part in enumerate(model.model_list)}
    if isinstance(model.criterion, nn.Module):
        modules["criterion"] = model.criterion
    return {p: f"{prefix}.{name}" for prefix, part in modules.items() for name, p in part.named_parameters()}


def _check_hidden_methods(model):
    """``self.epochs = 30`` ends in "int is not callable", a method called ``callbacks`` would never be called."""
    hidden = [name for name, value in vars(model).items()
              if inspect.isfunction(getattr(type(model), name, None)) and not callable(value)]
    if set(hidden) - _NOT_CALLED_BY_TRAINING:
        raise ValueError(f"An attribute must not have the name of a method, which it hides: {hidden}. Rename one of them.")
    if hidden:  # subclasses of 2021, with a loop of their own, may have such names
        warn(f"The attributes {hidden} hide the methods of these names, which cannot be called. Rename them.")


def _check_misspelled(model):
    """``self.warmup_epoch = 5`` would otherwise be silently ignored."""
    known = [name for base in type(model).__mro__ if base.__module__.endswith(".template") for name in vars(base)]
    known += model.attribute_names
    plain = {_plain(name): name for name in known if not name.startswith("_")}
    plain["lrscheduler"] = "lr_scheduler_list or lr_scheduler_type"
    for name in set(vars(model)) - set(known):
        close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.93)
        if close and not name.startswith("_") and not name[-1].isdigit():
            warn(f"self.{name} is no attribute of TemplateModel and has no effect there. Did you mean {plain[close[0]]}?")


def _plain(name):
    return name.replace("_", "").lower()


# --- at the door of public methods ----------------------------------------------------------------------------------


def require_init(model):
    _require_super_init(model)
    if model.hooks is None:
        raise RuntimeError("Call check_init() once before training, evaluating or continuing.")


def _require_super_init(model):
    if "attribute_names" not in vars(model):
        kind = type(model).__name__
        raise RuntimeError(f"{kind}.__init__ must begin with super().__init__(), which sets the defaults of all attributes, "
                           "and it was not called.")


def require_no_init(model):
    _require_super_init(model)
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


def warn(message):
    warnings.warn(message, UserWarning, stacklevel=2)


def some(names):
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)} parameter{'s' * (len(names) > 1)} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"


def short(value):
    """A value as messages show it."""
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
