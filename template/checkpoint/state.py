"""What a checkpoint holds of a ``TemplateModel``, taken and put back.

    state = collect(model)                   # plain data: tensors, numbers, strings, lists, dicts
    notes = apply(model, state)              # all of it, or nothing when it does not fit

Keys of the 2021 format (``model{i}``, ``optimizer_list{i}``, ``global_step``, ``global_step_eval``, ``epoch``,
``best_metric``, ``key_metric``) keep their names and meaning; files of that time load, and those of before ``model_list``.
"""

import re
from collections import deque
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from ..data.seeding import capture_rng, derive, restore_rng, seed_everything
from ..parallel.gradients import let_go
from . import added_groups, inner_optimizers, own_objects, sharded
from .plain_data import HostCopy, as_plain, refuse_objects, restored

FORMAT = 1
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # left by DataParallel / DDP and by torch.compile


def collect(model, optim=True, divided=False, world=None):
    """The state of a ``TemplateModel`` as plain data. On every rank: what each of them has of its own is brought together.

    Args:
        optim: False leaves what only continuing needs.
        divided: without weights and optimizers, of which ``sharded.write`` has each rank write its part, and with the parts
            that callbacks have of divided tensors.
        world: the ranks that take part; None: all, ``ALONE``: this one, whose losses since the last log point and whose
            random numbers are then the only ones.
    """
    world = model.world if world is None else world
    state = _weights_and_optimizers(model, optim, divided)
    state |= {
        "format": FORMAT,
        "global_step": model.global_step,
        "global_step_eval": model.global_step_eval,
        "epoch": model.epoch,
        "best_metric": dict(model.best_metric),
        "best_epoch": dict(model.best_epoch),
        "key_metric": model.key_metric,
        "seed": model.seed,
        "run_name": model.run_name,
    }
    if optim:
        callbacks = {name: callback.state_dict() for name, callback in _with_state(model.hooks.callbacks)}
        state |= {
            "epochs_done": model.epochs_done,
            "batch": model.batches_done,
            "position": model.train_batches.position(_epoch_of(model), model.batches_done),
            "should_stop": bool(model.should_stop) and model.should_stop != "now",  # which ends a process, not the run
            "losses": model.running_losses.state_dict(world),
            "schedule": model.lr_schedule.state_dict(),
            "stepper": model.stepper.state_dict(),
            "loader": model.train_batches.state_dict(),
            "callbacks": sharded.joined(callbacks, world) if model.is_sharded and not divided else callbacks,
        }
        if added_groups.has_any(model):
            state["added_groups"] = added_groups.describe(model, named_parameters(model))
        of_ranks = world.gather((capture_rng(), own_objects.collect(model)))
        state["rng"], *others = (rng for rng, _ in of_ranks)
        state |= {"rng_of_other_ranks": others} if others else {}
        if any(own for _, own in of_ranks):
            state["own_objects"] = [own for _, own in of_ranks]
    return as_plain(state)


def refuse_unsavable(model, callbacks, with_loader=False):
    """Find before the training, or behind its first update, what no checkpoint can hold: a walk through what is there, in
    which no weight is copied.

    Args:
        callbacks: of the run. One that cannot tell its state yet is left out.
        with_loader: the place in ``train_loader`` too.

    Raises:
        TypeError: there is something; the message says where.
    """
    parts = {f"the state of {name}": part.state_dict for name, part in _modules(model).items()}
    parts |= {f"the state of optimizer_list[{i}]": part.state_dict for i, part in enumerate(model.optimizer_list)}
    parts["the state of the learning rate schedules"] = model.lr_schedule.state_dict
    if with_loader:
        parts["the state of train_loader"] = model.train_batches.state_dict
    for where, state_dict in parts.items():
        refuse_objects(as_plain(state_dict()), where)
    for name, callback in _with_state(callbacks):
        try:
            state = callback.state_dict()
        except Exception:  # it is told by the first save, if it is still so
            continue
        refuse_objects(as_plain(state), f"the state of callback {name}")


def _weights_and_optimizers(model, optim, divided):
    if model.is_sharded:
        state = {} if divided else sharded.gathered(model, optim)
        return state | {name: _clean(part.state_dict()) for name, part in _modules(model).items() if name == "criterion"}
    state = {name: {key: value for key, value in _clean(part.state_dict()).items() if not is_lazy(value)}
             for name, part in _modules(model).items()}
    if optim:
        state |= {f"optimizer_list{i}": optimizer.state_dict() for i, optimizer in enumerate(model.optimizer_list)}
        if inner := inner_optimizers.collect(model.optimizer_list):
            state["inner_optimizers"] = inner
    return state


