"""Checkpoints: plain data, written atomically, verified when read, found by what they hold.

    write(state, "check_point/run/last.pth")
    state = read("check_point/run/last.pth")        # raises CheckpointError for a damaged file, executes nothing
    path, skipped = newest("check_point/run")

Keys of the 2021 format (``model{i}``, ``optimizer_list{i}``, ``global_step``, ``global_step_eval``, ``epoch``,
``best_metric``, ``key_metric``) keep their names and meaning; files of that time load.
"""

import os
import pickle
import re
import shutil
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

from . import run_folder
from .seeding import capture_rng, restore_rng

FORMAT = 1
_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # left by DataParallel / DDP and by torch.compile
_IS_FOLDER = 0x10  # zip's bit that no CRC covers: torch skips such a record and leaves its tensor uninitialised


class CheckpointError(ValueError):
    """A file that cannot be taken for a checkpoint; the message says why."""


# --- files ----------------------------------------------------------------------------------------------------------


def write(state, path):
    """Write so that ``path`` holds either the old file or the whole new one, also after a power cut.

    Raises:
        TypeError: the state holds something that ``weights_only=True`` could not load again.
        OSError: no space, no right, no folder; the old file is untouched.
    """
    path = Path(path)
    _refuse_objects(state, "state")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Make the rename itself durable; Windows cannot open folders and does not need it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse_objects(value, where):
    """Only what loads under ``weights_only=True``: found now, not at the restart that needs the file.

    Subclasses are objects too: a defaultdict or an IntEnum would be written, and refused when read.
    """
    if type(value) in (dict, OrderedDict, Counter):  # MultiStepLR keeps its milestones in a Counter
        for key, part in value.items():
            _refuse_objects(key, f"{where}, key {key!r}")
            _refuse_objects(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, part in enumerate(value):
            _refuse_objects(part, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"A checkpoint holds tensors, numbers, strings, lists and dicts only; {where} is a "
            f"{type(value).__module__}.{type(value).__qualname__}. Return plain data from state_dict()."
        )


def read(path):
    """The state in ``path``, on the CPU, its checksums verified.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: damaged, cut short, not a checkpoint, or holding objects instead of plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    try:
        if zipfile.is_zipfile(path):  # files from before torch 1.6 are not
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not look at the CRCs
                for record in archive.infolist():
                    if record.external_attr & _IS_FOLDER:
                        damaged = record.filename
            if damaged:
                raise CheckpointError(f"{path} is damaged: the checksum of its record {damaged} is wrong.")
        with torch.serialization.safe_globals(_numpy_scalars()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged or holds objects, which could run code when loaded. A checkpoint holds "
            f"plain data only. Nothing of it was executed. ({_reason(error)})"
        ) from error
    except _UNREADABLE as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged, cut short or cannot be read: {_reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not the dict of a checkpoint.")
    return state


_UNREADABLE = (RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, OverflowError,
               NotImplementedError)  # what zipfile and torch raise for damaged bytes


def _numpy_scalars():
    """Metrics in old files may be numpy numbers; these classes only rebuild a number."""
    multiarray = (getattr(np, "_core", None) or np.core).multiarray
    dtypes = {type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")}
    others = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # its names before and since numpy 2
        def scalar(dtype, raw):
            return multiarray.scalar(dtype, raw)

        scalar.__module__, scalar.__qualname__, scalar.__name__ = module, "scalar", "scalar"
        others.append(scalar)
    return [*others, np.dtype, *dtypes]


def _reason(error):
    """The forbidden name where torch tells one (in the middle of advice on how to let it through), else the first line."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    return f"it names {forbidden[1]}" if forbidden else f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def link(source, target):
    """Give a checkpoint a second name without writing it twice; a copy where the file system has no links."""
    source, target = Path(source), Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_last(state, folder, source=None):
    """Make ``state`` the folder's ``last.pth``; the one before it stays beside it as ``previous.pth``.

    Args:
        source: a file that already holds this state and only needs the name.
    """
    last = Path(folder) / "last.pth"
    if last.exists():
        link(last, last.with_name("previous.pth"))
    if source is not None:
        link(source, last)
    else:
        write(state, last)


def epoch_files(folder):
    """``epoch<N>.pth`` by number, lowest first."""
    numbered = [(int(match[1]), path) for path in Path(folder).glob("epoch*.pth")
                if (match := re.fullmatch(r"epoch(\d+)\.pth", path.name))]
    return [path for _, path in sorted(numbered)]


def keep_newest(folder, count):
    """Delete all but the ``count`` highest-numbered ``epoch<N>.pth``; None keeps all."""
    if count is not None:
        for path in epoch_files(folder)[:-count]:
            path.unlink()


def newest(folder):
    """The checkpoint of ``folder`` to continue from: ``last.pth``, also where somebody went back to an earlier epoch and
    files of later ones are left; without a readable one, what is furthest in training by content, not by name or clock.

    Returns:
        ``(path, state, skipped)``: path and state are None when there is none; skipped holds one message per file
        that could not be used.
    """
    folder = Path(folder)
    found, skipped = (None, None, (-1, -1)), []
    for path in [folder / "last.pth", folder / "previous.pth", *reversed(epoch_files(folder))]:
        if not path.exists():
            continue
        try:
            state = read(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if "optimizer_list0" not in state:
            skipped.append(f"{path} holds weights only.")
            continue
        progress = (state.get("global_step", 0), state.get("epochs_done", state.get("epoch", 0)))
        if progress > found[2]:
            found = (path, state, progress)
        if path.name != "previous.pth":
            break  # of the epoch files, the highest that can be read
    return found[0], found[1], skipped


# --- what a checkpoint holds ----------------------------------------------------------------------------------------


def collect(model, optim=True):
    """The state of a ``TemplateModel`` as plain data; ``optim=False`` leaves what only continuing needs."""
    state = {name: _clean(part.state_dict()) for name, part in _modules(model).items()}
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
        state |= {f"optimizer_list{i}": optimizer.state_dict() for i, optimizer in enumerate(model.optimizer_list)}
        state |= {
            "epochs_done": model.epochs_done,
            "batch": model.batches_done,
            "should_stop": model.should_stop,
            "losses": model.running_losses.state_dict(),
            "schedule": model.lr_schedule.state_dict(),
            "stepper": model.stepper.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in _with_state(model.hooks.callbacks)},
            "rng": capture_rng(),
        }
    return state


def apply(model, state, optim=True, strict=True):
    """Put a state into a ``TemplateModel``; nothing is changed when it does not fit.

    Returns:
        Messages about what the state lacks or what was left out.

    Raises:
        ValueError: weights or optimizer do not fit and ``strict`` is set, or a model has no weights in the state.
    """
    modules = _modules(model)
    weights, notes, lacking = _fitting_weights(modules, state, strict)
    afresh = _unfit_optimizers(model.optimizer_list, state, lacking, strict) if optim else {}
    for part, own in zip(modules.values(), weights):
        part.load_state_dict(own, strict=False)
    model.global_step = state.get("global_step", 0)
    model.global_step_eval = state.get("global_step_eval", 0)
    model.epoch = state.get("epoch", 0)
    model.best_metric = {name: float(value) for name, value in state.get("best_metric", {}).items()}
    model.best_epoch = dict(state.get("best_epoch", {}))
    model.key_metric = model.key_metric or state.get("key_metric")
    model.epochs_done = state.get("epochs_done", model.epoch)
    model.batches_done = 0
    model.running_losses.reset()
    if optim:
        notes += _apply_training_state(model, state, afresh)
    return notes


def _apply_training_state(model, state, afresh):
    notes = [f"optimizer {i} starts afresh: {reason}" for i, reason in afresh.items()]
    if "schedule" in state:
        model.lr_schedule.load_state_dict(state["schedule"])
    else:  # a file of the 2021 format
        model.lr_schedule.fast_forward(model.epochs_done, model.global_step)
    for i, optimizer in enumerate(model.optimizer_list):
        if i not in afresh:
            optimizer.load_state_dict(state[f"optimizer_list{i}"])
    if "stepper" in state:
        model.batches_done = state["batch"]
        model.should_stop = state["should_stop"]
        model.running_losses.load_state_dict(state["losses"])
        model.stepper.load_state_dict(state["stepper"])
        saved = dict(state["callbacks"])
        for name, callback in _with_state(model.hooks.callbacks):
            if name in saved:
                callback.load_state_dict(saved.pop(name))
            else:
                notes.append(f"callback {name} starts afresh: the file holds no state of it")
        notes += [f"the state of callback {name} is not used: there is no such callback now" for name in saved]
        restore_rng(state["rng"])
    return notes


def _with_state(callbacks):
    """(name, callback) of those with state; the second of a class is ``Name#2``."""
    seen = {}
    for callback in callbacks:
        if hasattr(callback, "state_dict"):
            name = type(callback).__name__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), callback


