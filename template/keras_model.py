"""Training by ``fit``, for people who want no subclass: a front over ``TemplateModel``.

    model = KerasModel(net, nn.CrossEntropyLoss(), {"acc": torchmetrics.Accuracy("multiclass", num_classes=10)},
                       optimizer=torch.optim.Adam(net.parameters(), 1e-3))
    history = model.fit(train_loader, val_loader, epochs=30, patience=5, monitor="val_acc", mode="max")
    model.evaluate(val_loader)                       # {"val_loss": 0.21, "val_acc": 0.94}, of the best weights

It holds no loop of its own: the loop, the checkpoints, resuming, several processes and all callbacks are those of
``template.py``, and ``model.trainer`` is that object. Who wants to see the loop writes a subclass of ``TemplateModel``.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import io
import math
import operator
import pickle
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import files, state
from .data.seeding import rng_kept
from .hooks import EVENTS, Callback
from .metrics.best import direction_of
from .metrics.epoch import is_accumulator
from .metrics.functions import as_accumulators
from .output.console import number
from .output.history_table import as_table, columns_of
from .output.warn import warn
from .run.defaults import call_model, label_name, own_loss
from .run.step_runner import Accelerator as Accelerator  # ``from utils.keras_model import Accelerator, StepRunner``
from .run.step_runner import OptimizerOfStep, SchedulerOfStep, StepMetrics, named, scores_of
from .run.step_runner import StepRunner as StepRunner
from .template import TemplateModel

_PRECISIONS = {"no": None, "bf16": "bf16", "fp16": "fp16"}
_FOREVER = sys.maxsize


class _RefusesEpochRunner(type):
    """``KerasModel.EpochRunner = …`` would be ignored, because the loop is not the class's."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "EpochRunner":
            raise AttributeError(_NO_EPOCH_RUNNER)
        super().__setattr__(name, value)


_NO_EPOCH_RUNNER = ("KerasModel has no EpochRunner to replace: the loop over the batches is train_loop() of TemplateModel, "
                    "which also saves, resumes and joins processes. Replace StepRunner, add a callback, or write a subclass "
                    "of TemplateModel whose loop you see.")


