"""What SGD, Adam and AdamW of torch do to a weight, with rates and all other numbers as values of a tensor.

    plan = Plan(optimizers)                              # NotCaptured where an optimizer is none of these
    numbers = plan.numbers()                             # tensor [n], of the coming step
    apply(plan.rules, numbers, plan.parameters, gradients, plan.state)    # in a compiled graph
    plan.count()                                         # the step is done

torch's own ``step`` breaks a graph in two, and has the rates in it as constants. The formulas here are those of
``torch.optim``, and so is what stands in ``optimizer.state``: steps with and without a graph may take turns. What depends on
the number of the step is computed by Python in float64, as torch does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

KINDS = (SGD, Adam, AdamW)
_NUM_NUMBERS = {"sgd": 3, "adam": 7}


class NotCaptured(Exception):
    """There is no graph of this; the text says why, in a sentence."""


def apply(rules: Sequence[tuple[str, tuple[bool, ...], int]], numbers: Tensor, parameters: Sequence[Tensor],
          gradients: Sequence[Tensor], state: Sequence[Sequence[Tensor]]) -> None:
    """Change parameters and states in place.

    Args:
        rules: kind, switches and number of parameters of each group, in the order of ``parameters``.
        numbers: [n] on the device of the parameters.
        gradients: one for each parameter, of its shape.
        state: what the optimizer keeps of each parameter.
    """
    parts = iter(zip(parameters, gradients, state))
    first = 0
    for kind, switches, count in rules:
        rule, values = _RULES[kind], numbers[first:first + _NUM_NUMBERS[kind]].unbind()
        for _ in range(count):
            rule(*next(parts), values, *switches)
        first += _NUM_NUMBERS[kind]


def _sgd(p, gradient, kept, numbers, has_momentum, is_nesterov, has_decay, is_maximized):
    rate, momentum, decay = numbers
    if is_maximized:
        gradient = -gradient
    if has_decay:
        gradient = gradient + p * decay
    if has_momentum:
        buffer = kept[0]
        buffer.mul_(momentum).add_(gradient)
        gradient = gradient + buffer * momentum if is_nesterov else buffer
    p.sub_(gradient * rate)


def _adam(p, gradient, kept, numbers, has_maximum, is_decoupled, has_decay, is_maximized):
    rate, root, weight, keep, rest, eps, decay = numbers
    if is_maximized:
        gradient = -gradient
    if has_decay:
        if is_decoupled:
            p.mul_(decay)
        else:
            gradient = gradient + p * decay
    mean, square = kept[0], kept[1]
    mean.lerp_(gradient, weight)
    square.mul_(keep).add_(gradient * gradient * rest)
    if has_maximum:
        kept[2].copy_(torch.maximum(kept[2], square))
        square = kept[2]
    p.sub_(mean / (square.sqrt() / root + eps) * rate)


_RULES = {"sgd": _sgd, "adam": _adam}


class Plan:
    """The parameters and states of optimizers in the order in which a graph takes them. A parameter that has no state yet
    gets the one that torch begins with.

    Raises:
        NotCaptured: an optimizer does something that the rules do not have.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._made: list[tuple[Any, Any]] = []  # states that were not there before
        self._require_known()
        for optimizer in optimizers:
            _require_steps_on_host(optimizer)
        self._seen = self._trained()
        if len(set(self._seen)) < len(self._seen):
            raise NotCaptured("A parameter is in two optimizers.")
        if len({p.device for p in self._seen}) != 1 or not {p.dtype for p in self._seen} <= {torch.float32, torch.float64}:
            raise NotCaptured("A graph of the step needs parameters in float32 or float64, on one device.")
        self._chunks = [chunk for optimizer in reversed(optimizers) for group in optimizer.param_groups
                        for chunk in self._in_step(optimizer, group)]
        self.rules = tuple((chunk.kind, chunk.switches, len(chunk.parameters)) for chunk in self._chunks)
        self.parameters = [p for chunk in self._chunks for p in chunk.parameters]
        self.state = [kept for chunk in self._chunks for kept in chunk.state]
        self._steps = [step for chunk in self._chunks for step in chunk.steps]
        self._entries = [entry for chunk in self._chunks for entry in chunk.entries]
        self._values: list[float] = []
        self._numbers: Any = None

    def _trained(self):
        return [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]
                if p.requires_grad]

    def _in_step(self, optimizer, group):
        """The group, in parts whose parameters did equally many steps."""
        kind, switches = _kind(optimizer, group)
        parts: dict[float, list[Tensor]] = {}
        for p in group["params"]:
            if p.requires_grad:
                self._begin(optimizer, group, p, kind, switches)
                parts.setdefault(float(optimizer.state[p]["step"]) if kind == "adam" else 0.0, []).append(p)
        return [_Chunk(optimizer, group, kind, switches, parameters) for parameters in parts.values()]

    def _begin(self, optimizer, group, p, kind, switches):
        names = _names(kind, switches)
        state = optimizer.state.get(p) or {}
        if all(state.get(name) is not None for name in names):
            return
        if p not in optimizer.state:
            self._made.append((optimizer.state, p))
        state = optimizer.state[p]
        if kind == "adam" and "step" not in state:
            state["step"] = torch.zeros((), dtype=_step_dtype(group), device=p.device if group.get("fused") else "cpu")
        for name in names:
            if state.get(name) is None and name != "step":
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def take_back(self) -> None:
        """The states that were made are not wanted: nothing was captured."""
        for states, p in self._made:
            states.pop(p, None)
        self._made.clear()

    def holds(self) -> bool:
        """Whether optimizers, groups, switches and states are those of before. About 1 us for each parameter."""
        seen = self._trained()
        return (len(seen) == len(self._seen) and all(map(is_, seen, self._seen))
                and all(states.get(p) is state and state.get(name) is value
                        for states, p, state, name, value in self._entries)
                and all(_kind(chunk.optimizer, chunk.group)[1] == chunk.switches for chunk in self._chunks))

    def require_no_hooks(self) -> None:
        """
        Raises:
            NotCaptured: somebody was added who wants to see gradients or steps, or an option was changed.
        """
        self._require_known()
        if has_hooks(self.parameters):
            raise NotCaptured("A parameter has hooks on its gradient.")

    def _require_known(self):
        for optimizer in self._optimizers:
            _require_known(optimizer)

    def has_gradients(self) -> bool:
        """Whether somebody left gradients, which the coming ones are added to."""
        return any(p.grad is not None for p in self.parameters)

    def numbers(self) -> Tensor:
        """[n] on the device, of the coming step."""
        values = [value for chunk in self._chunks for value in chunk.numbers()]
        if values != self._values:
            self._values = values
            first = self.parameters[0]
            is_wide = any(p.dtype is torch.float64 for p in self.parameters)
            numbers = torch.tensor(values, dtype=torch.float64 if is_wide else torch.float32)
            self._numbers = numbers.to(first.device, non_blocking=True)
        return self._numbers

    def count(self) -> None:
        """A step was done."""
        self._made.clear()
        if self._steps:
            torch._foreach_add_(self._steps, 1)
        for optimizer in self._optimizers:
            for hook in optimizer._optimizer_step_post_hooks.values():
                hook(optimizer, (), {})


