"""Checkpoints: plain data, written atomically, verified when read, found by what they hold.

    write(state, "check_point/run/last.pth")
    state = read("check_point/run/last.pth")        # raises CheckpointError for a damaged file, executes nothing
    path, skipped = newest("check_point/run")

What the state holds stands in ``state.py``.
"""

import errno
import os
import pickle
import re
import shutil
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..output import run_folder
from . import sharded
from .digests import with_digest
from .plain_data import refuse_objects, restored

CRASHED = "crashed.pth"  # what an error left in the middle of an update, which load_state("auto") does not take
_IS_FOLDER = 0x10  # zip's bit that no CRC covers: torch skips such a record and leaves its tensor uninitialised


class CheckpointError(ValueError):
    """A file that cannot be taken for a checkpoint; the message says why."""


# --- files ----------------------------------------------------------------------------------------------------------


def write(state, path):
    """Write so that ``path`` holds either the old file or the whole new one, also after a power cut.

    Raises:
        TypeError: the state is no dict, or holds something that ``weights_only=True`` could not load again.
        ValueError: the state uses the key "shards", which is reserved, for something of its own.
        OSError: no space, no right, no folder; the old file is untouched.
    """
    with _written(state, path) as temporary:
        os.replace(temporary, path)


@contextmanager
def _written(state, path):
    """The state in a temporary file beside ``path``, on the disk and read back; what the body leaves of it is deleted.

    An older file is only replaced after that, so at every instant a complete one is there.
    """
    path = Path(run_folder.place(path))
    _refuse_unreadable(state, path.parent)
    state = with_digest(state, path.parent)
    temporary = run_folder.temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            _save(state, file)
            file.flush()
            os.fsync(file.fileno())
        _verify(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _refuse_unreadable(state, folder):
    """Refuse what ``read`` would refuse, while the state is still in memory and the old file on the disk."""
    refuse_objects(state)
    if not isinstance(state, dict):
        raise TypeError(
            f"A checkpoint is a dict; the state is a {type(state).__name__}. Write {{'a name of your own': state}} instead."
        )
    if "shards" in state:
        sharded.require_parts(folder, state["shards"])


def _save(state, file):
    """``torch.save``, whose "unexpected pos" on a full disk has the real error only in its context."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        cause = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        raise (cause or error) from error


def _verify(path):
    """Raise an OSError unless what was written can be read back."""
    try:
        damaged = _damaged_record(path)
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise OSError(errno.EIO, f"What was written cannot be read back ({damaged})", str(path))


def _sync_folder(folder):
    """Make the rename itself durable; Windows cannot open folders and does not need it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        if zipfile.is_zipfile(path) and (damaged := _damaged_record(path)):  # files from before torch 1.6 are no zip
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
    if "shards" in state:
        try:
            sharded.verify(path.parent, state["shards"])
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error
    return restored(state)


def _damaged_record(path):
    """Name of the first record whose checksum does not fit, or None: ``torch.load`` does not look at them."""
    with zipfile.ZipFile(path) as archive:
        folders = (record.filename for record in archive.infolist() if record.external_attr & _IS_FOLDER)
        return archive.testzip() or next(folders, None)


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
    temporary = run_folder.temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_last(state, folder, epoch_file=None):
    """Make ``state`` the folder's ``last.pth``; the one before it stays beside it as ``previous.pth``.

    Args:
        epoch_file: path that the state shall have as well.
    """
    last = Path(folder) / "last.pth"
    with _written(state, last) as temporary:
        if epoch_file is not None:
            link(temporary, epoch_file)
        if last.exists():
            link(last, last.with_name("previous.pth"))
        os.replace(temporary, last)


def epoch_files(folder):
    """``epoch<N>.pth`` by number, lowest first."""
    numbered = [(int(match[1]), path) for path in Path(folder).glob("epoch*.pth")
                if (match := re.fullmatch(r"epoch(\d+)\.pth", path.name))]
    return [path for _, path in sorted(numbered)]


def keep_newest(folder, count):
    """Delete all but the ``count`` highest-numbered ``epoch<N>.pth``, None keeps all; and parts that no file names."""
    if count is not None:
        for path in epoch_files(folder)[:-count]:
            path.unlink()
    sharded.remove_unnamed(folder)


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
        if not {"optimizer_list0", "shards"} & state.keys():
            skipped.append(f"{path} holds weights only.")
            continue
        progress = (state.get("global_step", 0), state.get("epochs_done", state.get("epoch", 0)))
        if progress > found[2]:
            found = (path, state, progress)
        if path.name != "previous.pth":
            break  # of the epoch files, the highest that can be read
    return found[0], found[1], skipped


# --- finding the run to continue ------------------------------------------------------------------------------------


def find_state(model, name):
    """The checkpoint that ``load_state(name)`` means, as ``(path, state)``; "auto" may find none: ``(None, None)``."""
    if name != "auto":
        path = Path(os.path.relpath(_file_of_run(model, f"{name}.pth"))) if name in ("best", "last") else Path(name)
        _require_file(model, path)
        return path, read(path)
    folders = _folders(model)
    for folder in folders:
        path, state, skipped = newest(folder)
        for message in skipped:
            print(f"skipped: {message}")
        if state is not None:
            if note := run_folder.note_on_names(folder, folders):
                print(f"  {note}")
            return Path(os.path.relpath(path)), state
    left = next((folder / CRASHED for folder in _folders(model) if (folder / CRASHED).is_file()), None)
    by_name = f" What an error left is in {os.path.relpath(left)}: load it by its name." if left else ""
    print(f"load_state('auto'): there is no checkpoint to continue from; training starts from scratch.{by_name}")
    return None, None


def _require_file(model, path):
    """Where a script of 2021 looks, ``check_point/epoch1.pth``, there is a folder for each run now."""
    if not path.is_file():
        there = [folder / path.name for folder in _folders(model) if (folder / path.name).is_file()]
        hint = f" The newest {path.name} is {os.path.relpath(there[0])}." if there else ""
        raise FileNotFoundError(f"No checkpoint at {path}.{hint} Each run has a folder of its own in "
                                f"{os.path.relpath(model.path_of('.').parent)}, and load_state('auto') continues the newest "
                                "one.")


def _folders(model):
    """Where the run may have been before, the newest first: its own folder, and those of runs like it."""
    here = model.path_of(".").absolute()
    return [here, *run_folder.runs_like(Path(model.started_in, model.asked_dir), here)]


def _file_of_run(model, name):
    """Of the run itself, or of the one that had its folder before."""
    own, *others = (folder / name for folder in _folders(model))
    if own.exists() or run_folder.is_time_stamped(own.parent):
        return own
    return next((path for path in others if path.exists()), own)


def continue_in(model, folder, state):
    """Move the run that just began, with what it logged, into the folder of the one whose state it took.

    Only from a folder that is the default, or that was made because the one that was asked for held a run: one with a name
    of the user's own stays.
    """
    folder, here = Path(folder).absolute(), model.path_of(".").absolute()
    if run_folder.place(folder) != folder:  # of the run that this one reproduces, which is only read
        return
    if folder != here:
        is_own_name = here == Path(model.started_in, model.asked_dir).absolute()
        if not run_folder.is_time_stamped(here) and (is_own_name or folder not in _folders(model)):
            model.checkpoints.lock.claim_or_tell(here)
            return
    if not model.checkpoints.lock.claim_or_tell(folder):
        return
    if folder != here:
        run_folder.remove_leftovers(folder)
        log = Path(model.stdout_logger.filename)
        if log.absolute().parent == here:  # elsewhere it belongs to no run alone
            model.stdout_logger.move(folder / log.name)
            log.unlink()
        run_folder.move_config(here, folder)
        if not any(here.iterdir()):
            here.rmdir()
        vars(model)["ckpt_dir"] = os.path.relpath(folder, model.started_in)  # an assignment would be refused
    vars(model)["run_name"] = state.get("run_name") or model.run_name
