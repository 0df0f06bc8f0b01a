"""Mistakes found before the hour of training, without running anything: in what a subclass set, and at the door of the
public methods.

``check_attributes`` changes nothing. What certainly breaks the run is an error, what may be meant is a ``UserWarning``. What
needs data is in ``preflight.py``.
"""

import difflib
import inspect

import torch
from torch import nn

from ..data.nested import loader_length
from ..hooks import EVENTS
from ..metrics.best import follows_training
from ..metrics.epoch import has_one_for_each_loader
from ..output.warn import warn
from ..parallel.gradients import MODES
from ..update import lr_scheduler
from .class_attributes import check_properties, template_of
from .layers_and_schedulers import check_parts
from .prepare import COMPILE_MODES, MATMUL_PRECISIONS, STEP, check_device

_NAMES_SHOWN = 5
_NOT_CALLED_BY_TRAINING = {"epochs", "fit", "test", "predict"}


# --- without running anything ---------------------------------------------------------------------------------------


def check_attributes(model, overrides):
    """Everything that can be seen from the attributes of a ``TemplateModel``.

    Args:
        overrides: function of a method's name: whether the subclass has one of its own.
    """
    check_properties(model)
    _check_types(model)
    check_device(model.device)
    _check_choices(model)
    check_parts(model)
    check_loader(model.train_loader, "train_loader")
    for name in ("eval_loader", "test_loader"):
        if getattr(model, name) is not None:
            check_loader(getattr(model, name), name)
    check_eval_metrics(model.eval_metrics, model)
    _check_same_data(model)
    _check_parameters(model)
    _check_hidden_methods(model)
    _check_misspelled(model)
    _check_own_loss(model, overrides)
    _check_evaluations(model)


def _check_types(model):
    for name, kind in (("model_list", nn.Module), ("optimizer_list", torch.optim.Optimizer)):
        value = getattr(model, name)
        if isinstance(value, kind) and not isinstance(value, nn.ModuleList):
            raise TypeError(f"{name} must be a list, got one {type(value).__name__}. Write self.{name} = [it].")
        if not isinstance(value, (list, tuple, nn.ModuleList)) or not all(isinstance(part, kind) for part in value):
            is_nested = isinstance(value, (list, tuple)) and any(isinstance(part, list) for part in value)
            nested = f" A list is in it: build_optimizer gives one, so write self.{name} = build_optimizer(…)."
            raise TypeError(f"{name} must be a list of {kind.__name__}, got {short(value)}. Set it in __init__, after "
                            f"super().__init__().{nested if is_nested else ''}{_hint(model, name)}")
        if not len(value):
            raise ValueError(f"{name} must not be empty. Set it in __init__, after super().__init__().")
    check_criterion(model.criterion)
    if model.train_loader is None:
        raise ValueError("train_loader must be set: a DataLoader, a TensorLoader or any iterable of batches."
                         f"{_hint(model, 'train_loader')}")


def check_criterion(criterion):
    if criterion is not None and not callable(criterion):
        raise TypeError(f"criterion must be callable as criterion(pred, y), or None, got {short(criterion)}.")


def check_callbacks(callbacks):
    if callbacks is not None and not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks must be a list, got {short(callbacks)}.")
    for callback in callbacks or ():
        if isinstance(callback, type):
            name = callback.__name__
            raise TypeError(f"callbacks must hold objects, got the class {name}. Write {name}().")
        if not any(hasattr(callback, event) for event in EVENTS):
            raise TypeError(f"callbacks must hold objects with methods such as on_train_end, got {short(callback)}. Derive "
                            "it from Callback, which has them all.")


def check_stop(value):
    if isinstance(value, str) and value != "now":
        raise ValueError('should_stop must be False, True (the loop ends after this epoch) or "now" (after this update, in '
                         f"the middle of the epoch), got {value!r}.")