class KerasModel(nn.Module, metaclass=_RefusesEpochRunner):
    """A network with its loss, metrics and optimizer, which is trained by ``fit``.

    Args:
        net: your network; ``fit`` trains it in place and leaves the best weights in it.
        loss_fn: ``loss_fn(pred, y) -> loss``. None: the network returns its own loss.
        metrics_dict: metrics by name, for training and validation: torchmetrics' objects, those of this folder
            (``Confusion(10).accuracy()``), or functions of ``(pred, y)``, whose values are averaged over samples. Your
            objects are copied, so that training and validation never share one. None: the accuracy "acc", where the loss
            says what is right.
        optimizer: of ``net.parameters()``; None: Adam with a learning rate of 3e-4.
        lr_scheduler: a scheduler of that optimizer, which steps after each update; see ``fit(lr_scheduler_interval)``.
        step_runner: the class of a step of your own, see ``run/step_runner.py``. ``KerasModel.StepRunner = MyStep`` sets it
            for all models, ``model.StepRunner = MyStep`` for one.
        **kwargs: further arguments of such a step. Optimizers among them are saved, and networks whose parameters one of the
            optimizers holds; other networks are moved to the device.
    """

    StepRunner: Any = StepRunner

    def __init__(self, net: nn.Module, loss_fn: Any = None, metrics_dict: Mapping[str, Any] | None = None,
                 optimizer: torch.optim.Optimizer | None = None, lr_scheduler: Any = None, step_runner: Any = None,
                 **kwargs: Any) -> None:
        super().__init__()
        self.net = net
        self.loss_fn = loss_fn
        self.metrics_dict: dict[str, Any] = dict(metrics_dict or {})
        self.optimizer = torch.optim.Adam(net.parameters(), lr=3e-4) if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.kwargs = kwargs
        if step_runner is not None:
            self.StepRunner = step_runner
        self.from_scratch = True  # False: fit shows how good the present weights are, as epoch 0, before it trains
        self.ckpt_path = "checkpoint"
        self.monitor = "val_loss"
        self.mode = "min"
        self.trainer: Any = None  # the TemplateModel that trains, from the first fit on
        self._own: Any = None     # its parts that this front made: _OfFit
        self._goal = 0            # epochs that were asked for until now
        self._continues: Path | None = None            # folder of the run that fit_ddp has made
        self._told_rows: list[dict[str, Any]] = []     # its history
        if "loss" in self.metrics_dict:
            raise ValueError("metrics_dict must not hold the name 'loss', which is that of loss_fn. Rename that metric.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.net(*args, **kwargs)

    @property
    def accelerator(self) -> Accelerator:
        """What steps and callbacks written for torchkeras call of an object of that name."""
        return Accelerator(self.trainer)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "EpochRunner":
            raise AttributeError(_NO_EPOCH_RUNNER)
        super().__setattr__(name, value)

    # --- training -------------------------------------------------------------------------------------------------

    def fit(self, train_data: Iterable[Any], val_data: Iterable[Any] | None = None, epochs: int = 10,
            ckpt_path: str | Path = "checkpoint", patience: int | None = 5, monitor: str = "val_loss", mode: str = "min",
            callbacks: Sequence[Any] | None = None, plot: bool = True, mixed_precision: str = "no",
            gradient_accumulation_steps: int = 1, cpu: bool = False, wandb: bool | str = False,
            tensorboard: bool = True, quiet: bool | None = None, resume: bool | str | Path | None = None,
            lr_scheduler_interval: str = "update", **settings: Any) -> Any:
        """Train ``epochs`` epochs more, validate behind each, and leave the best weights in the network.

        Called again, it goes on where the last call ended: epoch numbers, optimizer, history and best values.

        Args:
            train_data: batches to train on: a DataLoader, or any iterable that can be read again and again.
            val_data: batches to validate on; None: ``monitor`` is a value of the training.
            epochs: how many; fewer when nothing gets better.
            ckpt_path: file that always holds the best weights of ``net``, for ``load_ckpt`` or ``torch.load``. All that
                resuming needs, the log and the history are in the folder beside it, ``<ckpt_path>_run``.
            patience: epochs in a row without a better ``monitor`` after which it stops; None: it never does.
            monitor: what decides which weights are best: "val_loss", "val_<metric>", "train_loss" or "train_<metric>".
            mode: "min" or "max", whether less or more of it is better.
            callbacks: callbacks of this folder, or objects with ``on_fit_start``, ``on_train_epoch_end``,
                ``on_validation_epoch_end`` and ``on_fit_end``, each of which gets this model.
            plot: draw the curves while they grow, in a notebook and in a terminal.
            mixed_precision: "no", "bf16" or "fp16".
            gradient_accumulation_steps: batches per update.
            cpu: train on the CPU also where there is a GPU.
            wandb: log to Weights & Biases; a text is the name of the project. It is the callback ``Wandb`` of ``trackers/``.
            tensorboard: write events, which ``tensorboard --logdir runs`` shows.
            quiet: True shows no progress bar.
            resume: "auto" or True goes on with the run that was cut short in ``ckpt_path``'s folder, where there is one,
                until ``epochs`` are done; a path takes that checkpoint.
            lr_scheduler_interval: "update": ``lr_scheduler`` steps after each update, of which there is one for every
                ``gradient_accumulation_steps`` batches; "epoch": after each epoch. ReduceLROnPlateau always steps after
                the validation.
            **settings: any setting of ``TemplateModel``, for instance ``seed=3``, ``clip_grad=1.0``, ``compile=True``.

        Returns:
            The history as a pandas DataFrame, or where pandas is not installed as a light table of the same columns:
            epoch, train_loss, val_loss, train_<metric>, val_<metric>, lr.

        Raises:
            TypeError, ValueError: something does not fit; the message says what to do.
        """
        own = _OfFit(self, train_data, val_data, ckpt_path, patience, monitor, mode, callbacks, plot, mixed_precision,
                     gradient_accumulation_steps, cpu, wandb, quiet, lr_scheduler_interval, settings)
        if own.ckpt_path.is_dir() and type(self).save_ckpt is _SAVE_CKPT:
            raise ValueError(f"ckpt_path is the file of the best weights, and {ckpt_path} is a folder. Give the name of a "
                             "file, for instance 'checkpoint.pt'.")
        self.ckpt_path, self.monitor, self.mode = str(ckpt_path), monitor, mode
        if self.trainer is None or not self._own.can_go_on_as(own):
            self._begin(own, resume, tensorboard)
        else:
            self._go_on(own)
        trainer = self.trainer
        self._goal = min(trainer.epochs_done, self._goal) + epochs
        if not self.from_scratch:
            self._show_baseline(own)
        for callback in own.keras_callbacks:
            callback.tell("on_fit_start")
        trainer.fit(self._goal, save_per_epochs=0)
        own.note_weights()
        for callback in own.keras_callbacks:
            callback.tell("on_fit_end")
        return as_table(self._rows())

    def _begin(self, own, resume, tensorboard):
        """A run of its own, with the weights that are in the network."""
        if self.trainer is not None:
            self.trainer.lifetime.say(f"fit() begins a new run with the present weights, because {own.what_is_new}.")
            self.trainer.close()
        trainer = own.make_trainer()
        trainer.check_init(use_tb=tensorboard)
        trainer.begin()
        self.trainer, self._own, self._told_rows = trainer, own, []
        if resume is None and self._continues is not None:  # what fit_ddp did
            trainer.load_state(self._continues / "last.pth")
        else:
            self._goal = 0
            if resume not in (None, False) and trainer.load_state("auto" if resume is True else resume):
                self.from_scratch = True
        self._continues = None

    def _go_on(self, own):
        """The same run, with what this call asks for."""
        trainer = self.trainer
        last = trainer.path_of("last.pth")
        if trainer.lifetime.only_looks and self._own.weights_are_untouched() and trainer.world.share(last.is_file()):
            trainer.use_best(last)  # where the training stood
            trainer.lifetime.only_looks = False  # it is no other state than the optimizer's
        else:
            trainer.lifetime.say("fit() goes on with the weights that are in the network.")
        own.take_over(self._own)
        self._own = own

    def _show_baseline(self, own):
        """How good the weights are that the training begins with: epoch 0 of the history."""
        self.from_scratch = True
        trainer = self.trainer
        if trainer.global_step:
            return
        values = {f"train/{name}": value for name, value in trainer.test(own.train_data).items() if isinstance(value, float)}
        if own.val_data is not None:
            trainer.eval(save_per_epochs=0)
            values |= {f"eval/{name}": value for name, value in trainer.eval_result.items() if isinstance(value, float)}
            own.keeper.write_if_best(trainer)
        own.keeper.baseline = {"epoch": 0} | values | {"lr": float(self.optimizer.param_groups[0]["lr"])}
        told = [f"{name} {number(value)}" for name, value in _known_names(own.keeper.baseline).items() if name[0] in "tv"]
        trainer.lifetime.say(f"epoch 0, before any update: {', '.join(told)}")

    @property
    def history(self) -> dict[str, list[Any]]:
        """The columns that ``fit`` returns, by name."""
        return columns_of(self._rows())

    def _rows(self):
        if self.trainer is None:
            return self._told_rows
        baseline = self._own.keeper.baseline
        return in_order([_known_names(row) for row in ([baseline] if baseline else []) + self.trainer.history])

    # --- behind the training --------------------------------------------------------------------------------------

    def evaluate(self, val_data: Iterable[Any], quiet: bool = False) -> dict[str, Any]:
        """Loss and metrics of the present weights on ``val_data``; nothing is noted or changed.

        Args:
            val_data: batches, as ``fit`` takes them.
            quiet: print no line.

        Returns:
            ``{"val_loss": …, "val_<metric>": …}``.
        """
        if self.trainer is not None:
            result, is_main = self.trainer.test(val_data), self.trainer.is_main
        else:
            result, is_main = self._test_before_training(val_data)
        named = {name.replace("eval/", "val_"): value
                 for name, value in _known_names({f"eval/{name}": value for name, value in result.items()}).items()}
        if not quiet and is_main:
            print(", ".join(f"{name} {number(value)}" for name, value in named.items() if isinstance(value, float)))
        return named

    def _test_before_training(self, val_data):
        own = _OfFit(self, val_data)
        with rng_kept(), tempfile.TemporaryDirectory() as folder:
            trainer = own.make_trainer()
            trainer.ckpt_dir, trainer.callbacks, trainer.preflight = folder, [], False
            with redirect_stdout(io.StringIO()):  # it is no run
                trainer.check_init(use_tb=False)
                trainer.begin()
                result = trainer.test(val_data)
                trainer.close()
        return result, trainer.is_main

    def predict(self, data: Any, labels: bool = False) -> Any:
        """What the network says of ``data``, joined, on the CPU.

        Args:
            data: batches ``x``, ``(x,)`` or ``(x, …, y)``, a Dataset, or a tensor or array [N, …]. Of a batch with more
                inputs than the network takes, it gets the first ones.
            labels: return the pair (predictions, labels).
        """
        trainer = self.trainer if self.trainer is not None else _OfFit(self, data).make_trainer()
        trainer.is_predicting = True
        try:
            return trainer.predict(data, labels)
        finally:
            trainer.is_predicting = False

    def save_ckpt(self, ckpt_path: str | Path | None = None, accelerator: Any = None) -> None:
        """Write the present weights of the network, so that ``net.load_state_dict(torch.load(ckpt_path))`` takes them.

        Args:
            ckpt_path: the file; None: that of ``fit``.
            accelerator: is not needed.
        """
        files.write(_weights(self.net), Path(self.ckpt_path if ckpt_path is None else ckpt_path).expanduser())

    def load_ckpt(self, ckpt_path: str | Path | None = None) -> None:
        """Put weights into the network. The next ``fit`` begins a new run with them, whose epoch 0 says how good they are.

        Args:
            ckpt_path: a file of ``fit`` or ``save_ckpt``, a run's folder, or any checkpoint in it; None: that of ``fit``.

        Raises:
            FileNotFoundError, CheckpointError: there is no such file, or it is damaged.
            ValueError: the weights do not fit. Nothing was changed.
        """
        path = Path(self.ckpt_path if ckpt_path is None else ckpt_path).expanduser()
        if self.trainer is not None:
            self.trainer.wait_for_saves()
            self.trainer.close()
        kept = (path if path.is_dir() else _run_folder(path)) / "best.pth"
        if not path.is_file() and kept.is_file():
            path = kept
        saved = files.read(path)
        state.apply_weights(_bare(self.net), saved if "model0" in saved else {"model0": saved})
        self._forget_run()
        self.from_scratch = False

    def _forget_run(self):
        self.__dict__.update(_NO_RUN)

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins a run of its own."""
        return self.__dict__ | _NO_RUN

    # --- several processes ----------------------------------------------------------------------------------------

    def fit_ddp(self, num_processes: int, train_data: Iterable[Any], val_data: Iterable[Any] | None = None,
                epochs: int = 10, **kwargs: Any) -> Any:
        """``fit`` in several new processes of this machine, from a notebook or a script. It leaves the best weights in this
        network, and ``fit`` and ``fit_ddp`` go on from there.

        Each process reads its own share of the batches, so one update sees ``num_processes`` of them. A script has to call
        it below ``if __name__ == "__main__":``. A script that torchrun starts calls ``fit``.

        Args:
            num_processes: on GPUs one for each.
            train_data, val_data, epochs, **kwargs: as for ``fit``.

        Returns:
            The history, as ``fit`` does.

        Raises:
            TypeError: the model or the data cannot be sent to another process.
            RuntimeError: a GPU is in use already in this notebook.
        """
        rows, goal, folder, settings = self._launch("fit", num_processes, (train_data, val_data, epochs), kwargs)
        self.ckpt_path, self.monitor, self.mode = settings
        self._forget_run()
        self._told_rows, self._goal, self._continues, self.from_scratch = rows, goal, Path(folder), True
        path = self._continues / "best.pth"
        if path.is_file():
            state.apply_weights(_bare(self.net), files.read(path))
        return as_table(rows)

    def evaluate_ddp(self, num_processes: int, val_data: Iterable[Any], quiet: bool = False) -> dict[str, Any]:
        """``evaluate`` in several new processes of this machine; no sample counts twice.

        Args:
            num_processes: on GPUs one for each.
            val_data, quiet: as for ``evaluate``.
        """
        result: dict[str, Any] = self._launch("evaluate", num_processes, (val_data, quiet), {})
        return result

    def _launch(self, call, num_processes, args, kwargs):
        from .tools.launch import launch

        if self.trainer is not None:
            self.trainer.close()
            self._continues = self.trainer.path_of(".").absolute() if self.trainer.global_step else None
        run = {"StepRunner": self.StepRunner, "_goal": self._goal, "_continues": self._continues}
        package: Any = self, call, args, kwargs, run
        if hasattr(sys.modules["__main__"], "__file__"):  # else they are forked, and have it
            package = _pickled(package)
        return launch(_in_process, num_processes, package)[0]


_NO_RUN: dict[str, Any] = {"trainer": None, "_own": None, "_goal": 0, "_continues": None, "_told_rows": []}
_SAVE_CKPT = KerasModel.save_ckpt  # as it is here: it may be replaced


def _pickled(package):
    """As bytes: tensors that are sent as they are would be shared by all processes, and trained by all at once."""
    file = io.BytesIO()
    try:
        torch.save(package, file)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise TypeError("fit_ddp() and evaluate_ddp() send the model and the data to new processes, and a part of them "
                        f"cannot be sent: {error}. Define functions and classes at the top of a module, without lambda, or "
                        "start the script with torchrun, where fit() itself trains in all processes.") from error
    return file.getvalue()


def _in_process(package):
    """One of several processes: ``fit`` or ``evaluate`` there; what the first one returns counts."""
    if isinstance(package, bytes):
        package = torch.load(io.BytesIO(package), map_location="cpu", weights_only=False)
    model, call, args, kwargs, run = package
    warnings.filterwarnings("ignore", "Seems like `optimizer.step", UserWarning)  # what a scheduler notes there is not sent
    model.__dict__.update(_NO_RUN)
    for name, value in run.items():
        setattr(model, name, value)
    if call == "evaluate":
        return model.evaluate(*args, **kwargs)
    model.fit(*args, **kwargs)
    if not model.trainer.is_main:
        return None
    folder = model.trainer.path_of(".").absolute()
    return model._rows(), model._goal, str(folder), (model.ckpt_path, model.monitor, model.mode)


# --- what one call of fit is made of ----------------------------------------------------------------------------------


class _OfFit:
    """What one call of ``fit`` asks for, checked, and the parts that it makes of it."""

    def __init__(self, model, train_data, val_data=None, ckpt_path="checkpoint", patience: Any = 5, monitor="val_loss",
                 mode="min", callbacks=None, plot=False, mixed_precision="no", gradient_accumulation_steps=1, cpu=False,
                 wandb: Any = False, quiet=False, lr_scheduler_interval="update", settings=None):
        if mixed_precision not in _PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {list(_PRECISIONS)}, got {mixed_precision!r}.")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}.")
        self.model, self.train_data, self.val_data = model, train_data, val_data
        self.ckpt_path = Path(ckpt_path).expanduser()
        self.parts = {"network": [model.net], "optimizer": [model.optimizer], "lr_scheduler": [model.lr_scheduler],
                      "StepRunner": [model.StepRunner, *model.kwargs.values()],
                      "metrics_dict": [*model.metrics_dict, *model.metrics_dict.values()]}
        self.what_is_new = ""
        self.key = self._key(monitor)
        self.mode = mode
        if direction_of(monitor) not in (None, mode):
            better, kept = ("lower", "highest") if mode == "max" else ("higher", "lowest")
            warn(f"monitor={monitor!r} is better when it is {better}, and mode={mode!r} keeps the weights where it is "
                 f"{kept}. Say mode={direction_of(monitor)!r}, if that is not what you want.")
        self.keeper = _Keeper(model)
        self.stopping = _part("callbacks", "early_stopping", "EarlyStopping")(
            self.key, mode, _FOREVER if patience is None else patience, restore_best=True)
        given = list(callbacks or ())
        if wandb:
            given.append(_part("trackers", "wandb", "Wandb")(wandb if isinstance(wandb, str) else None))
        self.keras_callbacks = [_KerasCallback(one, model) for one in given if not _is_ours(one)]
        self.callbacks = [one for one in given if _is_ours(one)]
        is_drawn = any(type(one).__name__ == "LivePlot" for one in given)
        self.plot = _part("callbacks", "live_plot", "LivePlot")() if plot and not is_drawn else None
        if not any(type(one).__name__ == "ProgressBar" for one in given):
            self.callbacks.append(_part("callbacks", "progress_bar", "ProgressBar")(show=not quiet))
        self.settings = {"amp": _PRECISIONS[mixed_precision], "accumulate_steps": gradient_accumulation_steps,
                         "key_metric": self.key, "key_metric_mode": {self.key: mode}}
        self.settings |= _sizes(train_data, val_data) | (settings or {})
        self.device = "cpu" if cpu else None
        self.interval = lr_scheduler_interval
        self._versions: Any = None

    def _key(self, monitor):
        """The name of ``monitor`` in a ``TemplateModel``."""
        part, _, name = monitor.partition("_")
        if part not in ("train", "val") or not name:
            raise ValueError("monitor must be 'val_loss', 'val_<metric>', 'train_loss' or 'train_<metric>', got "
                             f"{monitor!r}.")
        name = "tol_loss" if name == "loss" else name
        return name if part == "val" and self.val_data is not None else f"train/{name}"

    def _list(self):
        return [self.keeper, self.stopping, *([self.plot] if self.plot else []), *self.keras_callbacks, *self.callbacks]

    def make_trainer(self):
        """A ``TemplateModel`` before ``check_init``."""
        model = self.model
        trainer = _make_trainer(model)
        trainer.train_loader, trainer.eval_loader = self.train_data, self.val_data
        self.keeper.trainer = trainer
        trainer.ckpt_dir = str(_run_folder(self.ckpt_path))
        trainer.callbacks = self._list()
        if self.device is not None:
            trainer.device = self.device
        if model.lr_scheduler is not None:
            self._take_scheduler(trainer, model.lr_scheduler)
        self._set(trainer)
        return trainer

    def _take_scheduler(self, trainer, scheduler):
        trainer.take_scheduler(scheduler)
        looks = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        trainer.lr_scheduler_interval = None if looks else self.interval
        if getattr(scheduler, "optimizer", self.model.optimizer) is not self.model.optimizer:
            warn("lr_scheduler was made with another optimizer than the one that trains, whose learning rate it never "
                 "changes. Make one optimizer, and give it to both.")

    def _set(self, trainer):
        for name, value in self.settings.items():
            if name not in trainer.attribute_names:
                close = difflib.get_close_matches(name, trainer.attribute_names, n=3)
                raise TypeError(f"fit() takes the settings of TemplateModel beside its own arguments, and {name!r} is none."
                                f"{f' Did you mean {close}?' if close else ''} docs/attributes.md lists them.")
            _set_if_new(trainer, name, value)

    def can_go_on_as(self, other):
        """Whether the next call trains the same parts on."""
        new = next((f"its {name} is another one" for name, parts in self.parts.items()
                    if len(parts) != len(other.parts[name]) or not all(map(operator.is_, parts, other.parts[name]))), "")
        other.what_is_new = new if self.model.from_scratch else "weights were loaded"
        return not other.what_is_new

    def take_over(self, before):
        """Set in the trainer what this call asks for; what cannot change any more is refused there."""
        trainer, key = self.model.trainer, self.key
        self.keeper.baseline, self.keeper.trainer = before.keeper.baseline, trainer
        if before.plot is not None and self.plot is not None:
            self.plot = before.plot
        if (before.key, before.mode) == (key, self.mode):
            self.stopping.load_state_dict(before.stopping.state_dict() | {"waited": 0})
        else:
            trainer.best_metric.pop(key, None)  # the best weights are kept from here on
        if trainer.train_loader is not self.train_data:
            trainer.train_loader = self.train_data
        if trainer.eval_loader is not self.val_data:
            trainer.eval_loader = self.val_data
        if self.device is not None:
            _set_if_new(trainer, "device", self.device)
        if trainer.criterion is not self.model.loss_fn:
            trainer.criterion = self.model.loss_fn
        self._take_states(before.callbacks)
        trainer.callbacks = self._list()
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
        self.callbacks += [old for old in known.values() if isinstance(getattr(old, "rows", None), list)
                           and type(old).__name__ == "History"]

    # --- whether somebody changed the weights -----------------------------------------------------------------------

    def note_weights(self):
        self._versions = _versions(self.model.net)

    def weights_are_untouched(self):
        return self._versions == _versions(self.model.net)


def _set_if_new(trainer, name, value):
    """What cannot change any more may still be said again."""
    if type(value) not in (bool, int, float, str) or type(getattr(trainer, name)) is not type(value) or (
            getattr(trainer, name) != value):
        setattr(trainer, name, value)


def _versions(net):
    """A number for each tensor, which every write to it changes."""
    return [(id(value), value._version) for value in (*net.parameters(), *net.buffers())]


# --- what trains ------------------------------------------------------------------------------------------------------


def _make_trainer(model):
    """With network, loss, metrics and optimizers; data and settings are not set yet."""
    if model.StepRunner is not StepRunner:
        kind: Any = _OfSteps
    elif model.kwargs:
        raise TypeError(f"KerasModel passes further arguments on to a StepRunner of your own, and there is none; got "
                        f"{list(model.kwargs)}. Its own arguments are net, loss_fn, metrics_dict, optimizer, lr_scheduler "
                        "and step_runner.")
    else:
        kind = _Trainer if model.loss_fn is not None else _OfOwnLoss
    return kind(model)


class _Trainer(TemplateModel):
    """Trains a ``KerasModel`` whose loss is ``loss_fn(pred, y)``."""

    def __init__(self, model: KerasModel) -> None:
        super().__init__()
        self.model_list, self.optimizer_list, self.criterion = [model.net], [model.optimizer], model.loss_fn
        self.is_predicting = False
        self.set_metrics(model.metrics_dict)

    def set_metrics(self, metrics):
        self.eval_metrics, self.train_metrics = as_accumulators(metrics), as_accumulators(metrics) or True

    def take_scheduler(self, scheduler):
        self.lr_scheduler_list = [scheduler]

    def begin(self):
        """Behind ``check_init``."""

    def objects(self):
        """What has a state and is no part of a ``TemplateModel``."""
        return {}

    def inference(self, x: Any) -> Any:
        """``net(x)``; of a dict the entries by name where ``forward`` has these names, else the dict itself."""
        net = self.model_list[0]
        if self.is_predicting:
            x = _inputs_of(net, x, drops_label=self.criterion is not None)
        return net(x) if isinstance(x, Mapping) and not _takes_names(net, x) else call_model(net, x)


class _OfOwnLoss(_Trainer):
    """Trains one whose network returns its own loss. Metrics get what else it returns, "logits" if there are any."""

    def set_metrics(self, metrics):
        super().set_metrics(metrics)
        self.train_metrics = self.train_metrics if metrics else False

    def loss_per_batch(self, batch: Any) -> Any:
        output = self.inference(batch)
        self._seen = _logits_of(output), _label_of(batch)
        self.note_predictions(*self._seen)
        return own_loss(output)

    def eval_scores_per_batch(self, batch: Any) -> Mapping[str, Any]:
        return self.metric(*self._seen) if self.eval_metrics else {}


class _OfSteps(_Trainer):
    """Trains one with a ``StepRunner`` of the user's own, which is made anew for each epoch and each evaluation."""

    def __init__(self, model: KerasModel) -> None:
        super().__init__(model)
        self.step_class, self.step_arguments = model.StepRunner, dict(model.kwargs)
        self.accelerator = Accelerator(self)
        self.metrics_of = {stage: copy.deepcopy(model.metrics_dict) for stage in ("train", "val")}
        self.scheduler: Any = None
        self.train_scores: dict[str, Any] = {}
        self._val_scores: dict[str, Any] = {}
        self._runners: dict[str, Any] = {}  # by stage
        self._epoch_of_runner = -1
        self._optimizers = [one for one in model.kwargs.values() if isinstance(one, torch.optim.Optimizer)]
        self.optimizer_list = [model.optimizer, *self._optimizers]
        trained = {p for optimizer in self.optimizer_list for group in optimizer.param_groups for p in group["params"]}
        networks = [one for one in model.kwargs.values() if isinstance(one, nn.Module)]
        self.model_list = [model.net, *(one for one in networks if trained & set(one.parameters()))]
        self._others = [one for one in networks if not trained & set(one.parameters())]

    def set_metrics(self, metrics):
        """The step has them."""

    def take_scheduler(self, scheduler):
        self.scheduler = scheduler

    def begin(self):
        for part in (*self._others, *self.metrics_of["train"].values(), *self.metrics_of["val"].values()):
            if isinstance(part, nn.Module):
                part.to(torch.device(self.device))
        own = {name: metric for name, metric in self.metrics_of["train"].items() if is_accumulator(metric)}
        self.running_losses.metrics = StepMetrics(self, own)

    def objects(self):
        parts = {"lr_scheduler": self.scheduler, **self.step_arguments}
        return {name: part for name, part in parts.items() if not isinstance(part, (nn.Module, torch.optim.Optimizer))
                and hasattr(part, "state_dict") and hasattr(part, "load_state_dict")}

    def begin_stage(self, stage):
        """The next batch of this stage gets a runner of its own."""
        self._runners.pop(stage, None)

    def _runner(self, stage):
        if stage not in self._runners:
            is_train, arguments = stage == "train", dict(self.step_arguments)
            for name, value in arguments.items():
                if isinstance(value, torch.optim.Optimizer):
                    index = next(i for i, one in enumerate(self.optimizer_list) if one is value)
                    arguments[name] = OptimizerOfStep(self, index)
            scheduler = SchedulerOfStep(self, self.scheduler) if is_train and self.scheduler is not None else None
            self._runners[stage] = self.step_class(
                net=self.model_list[0], loss_fn=self.criterion, accelerator=self.accelerator, stage=stage,
                metrics_dict=self.metrics_of[stage], optimizer=OptimizerOfStep(self) if is_train else None,
                lr_scheduler=scheduler, **arguments)
        return self._runners[stage]

    def _answer(self, stage, batch):
        """``(losses, scores)``."""
        answer = self._runner(stage)(batch)
        if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Mapping) for part in answer)):
            raise TypeError("A StepRunner must return two dicts, (losses, metrics), with names as "
                            f"'{stage}_loss'; got {answer!r}.")
        losses = named(answer[0], stage)
        return losses, scores_of(answer[1], losses, self.metrics_of[stage], stage)

    def train_step(self, batch: Any) -> Any:
        if self._epoch_of_runner != self.epoch:
            self._epoch_of_runner = self.epoch
            self.begin_stage("train")
        self.stepper.leave_update()
        with self.autocast():
            losses, self.train_scores = self._answer("train", batch)
        return losses

    def loss_per_batch(self, batch: Any) -> Any:
        """Of an evaluation."""
        losses, self._val_scores = self._answer("val", batch)
        return losses

    def eval_scores_per_batch(self, batch: Any) -> Mapping[str, Any]:
        return self._val_scores


