"""Metrics of any kind as accumulators: torchmetrics' objects, those of this folder, and plain functions.

    metrics = as_accumulators({"acc": torchmetrics.Accuracy(task="binary"), "mae": lambda pred, y: (pred - y).abs().mean()})
    trainer.eval_metrics = metrics                     # each has update(pred, y), compute() and reset()

The objects that are given stay as they are: copies of them count. A plain function is a mean over samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..data.nested import count_samples
from .accumulators import Mean, Metric, one_number
from .epoch import is_accumulator


def as_accumulators(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Accumulators by the same names, which share nothing with ``metrics``.

    Raises:
        TypeError: one of them is neither an accumulator nor a function.
    """
    return {name: _as_accumulator(name, metric) for name, metric in copy.deepcopy(dict(metrics)).items()}


def _as_accumulator(name, metric):
    if isinstance(metric, type) or not (is_accumulator(metric) or callable(metric)):
        raise TypeError(f"A metric must be an object of torchmetrics or of this folder, or a function of (pred, y); "
                        f"{name!r} is {metric!r}.{' Write it with (), as an object.' if isinstance(metric, type) else ''}")
    if not is_accumulator(metric):
        return FunctionMean(metric, name)
    if not hasattr(metric, "update"):
        return Called(metric, name)
    return metric


class FunctionMean(Mean):
    """The mean over samples of what a function of a batch gives.

    Args:
        function: of (pred, y); it gives a number, or a tensor that holds one.
        name: what messages call it.
    """

    def __init__(self, function: Callable[[Any, Any], Any], name: str = "metric"):
        super().__init__()
        self.function = function
        self.name = name

    def update(self, pred: Any, y: Any) -> FunctionMean:  # type: ignore[override]
        value = one_number(self.function(pred, y), self.name)
        of = pred if y is None else y
        return super().update(value, len(of) if isinstance(of, torch.Tensor) and of.dim() else count_samples(of))


class Called(Metric):
    """An accumulator of a module's own kind, which counts a batch when it is called and has no ``update``.

    Args:
        metric: ``nn.Module`` with ``compute`` and ``reset``.
        name: what messages call it.

    Raises:
        TypeError: it is no module, whose state nobody would know.
    """

    def __init__(self, metric: Any, name: str):
        if not isinstance(metric, torch.nn.Module):
            raise TypeError(f"A metric with compute() and reset() needs update(pred, y), and {name!r}, a "
                            f"{type(metric).__name__}, has none. Add that method.")
        self.metric: Any = metric
        self.name = name

    def update(self, pred: Any, y: Any) -> Called:
        if isinstance(pred, torch.Tensor):
            self.metric.to(pred.device)
        self.metric(pred, y)
        return self

    def merge(self, other: Any) -> None:
        raise TypeError(f"Several processes need metrics that can be merged: those of this folder, torchmetrics' objects or "
                        f"functions of (pred, y); {self.name!r} is a {type(self.metric).__name__}.")

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        return {name: value.detach().cpu().clone() for name, value in self.metric.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metric.load_state_dict(state)