def check_limit(name, limit):
    is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (is_number and (limit >= 1 if isinstance(limit, int) else 0 < limit <= 1)):
        raise ValueError(f"{name} must be a number of batches (20), a share of them as a float in (0, 1] (0.1), or None for "
                         f"all of them; got {limit!r}.")


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
        "compile": (False, True, *COMPILE_MODES, STEP),
        "channels_last": (False, True),
        "fused": (False, True),
        "matmul_precision": (None, *MATMUL_PRECISIONS),
    }
    for name, accepted in choices.items():
        if getattr(model, name) not in accepted:
            if name == "lr_scheduler_type":
                _refuse_schedule(model.lr_scheduler_type, accepted)
            raise ValueError(f"{name} must be one of {list(accepted)}, got {getattr(model, name)!r}.")
    modes = model.key_metric_mode
    for mode in modes.values() if isinstance(modes, dict) else [modes]:
        if mode not in (None, "max", "min"):
            raise ValueError(f"key_metric_mode must be 'max', 'min' or a dict of these, got {model.key_metric_mode!r}.")
    for name in ("log_per_step", "accumulate_steps", "save_per_steps", "keep_checkpoints", "warm_up_updates",
                 "eval_per_steps", "total_updates", "nominal_batch_size"):
        if getattr(model, name) is not None:
            check_count(name, getattr(model, name))
    check_limit("limit_train_batches", model.limit_train_batches)
    check_limit("limit_eval_batches", model.limit_eval_batches)
    check_stop(model.should_stop)
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


def _refuse_schedule(kind, accepted):
    """A schedule that is none of ours may be one of torch's, whose place is another."""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
    theirs = {known.lower(): known for known in vars(torch.optim.lr_scheduler) if known[0].isupper()}
    if known := theirs.get(name.lower()) or theirs.get(f"{name.lower()}lr"):
        raise ValueError(
            f"lr_scheduler_type must be one of {list(accepted)}, got {kind!r}. For that scheduler of torch, set "
            f"lr_scheduler_list = [torch.optim.lr_scheduler.{known}(optimizer, …)], with one for each optimizer."
        )


def check_loader(loader, name):
    """That it can be read, again and again, and holds something.

    Raises:
        TypeError, ValueError: it cannot.
    """
    for part in loader.values() if isinstance(loader, dict) else [loader]:
        if not hasattr(part, "__iter__"):
            how = " Give DataLoader(dataset, batch_size=32)." if hasattr(part, "__getitem__") else ""
            raise TypeError(f"{name} must be an iterable of batches, got {short(part)}.{how}")
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


def check_eval_metrics(metrics, model):
    """Where each loader has metrics of its own, there are loaders of these names."""
    if not has_one_for_each_loader(metrics):
        return
    loaders = [name for loader in (model.eval_loader, model.test_loader) if isinstance(loader, dict) for name in loader]
    if not all(isinstance(part, dict) for part in metrics.values()) or set(metrics) - set(loaders):
        given = {name: type(part).__name__ for name, part in metrics.items()}
        raise ValueError("eval_metrics must be {name: accumulator}, or a dict of these for each loader by its name; got "
                         f"{given} for the loaders {loaders}. A loader that is left out has the default accuracy.")


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
    """``self.warmup_epoch = 5`` would otherwise be silently ignored. Where the real one is missing, less of it is enough."""
    known = _known_names(model)
    plain = {_plain(name): name for name in known if not name.startswith("_")}
    plain["lrscheduler"] = "lr_scheduler_list or lr_scheduler_type"
    for name in sorted(set(vars(model)) - known):
        for close in difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_ALIKE):
            likeness = difflib.SequenceMatcher(None, _plain(name), close).ratio()
            is_missing = plain[close] in _LIKELY_MISSED and getattr(model, plain[close]) is None
            if (is_missing or likeness >= 0.93) and not name.startswith("_") and not name[-1].isdigit():
                warn(f"self.{name} is no attribute of TemplateModel and has no effect there. Did you mean {plain[close]}?")


def _known_names(model):
    return model.attribute_names.union(dir(template_of(model)))


def _plain(name):
    return name.replace("_", "").lower()