def _inputs_of(net, x, drops_label):
    """As much of a batch as the network takes: ``predict`` hands the whole dict on, and all parts but the last."""
    if isinstance(x, Mapping):
        label = label_name(x) if drops_label else None
        return {name: part for name, part in x.items() if name != label}
    if type(x) is tuple:
        kinds = [p.kind for p in _parameters_of(net)]
        count = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
        return x if inspect.Parameter.VAR_POSITIONAL in kinds or not count else x[:count]
    return x


def _parameters_of(net):
    """Of its ``forward``; none where nothing is known of them."""
    try:
        return list(inspect.signature(state.unwrap(net).forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _takes_names(net, names):
    """Whether ``forward`` has all these names; also where nothing is known of it."""
    parameters = _parameters_of(net)
    return not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters) or set(names) <= {p.name for p in parameters}


def _logits_of(output):
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)


def _label_of(batch):
    if isinstance(batch, Mapping):
        return batch[label] if (label := label_name(batch)) else None
    return batch[-1] if isinstance(batch, (list, tuple)) and batch else None


class _Keeper(Callback):
    """Keeps the best weights at ``ckpt_path``, and what the history has before the first epoch."""

    def __init__(self, model):
        self.model = model
        self.trainer: Any = None
        self.baseline: dict[str, Any] = {}

    def look_for_monitor(self, names: list[str], of_training: bool) -> None:
        """The first batch of the validation gave these names: one that is not there would end the run behind the epoch."""
        key = self.trainer.key_metric
        if not of_training and not key.startswith("train/") and key not in names and not isinstance(self.trainer, _OfSteps):
            given = [f"val_{'loss' if name == 'tol_loss' else name}" for name in names]
            raise ValueError(f"monitor must be something that the validation gives, which is {given}, or the same of the "
                             f"training; got {self.model.monitor!r}.")

    def on_eval_start(self, model: Any) -> None:
        if isinstance(model, _OfSteps):
            model.begin_stage("val")

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        self.write_if_best(model)

    def write_if_best(self, trainer):
        """The weights for use, where they are the best ones until now."""
        if trainer.best_epoch.get(trainer.key_metric) != trainer.epoch:
            return
        path = Path(self.model.ckpt_path).expanduser()
        if type(self.model).save_ckpt is not _SAVE_CKPT:  # somebody's own
            with trainer.lifetime.weights.for_use():
                if trainer.is_main:
                    self.model.save_ckpt(self.model.ckpt_path, self.model.accelerator)
            return
        with trainer.lifetime.weights.for_use():
            weights = state.collect(trainer, optim=False)["model0"]  # on every rank, which may each have a part
            if trainer.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                trainer.checkpoints.saver.save(path, weights, lambda saved: files.write(saved, path),
                                               trainer.lifetime.where())

    def state_dict(self) -> dict[str, Any]:
        objects = {name: part.state_dict() for name, part in self._objects().items()}
        return {"baseline": dict(self.baseline), "objects": objects}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.baseline = dict(state["baseline"])
        for name, part in self._objects().items():
            if name in state["objects"]:
                part.load_state_dict(state["objects"][name])

    def _objects(self):
        return self.trainer.objects() if self.trainer is not None else {}


