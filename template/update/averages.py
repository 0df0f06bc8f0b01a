"""Averages of weights over the updates of a training, and which updates were really done.

    steps = DoneSteps()
    steps.watch(trainer.optimizer_list)
    average = WeightAverage()
    …                                             # behind each update
    is_done, found_inf = steps.take()
    if is_done:
        average.follow(tensors)                   # {name: parameter or buffer}, at the start and when others are trained
        average.move(get_ema_multi_avg_fn(0.999))  # behind average.begin()

The rules are those of ``torch.optim.swa_utils``, one kernel for all tensors of a device and type. Its ``AveragedModel`` is a
copy of the whole module and collects its tensors at each update. Here only tensors are kept, in lists that are built once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..parallel.gradients import part_of

_IN_FLOAT32 = (torch.float16, torch.bfloat16)  # a thousandth of a step would be rounded away in them


class DoneSteps:
    """Whether an optimizer was stepped since the last time one asked.

    An update that ``skip_non_finite`` or the loss scaler skips calls no ``step()``. A fused optimizer under the loss scaler
    is called all the same and decides on the device; it then holds the scaler's finding.
    """

    only_counts = True  # looks at no gradient, so a compiled update may tell it of its step afterwards

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._watched: list[int] = []
        self._is_done = False
        self._found: list[Any] = []  # for each step that decided on the device: a tensor, above 0 where it did nothing
        self._is_blind = False       # there is an optimizer that does not tell

    def watch(self, optimizers: Iterable[Any]) -> None:
        """From now on; safe to call again."""
        optimizers = list(optimizers)
        if self._watched == [id(one) for one in optimizers]:
            return
        self.close()
        self._watched = [id(one) for one in optimizers]
        for optimizer in optimizers:
            if isinstance(getattr(optimizer, "_optimizer_step_post_hooks", None), Mapping):
                self._handles.append(optimizer.register_step_post_hook(self._note))
            else:
                self._is_blind = True

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._watched, self._is_done, self._found, self._is_blind = [], False, [], False

    def take(self) -> tuple[bool, Any]:
        """``(whether there was a step, None or a tensor that is above 0 where it did nothing after all)``."""
        is_done, found = self._is_done or bool(self._found) or self._is_blind, self._found
        is_certain = self._is_done or self._is_blind or not found
        self._is_done, self._found = False, []
        return is_done, None if is_certain else found[0] if len(found) == 1 else torch.stack(found).amin()

    def _note(self, optimizer, *_):
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, torch.Tensor):
            self._found.append(found)
        else:
            self._is_done = True


class WeightAverage:
    """An average of the tensors of a training, by their names. Of tensors that are divided among the ranks (FSDP2) each rank
    averages its part.

    Parameters that are trained take part, and buffers (statistics of BatchNorm). Frozen parameters take part from the first
    update on that they are trained in. Buffers that are not finite when they are first seen (a mask of minus infinities, the
    range of an observer) are left to the model.
    """

    def __init__(self) -> None:
        self.num: int = 0                         # weights that went into it; 0: there is none
        self._values: dict[str, torch.Tensor] = {}
        self._left_out: set[str] = set()          # names of buffers
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []           # (tensor of the model, its average)
        self._groups: list[tuple[list[Any], list[Any], bool]] = []         # the same by device and type, for one kernel
        self._frozen: list[nn.Parameter] = []
        self._skipped: torch.Tensor | None = None  # of ``num``: those that turned out on the device to be no update

    @property
    def is_stale(self) -> bool:
        """A parameter that was frozen is trained now. 0.03 us for each frozen one."""
        return any(p.requires_grad for p in self._frozen)

    @torch.no_grad()
    def follow(self, tensors: Mapping[str, torch.Tensor], only_known: bool = False) -> None:
        """Average these from now on; what is known by its name and shape goes on, the others begin with their present value.

        Args:
            tensors: parameters and buffers of floating-point numbers, each once.
            only_known: none begins, because the averages are only looked at.
        """
        values, self._pairs, self._frozen = {}, [], []
        for name, tensor in tensors.items():
            known = self._values.get(name)
            if known is not None and known.shape != tensor.shape:
                known = None
            if known is None and isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                self._frozen.append(tensor)
            elif known is not None or not only_known and self._takes_part(name, tensor):
                kind = torch.float32 if tensor.dtype in _IN_FLOAT32 else tensor.dtype
                value = tensor.detach().clone() if known is None else _divided_like(tensor, known)
                values[name] = value.to(tensor.device, kind)
                self._pairs.append((tensor, values[name]))
        self._values, self._groups = values, _grouped(self._pairs)

    def _takes_part(self, name, tensor):
        if not isinstance(tensor, nn.Parameter) and name not in self._left_out and not tensor.isfinite().all():
            self._left_out.add(name)
        return name not in self._left_out

    def begin(self, found_inf: torch.Tensor | None = None) -> None:
        """The tensors as they are now are the average of one; of none where ``found_inf`` is above 0."""
        self.num, self._skipped = 1, None if found_inf is None else (found_inf > 0).float()

    @torch.no_grad()
    def move(self, rule: Callable[..., Any]) -> None:
        """Take the present weights in.

        Args:
            rule: function of (averages, weights, how many the averages are of), both lists of tensors of one device and
                type, that changes the averages in place: a ``multi_avg_fn`` of ``torch.optim.swa_utils``.
        """
        for averages, weights, is_half in self._groups:
            rule(averages, [w.float() for w in weights] if is_half else weights, self.num)
        self.num += 1

    @torch.no_grad()
    def move_unless(self, found_inf: torch.Tensor, decay: float) -> None:
        """The exponential average on the device alone: where ``found_inf`` is above 0 nothing moves, and the host need not
        know. Such an update stays in ``num``."""
        skipped = (found_inf > 0).float()
        before = torch.zeros_like(skipped) if self._skipped is None else self._skipped.to(skipped.device)
        weight = torch.where(before >= self.num, 1.0, 1 - decay) * (1 - skipped)
        for averages, weights, _ in self._groups:
            steps = torch._foreach_sub([w.to(a.dtype) for w, a in zip(weights, averages)], averages)
            torch._foreach_mul_(steps, weight.to(averages[0].device))
            torch._foreach_add_(averages, steps)
        self._skipped = before + skipped
        self.num += 1

    @torch.no_grad()
    def replace(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put these values in the place of the averages by their names, which there must be."""
        for name, value in values.items():
            self._values[name].copy_(value)

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``(tensor of the model, its average)``; empty where there is none yet."""
        return self._pairs if self.num else []

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"num": self.num, "values": dict(self._values), "left_out": sorted(self._left_out)}
        return state if self._skipped is None else state | {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``follow`` goes on with."""
        skipped = state.get("skipped")
        self.num, self._left_out = state["num"], set(state["left_out"])
        self._skipped = None if skipped is None else skipped.clone()
        self._values = {name: value.clone() for name, value in state["values"].items()}
        self._pairs, self._groups, self._frozen = [], [], []


def _grouped(pairs):
    groups: dict[Any, Any] = {}
    for tensor, average in ((part_of(tensor), part_of(average)) for tensor, average in pairs):
        averages, tensors, _ = groups.setdefault((average.device, tensor.dtype), ([], [], tensor.dtype in _IN_FLOAT32))
        averages.append(average)
        tensors.append(tensor)
    return list(groups.values())


def _divided_like(tensor, value):
    """``value``, whole or divided, as the tensor is. On every rank."""
    is_whole = not hasattr(value, "to_local")
    if not hasattr(tensor, "to_local"):
        return value if is_whole else value.full_tensor()
    if is_whole:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value.redistribute(placements=tensor.placements)
