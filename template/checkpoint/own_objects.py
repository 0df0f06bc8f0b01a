"""Schedulers and random generators that a person keeps in attributes of the trainer, beside those that it knows itself:
``self.scheduler``, which the visible loop steps, or ``self.noise = torch.Generator()``.

    state = collect(trainer)                     # {"scheduler": {"kind": "StepLR", "state": …}, …}, plain data
    messages = apply(trainer, state)             # into the objects that are there now

They are found in attributes that are no setting of ``TemplateModel``, and in a list, tuple or dict there. Nothing else is
looked for: a network may be large and never change, and a number may be a setting that the next start changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..data.seeding import GENERATORS, put_back, state_of
from .plain_data import as_plain, refuse_objects, replaced

_SCHEDULERS = (LRScheduler, ReduceLROnPlateau)
_MANY = 100  # entries: such a list holds data


def collect(trainer: Any) -> dict[str, Any]:
    """``{name of the attribute: its kind and state}``, without those that ``notes`` tells of."""
    return {name: {"kind": type(part).__name__, "state": state} for name, part in _found(trainer)
            if _what_is_odd(name, state := _state(part)) is None}


def notes(trainer: Any) -> list[str]:
    """What cannot be saved, for the start of a run."""
    return [f"trainer.{name} ({type(part).__name__}) begins anew in a resumed run. {odd}"
            for name, part in _found(trainer) if (odd := _what_is_odd(name, _state(part))) is not None]


def apply(trainer: Any, state: dict[str, Any], with_generators: bool = True) -> list[str]:
    """
    Args:
        state: what ``collect`` gave.
        with_generators: False leaves generators as they are: the state is that of another process.

    Returns:
        Messages about what starts afresh, and what is not used.
    """
    left, messages = dict(state), []
    for name, part in _found(trainer):
        saved, kind = left.pop(name, None), type(part).__name__
        if isinstance(part, GENERATORS) and not with_generators:
            continue
        if saved is None or saved["kind"] != kind:
            what = "no state of it" if saved is None else f"the state of a {saved['kind']}"
            messages.append(f"trainer.{name} ({kind}) starts afresh: the file holds {what}")
        elif isinstance(part, GENERATORS):
            put_back(part, replaced(saved["state"], _as_array))
        else:
            part.load_state_dict(saved["state"])
    messages += [f"the state of trainer.{name} ({saved['kind']}) is not used: there is no such attribute now. Set it before "
                 "load_state()" for name, saved in left.items()]
    return messages


def way_back(trainer: Any) -> Callable[[], None]:
    """A function that lets the generators go on from where they are now."""
    before = [(part, state_of(part)) for _, part in _found(trainer) if isinstance(part, GENERATORS)]

    def put_all_back():
        for part, state in before:
            put_back(part, state)

    return put_all_back


def _found(trainer) -> Iterator[tuple[str, Any]]:
    """``(name, object)``, each object once."""
    known = {id(one) for one in (*(trainer.lr_scheduler_list or ()), *(trainer.warm_up_scheduler_list or ()))}
    for attribute, value in vars(trainer).items():
        if attribute in trainer.attribute_names:
            continue
        parts = {attribute: value}
        if isinstance(value, (list, tuple)) and len(value) <= _MANY:
            parts = {f"{attribute}[{i}]": part for i, part in enumerate(value)}
        elif type(value) is dict and len(value) <= _MANY:
            parts = {f"{attribute}[{key!r}]": part for key, part in value.items()}
        for name, part in parts.items():
            is_kind = isinstance(part, (*_SCHEDULERS, *GENERATORS)) and not isinstance(part, random.SystemRandom)
            if is_kind and id(part) not in known:
                known.add(id(part))
                yield name, part


def _state(part):
    if isinstance(part, _SCHEDULERS):
        return as_plain(part.state_dict())
    return replaced(state_of(part), _without_array)


def _what_is_odd(name, state):
    try:
        refuse_objects(state, f"the state of trainer.{name}")
    except TypeError as error:
        return str(error)
    return None


def _without_array(part):
    """An array of numpy, which a checkpoint does not hold, as a tensor of the same bits."""
    if not isinstance(part, np.ndarray):
        return part
    return {"type of an array": str(part.dtype), "bits": torch.from_numpy(part.copy().view(f"i{part.itemsize}"))}


def _as_array(part):
    if type(part) is not dict or "type of an array" not in part:
        return part
    return part["bits"].numpy().view(part["type of an array"])