def _modules(model):
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
                  if hasattr(own[key][1], "shape")}
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
                "parameters as they were, or load the weights alone with optim=False."
            )
        if here != there:
            reasons[i] = f"its groups hold {here} parameters, those of the file {there}"
        elif any(id(p) in lacking for group in optimizer.param_groups for p in group["params"]):
            reasons[i] = "some of its parameters did not come from the file"
    return reasons


def unwrap(model):
    """The user's own module inside DataParallel, DDP or ``torch.compile``."""
    while hasattr(model, "_orig_mod") or isinstance(
            model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _clean(state_dict):
    """Without the prefixes of wrappers, unless a model has such names of its own and two would become one."""
    cleaned = {_PREFIXES.sub("", key).replace("._orig_mod.", "."): value for key, value in state_dict.items()}
    return cleaned if len(cleaned) == len(state_dict) else dict(state_dict)


# --- finding the run to continue ------------------------------------------------------------------------------------


def find_state(model, name):
    """The checkpoint that ``load_state(name)`` means, as ``(path, state)``; "auto" may find none: ``(None, None)``.

    A run that is found beside the present one, or whose ``last.pth`` is named, is continued in its own folder when the
    present folder is only the default.
    """
    if name != "auto":
        path = Path(name)
        if name in ("best", "last"):
            path = Path(model.ckpt_dir) / f"{name}.pth"
        state = read(path)
        if path.name == "last.pth":
            _continue_in(model, path.absolute().parent, state)
        return path, state
    folders = [Path(model.ckpt_dir).absolute()]
    if run_folder.is_time_stamped(model.ckpt_dir):
        folders += [folder for folder in run_folder.runs_beside(model.ckpt_dir) if folder != folders[0]]
    for folder in folders:
        path, state, skipped = newest(folder)
        for message in skipped:
            print(f"skipped: {message}")
        if state is not None:
            _continue_in(model, folder, state)
            return path, state
    print("load_state('auto'): there is no checkpoint to continue from; training starts from scratch.")
    return None, None


def _continue_in(model, folder, state):
    """Move the run that just began, with what it logged, into the folder of the one it continues."""
    here = Path(model.ckpt_dir).absolute()
    if model.stdout_logger is None:  # loading without check_init: nothing began
        return
    if folder != here:
        if not run_folder.is_time_stamped(here):
            return
        log = Path(model.stdout_logger.filename)
        model.stdout_logger.move(folder / log.name)
        log.unlink()
        run_folder.move_config(here, folder)
        if not any(here.iterdir()):
            here.rmdir()
        model.ckpt_dir = os.path.relpath(folder)
    model.run_name = state.get("run_name") or model.run_name
