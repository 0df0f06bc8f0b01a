"""Schedule-free optimizers, which train at one point and give another one for use: an average of the points before.

    optimizer_list = [schedulefree.AdamWScheduleFree(model.parameters(), lr=0.0025)]      # pip install schedulefree

    with averaged(trainer.optimizer_list):       # evaluations, predictions, weights for use
        …
    train_mode(trainer.optimizer_list)           # before the first update of an epoch

Any optimizer with the methods ``train()`` and ``eval()``, which put the one point or the other into the parameters, counts
as one of these; with all others nothing happens here. Every file holds the average as the weights. A file to continue from
holds the training point as well: ``train()`` after ``eval()`` brings it back only up to rounding, and what is looked at, or
continued, must end with the same bits. So each switch keeps a copy of the parameters, for as long as it lasts.

Source: Defazio et al., "The Road Less Scheduled", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

_KEY = "training_point"  # in the optimizer's state of a parameter, in files to continue from


def switchable(optimizers: Iterable[Any]) -> tuple[Any, ...]:
    """Those of ``optimizers`` that have the two points."""
    return tuple(one for one in optimizers if callable(getattr(one, "train", None)) and callable(getattr(one, "eval", None)))


def train_mode(optimizers: Iterable[Any]) -> None:
    """The training point, for good."""
    for optimizer in switchable(optimizers):
        optimizer.train()


@contextmanager
def averaged(optimizers: Iterable[Any]) -> Iterator[None]:
    """The average; afterwards, also after an error, each optimizer is as it was, to the last bit."""
    with _switched(optimizers):
        yield


@contextmanager
def averaged_to_continue(optimizers: Iterable[Any]) -> Iterator[None]:
    """The same around the making of a state to continue from, which the training point travels in."""
    with _switched(optimizers) as switches:
        try:
            for switch in switches:
                switch.put_into_state()
            yield
        finally:
            for switch in switches:
                switch.take_out_of_state()


@contextmanager
def loading(optimizers: Iterable[Any], resumes: bool) -> Iterator[None]:
    """Around the loading of weights, which are those for use in every file. After an error each optimizer is as it was.

    Args:
        resumes: the states of the optimizers are loaded too: afterwards each is at its training point. Otherwise each has
            the average that was loaded, until training goes on from there.
    """
    optimizers = switchable(optimizers)
    with _switched(optimizers, goes_back_at_end=False):
        yield
    if resumes:
        for optimizer in optimizers:
            optimizer.train()
            _use_stored_point(optimizer)


def refuse_sharded(optimizers: Iterable[Any]) -> None:
    """Under FSDP2 the models keep gathered weights, which know nothing of a switch.

    Raises:
        ValueError: there is such an optimizer.
    """
    for optimizer in switchable(optimizers):
        raise ValueError(f"parallel = 'fsdp' does not go with {type(optimizer).__name__}, which has train() and eval(): the "
                         "gathered weights of FSDP2 would not follow them. Set parallel = 'ddp', or use another optimizer.")


def notes(models: Iterable[torch.nn.Module], optimizers: Iterable[Any]) -> Iterator[str]:
    """What to know at the start of a run with these optimizers."""
    layers = [part for model in models for part in model.modules() if isinstance(part, _BatchNorm)]
    if switchable(optimizers) and any(layer.track_running_stats for layer in layers):
        yield ("BatchNorm gathers its statistics at the point that a schedule-free optimizer trains at, not at the average "
               "that is evaluated: renew them in a callback's on_eval_start, with batches through the model in train mode")


@contextmanager
def _switched(optimizers, goes_back_at_end=True):
    switches = [_Switch(optimizer) for optimizer in switchable(optimizers)]
    is_done = False
    try:
        for switch in switches:
            switch.use_average()
        yield switches
        is_done = True
    finally:
        if goes_back_at_end or not is_done:
            for switch in switches:
                switch.go_back()


class _Switch:
    """One optimizer on its way to the average and back. There is no common way to ask an optimizer where it stands, so its
    parameters are compared: they show whether ``eval()`` did anything."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.values = [(p, p.detach().clone()) for p in _parameters(optimizer)]
        self.was_training = False

    def use_average(self):
        self.optimizer.eval()
        self.was_training = self._differs()

    def go_back(self):
        self.optimizer.train()
        if not self.was_training and self._differs():  # somebody had called eval() before
            self.optimizer.eval()
        with torch.no_grad():
            for p, value in self.values:
                p.copy_(value)

    def put_into_state(self):
        if self.was_training:
            for p, value in self.values:
                if p in self.optimizer.state:
                    self.optimizer.state[p][_KEY] = value

    def take_out_of_state(self):
        for p, _ in self.values:
            if p in self.optimizer.state:
                self.optimizer.state[p].pop(_KEY, None)

    def _differs(self):
        return any(not torch.equal(p, value) for p, value in self.values)


def _use_stored_point(optimizer):
    with torch.no_grad():
        for p in _parameters(optimizer):
            if p in optimizer.state and _KEY in optimizer.state[p]:
                p.copy_(optimizer.state[p].pop(_KEY))


def _parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]
