"""Training by ``fit``, for people who want no subclass: a front over ``TemplateModel``.

    model = KerasModel(net, nn.CrossEntropyLoss(), {"acc": torchmetrics.Accuracy("multiclass", num_classes=10)},
                       optimizer=torch.optim.Adam(net.parameters(), 1e-3))
    history = model.fit(train_loader, val_loader, epochs=30, patience=5, monitor="val_acc", mode="max")
    model.evaluate(val_loader)                       # {"val_loss": 0.21, "val_acc": 0.94}, of the best weights

It holds no loop of its own: the loop, the checkpoints, resuming, several processes and all callbacks are those of
``template.py``, and ``model.trainer`` is that object. Who wants to see the loop writes a subclass of ``TemplateModel``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import files, state
from .data.seeding import rng_kept
from .output.console import number
from .output.history_table import as_table, columns_of, in_pairs, named_as_in_keras
from .run.front.fit_by_loss import ByLoss, ByOwnLoss
from .run.front.fit_by_steps import BySteps
from .run.front.fit_call import FitCall, run_folder
from .run.front.fit_checks import check_batches, check_parts
from .run.front.fit_processes import call_in_process, pickled
from .run.front.step_runner import Accelerator as Accelerator  # ``from utils.keras_model import Accelerator, StepRunner``
from .run.front.step_runner import StepRunner as StepRunner
from .template import TemplateModel

_NO_RUN: dict[str, Any] = {"trainer": None, "_call": None, "_goal": 0, "_continues": None, "_told_rows": []}


class KerasModel(nn.Module):
    """A network with its loss, metrics and optimizer, which is trained by ``fit``.

    Args:
        net: your network; ``fit`` trains it in place and leaves the best weights in it.
        loss_fn: ``loss_fn(pred, y) -> loss``. None: the network returns its own loss.
        metrics_dict: metrics by name, for training and validation: torchmetrics' objects, those of this folder
            (``Confusion(10).accuracy()``), or functions of ``(pred, y)``, whose values are averaged over samples. Your
            objects are copied, so that training and validation never share one. None: the accuracy "acc", where the loss
            says what is right.
        optimizer: of ``net.parameters()``, or the list with one of them that ``build_optimizer`` gives; None: Adam with a
            learning rate of 3e-4.
        lr_scheduler: a scheduler of that optimizer, which steps after each update; see ``fit(lr_scheduler_interval)``.
        step_runner: the class of a step of your own, see ``run/front/step_runner.py``. ``KerasModel.StepRunner = MyStep``
            sets it for all models, ``model.StepRunner = MyStep`` for one.
        **kwargs: further arguments of such a step. Optimizers among them are saved, and networks whose parameters one of the
            optimizers holds; other networks are moved to the device.
    """

    StepRunner: Any = StepRunner

    def __init__(self, net: nn.Module, loss_fn: Any = None, metrics_dict: Mapping[str, Any] | None = None,
                 optimizer: Any = None, lr_scheduler: Any = None, step_runner: Any = None,
                 **kwargs: Any) -> None:
        super().__init__()
        if isinstance(optimizer, (list, tuple)) and len(optimizer) == 1:  # build_optimizer gives a list
            optimizer = optimizer[0]
        check_parts(net, metrics_dict, optimizer)
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
        self._call: Any = None    # what the last fit asked for
        self._goal = 0            # epochs that were asked for until now
        self._continues: Path | None = None            # folder of the run that fit_ddp has made
        self._told_rows: list[dict[str, Any]] = []     # its history
        if "loss" in self.metrics_dict:
            raise ValueError("metrics_dict must not hold the name 'loss', which is that of loss_fn. Rename that metric.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.net(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """``torch.compile`` of the network, as any module has it; not that of Keras."""
        if wrong := [name for name in kwargs if name in ("optimizer", "loss", "metrics")]:
            raise TypeError(f"KerasModel takes {wrong} when it is made, and has no compile() as Keras has it: "
                            "KerasModel(net, loss_fn, metrics_dict, optimizer). fit(compile=True) calls torch.compile.")
        super().compile(*args, **kwargs)

    @property
    def accelerator(self) -> Accelerator:
        """What steps and callbacks written for torchkeras call of an object of that name."""
        return Accelerator(self.trainer)

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
                resuming needs, the log and the history are in the folder beside it, ``checkpoint_run``.
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
        check_batches("train_data", train_data)
        check_batches("val_data", val_data)
        own_save = None if type(self).save_ckpt is _SAVE_CKPT else self.save_ckpt
        call = FitCall(self, own_save, sys.modules[__package__], train_data=train_data, val_data=val_data,
                       ckpt_path=ckpt_path, patience=patience, monitor=monitor, mode=mode, callbacks=callbacks, plot=plot,
                       mixed_precision=mixed_precision, gradient_accumulation_steps=gradient_accumulation_steps, cpu=cpu,
                       wandb=wandb, quiet=quiet, lr_scheduler_interval=lr_scheduler_interval, settings=settings)
        self.ckpt_path, self.monitor, self.mode = str(ckpt_path), monitor, mode
        if self.trainer is None or call.what_is_new(self._call):
            self._begin(call, resume, tensorboard)
        else:
            call.take_over(self.trainer, self._call)
            self._call = call
        self._goal = min(self.trainer.epochs_done, self._goal) + epochs
        needs_baseline, self.from_scratch = not self.from_scratch, True
        if needs_baseline and not self.trainer.global_step:
            call.show_baseline(self.trainer)
        call.tell("on_fit_start")
        self.trainer.fit(self._goal, save_per_epochs=0)
        call.note_weights()
        call.tell("on_fit_end")
        return as_table(self._rows())

    def _begin(self, call, resume, tensorboard):
        """A run of its own, with the weights that are in the network."""
        if self.trainer is not None:
            self.trainer.lifetime.say("fit() begins a new run with the present weights, because "
                                      f"{call.what_is_new(self._call)}.")
            self.trainer.close()
        trainer = self._new_trainer()
        call.fill_in(trainer)
        trainer.check_init(use_tb=tensorboard)
        trainer.begin()
        self.trainer, self._call, self._told_rows = trainer, call, []
        if resume is None and self._continues is not None:  # what fit_ddp did
            trainer.load_state(self._continues / "last.pth")
        else:
            self._goal = 0
            if resume not in (None, False) and trainer.load_state("auto" if resume is True else resume):
                self.from_scratch = True
        self._continues = None

    def _new_trainer(self):
        """With network, loss, metrics and optimizers; data and settings are not set yet."""
        if hasattr(self, "EpochRunner"):
            raise AttributeError(
                "KerasModel has no EpochRunner to replace: the loop over the batches is train_loop() of TemplateModel, "
                "which also saves, resumes and joins processes. Remove the line that sets it, and replace StepRunner, add "
                "a callback, or write a subclass of TemplateModel whose loop you see.")
        if self.StepRunner is not StepRunner:
            return _BySteps(self)
        if self.kwargs:
            raise TypeError("KerasModel passes further arguments on to a StepRunner of your own, and there is none; got "
                            f"{list(self.kwargs)}. Its own arguments are net, loss_fn, metrics_dict, optimizer, "
                            "lr_scheduler and step_runner.")
        return _ByOwnLoss(self) if self.loss_fn is None else _ByLoss(self)

    @property
    def history(self) -> dict[str, list[Any]]:
        """The columns that ``fit`` returns, by name."""
        return columns_of(self._rows())

    def _rows(self):
        if self.trainer is None:
            return self._told_rows
        baseline = self._call.best_weights.baseline
        return in_pairs([named_as_in_keras(row) for row in ([baseline] if baseline else []) + self.trainer.history])

    # --- behind the training --------------------------------------------------------------------------------------

    def evaluate(self, val_data: Iterable[Any], quiet: bool = False) -> dict[str, Any]:
        """Loss and metrics of the present weights on ``val_data``; nothing is noted or changed.

        Args:
            val_data: batches, as ``fit`` takes them.
            quiet: print no line.

        Returns:
            ``{"val_loss": …, "val_<metric>": …}``.
        """
        check_batches("val_data", val_data)
        if self.trainer is not None:
            result, is_main = self.trainer.test(val_data), self.trainer.is_main
        else:
            result, is_main = self._test_before_training(val_data)
        named = named_as_in_keras({f"eval/{name}": value for name, value in result.items()})
        if not quiet and is_main:
            print(", ".join(f"{name} {number(value)}" for name, value in named.items() if isinstance(value, float)))
        return named

    def _test_before_training(self, val_data):
        with rng_kept(), tempfile.TemporaryDirectory() as folder:
            trainer = self._new_trainer()
            trainer.train_loader = val_data
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
        trainer = self.trainer if self.trainer is not None else self._new_trainer()
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
        weights = {name: value.detach().cpu() for name, value in state.unwrap(self.net).state_dict().items()}
        files.write(weights, Path(self.ckpt_path if ckpt_path is None else ckpt_path).expanduser())

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
        kept = (path if path.is_dir() else run_folder(path)) / "best.pth"
        if not path.is_file() and kept.is_file():
            path = kept
        self._take_weights(path)
        self.__dict__.update(_NO_RUN)
        self.from_scratch = False

    def _take_weights(self, path):
        saved, bare = files.read(path), TemplateModel()
        bare.model_list = [self.net]
        state.apply_weights(bare, saved if "model0" in saved else {"model0": saved})

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
        self.__dict__.update(_NO_RUN)
        self._told_rows, self._goal, self._continues, self.from_scratch = rows, goal, Path(folder), True
        if (path := self._continues / "best.pth").is_file():
            self._take_weights(path)
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
        from .tools.launch import launch  # type: ignore[import-not-found,unused-ignore]  # it may be left out of a copy

        if self.trainer is not None:
            self.trainer.close()
            self._continues = self.trainer.path_of(".").absolute() if self.trainer.global_step else None
        run = {**_NO_RUN, "StepRunner": self.StepRunner, "_goal": self._goal, "_continues": self._continues}
        package: Any = self, call, args, kwargs, run
        if hasattr(sys.modules["__main__"], "__file__"):  # else they are forked, and have it
            package = pickled(package)
        return launch(call_in_process, num_processes, package)[0]


_SAVE_CKPT = KerasModel.save_ckpt  # as it is here: it may be replaced


class _ByLoss(ByLoss, TemplateModel):
    """The trainer of a model with ``loss_fn``."""


class _ByOwnLoss(ByOwnLoss, TemplateModel):
    """The trainer of a model whose network returns its loss."""


class _BySteps(BySteps, TemplateModel):
    """The trainer of a model with a step of its own."""
