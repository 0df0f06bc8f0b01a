"""Where a run leaves what it makes, and what would make it again.

``check_point/<run>/`` holds log, history, checkpoints and ``config.json``; ``runs/<run>/`` the TensorBoard events.
"""

import argparse
import dataclasses
import glob
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .run_lock import RunInUse

ROOT = "./check_point"
TENSORBOARD_ROOT = "./runs"
DIGESTS = "digests.csv"  # of the weights in each save, see checkpoint/digests.py
REPRODUCE_IN = "REPRODUCE_IN"  # in the environment of a run that tools/reproduce.py started: its scratch folder
CONFIG_FILE = "config.yaml"
_PLAIN = (int, float, str, bool, dict, type(None))
_NOT_SETTINGS = {"train_loader", "eval_loader", "test_loader", "eval_metrics", "train_metrics", "run_options", "best_metric",
                 "best_epoch", "eval_result", "started_in", "asked_dir"}
_TIME_STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")


def time_stamp():
    """A run's name when none is given: sortable, and legal in file names everywhere."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def legal(name):
    """A part of a file's name, as all systems take it: "val/acc@1" becomes "val_acc_1"."""
    return re.sub(r"[^\w.=+-]", "_", str(name)).strip(".") or "_"


def place(path):
    """``path``; in a run that reproduces another one, a place in its scratch folder, whatever ``path`` is: what the other
    run left is never written to."""
    scratch = os.environ.get(REPRODUCE_IN)
    real = Path(path).resolve()
    if not scratch or real.is_relative_to(Path(scratch).resolve()):
        return path
    return Path(scratch, "elsewhere", *real.parts[1:])


def prepare(path, run_name, overwrite=False, lock=None):
    """``(folder, run_name)`` of a run that begins: the folder is made, the name is free."""
    folder = make_folder(path, overwrite, lock)
    return folder, run_name or free_run_name(Path(folder).resolve().name)


def make_folder(path, overwrite=False, lock=None):
    """Create ``path``. A time-stamped name that is taken gets a number, and so does any other where a run is already, unless
    ``overwrite`` is set; one that goes on is never overwritten. Returns the path as a string.

    Args:
        lock: the ``RunLock`` that claims the folder.

    Raises:
        OSError: it cannot be created or written to; the message names it.
    """
    path = Path(path)
    if _TIME_STAMP.fullmatch(path.name):
        path = _new_folder(path)
        _is_claimed(path, lock)
    else:
        free = (folder for folder in _numbered(path) if overwrite and folder == path or not holds_run(folder))
        path = next(folder for folder in free if _is_claimed(folder, lock))
        remove_leftovers(path)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"ckpt_dir must be writable, and {path} is not. Choose another folder.")
    return str(path)