def apply(model, state, optim=True, strict=True):
    """Put a state into a ``TemplateModel``; nothing is changed when it does not fit.

    Returns:
        Messages about what the state lacks or what was left out.

    Raises:
        ValueError: weights or optimizer do not fit and ``strict`` is set, or a model has no weights in the state.
    """
    modules = _modules(model)
    if "shards" in state:
        return _apply_parts(model, modules, state, optim)
    weights, notes, lacking = _fitting_weights(modules, state, strict)
    afresh = _unfit_optimizers(model.optimizer_list, state, lacking, strict) if optim else {}
    if model.is_sharded:
        return notes + _apply_divided(model, modules, weights, state, afresh if optim else None)
    is_set_up = model.hooks is not None
    before, key_metric = restored(HostCopy().fill(collect(model, is_set_up))), model.key_metric
    try:
        return notes + _apply(model, modules, weights, state, afresh if optim else None)
    except Exception:  # a callback, a loader or an optimizer refused its part: all go back
        model.key_metric = key_metric
        _apply(model, modules, _fitting_weights(modules, before, strict=True)[0], before, {} if is_set_up else None)
        raise


def apply_weights(model, state):
    """The weights of a state alone; counters, optimizers and everything else stay.

    Raises:
        ValueError: they do not fit. Nothing was changed.
    """
    modules = _modules(model)
    weights, _, _ = _fitting_weights(modules, state, strict=True)
    if model.is_sharded:
        sharded.load_plain(model, {name: own for name, own in zip(modules, weights) if name != "criterion"})
    for (name, part), own in zip(modules.items(), weights):
        if name == "criterion" or not model.is_sharded:
            part.load_state_dict(own, strict=False)


def _apply(model, modules, weights, state, afresh):
    """What fits is put in; ``afresh`` is ``{index of an optimizer: why it is left out}``, or None for weights alone."""
    for part, own in zip(modules.values(), weights):
        part.load_state_dict(own, strict=False)
    _apply_counters(model, state)
    return [] if afresh is None else _apply_training_state(model, state, afresh)


def _apply_divided(model, modules, weights, state, afresh):
    """The same where each rank has a part of the weights; what fails half-way is not undone."""
    for (name, part), own in zip(modules.items(), weights):
        if name == "criterion":
            part.load_state_dict(own, strict=False)
    whole = {name: own for name, own in zip(modules, weights) if name != "criterion"}
    sharded.load_plain(model, whole, None if afresh is None else state, afresh)
    _apply_counters(model, state)
    return [] if afresh is None else _apply_training_state(model, state, afresh, with_optimizers=False)


def _apply_parts(model, modules, state, optim):
    """From a file whose weights each rank wrote its part of, where each rank has a part again."""
    callbacks = sharded.load(model, state, optim)
    if "criterion" in modules and "criterion" in state:
        modules["criterion"].load_state_dict(state["criterion"])
    _apply_counters(model, state)
    return _apply_training_state(model, state | {"callbacks": callbacks}, {}, with_optimizers=False) if optim else []


def _apply_counters(model, state):
    model.global_step = state.get("global_step", 0)
    model.global_step_eval = state.get("global_step_eval", 0)
    model.epoch = state.get("epoch", 0)
    model.best_metric = {name: float(value) for name, value in state.get("best_metric", {}).items()}
    model.best_epoch = dict(state.get("best_epoch", {}))
    model.key_metric = model.key_metric or state.get("key_metric")
    model.epochs_done = state.get("epochs_done", model.epoch)
    model.batches_done = 0
    if model.train_batches is not None:
        model.train_batches.go_on(None, 0, 0)
    model.running_losses.reset()


def _apply_training_state(model, state, afresh, with_optimizers=True):
    notes = [f"optimizer {i} starts afresh: {reason}" for i, reason in afresh.items()]
    if "schedule" in state:
        notes += model.lr_schedule.what_holds(state["schedule"])
        model.lr_schedule.load_state_dict(state["schedule"])
    else:  # a file of the 2021 format
        model.lr_schedule.fast_forward(model.epochs_done, model.global_step)
    for i, optimizer in enumerate(model.optimizer_list):
        if i not in afresh and with_optimizers:
            relink = inner_optimizers.links(optimizer)
            _load_optimizer(optimizer, state[f"optimizer_list{i}"])
            relink(state.get("inner_optimizers", {}).get(str(i), {}))
    if "stepper" in state:
        model.batches_done, changed = model.train_batches.go_on(state.get("position"), _epoch_of(model), state["batch"])
        notes += changed
        model.train_batches.load_state_dict(state.get("loader"), model.batches_done)
        model.should_stop = state["should_stop"]
        model.running_losses.load_state_dict(state["losses"])
        model.stepper.load_state_dict(state["stepper"])
        saved = dict(state["callbacks"])
        for name, callback in _with_state(model.hooks.callbacks):
            if name in saved:
                callback.load_state_dict(saved.pop(name))
            else:
                notes.append(f"callback {name} starts afresh: the file holds no state of it")
                if hasattr(callback, "start_afresh"):
                    callback.start_afresh()
        notes += [f"the state of callback {name} is not used: there is no such callback now" for name in saved]
        _restore_rng(model, state)
        own = state.get("own_objects", [{}])
        is_known = model.world.rank < len(own)
        notes += own_objects.apply(model, own[model.world.rank if is_known else 0], with_generators=is_known)
    return notes