class _KerasCallback(Callback):
    """An object with the events of torchkeras' callbacks, which get the ``KerasModel``."""

    def __init__(self, callback, model):
        self.callback = callback
        self.model = model
        if not any(hasattr(callback, name) for name in _KERAS_EVENTS):
            raise TypeError("callbacks must hold callbacks of this folder, or objects with one of "
                            f"{list(_KERAS_EVENTS)}; got {callback!r}. Derive it from Callback, whose events are in "
                            "docs/callbacks.md.")

    def tell(self, name: str) -> None:
        if hasattr(self.callback, name):
            getattr(self.callback, name)(self.model)

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self.tell("on_train_epoch_end")

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        self.tell("on_validation_epoch_end")


_KERAS_EVENTS = ("on_fit_start", "on_train_epoch_end", "on_validation_epoch_end", "on_fit_end")


def _part(room, file, name):
    """A class of ``callbacks/`` or ``trackers/``, where each file may be left out."""
    try:
        return getattr(import_module(f".{room}.{file}", __package__), name)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(f"{__package__}.{room}"):
            raise
        raise ModuleNotFoundError(f"fit() needs {name}, and {room}/{file}.py is not there: it was left out of this copy, or "
                                  f"deleted. To get it: python upgrade.py upgrade --with {room}/{file}",
                                  name=error.name) from None


