"""Nested batches: tuples, lists and dicts of tensors, however deep.

    batch = to_device({"image": x, "target": (y, z)}, "cuda")
    batch_size = count_samples(batch)
    kept = copied(batch)                # when the loader may fill its tensors again
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence


def to_device(batch, device):
    """The same nesting of tuples, lists, mappings and dataclasses with every tensor on ``device``; the rest stays as it is.

    What has a ``to`` of its own (graphs, ``PackedSequence``, …) knows best which of its parts move.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if type(batch) in (list, tuple):
        return type(batch)([to_device(value, device) for value in batch])
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, dict):
        moved = batch.copy()
        moved.update((key, to_device(value, device)) for key, value in batch.items())
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, Mapping):
        return _filled(batch, {key: to_device(value, device) for key, value in batch.items()})
    if _is_record(batch):
        held = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if hasattr(batch, field.name)}
        return _replaced(batch, {name: to_device(value, device) for name, value in held.items()})
    return batch


def _filled(part, values):
    """A mapping of the same kind with other values; a dict where it cannot be changed."""
    if not isinstance(part, MutableMapping):
        return values
    new = copy.copy(part)
    new.update(values)
    return new


def _replaced(part, attributes):
    """A copy of an object with other attributes."""
    new = copy.copy(part)
    for name, value in attributes.items():
        object.__setattr__(new, name, value)  # a frozen dataclass has none of its own
    return new


class Fresh:
    """Batches that have memory of their own each. Those of other loaders may be overwritten when the next one is read."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __next__(self) -> Any:
        return next(self.batches)  # type: ignore[call-overload]


def copied(part: Any) -> Any:
    """The same nesting with memory of its own for every tensor and array, wherever the old one is filled again."""
    if isinstance(part, torch.Tensor):
        return part.detach().clone().requires_grad_(part.requires_grad) if part.requires_grad else part.clone()
    if isinstance(part, np.ndarray):
        return part.copy()
    if isinstance(part, (list, tuple)):
        parts = [copied(value) for value in part]
        return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
    if isinstance(part, Mapping):
        return _filled(part, {key: copied(value) for key, value in part.items()})
    if callable(getattr(part, "clone", None)):
        return part.clone()
    names = [field.name for field in dataclasses.fields(part)] if _is_record(part) else list(getattr(part, "__dict__", ()))
    held = {name: value for name in names if isinstance(value := getattr(part, name, None), _FILLED_AGAIN)}
    return _replaced(part, {name: copied(value) for name, value in held.items()}) if held else part


_FILLED_AGAIN = (torch.Tensor, np.ndarray, list, tuple, dict)


def _is_record(part):
    return dataclasses.is_dataclass(part) and not isinstance(part, type)


def pinned(batch):
    """A tuple or list with its host tensors in pinned memory, from where they are copied to a GPU without a wait."""
    if not isinstance(batch, (list, tuple)):
        return batch
    return type(batch)([part.pin_memory() if isinstance(part, torch.Tensor) and part.device.type == "cpu" else part
                        for part in batch])


def first_tensor(batch):
    """The first tensor with at least one dimension in a nested batch, or None."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return None
    for part in batch:
        if isinstance(part, torch.Tensor):
            if part.dim():
                return part
        elif (tensor := first_tensor(part)) is not None:
            return tensor
    return None