def _epoch_of(model):
    """Number of the epoch that ``batches_done`` counts in."""
    return max(model.epoch, model.epochs_done + 1)


def _load_optimizer(optimizer, state):
    """A rate that is a tensor stays that tensor, where it is: compiled steps and graphs hold it. torch would put the file's
    in its place, which is on the CPU."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    _keep_lengths(optimizer, state)
    for group, rate in zip(optimizer.param_groups, rates):
        if isinstance(rate, torch.Tensor):
            group["lr"] = rate.fill_(group["lr"])
        elif isinstance(group["lr"], torch.Tensor):
            group["lr"] = float(group["lr"])


def _keep_lengths(optimizer, state):
    """torch makes every deque of a state endless."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for p, number in zip(parameters, numbers):
        held = state["state"].get(number, {})
        for name, value in held.items() if isinstance(held, dict) else ():
            if isinstance(value, deque):
                optimizer.state[p][name] = deque(optimizer.state[p][name], value.maxlen)


def _restore_rng(model, state):
    """This rank's; one that was not there when the file was written starts a stream of its own."""
    known = [state["rng"], *state.get("rng_of_other_ranks", [])]
    if model.world.rank < len(known):
        restore_rng(known[model.world.rank])
    else:
        seed_everything(derive(state["seed"], model.global_step), rank=model.world.rank)


def _with_state(callbacks):
    """(name, callback) of those with state; the second of a class is ``Name#2``."""
    seen = {}
    for callback in callbacks:
        if hasattr(callback, "state_dict"):
            name = type(callback).__name__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), callback


def _modules(model) -> dict[str, Any]:
    """``{key in the state: module}``: the models, and a criterion that has weights of its own."""
    modules = {f"model{i}": unwrap(part) for i, part in enumerate(model.model_list)}
    if isinstance(model.criterion, torch.nn.Module) and model.criterion.state_dict():
        modules["criterion"] = model.criterion
    return modules


def _fitting_weights(modules, state, strict):
    """The weights of each module that fit it, messages on the rest, and the ids of the parameters that get none."""
    weights, notes, lacking = [], [], set()
    for name, part in modules.items():
        if name not in state:
            if name == "criterion":  # in 2021 it was not saved
                weights.append({})
                notes.append("criterion: the file holds no weights of it")
                continue
            keys = [key for key in state if key.startswith("model")]
            raise ValueError(f"The file must hold every model of model_list; it holds {keys or 'none'}: {name} is missing.")
        saved, own = _clean(state[name]), part.state_dict()
        own = dict(zip(_clean(own), own.items()))
        shapes = {key: (tuple(saved[key].shape), tuple(own[key][1].shape)) for key in saved.keys() & own.keys()
                  if not is_lazy(own[key][1]) and hasattr(own[key][1], "shape")}
        mismatched = sorted(key for key, (there, here) in shapes.items() if there != here)
        missing, unexpected = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
        problems = {
            "missing in the file": missing,
            "unknown to the model": unexpected,
            "of another shape": [f"{key} {shapes[key][0]}, here {shapes[key][1]}" for key in mismatched],
        }
        problems = [f"{what}: {keys}" for what, keys in problems.items() if keys]
        if problems and strict:
            raise ValueError(
                f"The weights do not fit {name} ({type(part).__name__}): {'; '.join(problems)}. Nothing was loaded. "
                "Build the model as it was, or load what fits with strict=False."
            )
        notes += [f"{name}: {problem}" for problem in problems]
        weights.append({own[key][0]: saved[key] for key in saved.keys() & own.keys() if key not in mismatched})
        parameters = dict(part.named_parameters(remove_duplicate=False))
        lacking |= {id(parameters.get(own[key][0])) for key in missing + mismatched}
    notes += [f"{key} of the file is not used: there is no such model in model_list"
              for key in state if re.fullmatch(r"model\d+", key) and key not in modules]
    return weights, notes, lacking