def _sizes(train_data, val_data):
    """A loader with a number ``size`` gives so many batches, as in torchkeras."""
    sizes = {"limit_train_batches": getattr(train_data, "size", None), "limit_eval_batches": getattr(val_data, "size", None)}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _is_ours(callback):
    return isinstance(callback, Callback) or any(hasattr(callback, event) for event in EVENTS)


# --- names ------------------------------------------------------------------------------------------------------------


def _known_names(row):
    """A row of ``history.csv`` with the names that people know."""
    named = {"epoch": row["epoch"]} if "epoch" in row else {}
    for name, value in row.items():
        part, _, rest = name.partition("/")
        if part in ("train", "eval"):
            named[f"{'val' if part == 'eval' else part}_{'loss' if rest == 'tol_loss' else rest}"] = value
    rates = [value for name, value in row.items() if name == "lr" or name.startswith("lr/")]
    if rates:
        named["lr"] = rates[0]
    return named | {name.replace("/", "_"): value for name, value in row.items() if name.startswith("lr/")}


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns of training and validation of each quantity beside each other, the loss first."""
    names = dict.fromkeys(name for row in rows for name in row)
    quantities = dict.fromkeys(name.partition("_")[2] for name in names if name.startswith(("train_", "val_")))
    pairs = [f"{part}_{quantity}" for quantity in sorted(quantities, key=lambda name: name != "loss")
             for part in ("train", "val")]
    order = dict.fromkeys(name for name in ["epoch", *pairs, "lr", *names] if name in names)
    return [{name: row.get(name, math.nan) for name in order} for row in rows]


def _run_folder(path):
    """Where the run of ``ckpt_path`` keeps its log, its history and what resuming needs."""
    path = Path(path)
    return path.with_name(f"{path.stem}_run")


def _weights(net):
    """On the CPU, without the prefixes of wrappers."""
    return {name: value.detach().cpu() for name, value in state.unwrap(net).state_dict().items()}


def _bare(net):
    """As much of a trainer as holds weights."""
    trainer = TemplateModel()
    trainer.model_list = [net]
    return trainer