class _Chunk:
    """Parameters of one group that did equally many steps."""

    def __init__(self, optimizer, group, kind, switches, parameters):
        self.optimizer, self.group, self.kind, self.switches, self.parameters = optimizer, group, kind, switches, parameters
        names, states = _names(kind, switches), optimizer.state
        self.steps = [states[p]["step"] for p in parameters] if kind == "adam" else []
        self.state = [[states[p][name] for name in names if name != "step"] for p in parameters]
        self.entries = [(states, p, states[p], name, states[p][name]) for p in parameters for name in names]

    def numbers(self):
        group = self.group
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        if self.kind == "sgd":
            return rate, float(group["momentum"]), decay
        beta, beta_of_squares = map(float, group["betas"])
        step = self.steps[0].item() + 1
        is_decoupled = self.switches[1]
        return (rate / (1 - beta ** step), math.sqrt(1 - beta_of_squares ** step), 1 - beta, beta_of_squares,
                1 - beta_of_squares, float(group["eps"]), 1 - rate * decay if is_decoupled else decay)


def has_hooks(parameters: Iterable[Tensor]) -> bool:
    """Whether gradients of parameters are shown to somebody on their way."""
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters)


def _kind(optimizer, group):
    """The rule of a group, and what in it is switched on."""
    common = group["weight_decay"] != 0, bool(group["maximize"])
    if type(optimizer) is SGD:
        return "sgd", (group["momentum"] != 0, bool(group["nesterov"]), *common)
    return "adam", (bool(group["amsgrad"]), bool(group.get("decoupled_weight_decay")), *common)


def _names(kind, switches):
    """What ``optimizer.state`` holds of a parameter."""
    if kind == "sgd":
        return ("momentum_buffer",) if switches[0] else ()
    return ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")[:4 if switches[0] else 3]


def _step_dtype(group):
    return torch.float64 if torch.get_default_dtype() is torch.float64 and not group.get("fused") else torch.float32


def _require_known(optimizer):
    name = type(optimizer).__name__
    if type(optimizer) not in KINDS:
        raise NotCaptured(f"{name} is none of {[kind.__name__ for kind in KINDS]}.")
    own_step = vars(optimizer).get("step")  # schedulers of torch wrap it, to count
    hooks = (optimizer._optimizer_step_pre_hooks, torch_optimizer._global_optimizer_pre_hooks,
             torch_optimizer._global_optimizer_post_hooks)
    if any(hooks) or (own_step is not None and not hasattr(own_step, "_wrapped_by_lr_sched")) or not all(
            getattr(getattr(hook, "__self__", None), "only_counts", False)
            for hook in optimizer._optimizer_step_post_hooks.values()):
        raise NotCaptured(f"The step of {name} has hooks, or was replaced.")
    for group in optimizer.param_groups:
        for option in ("capturable", "differentiable"):
            if group.get(option):
                raise NotCaptured(f"{name} has {option}=True.")
        if group.get("dampening"):
            raise NotCaptured(f"{name} has dampening.")
        if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in (group["lr"], *group.get("betas", ()))):
            raise NotCaptured(f"A rate of {name} is a tensor on another device than the CPU.")
    optimizer._opt_called = True  # what torch's schedulers look for


def _require_steps_on_host(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            step = optimizer.state[p].get("step") if p in optimizer.state else None
            if group.get("fused") and p.device.type != "cpu" or step is not None and step.device.type != "cpu":
                raise NotCaptured(f"{type(optimizer).__name__} counts its steps on the device, as its fused form does.")
