"""Layers that are unfrozen during the training, and that nobody gave to an optimizer: they would never change, in silence.

    trainer.net.body.requires_grad_(True)      # and no optimizer.add_param_group: told when the next epoch begins

What is in no optimizer from the start is told by ``checks.py``.
"""

from ..hooks import Callback
from ..output.warn import warn
from .checks import parameter_names, some


class Unfrozen(Callback):
    """Looks at the beginning of each epoch. 1 ms for 1000 parameters."""

    def __init__(self, model):
        self.told = set(_in_no_optimizer(model))

    def on_train_start(self, model):
        found = [p for p in _in_no_optimizer(model) if p not in self.told]
        self.told.update(found)
        if found and model.is_main:
            names = parameter_names(model)
            warn(f"{some([names.get(p, '?') for p in found])} were unfrozen and are in no optimizer, so they never change. "
                 'Add them, for example by optimizer_list[0].add_param_group({"params": …, "lr": 1e-4}), or give the '
                 "optimizer frozen parameters too when you build it.")


def _in_no_optimizer(model):
    held = {p for optimizer in model.optimizer_list for group in optimizer.param_groups for p in group["params"]}
    return [p for part in model.model_list for p in part.parameters() if p.requires_grad and p not in held]
