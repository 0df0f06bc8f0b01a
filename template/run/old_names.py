"""What templates before this one called differently, taken as it is where nothing else can be meant.

- second names of an attribute (``warm_up_type``), and of a method (``train_loss_per_batch``);
- one model and one optimizer, from before ``model_list``: ``self.model``, ``self.optimizer``, ``self.metric = function``.

``docs/from-2021.md`` lists them all. Their files are read by ``checkpoint/state.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ..template import TemplateModel

_SINGLE = {"model_list": ("model", nn.Module), "optimizer_list": ("optimizer", torch.optim.Optimizer)}
_RENAMED = {  # methods that nobody calls any more
    "train_loss": ("loss_per_batch", "loss_per_batch(self, batch) returns the loss, or {'tol_loss': loss, …}"),
    "eval_error": ("eval_scores_per_batch", "eval_scores_per_batch(self, batch) returns {name: value}"),
}


class OtherName:
    """A second name of an attribute: ``warm_up_type = OtherName("warm_up_mode")`` in a class body."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, trainer: Any, owner: type | None = None) -> Any:
        return self if trainer is None else getattr(trainer, self.name)

    def __set__(self, trainer: Any, value: Any) -> None:
        setattr(trainer, self.name, value)


def adopt_old_names(trainer: TemplateModel, overrides) -> None:
    """Give what a subclass set by an old name the name that it has now.

    Args:
        overrides: function of a method's name: whether the subclass has one of its own.

    Raises:
        TypeError: it has a method of 2019 that would never be called.
    """
    if trainer.eval_loader is None:  # test_loader was what is evaluated
        trainer.eval_loader = trainer.test_loader
    if hasattr(trainer, "train_loss_per_batch"):
        trainer.loss_per_batch = trainer.train_loss_per_batch  # type: ignore[method-assign]
    _refuse_renamed_methods(trainer, overrides)
    if vars(trainer).get("metric", ...) is None:  # `self.metric = None` stood in the first subclasses
        del trainer.metric
    taken = []
    for new, (old, kind) in _SINGLE.items():
        value = vars(trainer).get(old)
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        if getattr(trainer, new) is None and parts and all(isinstance(part, kind) for part in parts):
            setattr(trainer, new, parts)
            taken.append(f"{new} = {f'self.{old}' if isinstance(value, (list, tuple)) else f'[self.{old}]'}")
    if taken:
        print(f"This class sets one model and one optimizer, as it was before June 2021. Taken as {' and '.join(taken)}.")


def _refuse_renamed_methods(trainer, overrides):
    for old, (new, how) in _RENAMED.items():
        if callable(getattr(type(trainer), old, None)) and not overrides(new) and not overrides("train_step"):
            raise TypeError(
                f"{type(trainer).__name__}.{old}() would never be called: it is the name of 2019 for what is called {new} "
                f"now. Rename it; {how}. docs/from-2021.md says what else is called differently."
            )
