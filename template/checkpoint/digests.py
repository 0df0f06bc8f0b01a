"""A digest of weights: one short text that is the same where all weights are the same to the last bit.

    digest(model.state_dict())                  # "5f0c…": 64 hexadecimal digits
    digest(torch.load("check_point/run/last.pth"))      # of the models in a checkpoint, which holds it as "digest"

Every file that holds the weights of a run has the digest of these, and ``digests.csv`` beside ``last.pth`` has a line for
each save: it is how two runs are compared without their weights, see ``tools/reproduce.py``.

The digest is the SHA-256 of the names, dtypes, shapes and bytes of all parameters and buffers, in the order of their
names. Neither the device nor the memory format counts (``channels_last``), nor what wraps a model (``torch.compile``, DDP),
nor among how many processes the weights are divided. Optimizers, counters and averages that callbacks keep are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..output.csv_table import CsvTable
from ..output.run_folder import DIGESTS, told_when_it_fails
from . import sharded
from .state import weights_in, with_lists


def digest(weights: Mapping[str, Any]) -> str:
    """The digest of a model's state dict, or of all models in the state of a checkpoint.

    Args:
        weights: ``model.state_dict()``; ``{"model0": …, "model1": …}`` for the models of ``model_list``; or what a
            checkpoint file holds. A state dict alone counts as "model0": it has the digest of a run with that one model.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: it is no mapping, or holds something else than plain data.
        ValueError: it holds no weights.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"digest() takes a state dict: digest(model.state_dict()). It got a {type(weights).__name__}.")
    return _digest_of(_named_weights(weights))


def with_digest(state: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The state of a checkpoint that is about to be written to ``folder``, with the digest of the weights in it. What is no
    state of a trainer comes back as it is."""
    if "format" not in state or "digest" in state:
        return state
    if "shards" in state:
        state = {**state, "shards": {**state["shards"], "in": str(folder)}}
        found = _digest_of(_named_weights(state))
        del state["shards"]["in"]
        return {**state, "digest": found}
    return {**state, "digest": digest(state)}


class Digests:
    """``digests.csv``: for each save of ``last.pth`` how far the training was, and the digest of the weights then.

    A line is written before the checkpoint that it belongs to. A run that goes on from a checkpoint writes the lines behind
    it anew, so at any moment the file tells of one training without a gap.
    """

    def __init__(self) -> None:
        self._table: Any = None
        self._newest = -1  # global_step of the last row

    def note(self, folder: str | Path, state: Mapping[str, Any]) -> None:
        """Add the line of ``state``, which has its digest. A file that cannot be written is told of, and ends nothing."""
        path, step = Path(folder) / DIGESTS, state["global_step"]
        row = {"epoch": state["epochs_done"], "batch": state["batch"], "global_step": step, "digest": state["digest"]}
        if self._table is None or self._table.path != path:
            self._table, self._newest = CsvTable(path, "global_step", ("digest",)), -1
        with told_when_it_fails(path):
            if not (0 <= self._newest < step and self._table.append(row)):
                self._newest = -1
                self._table.replace([*(old for old in self._table.read() if old["global_step"] < step), row])
            self._table.sync()
            self._newest = step


# --- what is hashed -----------------------------------------------------------------------------------------------------


def _named_weights(weights) -> Iterator[tuple[str, Any]]:
    """``("model0.head.weight", tensor)`` and so on, sorted by name; of parts that lie on the disk one at a time."""
    if "shards" in weights and isinstance(weights["shards"], Mapping):
        others = [(f"{key}.{name}", value) for key, part in weights_in(weights).items() for name, value in part.items()]
        return _merged(others, sharded.weights(weights["shards"]))
    state = with_lists(weights)
    if not any(re.fullmatch(r"model\d+", str(key)) and isinstance(part, Mapping) for key, part in state.items()):
        state = {"model0": weights}
    named = [(f"{key}.{name}", value) for key, part in weights_in(state).items() for name, value in part.items()]
    if not named:
        raise ValueError(f"digest() takes a state dict with weights; this mapping holds {list(weights)[:5]}.")
    return iter(sorted(named, key=_name))


def _merged(some, others):
    """``some`` in the midst of ``others``, which come sorted."""
    waiting = sorted(some, key=_name)
    for name, value in others:
        while waiting and waiting[0][0] < name:
            yield waiting.pop(0)
        yield name, value
    yield from waiting


def _name(named):
    return named[0]


def _digest_of(named: Iterable[tuple[str, Any]]) -> str:
    found = hashlib.sha256()
    for name, value in named:
        _feed(found, name)
        _feed(found, value)
    return found.hexdigest()


def _feed(found, value):
    """Each part says what and how long it is, so that no two states give the same bytes."""
    if isinstance(value, torch.Tensor):
        _feed_tensor(found, value)
    elif isinstance(value, Mapping):
        found.update(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            _feed(found, key)
            _feed(found, value[key])
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        found.update(f"list {len(value)};".encode())
        for part in value:
            _feed(found, part)
    elif isinstance(value, (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)):
        text = repr(value).encode("utf-8", "surrogatepass")
        found.update(f"{type(value).__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(f"digest() knows tensors, numbers, strings, lists and dicts; a {type(value).__module__}."
                        f"{type(value).__qualname__} is among the weights. Return plain data from get_extra_state().")


def _feed_tensor(found, tensor):
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if hasattr(tensor, "__tensor_flatten__"):  # a subclass that is made of tensors, as quantizers have them
        names, _ = tensor.__tensor_flatten__()
        found.update(f"{type(tensor).__name__} {list(tensor.shape)} {len(names)};".encode())
        for name in sorted(names):
            _feed(found, name)
            _feed_tensor(found, getattr(tensor, name))
        return
    tensor = tensor.cpu()
    found.update(f"tensor {tensor.dtype} {list(tensor.shape)};".encode())
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        for part in (tensor.indices(), tensor.values()):
            _feed_tensor(found, part)
        return
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg().contiguous().reshape(-1)
    if tensor.numel():  # hashlib lets other threads run meanwhile
        found.update(memoryview(tensor.view(torch.uint8).numpy()))
