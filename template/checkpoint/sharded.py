"""Checkpoints of weights that are divided among the ranks (FSDP2): each rank writes its part.

    last.pth            plain data as always, without weights, and what the parts are: {"shards": {"folder": …, "crc": …}}.
                        Callbacks' states have a note in the place of each tensor that is divided like the weights (averages)
    shards-<update>/    the parts, as torch.distributed.checkpoint lays them out: any number of ranks can read them

The parts are complete, flushed and read back before the file that names them is written, so at every instant ``last.pth``
and ``previous.pth`` name whole ones. ``plain_state`` joins them; ``tools/consolidate.py`` does so from the command line.
"""

import errno
import os
import pickle
import re
import shutil
import tempfile
import time
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .plain_data import replaced

_NAME = re.compile(r"shards-\d+-\d+")
_KEYS = {"folder", "crc", "param_groups", "other_state", "groups"}  # what loading needs
_IN_PARTS = "tensor in the parts"  # the key of a dict that stands for one, in the state of a callback


def write(trainer, folder, callbacks=None):
    """Write the weights and optimizer states of a ``TemplateModel`` to a new folder in ``folder``. On every rank.

    Args:
        callbacks: ``{name of a callback: its state}``, whose divided tensors (averages) are written too.

    Returns:
        ``(what last.pth has to hold of it, callbacks with a note in the place of each divided tensor)``, or the OSError that
        kept some rank from writing.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    import torch.distributed.checkpoint as dcp

    world = trainer.world
    _require_finite(trainer)
    tensors, rest = _state_of(trainer)
    own, callbacks = _taken_out(callbacks or {})
    tensors |= {"callbacks": own} if own else {}
    path = Path(folder) / world.share(f"shards-{trainer.global_step}-{time.time_ns()}")

    def save():
        dcp.save(tensors, checkpoint_id=str(path), process_group=world.hosts)
        return {file.name: _checksum(file) for file in path.iterdir() if _is_of(file.name, world.rank)}

    for step in (lambda: path.mkdir(parents=True, exist_ok=True), save):  # all or none: in save() they wait for each other
        found = world.gather(_attempt(step))
        failures = [failure for _, failure in found if failure]
        if failures:
            if world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            return OSError(errno.EIO, f"The parts of the weights could not be written: {failures[0][:500]}", str(path))
    crc = {name: value for own, _ in found for name, value in own.items()}
    return {"folder": path.name, "crc": crc, "world_size": world.size, **rest}, callbacks


# --- divided tensors in the states of callbacks -------------------------------------------------------------------------


def _taken_out(callbacks):
    """``({number: divided tensor}, the states with a note in the place of each)``."""
    found = {}

    def note(value):
        if not hasattr(value, "to_local"):
            return value
        found[str(len(found))] = value
        return {_IN_PARTS: str(len(found) - 1), "shape": value.shape, "dtype": value.dtype}

    return found, replaced(callbacks, note)


def _put_back(callbacks, find):
    """The states with ``find(note)`` in the place of each note."""
    return replaced(callbacks, lambda value: find(value) if type(value) is dict and _IN_PARTS in value else value)


def joined(callbacks, world):
    """The states with whole tensors on the host of rank 0, and none on the others. On every rank."""
    def whole(value):
        if not hasattr(value, "full_tensor"):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if world.is_main else None

    return replaced(callbacks, whole)


def _divided_like(p):
    """Function of a note: an empty tensor that is divided as the parameter ``p`` is, along its first dimension."""
    from torch.distributed.tensor import Replicate, Shard, empty

    def make(note):
        placements = [Shard(0) if one.is_shard() and note["shape"] else Replicate() for one in p.placements]
        return empty(note["shape"], dtype=note["dtype"], device_mesh=p.device_mesh, placements=placements)

    return make


def _attempt(step):
    """``(what it returns, None)``, or ``(None, why it failed)``."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        return step(), None
    except CheckpointException as error:  # its own text is tracebacks
        causes = {rank: cause for rank, (cause, _) in error.failures.items()}
        return None, "; ".join(f"rank {rank}: {type(cause).__name__}: {cause}" for rank, cause in causes.items())
    except (OSError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"


def _is_of(name, rank):
    return name.startswith(f"__{rank}_") or rank == 0 and name == ".metadata"


def _checksum(path):
    """Of what is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return _read_checksum(path)


def _require_finite(trainer):
    spoiled = [name for model in trainer.model_list for name, p in model.named_parameters()
               if p.is_floating_point() and not getattr(p, "to_local", p.detach)().isfinite().all()]
    spoiled = sorted({name for names in trainer.world.gather(spoiled) for name in names})
    if spoiled:
        raise FloatingPointError(
            f"The weights must stay finite; {spoiled[0]} is not, in epoch {trainer.epoch}, update {trainer.global_step}. "
            "This state is not saved; the files on disk are from before. Lower the learning rate, warm up, clip gradients, "
            "or set skip_non_finite."
        )


def _state_of(trainer):
    """``({"model": …, "state": …} of tensors, the rest as plain data)``, both by names that hold for any number of ranks."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, optimizers = get_state_dict(_together(trainer), trainer.optimizer_list)
    tensors, others = {}, {}
    for name, own in optimizers["state"].items():
        tensors[name] = {key: value for key, value in own.items() if isinstance(value, torch.Tensor)}
        others[name] = {key: value for key, value in own.items() if not isinstance(value, torch.Tensor)}
    rest = {"param_groups": optimizers["param_groups"], "other_state": {name: own for name, own in others.items() if own},
            "groups": [len(optimizer.param_groups) for optimizer in trainer.optimizer_list]}
    return {"model": weights, "state": tensors}, rest


def _together(trainer):
    """The models as one, whose parameters are ``<index of the model>.<name>``."""
    return nn.ModuleList(trainer.model_list)


def require_parts(folder, shards):
    """Raise unless ``shards`` is what ``write`` returned and the parts that it names lie in ``folder``.

    Raises:
        ValueError: it is something else, or names files outside of its folder.
        FileNotFoundError: a part is missing.
    """
    if not _names_parts(shards):
        raise ValueError(
            "The key 'shards' of a checkpoint is reserved: it names the parts of the weights that each rank wrote, as "
            f"{{'folder': 'shards-<update>-<time>', 'crc': {{<file>: <checksum>}}, …}}; it is {_shortened(shards)}. Store "
            "data of your own under another key."
        )
    for name in shards["crc"]:
        path = Path(folder) / shards["folder"] / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")


def _names_parts(shards):
    """Whether it has the form of what ``write`` returns; its folder and files are plain names."""
    if not isinstance(shards, dict) or not _KEYS <= shards.keys():
        return False
    folder, crc = shards["folder"], shards["crc"]
    return (isinstance(folder, str) and bool(_NAME.fullmatch(folder)) and isinstance(crc, dict) and ".metadata" in crc
            and all(isinstance(name, str) and Path(name).name == name for name in crc))


def _shortened(value):
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def verify(folder, shards):
    """Raise unless the parts that a state in ``folder`` names are there and whole.

    Raises:
        ValueError, OSError: what is wrong.
    """
    require_parts(folder, shards)
    shards["in"] = str(folder)
    path = _folder(shards)
    for name, crc in shards["crc"].items():
        if _read_checksum(path / name) != crc:
            raise ValueError(f"the checksum of {path / name} is wrong")
    _refuse_objects(path / ".metadata")


def weights(shards):
    """``("model0.head.weight", tensor)`` of the parts that ``shards["in"]`` holds, sorted by name: each is read when its
    turn comes, by this process alone.
    """
    import torch.distributed.checkpoint as dcp

    path = str(_folder(shards))
    found = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    named = {f"model{name.removeprefix('model.')}": name for name in found if name.startswith("model.")}
    for name in sorted(named):
        about = found[named[name]]
        has_size = hasattr(about, "size")  # else it is no tensor
        one = {named[name]: torch.empty(about.size, dtype=about.properties.dtype) if has_size else None}
        dcp.load(one, checkpoint_id=path, no_dist=True)
        yield name, one[named[name]]


def _folder(shards):
    return Path(shards["in"]) / shards["folder"]


def _read_checksum(path):
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


class _Checked(pickle.Unpickler):
    """Of ``.metadata``, which torch unpickles without a look: names of its own data classes and of dtypes pass."""

    def find_class(self, module, name):
        is_plain = module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype))
        if is_plain or module == "torch.distributed.checkpoint.metadata" or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise ValueError(f"it holds objects, which could run code when loaded: it names {module}.{name}")


