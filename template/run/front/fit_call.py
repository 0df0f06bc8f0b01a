"""What one call of ``KerasModel.fit`` asks for, checked, and how a ``TemplateModel`` is given it.

    call = FitCall(model, train_data, val_data, …)
    call.fill_in(trainer)                     # a new trainer, before check_init
    call.take_over(trainer, before)           # the trainer of an earlier call, which goes on
"""

from __future__ import annotations

import difflib
import operator
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...metrics.best import direction_of
from ...output.console import number
from ...output.history_table import named_as_in_keras
from ...output.warn import warn
from .fit_callbacks import BestWeights, OldCallback, is_ours
from .fit_checks import OF_KERAS

if TYPE_CHECKING:
    from ...keras_model import KerasModel

_PRECISIONS = {"no": None, "bf16": "bf16", "fp16": "fp16"}


class FitCall:
    """What one call of ``fit`` asks for. Its arguments are those of ``KerasModel.fit``, and these:

    Args:
        model: the ``KerasModel``.
        own_save: what the user wrote in the place of ``save_ckpt``, or None.
        package: has the classes of callbacks and trackers by name, and says so where one was left out of the copy.
    """

    def __init__(self, model: KerasModel, own_save: Any, package: Any, *, train_data: Iterable[Any],
                 val_data: Iterable[Any] | None, ckpt_path: str | Path, patience: int | None, monitor: str, mode: str,
                 callbacks: Sequence[Any] | None, plot: bool, mixed_precision: str, gradient_accumulation_steps: int,
                 cpu: bool, wandb: bool | str, quiet: bool | None, lr_scheduler_interval: str,
                 settings: dict[str, Any]) -> None:
        if mixed_precision not in _PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {list(_PRECISIONS)}, got {mixed_precision!r}.")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}.")
        self.model, self.train_data, self.val_data, self.mode = model, train_data, val_data, mode
        self.ckpt_path = Path(ckpt_path).expanduser()
        if self.ckpt_path.is_dir() and own_save is None:
            raise ValueError(f"ckpt_path is the file of the best weights, and {ckpt_path} is a folder. Give the name of a "
                             "file, for instance 'checkpoint.pt'.")
        self.key = self._key(monitor)
        if direction_of(monitor) not in (None, mode):
            better, kept = ("lower", "highest") if mode == "max" else ("higher", "lowest")
            warn(f"monitor={monitor!r} is better when it is {better}, and mode={mode!r} keeps the weights where it is "
                 f"{kept}. Say mode={direction_of(monitor)!r}, if that is not what you want.")
        sizes = {"limit_train_batches": getattr(train_data, "size", None),  # of torchkeras: so many batches
                 "limit_eval_batches": getattr(val_data, "size", None)}
        self.settings = {
            "amp": _PRECISIONS[mixed_precision], "accumulate_steps": gradient_accumulation_steps,
            "key_metric": self.key, "key_metric_mode": {self.key: mode}, **({"device": "cpu"} if cpu else {}),
            **{name: size for name, size in sizes.items() if isinstance(size, int)}, **settings}
        self.interval = lr_scheduler_interval
        self.best_weights = BestWeights(model, own_save)
        self.stopping = package.EarlyStopping(self.key, mode, sys.maxsize if patience is None else patience,
                                              restore_best=True)
        given = list(callbacks or ())
        if wandb:
            given.append(package.Wandb(wandb if isinstance(wandb, str) else None))
        kinds = {type(one).__name__ for one in given}
        self.old_callbacks = [OldCallback(one, model) for one in given if not is_ours(one)]
        self.callbacks = [one for one in given if is_ours(one)]
        if "ProgressBar" not in kinds:
            self.callbacks.append(package.ProgressBar(show=not quiet))
        self.plot = package.LivePlot() if plot and "LivePlot" not in kinds else None
        self._parts: dict[str, list[Any]] = {
            "network": [model.net], "optimizer": [model.optimizer], "lr_scheduler": [model.lr_scheduler],
            "StepRunner": [model.StepRunner, *model.kwargs.values()],
            "metrics_dict": [*model.metrics_dict, *model.metrics_dict.values()]}
        self._versions: Any = None

    def _key(self, monitor):
        """The name of ``monitor`` in a ``TemplateModel``."""
        part, _, name = monitor.partition("_")
        if part not in ("train", "val") or not name:
            raise ValueError("monitor must be 'val_loss', 'val_<metric>', 'train_loss' or 'train_<metric>', got "
                             f"{monitor!r}.")
        name = "tol_loss" if name == "loss" else name
        return name if part == "val" and self.val_data is not None else f"train/{name}"

    def _all_callbacks(self):
        return [self.best_weights, self.stopping, *([self.plot] if self.plot else []), *self.old_callbacks, *self.callbacks]

    def tell(self, event: str) -> None:
        """An event of torchkeras, to the callbacks that were written for it."""
        for callback in self.old_callbacks:
            callback.tell(event)

    # --- a new trainer --------------------------------------------------------------------------------------------

    def fill_in(self, trainer: Any) -> None:
        """Data, callbacks, scheduler and settings of a new trainer, before ``check_init``."""
        trainer.train_loader, trainer.eval_loader = self.train_data, self.val_data
        trainer.ckpt_dir = str(run_folder(self.ckpt_path))
        self.best_weights.trainer = trainer
        trainer.callbacks = self._all_callbacks()
        if (scheduler := self.model.lr_scheduler) is not None:
            trainer.take_scheduler(scheduler)
            looks = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            trainer.lr_scheduler_interval = None if looks else self.interval
            if getattr(scheduler, "optimizer", self.model.optimizer) is not self.model.optimizer:
                warn("lr_scheduler was made with another optimizer than the one that trains, whose learning rate it never "
                     "changes. Make one optimizer, and give it to both.")
        self._set(trainer)

    def _set(self, trainer):
        for name, value in self.settings.items():
            if name not in trainer.attribute_names:
                if name in OF_KERAS:
                    raise TypeError(f"fit() takes no {name}: {OF_KERAS[name]}.")
                close = difflib.get_close_matches(name, trainer.attribute_names, n=3)
                raise TypeError(f"fit() takes the settings of TemplateModel beside its own arguments, and {name!r} is none."
                                f"{f' Did you mean {close}?' if close else ''} docs/attributes.md lists them.")
            if name == "accumulate_steps" and value == 1 and trainer.nominal_batch_size is not None:
                continue  # the default of fit; the nominal batch decides it
            now = getattr(trainer, name)  # what cannot change any more may still be said again
            if type(value) not in (bool, int, float, str) or type(now) is not type(value) or now != value:
                setattr(trainer, name, value)

    def show_baseline(self, trainer: Any) -> None:
        """How good the weights are that the training begins with: epoch 0 of the history."""
        row = {f"train/{name}": value for name, value in trainer.test(self.train_data).items()}
        if self.val_data is not None:
            trainer.eval(save_per_epochs=0)
            row |= {f"eval/{name}": value for name, value in trainer.eval_result.items()}
            self.best_weights.write_if_best(trainer)
        row = {name: value for name, value in row.items() if isinstance(value, float)}
        self.best_weights.baseline = {"epoch": 0, **row, "lr": float(self.model.optimizer.param_groups[0]["lr"])}
        told = ", ".join(f"{name} {number(value)}" for name, value in named_as_in_keras(row).items())
        trainer.lifetime.say(f"epoch 0, before any update: {told}")

    # --- the trainer of an earlier call -----------------------------------------------------------------------------

    def what_is_new(self, before: FitCall) -> str:
        """Why this call cannot go on with what ``before`` trained; "" where it can."""
        if not self.model.from_scratch:
            return "weights were loaded"
        for name, parts in self._parts.items():
            others = before._parts[name]
            if len(parts) != len(others) or not all(map(operator.is_, parts, others)):
                return f"its {name} is another one"
        return ""

    def take_over(self, trainer: Any, before: FitCall) -> None:
        """Set what this call asks for in the trainer of the last one; what cannot change any more is refused there."""
        last = trainer.path_of("last.pth")
        if trainer.lifetime.only_looks and before._versions == self._weights() and trainer.world.share(last.is_file()):
            trainer.use_best(last)  # where the training stood
            trainer.lifetime.only_looks = False  # it is no other state than the optimizer's
        else:
            trainer.lifetime.say("fit() goes on with the weights that are in the network.")
        self.best_weights.baseline, self.best_weights.trainer = before.best_weights.baseline, trainer
        if before.plot is not None and self.plot is not None:
            self.plot = before.plot
        if (before.key, before.mode) == (self.key, self.mode):
            self.stopping.load_state_dict(before.stopping.state_dict() | {"waited": 0})
        else:
            trainer.best_metric.pop(self.key, None)  # the best weights are kept from here on
        parts = {"train_loader": self.train_data, "eval_loader": self.val_data, "criterion": self.model.loss_fn}
        for name, part in parts.items():
            if getattr(trainer, name) is not part:
                setattr(trainer, name, part)
        self._take_states(before.callbacks)
        trainer.callbacks = self._all_callbacks()
        self._set(trainer)
        trainer.should_stop = False

    def _take_states(self, before):
        """Where a new callback stands in the place of one of its class, it goes on with what that one knows; the history is
        kept in any case."""
        known = {type(one): one for one in before}
        for one in self.callbacks:
            old = known.pop(type(one), one)
            if old is not one and hasattr(old, "state_dict") and hasattr(one, "load_state_dict"):
                one.load_state_dict(old.state_dict())
        self.callbacks += [old for old in known.values() if type(old).__name__ == "History"]

    def note_weights(self) -> None:
        """The training is over: whether somebody changes the weights from here on is seen in the next call."""
        self._versions = self._weights()

    def _weights(self):
        """A number for each tensor, which every write to it changes."""
        return [(id(value), value._version) for value in (*self.model.net.parameters(), *self.model.net.buffers())]


def run_folder(ckpt_path: Path) -> Path:
    """Where the run of ``ckpt_path`` keeps its log, its history and what resuming needs."""
    return ckpt_path.with_name(f"{ckpt_path.stem}_run")
