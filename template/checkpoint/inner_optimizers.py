"""Optimizers within an optimizer, as ``SAM`` has one that does the step: their state, where the outer one does not save it.

    states = collect([sam])              # {"0": {"base_optimizer": state_dict}}; {} where there is nothing to add
    relink = links(sam)                  # before sam.load_state_dict(…), which makes new parameter groups
    relink(states.get("0", {}))          # behind it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from .plain_data import as_plain, refuse_objects


def collect(optimizers: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """``{index of an optimizer: {attribute: state of the one in it}}``, without those whose tensors the outer one saves, and
    without those whose state is no plain data."""
    states = {}
    for index, outer in enumerate(optimizers):
        inner = dict(_inner(outer))
        saved = {id(tensor) for tensor in _tensors(outer.state_dict())} if inner else set()
        lacking = {name: as_plain(one.state_dict()) for name, one in inner.items()
                   if not one.state or any(id(tensor) not in saved for tensor in _tensors(dict(one.state)))}
        states[str(index)] = {name: state for name, state in lacking.items() if _is_plain(state)}
    return {index: of_one for index, of_one in states.items() if of_one}


def links(outer: Any) -> Callable[[dict[str, Any]], None]:
    """What is behind the loading of ``outer``: its inner optimizers get their states, and those that had its list of groups
    have it again."""
    inner = dict(_inner(outer))
    shared = [one for one in inner.values() if one.param_groups is outer.param_groups]

    def relink(states):
        for name, state in states.items():
            if name in inner:
                _load(inner[name], state)
        for one in shared:
            one.param_groups = outer.param_groups

    return relink


def _load(optimizer, state):
    """Its groups stay the same dicts, which the outer one may hold too."""
    groups = optimizer.param_groups
    optimizer.load_state_dict(state)
    if optimizer.param_groups is not groups:
        for old, new in zip(groups, optimizer.param_groups):
            old.update({name: value for name, value in new.items() if name != "params"})
        optimizer.param_groups = groups


def _inner(outer) -> Iterator[tuple[str, Any]]:
    for name, part in getattr(outer, "__dict__", {}).items():
        if isinstance(part, Optimizer) and part is not outer:
            yield name, part


def _tensors(part) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _tensors(value)


def _is_plain(state):
    try:
        refuse_objects(state)
    except TypeError:
        return False
    return True