_ALLOWED = {("torch.serialization", "_get_layout"), ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("collections", "OrderedDict"), *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath"))}


def _refuse_objects(path):
    with open(path, "rb") as file:
        try:
            _Checked(file).load()
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def load(trainer, state, optim):
    """Put the parts back into a ``TemplateModel`` under FSDP2, for any number of ranks. On every rank.

    Args:
        state: of the file that names them.
        optim: False leaves the optimizers as they are.

    Returns:
        The states of callbacks with their divided tensors; None without ``optim``.

    Raises:
        ValueError: they are parts of other models.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_state_dict

    tensors, _ = _state_of(trainer)
    shards, callbacks = state["shards"], None
    if optim:
        p = next(p for model in trainer.model_list for p in model.parameters())
        callbacks = _put_back(state["callbacks"], _divided_like(p))
        own, _ = _taken_out(callbacks)
        tensors |= {"callbacks": own} if own else {}
    else:
        del tensors["state"]
    try:
        dcp.load(tensors, checkpoint_id=str(_folder(shards)), process_group=trainer.world.hosts)
    except (RuntimeError, ValueError, dcp.api.CheckpointException) as error:
        raise ValueError(f"The weights in {shards['folder']} do not fit the models of model_list: {error}") from error
    if not optim:
        set_model_state_dict(_together(trainer), tensors["model"])
        return callbacks
    states = {name: own | shards["other_state"].get(name, {}) for name, own in tensors["state"].items()}
    set_state_dict(_together(trainer), trainer.optimizer_list, model_state_dict=tensors["model"],
                   optim_state_dict={"state": states, "param_groups": shards["param_groups"]})
    return callbacks


def load_plain(trainer, weights, state=None, afresh=()):
    """Divide whole weights and optimizer states among the ranks. On every rank.

    Args:
        weights: ``{"model0": …}``, of all or some parameters.
        state: with ``optimizer_list0`` and so on; None leaves the optimizers as they are.
        afresh: indices of optimizers that are left as they are.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

    models = _together(trainer)
    whole = {f"{key.removeprefix('model')}.{name}": value for key, own in weights.items()
             for name, value in sorted(own.items())}  # in one order on all ranks
    set_model_state_dict(models, whole, options=StateDictOptions(full_state_dict=True, strict=False))
    chosen = [i for i in range(len(trainer.optimizer_list)) if i not in afresh] if state is not None else []
    if chosen:
        set_optimizer_state_dict(models, [trainer.optimizer_list[i] for i in chosen], _by_name(trainer, state, chosen),
                                 options=StateDictOptions(full_state_dict=True))


def _by_name(trainer, state, chosen):
    """Optimizer states by the names of parameters instead of their numbers."""
    names = {p: name for name, p in _together(trainer).named_parameters()}
    whole = {"state": {}, "param_groups": []}
    for i in chosen:
        optimizer, saved = trainer.optimizer_list[i], state[f"optimizer_list{i}"]
        for group, saved_group in zip(optimizer.param_groups, saved["param_groups"]):
            own = [names[p] for p in group["params"]]
            whole["param_groups"].append({**saved_group, "params": own})
            whole["state"] |= {name: saved["state"][number] for name, number in zip(own, saved_group["params"])
                               if number in saved["state"]}
    return whole


def gathered(trainer, optim):
    """Weights, and with ``optim`` the optimizer states, whole, as one process would save them: on the host of rank 0, on the
    others empty. On every rank."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    options, models = StateDictOptions(full_state_dict=True, cpu_offload=True), _together(trainer)
    weights = get_model_state_dict(models, options=options)
    optimizers = get_optimizer_state_dict(models, trainer.optimizer_list, options=options) if optim else {}
    if not trainer.world.is_main:
        return {}
    plain = _by_model(weights)
    if optim:
        counts = [len(optimizer.param_groups) for optimizer in trainer.optimizer_list]
        plain |= _by_number(optimizers["param_groups"], counts, optimizers["state"])
    return plain


def plain_state(state):
    """The state of a checkpoint with its parts joined: what one process would have written. Needs no other process."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    shards = state["shards"]
    with tempfile.TemporaryDirectory(prefix="joined-") as temporary:
        dcp_to_torch_save(str(_folder(shards)), f"{temporary}/whole")
        whole = torch.load(f"{temporary}/whole", map_location="cpu", weights_only=True)
    plain = {key: value for key, value in state.items() if key != "shards"} | _by_model(whole["model"])
    plain["callbacks"] = _put_back(state["callbacks"], lambda note: whole["callbacks"][note[_IN_PARTS]])
    states = {name: own | shards["other_state"].get(name, {}) for name, own in whole["state"].items()}
    return plain | _by_number(shards["param_groups"], shards["groups"], states)


def _by_model(weights):
    plain = {}
    for name, value in weights.items():
        index, _, name = name.partition(".")
        plain.setdefault(f"model{index}", {})[name] = value
    return plain


def _by_number(all_groups, counts, states):
    """``{"optimizer_list0": …}`` with the states of parameters by their numbers, which is how one process saves them."""
    plain, remaining = {}, iter(all_groups)
    for i, count in enumerate(counts):
        groups = [next(remaining) for _ in range(count)]
        numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
        plain[f"optimizer_list{i}"] = {
            "state": {number: states[name] for name, number in numbers.items() if name in states},
            "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
        }
    return plain


def remove_unnamed(folder):
    """Delete the parts in ``folder`` that no checkpoint there names any more.

    A file that cannot be read keeps all of them: it may be the one that names them.
    """
    parts = [path for path in Path(folder).glob("shards-*") if _NAME.fullmatch(path.name)]
    if len(parts) < 2:
        return
    try:
        named = {_parts_named_in(path, path.stat().st_mtime_ns) for path in Path(folder).glob("*.pth")}
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError):
        return
    for path in parts:
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)


@cache
def _parts_named_in(path, modified):
    """The folder of parts that a file names, or None; a file of an earlier epoch is read once, and not at each save."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    shards = state.get("shards") if isinstance(state, dict) else None
    return shards["folder"] if _names_parts(shards) else None  # the user's own files may hold anything there