def _is_claimed(folder, lock):
    """Make the folder, and have ``lock`` claim it, unless a run that began just now has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if lock is not None:
            lock.claim(folder, waits=False)
    except RunInUse:
        return False
    return True


def _new_folder(path) -> Any:
    """Made by this process and no other, also when a sweep starts many in one second."""
    for free in _numbered(path):
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:
            continue


def _numbered(path):
    """``run``, ``run_2``, ``run_3``, …"""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}_{number}")


def holds_run(folder):
    """Whether a run left something there that could be continued or used."""
    return next(Path(folder).glob("*.pth"), None) is not None


def remove_run(folder):
    """Delete what a run left in ``folder`` and a new one there would write again; its log and config are continued."""
    for pattern in ("*.pth", "history.csv", "history_kept*.csv", "history.png", DIGESTS):
        for path in Path(folder).glob(pattern):
            path.unlink()
    for path in Path(folder).glob("shards-*"):
        shutil.rmtree(path)


def take_away(ckpt_dir, run_name, log_name):
    """Remove the folders of a run in which nothing was done, where they hold nothing but its log and config, and the heads
    of event files. Returns ``{path: content}``."""
    taken = {}
    for folder, is_empty in ((Path(ckpt_dir), lambda path: path.name in (log_name, "config.json", CONFIG_FILE)),
                             (Path(TENSORBOARD_ROOT, run_name), _is_head)):
        with suppress(OSError):  # what cannot be removed stays
            files = list(folder.iterdir())
            if all(map(is_empty, files)):
                taken |= {path.absolute(): path.read_bytes() for path in files}
                shutil.rmtree(folder)
    return taken


def _is_head(path):
    """Whether it is an event file in which nothing stands yet."""
    return path.name.startswith("events.out.tfevents") and path.stat().st_size <= 200


def put_back(taken):
    """What ``take_away`` returned."""
    for path, content in taken.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def free_run_name(name):
    """``name``, or with a time stamp when TensorBoard already shows a run of that name."""
    return f"{name}_{time_stamp()}" if (Path(TENSORBOARD_ROOT) / name).exists() else name


def runs_beside(ckpt_dir):
    """The time-stamped run folders next to ``ckpt_dir``, the one that was started last first; see ``_start_of``."""
    folders = [path for path in Path(ckpt_dir).absolute().parent.glob("*") if _TIME_STAMP.fullmatch(path.name)]
    return sorted(folders, key=lambda path: (_start_of(path)["number"], path.name), reverse=True)


def is_time_stamped(ckpt_dir):
    return _TIME_STAMP.fullmatch(Path(ckpt_dir).name) is not None


def runs_like(asked, here):
    """The folders in which a run that asked for ``asked`` and got ``here`` may go on, the newest first: those of the same
    name, with or without a number, or where the name is a time stamp all that are."""
    asked, here = Path(asked).absolute(), Path(here).absolute()
    if is_time_stamped(here):
        return [folder for folder in runs_beside(here) if folder != here]
    numbered = [(_start_of(asked)["number"], 1, asked)]
    for path in asked.parent.glob(f"{glob.escape(asked.name)}_*"):
        number, start = path.name.removeprefix(f"{asked.name}_"), _start_of(path)
        if number.isdecimal() and start["asked_for"] == asked.name:  # else it is another run that somebody named so
            numbered.append((start["number"], int(number), path))
    return [path for *_, path in sorted(numbered, reverse=True) if path != here]


def _start_of(folder):
    """What ``config.json`` says of the last start of the run in ``folder``: the name that it asked for, and its number among
    all starts of runs like it. That is the order in which they were started, which names and times of files are not where a
    clock was set back. 0 where the run is from before there were numbers."""
    try:
        start = json.loads((folder / "config.json").read_text(encoding="utf-8"))[-1]
        return {"asked_for": start.get("asked_for"), "number": int(start.get("number") or 0)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {"asked_for": None, "number": 0}


def note_on_names(folder, folders):
    """What to say where ``folder``, which was started last of ``folders``, has not the latest name; else None."""
    later = [path.name for path in folders if path.name > folder.name and holds_run(path)] if is_time_stamped(folder) else []
    if later:
        return (f"{folder.name} was started last. {max(later)} has a later name but was started before it: the clock was "
                "set back, or the older run was continued.")
    return None


def as_dict(arg):
    """An argparse Namespace, dataclass, dict or None as a dict."""
    if arg is None:
        return {}
    if dataclasses.is_dataclass(arg):
        return dataclasses.asdict(arg)
    return dict(vars(arg)) if isinstance(arg, argparse.Namespace) or hasattr(arg, "__dict__") else dict(arg)


def announce(model):
    """Print what this run is, and write it to ``config.json``."""
    import torch

    where = torch.cuda.get_device_name() if torch.device(model.device).type == "cuda" else model.device
    print(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} | {model.ckpt_dir} | {where} | seed {model.seed} ===")
    for name, value in model.run_options.items():
        print(f"  {name}: {value}")
    if not is_time_stamped(model.ckpt_dir) and Path(model.ckpt_dir) != Path(model.asked_dir):
        how = "holds a run that goes on" if model.overwrite else "holds a run already, which is kept"
        then = "" if model.overwrite else ", and overwrite = True replaces it"
        print(f"  {model.asked_dir} {how}: this one begins in {model.ckpt_dir}. load_state('auto') continues the one that "
              f"is there{then}.")
    if model.world.size > 1:
        print(f"  {_several(model)}")
    with told_when_it_fails(Path(model.ckpt_dir) / "config.json"):
        write_config(model.ckpt_dir, model.run_options, settings_of(model), Path(model.asked_dir).name, _next_number(model),
                     str(model.device))


def settings_of(model):
    """What was set, as far as it is plain data, by name."""
    return {name: value for name in sorted(model.attribute_names - _NOT_SETTINGS)
            if not name.startswith("_") and isinstance(value := getattr(model, name), _PLAIN)}


def _next_number(model):
    """Of this start, see ``_start_of``."""
    here = Path(model.ckpt_dir).absolute()
    return 1 + max(_start_of(folder)["number"] for folder in [here, *runs_like(model.asked_dir, here)[:1]])


def _several(model):
    """What several processes mean for the batch and the learning rate."""
    size, of_each = model.world.size, getattr(model.train_loader, "batch_size", None)
    batches = f"a batch of {of_each} on each makes {size * of_each} samples" if of_each else "one batch on each"
    if model.accumulate_steps > 1:
        batches += f", times {model.accumulate_steps} accumulated"
    return f"{size} processes ({'fsdp' if model.is_sharded else 'ddp'}): {batches} per update; learning rates stay as set"


def write_config(folder, options, settings, asked_for=None, number=1, device=None):
    """``config.json``: what reproduces the run. One more entry is added at each start of the same run."""
    import numpy as np
    import torch

    start = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "asked_for": asked_for,
        "number": number,
        "ended": None,  # see note_end
        "command": sys.argv,
        "process": _process(),
        "options": options,
        "settings": settings,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
            "device": device,
            "threads": torch.get_num_threads(),  # their number decides in which order floats are added
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "commit": _git_commit(),
        },
    }
    _add_to_config(Path(folder) / "config.json", [start])


def _process():
    """What would start this process again: the arguments of Python, the folder, and how many processes train together.
    torchrun and ``launch`` give theirs other arguments than those that a person typed."""
    arguments, main = sys.orig_argv[1:], getattr(sys.modules["__main__"], "__spec__", None)
    is_spawned = "--multiprocessing-fork" in arguments
    if is_spawned:  # by a process that was started so
        arguments = ["-m", main.name, *sys.argv[1:]] if main is not None else sys.argv
    ranks, of_node = (1 if is_spawned else int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return {"id": os.getpid(), "arguments": list(arguments), "folder": _started_in(arguments), "ranks": ranks,
            "nodes": max(ranks // of_node, 1)}


def _started_in(arguments):
    """The folder that the process was started in. A script may have left it since: hydra does so for its users. The path of
    the script was made absolute there."""
    file = getattr(sys.modules["__main__"], "__file__", None) or ""
    for argument in arguments:
        for end in (argument, f"{argument.replace('.', os.sep)}.py"):  # a script, or the module of -m
            if os.path.isabs(file) and not os.path.isabs(end) and file.endswith(os.sep + end):
                return file[: -len(end) - 1] or os.sep
    return os.getcwd()


def note_end(folder, end):
    """Say in ``config.json`` how the start of this process ended: plain data, with ``{"how": "finished", …}``. A start
    without it goes on, was killed, or did not train."""
    path = Path(folder) / "config.json"
    with told_when_it_fails(path):
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))
            own = [start for start in starts if start.get("process", {}).get("id") == os.getpid()]
        except (ValueError, AttributeError) as error:  # somebody edited it
            raise OSError(f"it is damaged ({error})") from error
        if own:
            own[-1]["ended"] = end
            replace_file(path, json.dumps(starts, indent=2, default=str) + "\n")


def _add_to_config(path, starts):
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    replace_file(path, json.dumps(earlier + starts, indent=2, default=str) + "\n")


def replace_file(path, content):
    """Write a small file so that a crash leaves the old or the new one: half a file would stop the next start.

    Args:
        content: str, which is written as UTF-8, or bytes.
    """
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path):
    """Where this process writes what shall become ``path``: in the same folder, so that renaming it is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder):
    """Delete what processes that were killed while writing left in ``folder``.

    Only what nobody has written to for ten minutes: another process may be at work there.
    """
    for path in Path(folder).glob(".*.tmp"):
        with suppress(FileNotFoundError):  # it has just finished
            if time.time() - path.stat().st_mtime > 600:
                path.unlink()


@contextmanager
def told_when_it_fails(path):
    """A file beside the training that cannot be written is told of, and ends nothing."""
    try:
        yield
    except OSError as error:
        print(f"{path} could not be written: {error.strerror or error}. Training goes on.")


def move_config(source, target):
    """The starts noted in ``source`` go on in ``target``: the run turned out to be a continued one."""
    path = Path(source) / "config.json"
    _add_to_config(Path(target) / "config.json", json.loads(path.read_text(encoding="utf-8")))
    path.unlink()


def _git_commit():
    """The commit of the working directory, "-dirty" when files differ from it; None outside a repository."""
    here = Path.cwd()
    if "GIT_DIR" not in os.environ and not any((folder / ".git").exists() for folder in (here, *here.parents)):
        return None  # without starting git
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"],
                                capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
