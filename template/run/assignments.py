"""What ``trainer.<name> = value`` does after ``check_init``: it takes effect, or it is refused with what to do instead.

    trainer.train_loader = larger_images        # from the next epoch on
    trainer.accumulate_steps = 4                # from the next update on; the learning rate still ends where it should
    trainer.model_list = [other]                # AttributeError: make a new trainer

Settings that are not named here are read whenever they are needed, so a new value counts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..metrics.epoch import all_of
from ..update.guard import make_guard
from ..update.nominal_batch import batch_of_all, follow_nominal_batch
from ..update.stepper import check_amp, make_clip
from . import checks
from .class_attributes import assign_to_property
from .defaults import follow_reduction
from .devices import named_device
from .half_precision import warn_of_gpu
from .setup import batches_to_train
from .train_metrics import check_train_metrics, set_train_metrics
from .weights_for_use import attach_sources

if TYPE_CHECKING:
    from ..template import TemplateModel


def set_attribute(trainer: TemplateModel, name: str, value: Any) -> None:
    """``TemplateModel.__setattr__``: after ``check_init`` a setting takes effect or is refused, nothing is ignored."""
    if name in WATCHED:
        if trainer.__dict__.get("hooks") is not None:
            take(trainer, name, value)
        elif name == "device":
            value = named_device(value)
    try:
        object.__setattr__(trainer, name, value)
    except AttributeError:
        assign_to_property(trainer, name, value)


def take(trainer: TemplateModel, name: str, value: Any) -> None:
    """Carry out an assignment to one of ``WATCHED``; the attribute itself is set by the caller.

    Raises:
        AttributeError: it cannot be changed any more.
        TypeError, ValueError: the value does not fit; the old one stays.
    """
    if value is getattr(trainer, name):
        return
    if name in _FIXED:
        raise AttributeError(f"{name} cannot change after check_init(), got {checks.short(value)}. {_FIXED[name]}")
    _EFFECTS[name](trainer, value)


# --- what takes effect ------------------------------------------------------------------------------------------------


def _train_loader(trainer, loader):
    checks.check_loader(loader, "train_loader")
    if trainer.nominal_batch_size is not None:
        batch_of_all(trainer, loader)

    def begin():
        trainer.train_batches = batches_to_train(trainer, loader, trainer.limit_train_batches)
        vars(trainer)["train_loader"] = loader  # between two epochs it is not set yet
        follow_nominal_batch(trainer)
        trainer.lr_schedule.replan(trainer)

    trainer.lifetime.at_next_epoch("train_loader", begin)


def _eval_loader(trainer, loader):
    if loader is not None:
        checks.check_loader(loader, "eval_loader")
    if trainer.test_loader is trainer.eval_loader:  # one loader by two names
        trainer.evaluator.set_test_loader(loader)
        vars(trainer)["test_loader"] = loader
    trainer.evaluator.set_loader(loader, trainer.limit_eval_batches)


def _test_loader(trainer, loader):
    if trainer.test_loader is trainer.eval_loader and loader is not None:
        _eval_loader(trainer, loader)
        vars(trainer)["eval_loader"] = loader
        return
    if loader is not None:
        checks.check_loader(loader, "test_loader")
    trainer.evaluator.set_test_loader(loader)


def _accumulate_steps(trainer, steps):
    checks.check_count("accumulate_steps", steps)
    if trainer.nominal_batch_size is not None:
        raise AttributeError(f"accumulate_steps follows nominal_batch_size = {trainer.nominal_batch_size}, and cannot be "
                             f"{steps} too. Make a new trainer, with one of them.")
    trainer.stepper.accumulate_steps = steps
    trainer.lr_schedule.replan(trainer, accumulate_steps=steps)


def _amp(trainer, amp):
    check_amp(amp)
    warn_of_gpu(amp, trainer.stepper.device)
    trainer.lifetime.at_next_epoch("amp", lambda: trainer.stepper.set_amp(amp))


def _clip_grad(trainer, clip_grad):
    trainer.stepper.clip = make_clip(clip_grad)


def _skip_non_finite(trainer, limit):
    checks.check_skip(limit)
    trainer.lifetime.at_next_epoch("skip_non_finite", lambda: trainer.stepper.set_guard(make_guard(trainer, limit)))


def _criterion(trainer, criterion):
    checks.check_criterion(criterion)
    if isinstance(criterion, torch.nn.Module):
        criterion.to(torch.device(trainer.device))
    follow_reduction(trainer, criterion)


def _eval_metrics(trainer, metrics):
    checks.check_eval_metrics(metrics, trainer)
    for metric in all_of(metrics):
        if isinstance(metric, torch.nn.Module):
            metric.to(torch.device(trainer.device))


def _train_metrics(trainer, asked):
    check_train_metrics(trainer, asked)
    trainer.lifetime.at_next_epoch("train_metrics", lambda: set_train_metrics(trainer, asked))


def _callbacks(trainer, callbacks):
    checks.check_callbacks(callbacks)
    old = list(trainer.callbacks or ())
    kept = [callback for callback in trainer.hooks.callbacks if not any(callback is other for other in old)]
    attach_sources(trainer, [*kept, *(callbacks or ())])
    trainer.hooks.set([*kept, *(callbacks or ())])


def _total_epochs(trainer, total):
    if total is not None:
        trainer.lr_schedule.replan(trainer, total_epochs=total)


def _total_updates(trainer, total):
    if total is not None:
        checks.check_count("total_updates", total)
        trainer.lr_schedule.replan(trainer, total_updates=total)


def _limit_train_batches(trainer, limit):
    checks.check_limit("limit_train_batches", limit)

    def begin():
        trainer.train_batches = batches_to_train(trainer, trainer.train_loader, limit)
        trainer.lr_schedule.replan(trainer)

    trainer.lifetime.at_next_epoch("train_loader", begin)


def _limit_eval_batches(trainer, limit):
    checks.check_limit("limit_eval_batches", limit)
    trainer.evaluator.set_loader(trainer.eval_loader, limit)


def _should_stop(trainer, value):
    checks.check_stop(value)


_EFFECTS = {"train_loader": _train_loader, "eval_loader": _eval_loader, "test_loader": _test_loader,
            "accumulate_steps": _accumulate_steps, "amp": _amp, "clip_grad": _clip_grad,
            "skip_non_finite": _skip_non_finite, "criterion": _criterion, "eval_metrics": _eval_metrics,
            "train_metrics": _train_metrics, "callbacks": _callbacks, "total_epochs": _total_epochs,
            "total_updates": _total_updates, "limit_train_batches": _limit_train_batches,
            "limit_eval_batches": _limit_eval_batches, "should_stop": _should_stop}


# --- what is refused --------------------------------------------------------------------------------------------------

_NEW_TRAINER = "Make a new trainer with it, and take the weights over with load_state(path, optim=False)."
_BEFORE = "Set it in __init__ or before check_init(), which builds what depends on it."
_RATES = "Call change_lr() for other rates, or set it before check_init()."
_FIXED = {
    "model_list": _NEW_TRAINER,
    "optimizer_list": "Add parameters with optimizer.add_param_group(), set rates with change_lr(), or make a new trainer.",
    **dict.fromkeys(("ckpt_dir", "run_name", "overwrite"), "Its log and its files are open. Make a new trainer."),
    **dict.fromkeys(("device", "seed", "deterministic", "preflight", "slice_tensors", "compile", "channels_last",
                     "matmul_precision", "parallel", "parallel_options", "sync_batchnorm", "nominal_batch_size",
                     "fused"), _BEFORE),
    **dict.fromkeys(("lr_scheduler_list", "lr_scheduler_type", "lr_scheduler_args", "lr_scheduler_interval", "warm_up_epoch",
                     "warm_up_updates", "warm_up_mode", "warm_up_init_lr", "warm_up_momentum", "warm_up_bias_lr",
                     "warm_up_scheduler_list"), _RATES),
}
WATCHED = frozenset(_EFFECTS) | frozenset(_FIXED)
