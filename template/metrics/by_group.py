"""Any metric for slices of the data: ``by_group``.

    def eval_scores_per_batch(self, batch):
        x, y, hospital = batch
        pred = self.inference(x)
        return {"acc": by_group(Confusion(2).accuracy(), hospital).update(pred, y)}     # "acc/0", "acc/1", …
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .accumulators import Metric
from .confusion_scores import Parts


def by_group(metric: Metric, groups: Any) -> ByGroup:
    """A metric for each group of samples. Its values are named by the metric's own name and the group's: "acc/berlin".

    Args:
        metric: an accumulator that has seen nothing; each group gets one like it.
        groups: the group of each sample of the batch that ``update`` is given next, [B]: a list of names or numbers, or a
            tensor. Of a tensor on a GPU the groups have to be known first, which is one wait for the device a batch.
    """
    return ByGroup(metric, groups)


class ByGroup(Metric):
    """See ``by_group``. Made once, it is given the groups of each batch as ``update(pred, y, groups=…)``."""

    def __init__(self, metric: Metric, groups: Any = None) -> None:
        self.metric = metric.fresh()
        self.groups = groups
        super().__init__()

    def update(self, *parts: Any, groups: Any = None) -> ByGroup:
        """Hand each group's samples on: ``parts`` (pred, y, …) are indexed along their first dimension.

        Raises:
            ValueError: there are more or fewer groups than samples.
        """
        groups = self.groups if groups is None else groups
        listed = groups.tolist() if isinstance(groups, (torch.Tensor, np.ndarray)) else list(groups)
        wrong = [len(part) for part in parts if len(part) != len(listed)]
        if wrong:
            raise ValueError(f"by_group needs the group of each sample; got {len(listed)} groups for {wrong[0]} samples.")
        places: dict[str, list[int]] = {}
        for place, group in enumerate(listed):
            places.setdefault(str(group), []).append(place)
        for group, own in places.items():
            own_metric = self.metrics.setdefault(group, self.metric.fresh())
            own_metric.update(*(part[torch.as_tensor(own, device=part.device)] for part in parts))
        return self

    def merge(self, other: ByGroup) -> None:
        for group, metric in other.metrics.items():
            self.metrics.setdefault(group, self.metric.fresh()).merge(metric)

    def compute(self) -> Parts:
        """In the order of the groups' names."""
        values = Parts()
        for group in sorted(self.metrics, key=_as_number):
            value = self.metrics[group].compute()
            parts = value.items() if isinstance(value, dict) else [("", value)]
            values.update((f"{group}/{name}".rstrip("/"), number) for name, number in parts)
        return values

    def reset(self) -> None:
        self.metrics: dict[str, Metric] = {}

    def fresh(self) -> ByGroup:
        return ByGroup(self.metric)

    def state_dict(self) -> dict[str, Any]:
        return {group: metric.state_dict() for group, metric in self.metrics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        for group, own in state.items():
            metric = self.metrics[group] = self.metric.fresh()
            metric.load_state_dict(own)


def _as_number(group):
    """2 before 10."""
    return (0, int(group), group) if group.lstrip("-").isdigit() else (1, 0, group)
