"""Looking at models without changing them: eval mode and back, and every attribute as it was.

    with eval_mode(models), torch.no_grad():
        pred = models[0](x)
    with unchanged(models):                      # also what forward() keeps in its modules
        …
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def eval_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """All models in eval mode, every part back in its own mode afterwards."""
    before = modes_of(models)
    for model in models:
        model.eval()
    try:
        yield
    finally:
        restore_modes(before)


def train_mode(models: Iterable[nn.Module]) -> None:
    """The models that are trained, for good. Only at the top: parts that you froze with ``.eval()`` stay so."""
    for model in models:
        if not model.training and any(p.requires_grad for p in model.parameters()):
            model.train()


def modes_of(models: Iterable[nn.Module]) -> dict[nn.Module, bool]:
    """``{part: whether it is in train mode}``, outer parts before inner ones."""
    return {part: part.training for model in models for part in model.modules()}


def restore_modes(modes: dict[nn.Module, bool]) -> None:
    """By calling ``train()``: modules that do something in it (merge an adapter's weights, drop a cache) do it again."""
    inner = {child for part in modes for child in part.children()}
    for part, training in modes.items():
        if part not in inner or part.training != training:
            part.train(training)


@contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Attributes, buffers and plain tensors of all parts as they were: hidden states, counters, lists.

    Costs a copy of every buffer; not for modules whose parameters a wrapper exchanges (FSDP2).
    """
    kept = [(part, _Attributes(part)) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in kept:
            attributes.put_back(part)


class _Attributes:
    """What one module holds, without its parameters' values and its parts."""

    def __init__(self, part: nn.Module):
        self.own = dict(vars(part))
        self.buffers = dict(part._buffers)
        tensors = [value for value in (*self.own.values(), *self.buffers.values()) if type(value) is torch.Tensor]
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.containers = [(value, _copied(value)) for name, value in self.own.items()
                           if isinstance(value, (list, dict, set, deque)) and name not in _OF_TORCH]

    def put_back(self, part: nn.Module) -> None:
        with torch.no_grad():
            for tensor, value in self.tensors:
                if tensor.shape != value.shape or not torch.equal(tensor, value):
                    tensor.set_(value) if tensor.shape != value.shape else tensor.copy_(value)  # type: ignore
        for container, value in self.containers:
            container.clear()
            container.extend(value) if isinstance(container, (list, deque)) else container.update(value)
        now: dict[str, Any] = part.__dict__
        for name in now.keys() - self.own.keys():
            del now[name]
        now.update(self.own)
        part._buffers.clear()
        part._buffers.update(self.buffers)


_OF_TORCH = frozenset(vars(nn.Module()))  # its tables of parameters, buffers, parts and hooks


def _copied(container):
    return type(container)(container) if not isinstance(container, deque) else list(container)
