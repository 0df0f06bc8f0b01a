"""An optimizer's step without the label that torch puts around it for profilers.

    step(optimizer)              # optimizer.step()

torch wraps the ``step`` of each optimizer's class: the wrapper opens a label, calls the hooks and closes the label. With
torch 2.13 on a CPU the label alone takes 25 to 60 us, which is as much as SGD needs for four small tensors. So while nobody
profiles, the step that torch has wrapped is called directly. It is the same code, and gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import profiler
from torch.optim import optimizer as of_all


def step(optimizer: Any) -> None:
    """``optimizer.step()``, with all that anybody put around it. It costs 1 us beside the step itself."""
    labelled = type(optimizer).step
    if getattr(labelled, "__code__", None) is not _LABEL or profiler._is_profiler_enabled:
        optimizer.step()
        return
    if optimizer._optimizer_step_pre_hooks or of_all._global_optimizer_pre_hooks:  # they may change what is handed on
        optimizer.step()
        return
    if (own := vars(optimizer).get("step")) is not None:
        if not getattr(own, "_wrapped_by_lr_sched", False) or own.__wrapped__ is not labelled:  # a compiled one, perhaps
            optimizer.step()
            return
        optimizer._opt_called = True  # this is all that the wrapper of torch's schedulers does
    labelled.__wrapped__(optimizer)
    for hooks in (optimizer._optimizer_step_post_hooks, of_all._global_optimizer_post_hooks):
        for hook in hooks.values():
            hook(optimizer, (optimizer,), {})


def _label_of_torch():
    """The code of torch's wrapper, by which it is known: a wrapper of somebody else has other code, and is called as it is.
    Where a torch lacks one of the names that ``step`` looks at, none of which is public, no wrapper is known."""
    owners = {torch.optim.Optimizer: ("profile_hook_step",), profiler: ("_is_profiler_enabled",),
              of_all: ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")}
    if not all(hasattr(owner, name) for owner, names in owners.items() for name in names):
        return object()
    return torch.optim.Optimizer.profile_hook_step(step).__code__


_LABEL = _label_of_torch()
