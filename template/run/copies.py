"""What a copy of a trainer holds: ``copy.deepcopy(trainer)``, ``pickle``, and the workers that ``spawn`` starts.

A training holds files, threads and signal handlers, which have no copy. The copy is as before ``check_init``: what was set,
the models with their weights, the optimizers, counters and best values. It predicts, and its methods can be called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .class_attributes import template_of

if TYPE_CHECKING:
    from ..template import TemplateModel

_OF_THE_RUN = {"hooks", "stepper", "lr_schedule", "evaluator", "stdout_logger", "checkpoints", "lifetime", "train_batches",
               "running_losses", "world", "_counter", "_writer"}


def state_to_copy(trainer: TemplateModel) -> dict[str, Any]:
    """Every attribute that has a copy, by name; the ``__getstate__`` of a ``TemplateModel``."""
    state = {name: value for name, value in vars(trainer).items() if name not in _OF_THE_RUN}
    if trainer.hooks is not None and trainer.global_step:
        state["_copied_at"] = trainer.global_step
    return state


def take_state(trainer: TemplateModel, state: dict[str, Any]) -> None:
    """What has no copy is made anew; the ``__setstate__`` of a ``TemplateModel``."""
    template_of(trainer).__init__(trainer)  # type: ignore[misc]
    vars(trainer).update(state)


def require_original(trainer: TemplateModel) -> None:
    """Training on in a copy would begin schedules, callbacks and the order of the data anew, in silence."""
    if step := vars(trainer).get("_copied_at"):
        raise RuntimeError(
            f"This trainer is the copy of one that had done {step} updates. It predicts, and cannot be trained: schedules, "
            "callbacks and the place in the data are not copied. To train on from there, call save_state(path) of the "
            "original, and load_state(path) of a new trainer."
        )