def is_on(batch: Any, device: torch.device) -> bool:
    """Whether some tensor of a nested batch is on ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.device == device
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return any(is_on(part, device) for part in parts)


def loader_length(loader):
    """``len(loader)``, or None where there is none."""
    try:
        return len(loader)
    except TypeError:
        return None


# --- how many samples are in a batch ----------------------------------------------------------------------------------

_LOOKED_AT = 8            # entries of a list; the others are taken to be like them
_DEEPEST = 6              # an object may hold itself
_CHANNELS = (1, 3, 4)     # of an image
_CERTAIN, _TWO_WAYS, _DISAGREE = range(3)


def count_samples(batch: Any, sizes: Collection[int] = ()) -> int:
    """How many samples a person would count in a batch, whatever collate function made it; 1 where nothing tells.

    - A tensor or array holds as many as its first dimension says.
    - A ``PackedSequence`` says it in ``batch_sizes[0]``, a batch of graphs in ``num_graphs``, other objects in
      ``batch_size`` or by their length.
    - A dict or other mapping, a named tuple, a dataclass and any other object hold *columns*, each with an entry of every
      sample: the number is the one that all of them have. A column of one entry, and a list of plain numbers or strings
      beside tensors, may be a setting and has no say.
    - A list or tuple holds columns when its entries agree, as ``default_collate`` makes them: ``[x, y]``. It holds the
      *samples* themselves when they are alike and do not agree, or hold single numbers, which no collated batch does:
      ``[{"image": …, "label": 3}, …]``, boxes ``[[5, 4], [2, 4], …]``. ``tuple(zip(*samples))`` is columns of samples.
    - A number, a string or None tells nothing.

    Where several numbers are possible, one of ``sizes`` is right; else the likeliest is taken, and for columns that disagree
    the first one. Tensors that all have one of ``sizes`` in the second dimension, and none in the first, are time-major.

    Args:
        sizes: how many samples a batch may have, as far as the loader tells.
    """
    samples = tell_samples(batch, sizes).samples
    return 1 if samples is None else samples


class Told(NamedTuple):
    """What a batch tells about its number of samples."""

    samples: int | None          # None: nothing
    candidates: tuple[int, ...]  # more than one where it is not certain


def tell_samples(batch: Any, sizes: Collection[int] = (), are_all: bool = False) -> Told:
    """``count_samples`` with its doubts.

    Args:
        sizes: as there.
        are_all: a batch of the loaders has one of ``sizes``, whatever happens.
    """
    numbers, doubt, _ = _reading(batch)
    if not numbers:
        return Told(None, ())
    fitting = [number for number in numbers if number in sizes]
    best = fitting[0] if fitting else numbers[0]
    if doubt == _CERTAIN and best != numbers[0]:  # entries that agree on another number: samples of one shape
        return Told(best, (best,)) if best > 3 else Told(numbers[0], tuple(numbers))
    if not fitting and are_all and (second := _second_dimension(batch)) in sizes:
        return Told(second, (second, *numbers))
    if doubt == _CERTAIN or doubt == _TWO_WAYS and len(fitting) == 1:
        return Told(best, (best,))
    return Told(best, tuple(numbers))


class _Reading(NamedTuple):
    """The numbers of samples that a part of a batch may stand for."""

    numbers: list[int]     # the likeliest first; none: it tells nothing
    doubt: int = _CERTAIN
    is_weak: bool = False  # plain values, which may be a setting


_NOTHING = _Reading([])


def _reading(part, depth=0) -> _Reading:
    """What one part of a batch says."""
    kind = type(part)
    if kind is torch.Tensor or isinstance(part, (torch.Tensor, np.ndarray)):
        return _Reading([part.shape[0]]) if part.ndim else _NOTHING
    if depth > _DEEPEST or isinstance(part, (str, bytes, int, float, complex, np.generic, type(None))):
        return _NOTHING
    if kind is dict:
        return _of_columns(part.values(), depth)
    if kind is list or kind is tuple:
        return _of_list(part, depth)
    if (own := _own_number(part)) is not None:
        return _Reading([own])
    if isinstance(part, Mapping):
        return _of_columns(part.values(), depth)
    if isinstance(part, (list, tuple)):
        return _of_columns(part, depth) if hasattr(part, "_fields") else _of_list(part, depth)
    if _is_record(part):
        return _of_columns([getattr(part, field.name, None) for field in dataclasses.fields(part)], depth)
    if hasattr(part, "__len__"):
        return _Reading([len(part)])
    return _of_columns(vars(part).values(), depth) if hasattr(part, "__dict__") else _NOTHING


def _own_number(part):
    """What an object says of itself."""
    if isinstance(part, PackedSequence):
        return int(part.batch_sizes[0])
    for name in ("num_graphs", "batch_size"):
        number = getattr(part, name, None)
        if isinstance(number, (tuple, list)) and number:
            number = number[0]
        if isinstance(number, (int, np.integer)) and not isinstance(number, bool):
            return int(number)
    return None


def _of_columns(parts: Iterable, depth: int) -> _Reading:
    return _agreed([_reading(part, depth + 1) for part in parts])


def _agreed(readings: list[_Reading]) -> _Reading:
    """The numbers that all columns may have; all numbers where there is no such one."""
    telling = [reading for reading in readings if reading.numbers]
    weak = [reading for reading in telling if reading.is_weak]
    columns = [reading for reading in telling if not reading.is_weak] or weak
    if not columns:
        return _NOTHING
    longer, common = columns, _common(columns)
    if not common:
        longer = [reading for reading in columns if reading.numbers != [1]]
        common = _common(longer)
    doubt = max(reading.doubt for reading in columns)
    if not common or doubt == _DISAGREE:
        numbers = common or list(dict.fromkeys(reading.numbers[0] for reading in longer))
        return _Reading(numbers, _DISAGREE, columns is weak)
    if len(common) > 1:
        backed = [number for number in common if any(number in reading.numbers for reading in weak)]
        common = backed if len(backed) == 1 else common
    return _Reading(common, _CERTAIN if len(common) == 1 < len(telling) else doubt, columns is weak)


def _common(readings):
    first = readings[0].numbers if readings else []
    return [number for number in first if all(number in reading.numbers for reading in readings)]


def _of_list(part, depth) -> _Reading:
    """Of a list or tuple: columns, or the samples themselves."""
    entries = part if len(part) <= _LOOKED_AT else part[:_LOOKED_AT]
    readings = [_reading(entry, depth + 1) for entry in entries]
    if not any(reading.numbers for reading in readings):
        return _Reading([len(part)], is_weak=True) if len({type(entry) for entry in entries}) < 2 else _NOTHING
    columns = _agreed(readings)
    if not _are_alike(entries):
        return columns
    length = len(part)
    if columns.doubt == _DISAGREE:
        inner = max(reading.doubt for reading in readings)
        if length <= 3 and inner < _DISAGREE and not isinstance(part[0], Mapping):  # (source, target) of unequal lengths?
            return _Reading(list(dict.fromkeys([length, *columns.numbers])), _TWO_WAYS)
        return _Reading([length])
    if all(_is_sample(entry) for entry in entries):
        return _Reading([length])
    numbers, doubt = [*columns.numbers, length], columns.doubt
    images = [image.shape for image in map(_image, entries) if image is not None]
    if len(images) == len(entries) and length not in columns.numbers:
        numbers = [length, *columns.numbers] if length > 3 or len(set(images)) > 1 else numbers
        doubt = _TWO_WAYS
    return _Reading(list(dict.fromkeys(numbers)), doubt, columns.is_weak)


def _are_alike(entries):
    """Of one kind, as samples of one dataset are."""
    return len({_kind(entry) for entry in entries}) == 1


def _kind(entry):
    if isinstance(entry, (torch.Tensor, np.ndarray)):
        return type(entry), entry.dtype, entry.ndim
    if isinstance(entry, Mapping):
        return type(entry), *entry
    if not isinstance(entry, (list, tuple)):
        return type(entry)
    return type(entry), len(entry) if isinstance(entry, tuple) else None, _kind(entry[0]) if entry else None


def _is_sample(entry):
    """It holds a single number beside a tensor: collating would have made a list or a tensor of such labels."""
    if _is_record(entry):
        parts = [getattr(entry, field.name, None) for field in dataclasses.fields(entry)]
    else:
        parts = entry.values() if isinstance(entry, Mapping) else entry if isinstance(entry, (list, tuple)) else ()
    single = [isinstance(part, (str, int, float)) or getattr(part, "shape", None) == () for part in parts]
    return any(single) and not all(single)


def _image(entry):
    """The tensor [C, H, W] or array of bytes [H, W, C] that an entry is, or holds as its first; else None."""
    if isinstance(entry, Mapping):
        entry = next((part for part in entry.values() if isinstance(part, (torch.Tensor, np.ndarray))), None)
    if not isinstance(entry, (torch.Tensor, np.ndarray)) or entry.ndim != 3:
        return None
    is_bytes = entry.dtype in (torch.uint8, np.uint8) and entry.shape[2] in _CHANNELS
    return entry if is_bytes or entry.shape[0] in _CHANNELS else None


def _second_dimension(part):
    """The one that all tensors of a batch have; None where there is no such one."""
    if isinstance(part, torch.Tensor):
        return part.shape[1] if part.dim() > 1 else None
    if isinstance(part, Mapping):
        part = list(part.values())
    if not isinstance(part, (list, tuple)) or not part:
        return None
    found = {_second_dimension(entry) for entry in part}
    return found.pop() if len(found) == 1 else None


def sketch(part: Any, depth: int = 0, with_dtypes: bool = False) -> str:
    """A nested batch in a few words: ``(list of 9 tensors [3, 40, 31], …)``."""
    if isinstance(part, (torch.Tensor, np.ndarray)):
        kind = "tensor" if isinstance(part, torch.Tensor) else "array"
        return f"{f'{part.dtype} {kind}'.removeprefix('torch.') if with_dtypes else kind} {list(part.shape)}"
    if isinstance(part, Mapping):
        named = [f"{name}: {sketch(value, depth + 1, with_dtypes)}" for name, value in list(part.items())[:_SHOWN]]
        return f"{{{_joined(named, len(part), depth)}}}"
    if isinstance(part, (list, tuple)) and part and depth < 3:
        if len(part) > 3 and _are_alike(part[:_LOOKED_AT]):
            return f"{type(part).__name__} of {len(part)}, the first {sketch(part[0], depth + 1, with_dtypes)}"
        return f"({_joined([sketch(entry, depth + 1, with_dtypes) for entry in part[:_SHOWN]], len(part), depth)})"
    return type(part).__name__


_SHOWN = 4


def _joined(parts, count, depth):
    return "…" if depth > 2 else ", ".join([*parts, *(["…"] if count > len(parts) else [])])
