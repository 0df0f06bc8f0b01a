"""Optimizers in torch's fused form: a step is one pass over the weights, and not one for each operation.

    require_fused_form(torch.optim.AdamW, model.parameters())     # a ValueError where there is none
    use_fused_form(optimizer)                                     # also one that was built without it

The numbers differ from those of the other forms by rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")  # that torch has fused kernels for
_NOT_ON = {"Adagrad": ("cuda",)}


def has_fused_form(kind: type[torch.optim.Optimizer]) -> bool:
    return "fused" in inspect.signature(kind.__init__).parameters


def require_fused_form(kind: type[torch.optim.Optimizer], parameters: Iterable[torch.Tensor]) -> None:
    """That the optimizer has one, for these parameters where they are now.

    Raises:
        ValueError: it has not; the message says why.
    """
    if not has_fused_form(kind):
        names = sorted(one.__name__ for one in vars(torch.optim).values()
                       if isinstance(one, type) and issubclass(one, torch.optim.Optimizer) and has_fused_form(one))
        raise ValueError(f"fused = True needs an optimizer that has a fused form: of torch's these are {names}, and "
                         f"{kind.__name__} has none. Leave fused out.")
    for p in parameters:
        if p.device.type not in _DEVICES or p.device.type in _NOT_ON.get(kind.__name__, ()):
            raise ValueError(f"fused = True needs a device that torch has a fused {kind.__name__} for, and a parameter is "
                             f"on {str(p.device)!r}. Leave fused out.")
        if not p.is_floating_point():
            raise ValueError(f"fused = True needs parameters that are floating point numbers, and one is {p.dtype}. Leave "
                             "fused out.")


def use_fused_form(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer step in its fused form, however it was built. It stays so where a checkpoint of another form is
    loaded into it.

    Raises:
        ValueError: it has no fused form, or was built with an option that torch has no fused form of.
    """
    require_fused_form(type(optimizer), [p for group in optimizer.param_groups for p in group["params"]])
    groups = [optimizer.defaults, *optimizer.param_groups]
    for group in groups:
        for name in ("foreach", "differentiable"):
            if group.get(name):
                raise ValueError(f"fused = True and {name}=True of {type(optimizer).__name__} exclude each other. Build it "
                                 f"without {name}.")
    for group in groups:
        group["fused"] = True
    marks: Any = optimizer  # what torch's constructors set
    marks._step_supports_amp_scaling = marks._need_device_dtype_check_for_fused = True
    for p, state in optimizer.state.items():
        if "step" in state:  # Adagrad's is made by its constructor; the fused form wants it beside the weights
            state["step"] = state["step"].to(device=p.device, dtype=torch.float32)
    optimizer.register_load_state_dict_pre_hook(_stays_fused)


def refuse_in_parts(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Where ``fsdp`` has divided the weights, torch steps Adam and AdamW in their fused form, and no other (seen with 2.13).

    Raises:
        ValueError: another one is fused.
    """
    for optimizer in optimizers:
        kinds = (torch.optim.Adam, torch.optim.AdamW)
        if any(group.get("fused") for group in optimizer.param_groups) and not isinstance(optimizer, kinds):
            raise ValueError("parallel = 'fsdp' divides the weights, and torch has a fused form for divided ones of Adam "
                             f"and AdamW, not for {type(optimizer).__name__}. Leave fused out.")


def _stays_fused(optimizer, state):
    """A file of another form gives the numbers, and not the form."""
    return {**state, "param_groups": [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]}
