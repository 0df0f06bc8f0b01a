"""The training loop that you subclass, and may read in one sitting.

    class Trainer(TemplateModel):
        def __init__(self):
            super().__init__()
            self.model_list = [model]
            self.optimizer_list = [torch.optim.Adam(model.parameters(), 1e-3)]
            self.criterion = torch.nn.CrossEntropyLoss()
            self.train_loader, self.eval_loader = train_loader, eval_loader

    trainer = Trainer()
    trainer.check_init()
    for epoch in trainer.epochs(10):
        trainer.train_loop()
        trainer.eval()

This file holds what every training has, and no feature: what you set, what you override, the loop, the evaluation. How an
update is done stands in ``update/``, what happens beside the loop in ``callbacks/``, how a run is set up, saved, left and
closed in ``run/``, with the methods around the loop (``load_state``, ``predict``, ``change_lr``, …) in ``run/requests.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from .callbacks import default_callbacks
from .metrics.best import last_score, score_of
from .metrics.epoch import RunningLosses, of_loader, updated
from .metrics.modes import train_mode
from .output import run_folder
from .output.event_writer import WriterOfRun
from .parallel import ranks
from .run import checks, class_attributes
from .run.checkpoints import Checkpoints
from .run.counting import SampleCounter
from .run.defaults import call_model, criterion_loss, default_metrics, follow_reduction, loss_dict, own_loss, split_batch
from .run.lifetime import Lifetime
from .run.reports import log_window, tell_evaluation
from .run.requests import AroundTheLoop
from .run.setup import set_up
from .update.lr_scheduler import WarmUpLR as WarmUpLR  # the template.py of 2021 held it
from .update.stepper import make_clip

if TYPE_CHECKING:
    from .hooks import Hooks
    from .output.logger import Logger
    from .run.evaluation import Evaluator
    from .update.schedule import Schedule
    from .update.stepper import Stepper


class TemplateModel(AroundTheLoop):
    """Subclass it, set the first five attributes, override ``loss_per_batch`` and ``metric`` where the defaults do not do.

    The defaults serve ``(x, y)`` batches through one chain of models with any criterion of ``(pred, y)``, and models that
    return their own loss (``criterion = None``).
    """

    def __init__(self) -> None:
        # --- must be set ---
        self.model_list: Sequence[nn.Module] | nn.ModuleList = None  # type: ignore[assignment]
        """Your models, in the order in which the data passes through them."""
        self.optimizer_list: Sequence[torch.optim.Optimizer] = None  # type: ignore[assignment]
        """Your optimizers; they are stepped from the last to the first."""
        self.criterion: Any = None
        """``criterion(pred, y) -> loss``. None: the model returns its own loss."""
        self.train_loader: Iterable[Any] = None  # type: ignore[assignment]
        """A DataLoader, a TensorLoader, any iterable of batches, or a dict of them."""
        self.eval_loader: Iterable[Any] | None = None
        """The same for evaluation, which ``eval()`` reads; None: ``test_loader``, or there is nothing to evaluate."""

        # --- may be set: where and how ---
        self.test_loader: Iterable[Any] | None = None
        """What ``test()`` reads; None: ``eval_loader``. Where only this one is set, ``eval()`` reads it too, as in 2021."""
        self.device: str | torch.device = ranks.default_device()
        """Where the models train: the GPU where there is one, else the CPU."""
        self.ckpt_dir: str = f"{run_folder.ROOT}/{run_folder.time_stamp()}"
        """Folder of the run: log, history, checkpoints. Where a run is in it already, a new one begins in ``<name>_2``."""
        self.overwrite: bool = False
        """True: a run that is in ``ckpt_dir`` already is replaced, unless ``load_state`` continues it."""
        self.run_name: str | None = None
        """Folder of the TensorBoard events under ``runs/``; None: the name of ``ckpt_dir``."""
        self.log_per_step: int = 5
        """Updates between two log points; each log point costs one wait for the device."""
        self.seed: int | None = None
        """Seed of data order and augmentation; None: that of ``seed_everything``, or one is drawn and printed."""
        self.deterministic: bool = False
        """Refuse kernels whose result varies from run to run."""
        self.preflight: bool = True
        """Look for mistakes on the first batch."""
        self.slice_tensors: bool = True
        """Read a DataLoader over a TensorDataset by slicing: the same batches, sooner."""
        self.limit_train_batches: int | float | None = None
        """Train on so many batches of each epoch, or on a share of them (0.1), for a quick look."""
        self.limit_eval_batches: int | float | None = None
        """The same for ``eval()``."""
        self.callbacks: Sequence[Any] | None = None
        """Callbacks that are added to the default set (progress bar, TensorBoard, history)."""

        # --- may be set: the update ---
        self.accumulate_steps: int = 1
        """Batches per update (gradient accumulation)."""
        self.nominal_batch_size: int | None = None
        """Or the samples of an update: it takes as many batches as make them, rising from one during the warm-up."""
        self.amp: str | None = None
        """Mixed precision: "bf16" or "fp16"."""
        self.clip_grad: float | dict[str, float] | None = None
        """Gradient clipping: 1.0 (L2 norm), ``{"norm": 1.0, "norm_type": 1.0}`` or ``{"value": 0.5}``."""
        self.skip_non_finite: int = 0
        """How many updates in a row may be skipped because a loss or gradient is not finite."""
        self.fused: bool = False
        """Optimizers in torch's fused form, which goes through the weights once for a step."""
        self.compile: bool | str = False
        """True, or a mode of ``torch.compile``; "step": the whole update in one graph, see ``update/compiled_step.py``."""
        self.channels_last: bool = False
        """Convolutions in the memory format that bf16 and fp16 are fastest in."""
        self.matmul_precision: str | None = None
        """ "high" or "medium": float32 matrix products in TF32 or bf16."""

        # --- may be set: several processes, started by torchrun ---
        self.parallel: str | None = "auto"
        """ "ddp", "fsdp"; "auto": "ddp" where there are several processes; None: each process trains on its own."""
        self.parallel_options: dict[str, Any] = {}
        """Options of DistributedDataParallel or ``fully_shard``; see ``parallel/gradients.py``."""
        self.sync_batchnorm: bool = False
        """BatchNorm statistics over the batches of all processes; on GPUs."""

        # --- may be set: the learning rate ---
        self.lr_scheduler_list: Sequence[Any] | None = None
        """Your own schedulers, one per optimizer."""
        self.lr_scheduler_type: str | None = None
        """Or the name of a schedule, which is built for every optimizer: "cosine", "onecycle", "step", "loss", …"""
        self.lr_scheduler_args: dict[str, Any] = {}
        """Arguments of that schedule."""
        self.lr_scheduler_interval: str | None = None
        """When the schedule steps: "epoch" or "update"; None: what suits the type."""
        self.total_epochs: int | None = None
        """Length of the run; ``epochs(n)`` and ``fit(n)`` set it."""
        self.total_updates: int | None = None
        """Or its length in updates; ``updates(n)`` and ``fit(updates=n)`` set it."""
        self.warm_up_epoch: float = 0
        """Epochs of warm-up; a fraction counts updates."""
        self.warm_up_updates: int | None = None
        """Or the number of updates of the warm-up itself."""
        self.warm_up_mode: str = "linear"
        """ "linear", "exponential" or "constant". ``warm_up_type`` is another name for it."""
        self.warm_up_init_lr: float = 1e-6
        """Learning rate of the first step of the warm-up."""
        self.warm_up_momentum: float | None = None
        """Momentum of the first step of the warm-up; None leaves momentum alone."""
        self.warm_up_bias_lr: float | None = None
        """Learning rate of the first step for parameter groups named "bias"."""
        self.warm_up_scheduler_list: Sequence[Any] | None = None
        """Your own ``WarmUpLR`` objects, one per optimizer."""

        # --- may be set: what is best, what is kept ---
        self.key_metric: str | None = None
        """The metric or loss that decides what is best; None: the only metric there is, else the evaluation loss."""
        self.key_metric_mode: str | dict[str, str] | None = None
        """ "max", "min", or ``{metric: mode}``; None: as the name says (errors down, scores up), else losses down."""
        self.one_forward: bool = False
        """Hand the outputs that your ``loss_per_batch`` computed to your ``eval_scores_per_batch``, one forward for both."""
        self.eval_metrics: dict[str, Any] = {}
        """``{name: accumulator}``, which ``metric()`` updates with ``(pred, y)``; or ``{loader: {name: accumulator}}``."""
        self.train_metrics: bool | dict[str, Any] = False
        """True: what ``metric()`` gives on training batches too; or ``{name: accumulator}`` for the training alone."""
        self.save_per_steps: int | None = None
        """Also write ``last.pth`` every so many updates."""
        self.save_per_seconds: float | None = None
        """Also write ``last.pth`` when the last save is so many seconds ago."""
        self.keep_checkpoints: int | None = None
        """Keep the newest K ``epoch<N>.pth``; None: all of them."""
        self.eval_per_steps: int | None = None
        """Also evaluate every so many updates, in the middle of an epoch."""
        self.stop_when_save_fails: bool = False
        """Stop rather than go on without checkpoints; each save is waited for."""

        self._settings = class_attributes.take(self)  # names; what the class body of a subclass sets counts from here on

        # --- state, to read ---
        self.epoch: int = 0
        """Number of the present epoch; the first is 1."""
        self.epochs_done: int = 0
        """Epochs that are over."""
        self.batches_done: int = 0
        """Batches that were trained on in the present epoch."""
        self.global_step: int = 0
        """Updates done in the whole run."""
        self.global_step_eval: int = 0
        """Evaluation batches done in the whole run."""
        self.best_metric: dict[str, float] = {}
        """``{metric or loss: its best value}``."""
        self.best_epoch: dict[str, int] = {}
        """``{metric or loss: the epoch of its best value}``."""
        self.eval_result: dict[str, Any] = {}
        """Losses and metrics of the last evaluation."""
        self.should_stop: bool | Literal["now"] = False
        """Set it in a callback. True: the loop ends after this epoch. "now": after this update, in the midst of an epoch."""
        self.run_options: dict[str, Any] = {}
        """What was given to ``check_init(arg=…)``."""
        self.world: ranks.Alone = ranks.Alone()
        """The processes that train together: ``world.rank``, ``world.size``."""

        # --- state, for callbacks and the rooms of this folder ---
        self.write_params: bool = False        # this epoch's histograms are wanted
        self.running_losses = RunningLosses()  # of the present epoch
        self.eval_loss_names: set[str] = set()  # the entries of eval_result that are losses
        self.is_sharded: bool = False          # weights are divided among the ranks
        self.input_dtype: torch.dtype = torch.float32  # of the models; floating inputs are converted to it
        self.started_in: str = ""              # folder that a relative ckpt_dir is in
        self.asked_dir: str = ""               # ckpt_dir as it was set; it gets a number where a run is in it already
        self.train_batches: Any = None         # what train_loader gives, in an order that can be continued
        self.hooks: Hooks = None               # type: ignore[assignment]  # check_init builds this and the next four
        self.stepper: Stepper = None           # type: ignore[assignment]
        self.lr_schedule: Schedule = None      # type: ignore[assignment]
        self.evaluator: Evaluator = None       # type: ignore[assignment]
        self.stdout_logger: Logger = None      # type: ignore[assignment]
        self.checkpoints = Checkpoints(self)
        self.lifetime = Lifetime(self, self.checkpoints)
        self._counter = SampleCounter(self)
        self._writer = WriterOfRun()
        self._epoch_started = 0.0              # seconds, on time.perf_counter's clock
        self.attribute_names = self._settings.union(vars(self))

    # --- override these -------------------------------------------------------------------------------------------

    def inference(self, x: Any) -> Any:
        """``x`` through the chain of models. A mapping becomes keyword arguments, a tuple positional ones."""
        for model in self.model_list:
            x = call_model(model, x)
        return x

    def loss_per_batch(self, batch: Any) -> Any:
        """The losses of one batch, which is on the device: ``{"tol_loss": …, other entries to log}`` or a bare tensor.

        ``tol_loss`` is trained on; it is the mean over the batch's samples. The default gives their sum where the criterion
        has ``reduction="sum"``: updates follow the sum, and the mean is reported.
        """
        if self.criterion is None:
            return own_loss(self.inference(batch))
        x, y = split_batch(batch, self.input_dtype)
        pred = self.inference(x)
        return {"tol_loss": criterion_loss(self, pred, y)}

    def eval_scores_per_batch(self, batch: Any) -> Mapping[str, Any]:
        """The metrics of one eval batch: ``metric`` of what ``inference`` gives."""
        if self.criterion is None and not self._overrides("metric") and not self.eval_metrics:
            return {}
        x, y = split_batch(batch, self.input_dtype)
        return self.metric(self.inference(x), y)

    def metric(self, pred: Any, y: Any) -> Mapping[str, Any]:
        """``{name: value}`` of one batch: plain numbers are averaged over samples, ``Mean``, ``Stored``, ``Confusion`` and
        torchmetrics objects accumulate. The default is accuracy ("acc") where the criterion says what is right: for classes
        and for one logit per sample."""
        if metrics := of_loader(self.eval_metrics, self.evaluator and self.evaluator.loader_name):
            return updated(metrics, pred, y)
        is_direct = not any(map(self._overrides, ("loss_per_batch", "train_step", "eval_scores_per_batch")))
        return default_metrics(self.criterion, pred, y, is_direct)

    def train_step(self, batch: Any) -> Any:
        """One batch up to its gradients. Override it for alternating updates: ``backward(loss, i)``, ``update(i)``. When it
        calls no ``update``, all optimizers are updated at the end of the accumulation group."""
        with self.stepper.autocast(), self.running_losses.metrics.recording(batch):
            losses = loss_dict(self.loss_per_batch(batch))
        self.stepper.backward(losses["tol_loss"])
        return losses

    def count_samples(self, batch: Any) -> Any:
        """The batch's weight in every mean and in its accumulation group: its length; override it to count tokens."""
        return self._counter.count(batch)

    # --- tools for train_step -------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of mixed precision, which ``amp`` asks for; without it, it does nothing."""
        return self.stepper.autocast()

    def backward(self, loss: torch.Tensor, index: int | None = None, retain_graph: bool | None = None) -> None:
        """Add the gradients of ``loss``, into the parameters of optimizer ``index`` alone if it is given."""
        self.stepper.backward(loss, index, retain_graph)

    def update(self, index: int | None = None, step: bool = True) -> None:
        """Step optimizer ``index``, or all, once the accumulation group is complete; ``step=False``: your code did it."""
        self.stepper.update(index, step)

    # --- setting up -----------------------------------------------------------------------------------------------

    def check_init(self, log_name: str = "log.txt", clean_log: bool = False, arg: Any = None, use_tb: bool = True,
                   log_path: str | None = None) -> None:
        """Check what was set, and build what the loop runs on. Call it once, before everything else.

        Args:
            log_name: file in ``ckpt_dir`` that stdout is copied to.
            clean_log: empty that file first.
            arg: options to print and store: argparse Namespace, dataclass or dict.
            use_tb: False writes no TensorBoard events (debugging).
            log_path: the same as ``log_name``, by an older name; a path is seen from where the script runs.

        Raises:
            TypeError, ValueError: something is missing or does not fit; the message says what to do.
            OSError: ``ckpt_dir`` cannot be written to.
        """
        set_up(self, default_callbacks, self._overrides, log_name, clean_log, arg, use_tb, log_path)

    # --- the loop -------------------------------------------------------------------------------------------------

    def epochs(self, total: int) -> Iterator[int]:
        """Iterate over the epochs that are left of ``total``; ends early when a callback set ``should_stop``, and cleans up.

            for epoch in trainer.epochs(30):
                trainer.train_loop()
                trainer.eval()
        """
        checks.require_init(self)
        return self.lifetime.pace.rounds(epochs=total)

    def updates(self, total: int) -> Iterator[int]:
        """The same until ``total`` updates are done in the whole run, also within an epoch, for endless loaders too."""
        checks.require_init(self)
        return self.lifetime.pace.rounds(updates=total)

    def fit(self, total: int | None = None, save_per_epochs: int = 1, updates: int | None = None) -> dict[str, float]:
        """The loop itself: ``total`` epochs or so many ``updates`` of ``train_loop`` and ``eval``. Gives ``best_metric``."""
        checks.require_init(self)
        checks.require_one_length(total, updates)
        for _ in self.lifetime.pace.rounds(total, updates):
            self.lifetime.will_evaluate = True
            self.train_loop()
            if self.eval_loader is not None:
                self.eval(save_per_epochs)
        return self.best_metric

    def train_loop(self, write_params: bool = False, clip_grad: float | dict[str, float] | None = None) -> dict[str, float]:
        """Train one epoch, or what a resumed checkpoint left of it.

        Order of events::

            on_run_start                # once in a process
            on_train_start
            for each group of accumulate_steps batches:
                for each batch of the group:
                    on_batch
                    train_step: forward, loss, backward
                on_before_step
                clip, step, zero_grad, schedule
                on_after_step
                on_log                  # every log_per_step updates, and for what is left at the end
            on_train_end

        Behind it comes the evaluation, if there is one, and then ``on_epoch_end``, before the epoch is saved.

        Args:
            write_params: TensorBoard histograms of weights and gradients in this epoch.
            clip_grad: as the attribute, for this epoch.

        Returns:
            ``{loss name: mean over the epoch's samples}``.

        Raises:
            FloatingPointError: the loss of a batch was not finite.
            SystemExit: SIGTERM (143) or Ctrl-C (130) came; the state after the running update is saved.
            KeyboardInterrupt: the same in a notebook, IPython or ``python -i``; anywhere: a second Ctrl-C, which waits for
                nothing. This trainer goes on from there.
        """
        if not self._begin_epoch(write_params, clip_grad):
            return {}
        hooks, stepper, losses, step = self.hooks, self.stepper, self.running_losses, self.stepper.around(self.train_step)
        with self.lifetime.session():
            hooks.begin_run(self)
            for call in hooks.on_train_start:
                call(self)
            for group in stepper.groups(self.train_batches.epoch(self.epoch, start=self.batches_done)):
                for batch, num_samples in group:
                    for call in hooks.on_batch:
                        call(self, batch)
                    losses.update(loss_dict(step(batch), needs_total=False), num_samples)
                    self.batches_done += self.world.size
                stepper.finish_group()
                self.global_step += 1
                for call in hooks.on_after_step:
                    call(self)
                self.lifetime.after_update()
            checks.require_batches(self)
            log_window(self)
            return self.lifetime.end_training()
        return losses.compute()  # of the part of the epoch that was logged: a callback ended it

    def _begin_epoch(self, write_params, clip_grad):
        """Number the epoch: the user may count ``epoch += 1`` or leave it; no epoch is trained twice."""
        checks.require_init(self)
        if not self.lifetime.begin_epoch():
            return False
        self.epoch = max(self.epoch, self.epochs_done + 1)
        self.write_params = write_params
        self._epoch_started = time.perf_counter()
        self.stepper.clip = make_clip(self.clip_grad if clip_grad is None else clip_grad)
        follow_reduction(self, self.criterion)
        train_mode(self.model_list)
        return True

    # --- evaluation -----------------------------------------------------------------------------------------------

    def eval(self, save_per_epochs: int = 1) -> float:
        """Evaluate on ``eval_loader``, note the best values, step plateau schedules, save.

        Args:
            save_per_epochs: write ``epoch<N>.pth`` when the epoch's number is a multiple of it; 0 writes none.

        Returns:
            The value of ``key_metric``, a float.
        """
        checks.require_init(self)
        checks.require_eval_loader(self)
        lifetime = self.lifetime
        if not lifetime.begin_evaluation():
            return last_score(self)
        with lifetime.session(), lifetime.undone_when_cut_short():
            with self.evaluator.events():
                result = self.eval_result = self.evaluator.score(self.hooks.on_eval_batch)
                score = score_of(self, result)
                if lifetime.only_looks:
                    tell_evaluation(self, result)
                    return score
                improved = lifetime.note_evaluation(result)
                for call in self.hooks.on_eval_result:
                    call(self, result)
                if improved:  # the weights that were scored: a callback may have put averages in their place
                    self.checkpoints.save_best()
            lifetime.finish_evaluation(score, save_per_epochs)
        return score

    def test(self, loader: Iterable[Any] | None = None) -> dict[str, Any]:
        """Losses and metrics on ``loader`` (None: ``test_loader``, else ``eval_loader``); nothing is noted or saved."""
        checks.require_init(self)
        if loader is None and self.test_loader is None:
            checks.require_eval_loader(self)
        with self.lifetime.session("test()"), self.lifetime.undone_when_cut_short(), self.evaluator.events():
            return self.evaluator.score_test(self.hooks.on_eval_batch, loader)

    def _overrides(self, name):
        """Whether the subclass, or this one object, has a method of its own by this name."""
        return name in vars(self) or getattr(type(self), name) is not getattr(TemplateModel, name)