def _unfit_optimizers(optimizers, state, lacking, strict):
    """``{index: why its saved state is of no use}``; where the grouping differs and ``strict`` is set, a ValueError."""
    reasons = {}
    for i, optimizer in enumerate(optimizers):
        if f"optimizer_list{i}" not in state:
            reasons[i] = f"the file holds no optimizer_list{i}"
            continue
        here, there = ([len(group["params"]) for group in groups]
                       for groups in (optimizer.param_groups, state[f"optimizer_list{i}"]["param_groups"]))
        if here != there and strict:
            raise ValueError(
                f"optimizer_list[{i}] has groups of {here} parameters, the file's of {there}. Nothing was loaded. Group the "
                "parameters as they were, call add_param_group() before, or load the weights alone with optim=False."
            )
        if here != there:
            reasons[i] = f"its groups hold {here} parameters, those of the file {there}"
        elif any(id(p) in lacking for group in optimizer.param_groups for p in group["params"]):
            reasons[i] = "some of its parameters did not come from the file"
    return reasons


_BEST_BEFORE_LISTS = {"best_acc": "acc", "best_error": "error"}


def with_lists(state):
    """A state of before June 2021, which holds one model and one optimizer, with the keys of today; any other as it is."""
    if not isinstance(state.get("model"), dict) or "model0" in state:
        return state
    new = {"model0": state["model"], "global_step": state.get("global_step", state.get("step", 0)),
           "epoch": state.get("epoch", 0)}
    if "optimizer" in state:
        optimizers = state["optimizer"] if isinstance(state["optimizer"], list) else [state["optimizer"]]
        new |= {f"optimizer_list{i}": optimizer for i, optimizer in enumerate(optimizers)}
    best = {name: state[old] for old, name in _BEST_BEFORE_LISTS.items() if state.get(old) is not None}
    return new | {"best_metric": best}


def weights_in(state):
    """``{key: weights by name}`` of the models and the criterion in a state, without the prefixes of wrappers."""
    return {key: _clean(part) for key, part in state.items() if key == "criterion" or re.fullmatch(r"model\d+", key)}


def parameter_names(model):
    """``{key in the state: names in it that are parameters}``; the other entries are buffers."""
    return {name: set(_clean(dict(part.named_parameters(remove_duplicate=False))))
            for name, part in _modules(model).items()}


def named_parameters(model):
    """``{key of the module and name of the parameter in the state: parameter}``: "model0.head.weight"."""
    return {f"{key}.{name}": p for key, part in _modules(model).items()
            for name, p in _clean(dict(part.named_parameters())).items()}


def floating_tensors(model):
    """``{key of the module and name in the state: parameter or buffer of floating-point numbers}``, each tensor once.
    Buffers that no state holds are left out. Of divided parameters these are the DTensors."""
    if model.is_sharded:
        let_go(model.model_list)
    found, seen = {}, set()
    for key, part in _modules(model).items():
        unsaved = {f"{prefix}{'.' if prefix else ''}{name}" for prefix, module in part.named_modules()
                   for name in module._non_persistent_buffers_set}
        buffers = {name: buffer for name, buffer in part.named_buffers() if name not in unsaved}
        for name, tensor in _clean({**dict(part.named_parameters()), **buffers}).items():
            if id(tensor) not in seen and not is_lazy(tensor) and (tensor.is_floating_point() or tensor.is_complex()):
                seen.add(id(tensor))
                found[f"{key}.{name}"] = tensor
    return found


def require_finite(state, names):
    """Weights that are not finite must never become the newest checkpoint: the loss shows them one update too late.

    Args:
        names: of the parameters, as ``parameter_names`` gives them: buffers may hold an infinity on purpose (masks).

    Raises:
        FloatingPointError: a parameter is not finite.
    """
    for key, parameters in names.items():
        for name in parameters & state.get(key, {}).keys():
            values = state[key][name]
            if not values.is_floating_point() or values.sum().isfinite():  # a sum costs a tenth of looking at each
                continue
            if not values.isfinite().all():
                raise FloatingPointError(
                    f"The weights must stay finite; {name} of {key} is not, in epoch {state['epoch']}, update "
                    f"{state['global_step']}. This state is not saved; the files on disk are from before. Lower the "
                    "learning rate, warm up, clip gradients, or set skip_non_finite."
                )


def unwrap(model: Any) -> Any:
    """The user's own module inside DataParallel, DDP or ``torch.compile``."""
    while hasattr(model, "_orig_mod") or isinstance(
            model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _clean(state_dict):
    """Without the prefixes of wrappers, unless a model has such names of its own and two would become one."""
    cleaned = {_PREFIXES.sub("", key).replace("._orig_mod.", "."): value for key, value in state_dict.items()}
    return cleaned if len(cleaned) == len(state_dict) else dict(state_dict)
