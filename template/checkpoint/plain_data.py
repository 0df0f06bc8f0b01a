"""Plain data, which is all a checkpoint holds: tensors, numbers, strings, lists, tuples and dicts of these.

    state = as_plain(state)               # numpy's numbers as numbers, bytes and deques in a form that restored() reads
    refuse_objects(state)                 # TypeError for anything else, naming where it stands
    copy = HostCopy()
    saved = copy.fill(state)              # its tensors copied to the host, into memory that is kept for the next time
"""

import operator
from collections import Counter, OrderedDict, deque

import numpy as np
import torch

DICTS = (dict, OrderedDict, Counter)  # MultiStepLR keeps its milestones in a Counter
LISTS = (list, tuple)
_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)
_KIND = "kind of plain data"  # the key of a dict that stands for something else, be it a dict with this very key
_DICTS_BY_NAME = {kind.__name__: kind for kind in DICTS}
_STAND_INS = ("bytes", "deque", *_DICTS_BY_NAME)


def as_plain(value):
    """The same with numpy's numbers as Python's, and bytes and deques as dicts that ``restored`` turns into them again. What
    needs no change is handed back as it is, and an object that is none of these stays, for ``refuse_objects``."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if kind in DICTS:
        parts = [(key.item() if isinstance(key, np.generic) else key, as_plain(part)) for key, part in value.items()]
        if _KIND in value:
            return {_KIND: kind.__name__, "entries": parts}
        is_same = all(key is old and part is value[old] for (key, part), old in zip(parts, value))
        return value if is_same else kind(dict(parts) if kind is Counter else parts)
    if kind in LISTS:
        parts = [as_plain(part) for part in value]
        return value if all(map(operator.is_, parts, value)) else kind(parts)
    if isinstance(value, np.generic) or isinstance(value, np.ndarray) and not value.ndim:
        return value.item()
    if kind is bytes:
        return {_KIND: "bytes", "text": value.decode("latin-1")}
    if kind is deque:
        return {_KIND: "deque", "entries": [as_plain(part) for part in value], "maxlen": value.maxlen}
    return value


def restored(value):
    """What ``as_plain`` wrote as a dict that stands for it; everything else as it is."""
    kind = type(value)
    if kind in DICTS:
        stands_for = value.get(_KIND)
        if type(stands_for) is not str or stands_for not in _STAND_INS:
            for key, part in value.items():  # of a file that was just read: nobody else has it
                if type(part) not in _PLAIN:
                    value[key] = restored(part)
            return value
        if stands_for == "bytes":
            return value["text"].encode("latin-1")
        if stands_for == "deque":
            return deque(map(restored, value["entries"]), value["maxlen"])
        return _DICTS_BY_NAME[stands_for]({key: restored(part) for key, part in value["entries"]})
    return kind(map(restored, value)) if kind in LISTS else value


def replaced(value, change):
    """The same with ``change(part)`` in the place of each part, inner parts behind outer ones. What ``change`` hands back as
    it is, is looked into; what comes from it is not."""
    new, kind = change(value), type(value)
    if new is not value or kind not in DICTS + LISTS:
        return new
    if kind in LISTS:
        return kind(replaced(part, change) for part in value)
    return kind({key: replaced(part, change) for key, part in value.items()})


def refuse_objects(value, where="state"):
    """Only what loads under ``weights_only=True``: found now, not at the restart that needs the file.

    Subclasses are objects too: a defaultdict or an IntEnum would be written, and refused when read.

    Raises:
        TypeError: there is something else; the message says where.
    """
    if type(value) in DICTS:
        for key, part in value.items():
            refuse_objects(key, f"{where}, key {key!r}")
            refuse_objects(part, f"{where}[{key!r}]")
    elif type(value) in LISTS:
        for index, part in enumerate(value):
            refuse_objects(part, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"A checkpoint holds tensors, numbers, strings, lists and dicts only; {where} is a "
            f"{type(value).__module__}.{type(value).__qualname__}. Return plain data from state_dict()."
        )


def bytes_of(value):
    """What the tensors in nested plain data take."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, LISTS) else ()
    return sum(map(bytes_of, parts))


class HostCopy:
    """Copies of plain data whose tensors lie in host memory; the memory is kept and filled again.

    Allocating 200 MB anew costs some twenty times as much as copying into memory that was used before. What comes from a
    GPU goes to pinned memory, all of it at once, with one wait at the end.
    """

    def __init__(self):
        self._buffers = []  # in the order in which the tensors come: (what was copied into it, the memory)
        self._copied = {}   # {identity of a tensor: its copy}: tied weights stay tied

    def fill(self, data):
        """A copy of ``data``. That of the last time is overwritten.

        Raises:
            RuntimeError: there is no memory for it.
        """
        self._copied = {}
        try:
            copy = self._copy(data)
            del self._buffers[len(self._copied):]
            for device in {key[0] for key in self._copied if key[0].type == "cuda"}:
                torch.cuda.current_stream(device).synchronize()
            return copy
        finally:
            self._copied = {}

    def _copy(self, value):
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value.detach())
        if type(value) is Counter:  # of numbers
            return Counter(value)
        if type(value) in DICTS:
            return type(value)((key, self._copy(part)) for key, part in value.items())
        if type(value) in LISTS:
            return type(value)(self._copy(part) for part in value)
        return value

    def _copy_tensor(self, tensor):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.cpu().clone()  # sparse: its size changes from time to time
        kind = (tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        key = (*kind, tensor.data_ptr(), tensor.is_conj(), tensor.is_neg())
        if key not in self._copied:
            index = len(self._copied)
            if index == len(self._buffers) or self._buffers[index][0] != kind:
                self._buffers[index:index + 1] = [(kind, torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda))]
            self._copied[key] = self._buffers[index][1].copy_(tensor, non_blocking=tensor.is_cuda)
        return self._copied[key]