_ALIKE = 0.8
_LIKELY_MISSED = ("model_list", "optimizer_list", "criterion", "train_loader", "eval_loader")
_OTHER_WORDS = {"criterion": {"lossfn", "lossfunc", "lossfun", "lossfunction", "loss", "losses", "lossmodule", "objective"}}


def _instead(model, name):
    """The attribute of a person's own that may be meant to be ``name``, or None."""
    own = {_plain(other): other for other in vars(model) if other not in _known_names(model)}
    words = [word for word in own if word in _OTHER_WORDS.get(name, ())]
    found = [*words, *difflib.get_close_matches(_plain(name), own, n=1, cutoff=_ALIKE)]
    return own[found[0]] if found else None


def _hint(model, name):
    other = _instead(model, name) if getattr(model, name) is None else None
    return "" if other is None else f" There is a self.{other}, which TemplateModel does not know: is it meant?"


def what_is_missing(model):
    """``[what may be wrong]`` with a model that gives no loss, or ``[]``; to be called after ``check_init``."""
    if model.criterion is not None or model.evaluator.writes_losses or model.evaluator.writes_step:
        return []
    return ["criterion is None, so the model is given the whole batch and must return its loss. For batches (x, y) set "
            f"self.criterion.{_hint(model, 'criterion')}"]


def _check_own_loss(model, overrides):
    """A forgotten criterion is found at the first batch, and a likely one already here."""
    other = _instead(model, "criterion")
    if model.criterion is None and not (overrides("loss_per_batch") or overrides("train_step")):
        if other is not None and _plain(other) in _OTHER_WORDS["criterion"] and callable(getattr(model, other)):
            warn(f"self.{other} is no attribute of TemplateModel. The loss is self.criterion, which is None: then the model "
                 f"must return its loss itself. Write self.criterion = … instead, if self.{other} is meant.")


def _check_evaluations(model):
    """What follows evaluations, where there is nothing to evaluate."""
    names = [type(one).__name__ for one in model.callbacks or () if getattr(one, "follows_training", True) is False]
    if model.eval_loader is None and names and not follows_training(model):
        warn(f"{', '.join(names)} looks at evaluations, and there is no eval_loader, so it never acts. Set "
             'self.eval_loader, or monitor="train/tol_loss".')
    if model.eval_loader is None and model.eval_per_steps is not None:
        warn(f"eval_per_steps = {model.eval_per_steps} has no effect, because there is no eval_loader. Set "
             "self.eval_loader, or leave eval_per_steps at None.")


def note_on_evaluations(model, overrides):
    """What the run says where it has nothing to evaluate; a loop that calls ``eval()`` cannot be seen before it does."""
    is_used = model.train_metrics is True  # in the training
    names = [f"{name}()" for name in ("metric", "eval_scores_per_batch") if overrides(name) and not is_used]
    names += ["eval_metrics"] * bool(model.eval_metrics and not is_used)
    names += ["key_metric"] * bool(model.key_metric and not follows_training(model))
    unused = f", {' and '.join(names)} {'is' if len(names) == 1 else 'are'} not used" if names else ""
    return f"no eval_loader (or test_loader): nothing is evaluated{unused}, and eval() would raise an error"


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


def require_one_length(epochs, updates):
    """Of ``fit()``."""
    if (epochs is None) == (updates is None):
        raise TypeError(f"fit() needs the length of the run once: fit(30) for epochs or fit(updates=20_000). Got {epochs!r} "
                        f"epochs and {updates!r} updates.")


def require_eval_loader(model):
    if model.eval_loader is None:
        raise ValueError("There is nothing to evaluate: eval_loader (or test_loader) is not set. Set it in __init__, or "
                         "now: it takes effect at once.")


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


def joined(losses, metrics):
    """Losses and metrics of an evaluation in one dict.

    Raises:
        ValueError: a name stands for both.
    """
    both = sorted(losses.keys() & metrics.keys())
    if both:
        raise ValueError(f"A loss and a metric must not share a name; both loss_per_batch and metric() return {both}.")
    return {**losses, **metrics}


def some(names):
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)} parameter{'s' * (len(names) > 1)} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"


def short(value):
    """A value as messages show it."""
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
