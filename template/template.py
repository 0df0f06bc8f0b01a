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

How an update is done stands in ``update/stepper.py``, what happens beside the loop in ``callbacks/``, how a run is saved,
left and closed in ``run/lifetime.py``, reports and files in ``run/requests.py``. This file holds no feature: only what every
training has.
"""

import atexit
import math
import os
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import torch

from .callbacks import default_callbacks
from .checkpoint.saver import Saver
from .data.loaders import make_batches
from .data.nested import first_tensor, loader_length
from .data.seeding import draw_seed, seed_everything
from .data.shares import Share, Uneven
from .hooks import Hooks, run_all
from .metrics.epoch import EpochMetrics, RunningLosses, distinct_sources
from .metrics.one_forward import OneForward, eval_mode
from .output import run_folder
from .output.logger import Logger
from .parallel import ranks
from .parallel.gradients import make_parallel
from .run import checks
from .run.defaults import fitting_labels, input_of, loss_dict, own_loss, parameter_dtype, split_batch
from .run.lifetime import RunLifetime, close_if_alive
from .run.prepare import TellCompiling, prepare
from .run.signals import StopRequest
from .update.guard import SkipGuard
from .update.schedule import build_schedule
from .update.stepper import Stepper, make_clip


class TemplateModel(RunLifetime):
    """Subclass it, set the first five attributes, override ``loss_per_batch`` and ``metric`` where the defaults do not do.

    The defaults serve ``(x, y)`` batches through one chain of models with any criterion of ``(pred, y)``, and models that
    return their own loss (``criterion = None``).
    """

    def __init__(self):
        # --- must be set
        self.model_list = None         # [nn.Module, …]
        self.optimizer_list = None     # [Optimizer, …]; stepped from the last to the first
        self.criterion = None          # criterion(pred, y) -> loss; None: the model returns its own loss
        self.train_loader = None       # DataLoader, TensorLoader, any iterable of batches, or a dict of them
        self.eval_loader = None        # the same; None: there is nothing to evaluate. Also called test_loader

        # --- may be set: where and how
        self.device = ranks.default_device()
        self.ckpt_dir = f"{run_folder.ROOT}/{run_folder.time_stamp()}"
        self.run_name = None           # folder under runs/; None: the name of ckpt_dir
        self.log_per_step = 5          # updates between two log points; each costs one wait for the device
        self.seed = None               # None: drawn and printed
        self.deterministic = False     # refuse kernels whose result varies from run to run
        self.preflight = True          # look for mistakes on the first batch
        self.slice_tensors = True      # read a DataLoader over a TensorDataset by slicing: the same batches, sooner
        self.callbacks = None          # list, added to the default set (progress bar, TensorBoard, history)

        # --- may be set: the update
        self.accumulate_steps = 1      # batches per update
        self.amp = None                # "bf16" or "fp16"
        self.clip_grad = None          # 1.0 (L2 norm), {"norm": 1.0, "norm_type": 1.0} or {"value": 0.5}
        self.skip_non_finite = 0       # updates in a row that may be skipped for a loss or gradient that is not finite
        self.compile = False           # True, or a mode of torch.compile
        self.channels_last = False     # convolutions in the memory format that bf16 and fp16 are fastest in
        self.matmul_precision = None   # "high" or "medium": float32 matrix products in TF32 or bf16

        # --- may be set: several processes, started by torchrun
        self.parallel = "auto"         # "ddp", "fsdp"; "auto": "ddp" where there are several; None: each on its own
        self.parallel_options = {}     # of DistributedDataParallel or fully_shard, see parallel/gradients.py
        self.sync_batchnorm = False    # statistics over all ranks' batches; on GPUs

        # --- may be set: the learning rate
        self.lr_scheduler_list = None  # your own schedulers, one per optimizer
        self.lr_scheduler_type = None  # or one of lr_scheduler.SCHEDULES, built for every optimizer
        self.lr_scheduler_args = {}    # arguments of that type
        self.lr_scheduler_interval = None  # "epoch" or "update"; None: what suits the type
        self.total_epochs = None       # length of the run; epochs(n) and fit(n) set it
        self.warm_up_epoch = 0         # may be fractional: then it counts updates
        self.warm_up_updates = None    # or the number of updates itself
        self.warm_up_mode = "linear"   # "exponential", "constant". Also called warm_up_type
        self.warm_up_init_lr = 1e-6
        self.warm_up_momentum = None   # momentum of the first step
        self.warm_up_bias_lr = None    # rate of the first step for groups named "bias"
        self.warm_up_scheduler_list = None

        # --- may be set: what is best, what is kept
        self.key_metric = None         # None: the only metric there is, else the eval loss
        self.key_metric_mode = None    # "max", "min", or {metric: mode}; None: losses down, metrics up
        self.eval_metrics = {}         # {name: accumulator}, updated with (pred, y) by the default metric()
        self.save_per_steps = None     # also write last.pth every so many updates
        self.save_per_seconds = None   # and when the last save is so long ago
        self.keep_checkpoints = None   # keep the newest K epoch<N>.pth; None: all
        self.stop_when_save_fails = False  # True: rather than go on without checkpoints; each save is waited for

        # --- state
        self.epoch = 0                 # number of the present epoch; the first is 1
        self.epochs_done = 0           # epochs that are over
        self.batches_done = 0          # in the present epoch
        self.global_step = 0           # updates done
        self.global_step_eval = 0      # eval batches done
        self.best_metric = {}          # {metric: best value}
        self.best_epoch = {}           # {metric: its epoch}
        self.should_stop = False       # set by a callback: the loop ends after this epoch
        self.running_losses = RunningLosses()  # of the present epoch
        self.write_params = False      # this epoch's histograms are wanted
        self.run_options = {}          # what was given to check_init(arg=…)
        self.world = ranks.Alone()  # the ranks; check_init meets the others
        self.is_sharded = False        # weights are divided among the ranks
        self.hooks = None              # built by check_init, like the next four
        self.stepper = None
        self.lr_schedule = None
        self.stdout_logger = None
        self.train_batches = None      # what train_loader gives, in an order that can be continued
        self.started_in = ""           # folder that a relative ckpt_dir is in
        self.eval_result = {}          # of the last evaluation
        self.eval_loss_names = set()   # those of its entries that are losses
        self._writer = "auto"
        self._open_epoch = None        # number of the epoch that was trained but is not over
        self._evaluated_epoch = None
        self._epoch_started = 0.0      # seconds, on time.perf_counter's clock
        self._input_dtype = torch.float32  # of the models
        self._stop_request = StopRequest()
        self._saver = Saver()
        weakref.finalize(self, self._saver.release).atexit = False
        self._saved_step = 0           # global_step of the newest save or load
        self._epoch_file = None        # path that the newest save was to have as well
        self._saved_at = 0.0           # seconds, on time.monotonic's clock
        self._half_evaluated = False   # best values, schedules and callbacks know an evaluation that is not over
        self._is_closed = True         # on_exit was called since anything ran
        self._eval_batches = {}        # by prefix of their results
        self.attribute_names = frozenset(vars(self))

    # --- override these -------------------------------------------------------------------------------------------

    def inference(self, x):
        """``x`` through the chain of models. A dict becomes keyword arguments, a tuple positional ones."""
        for model in self.model_list:
            if isinstance(x, dict):
                x = model(**x)
            elif isinstance(x, (list, tuple)):
                x = model(*x)
            else:
                x = model(x)
        return x

    def loss_per_batch(self, batch):
        """The losses of one batch, which is on the device: ``{"tol_loss": …, other entries to log}`` or a bare tensor.

        ``tol_loss`` is trained on; it is the mean over the batch's samples.
        """
        if self.criterion is None:
            return own_loss(self.inference(batch))
        x, y = split_batch(batch, self._input_dtype)
        pred = self.inference(x)
        return {"tol_loss": self.criterion(pred, fitting_labels(self.criterion, pred, y))}

    def eval_scores_per_batch(self, batch):
        """The metrics of one eval batch. What ``loss_per_batch`` already ran through a model is not run again."""
        if self.criterion is None and not self.overrides("metric") and not self.eval_metrics:
            return {}
        x, y = split_batch(batch, self._input_dtype)
        return self.metric(self.inference(x), y)

    def metric(self, pred, y):
        """``{name: value}`` of one batch: plain numbers are averaged over samples, ``Mean``, ``Stored``, ``Confusion`` and
        torchmetrics objects accumulate. The default is accuracy ("acc") for class scores [B, C, …] with integer labels."""
        if self.eval_metrics:
            for source in distinct_sources(self.eval_metrics.values()):
                source.update(pred, y)
            return dict(self.eval_metrics)
        is_classes = isinstance(pred, torch.Tensor) and pred.dim() == y.dim() + 1 and not y.is_floating_point()
        return {"acc": (pred.argmax(1) == y).float().mean()} if is_classes else {}

    def train_step(self, batch):
        """One batch up to its gradients. Override it for alternating updates: ``backward(loss, i)``, ``update(i)``.

        When it calls no ``update``, all optimizers are updated at the end of the accumulation group.
        """
        with self.stepper.autocast():
            losses = loss_dict(self.loss_per_batch(batch))
        self.stepper.backward(losses["tol_loss"])
        return losses

    def count_samples(self, batch):
        """The batch's weight in every mean and in its accumulation group: its length; override it to count tokens."""
        tensor = first_tensor(batch)
        return 1 if tensor is None else len(tensor)

    # --- tools for train_step -------------------------------------------------------------------------------------

    def autocast(self):
        return self.stepper.autocast()

    def backward(self, loss, index=None):
        """Add the gradients of ``loss``, into the parameters of optimizer ``index`` alone if it is given."""
        self.stepper.backward(loss, index)

    def update(self, index=None):
        """Step optimizer ``index``, or all, once the accumulation group is complete."""
        self.stepper.update(index)

    # --- setting up -----------------------------------------------------------------------------------------------

    def check_init(self, log_name="log.txt", clean_log=False, arg=None, use_tb=True):
        """Check what was set, and build what the loop runs on. Call it once, before everything else.

        Args:
            log_name: file in ``ckpt_dir`` that stdout is copied to.
            clean_log: empty that file first.
            arg: options to print and store: argparse Namespace, dataclass or dict.
            use_tb: False writes no TensorBoard events (debugging).

        Raises:
            TypeError, ValueError: something is missing or does not fit; the message says what to do.
            OSError: ``ckpt_dir`` cannot be written to.
        """
        checks.require_no_init(self)
        self.adopt_old_names()
        checks.check_attributes(self)

        device = self._meet()
        if self.matmul_precision is not None:
            torch.set_float32_matmul_precision(self.matmul_precision)
        prepare(self.model_list, device, self.channels_last, self.sync_batchnorm and self.world.size > 1, self.compile)
        for part in (self.criterion, *self.eval_metrics.values()):
            if isinstance(part, torch.nn.Module):  # torchmetrics' objects are modules too
                part.to(device)
        self._input_dtype = parameter_dtype(self.model_list)
        seed = self.world.share(draw_seed() if self.seed is None else self.seed)
        self.seed = seed_everything(seed, self.deterministic, self.world.rank)
        parallel = make_parallel(self, device) if self.world.size > 1 else None
        self.is_sharded = parallel is not None and parallel.is_sharded
        share = Share(self.world.rank, self.world.size)
        self.train_batches = make_batches(self.train_loader, self.seed, device, self.slice_tensors, share)
        self._eval_batches = self._by_prefix(self.eval_loader)
        self.lr_schedule = build_schedule(self, self.updates_per_epoch())
        self.stepper = Stepper(
            self.optimizer_list, device, self.accumulate_steps, self.amp, self.clip_grad, self.count_samples,
            before_step=self._before_step,
            after_update=self.lr_schedule.after_update,
            guard=SkipGuard(self.skip_non_finite, self.tell_skipped, self.world) if self.skip_non_finite else None,
            parallel=parallel,
        )
        extra = [*checks.preflight(self), *([TellCompiling()] if self.compile else [])]
        hooks = Hooks([*default_callbacks(self.callbacks or ()), *extra])

        self.started_in = os.getcwd()
        self.ckpt_dir, self.run_name = self.world.from_main(lambda: run_folder.prepare(self.ckpt_dir, self.run_name))
        self.stdout_logger = Logger(Path(self.ckpt_dir) / log_name if self.world.is_main else os.devnull)
        if clean_log and self.world.is_main:
            self.stdout_logger.clean()
        self.stdout_logger.install()
        atexit.register(close_if_alive, weakref.ref(self))
        if not (use_tb and self.world.is_main):
            self.writer = None
        self.run_options = run_folder.as_dict(arg)
        self.hooks = hooks
        self._saved_at = time.monotonic()
        if self.world.is_main:
            run_folder.announce(self)
        for note in self.train_batches.notes():
            print(f"  not exact when continued: {note}")

    def _by_prefix(self, loader):
        """``{prefix of the results: batches}``; one loader has no prefix."""
        loaders = loader if isinstance(loader, dict) else {} if loader is None else {"": loader}
        device = torch.device(self.device)
        share = Share(self.world.rank, self.world.size, divides=False, with_spares=self.is_sharded)
        return {f"{name}/" if name else "": make_batches(part, self.seed, device, self.slice_tensors, share)
                for name, part in loaders.items()}

    def updates_per_epoch(self):
        """On each rank; None when ``train_loader`` has no length."""
        batches = loader_length(self.train_batches)
        return None if batches is None else math.ceil(batches / self.accumulate_steps)

    # --- the loop -------------------------------------------------------------------------------------------------

    def epochs(self, total):
        """Iterate over the epochs that are left of ``total``: starts behind a resumed one, ends early when a callback
        set ``should_stop``, cleans up at the end.

            for epoch in trainer.epochs(30):
                trainer.train_loop()
                trainer.eval()
        """
        checks.require_init(self)
        self.total_epochs = total
        self.lr_schedule.set_total(total, self.updates_per_epoch())
        if self.epochs_done >= total or self.should_stop:
            print(f"Nothing left to train: {self.epochs_done} of {total} epochs are done"
                  f"{' and the run was stopped early' if self.should_stop else ''}.")
        try:
            while self.epochs_done < total and not self.should_stop:
                before = self.epochs_done
                yield before + 1
                self._finish_epoch()
                if self._stop_request.signal:
                    self._leave()
                if self.epochs_done == before:
                    raise RuntimeError("The body of `for epoch in trainer.epochs(n)` must call trainer.train_loop().")
        finally:
            self.close()

    def fit(self, total, save_per_epochs=1):
        """The loop itself: ``total`` epochs of ``train_loop`` and, where there is an ``eval_loader``, ``eval``.

        Returns:
            ``best_metric``.
        """
        for _ in self.epochs(total):
            self.train_loop()
            if self.eval_loader is not None:
                self.eval(save_per_epochs)
        return self.best_metric

    def train_loop(self, write_params=False, clip_grad=None):
        """Train one epoch, or what a resumed checkpoint left of it.

        Order of events::

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

        Args:
            write_params: TensorBoard histograms of weights and gradients in this epoch.
            clip_grad: as the attribute, for this epoch.

        Returns:
            ``{loss name: mean over the epoch's samples}``.

        Raises:
            FloatingPointError: the loss of a batch was not finite.
            SystemExit: SIGTERM (143) or Ctrl-C (130) came; the state after the running update is saved.
        """
        if not self._begin_epoch(write_params, clip_grad):
            return {}
        hooks, stepper, losses = self.hooks, self.stepper, self.running_losses
        with self._session():
            for call in hooks.on_train_start:
                call(self)
            for group in stepper.groups(self.train_batches.epoch(self.epoch, start=self.batches_done)):
                for batch, num_samples in group:
                    for call in hooks.on_batch:
                        call(self, batch)
                    losses.update(loss_dict(self.train_step(batch)), num_samples)
                    self.batches_done += self.world.size
                stepper.finish_group()
                self._after_update()
            self._log()
            return self._end_training()

    def _begin_epoch(self, write_params, clip_grad):
        """Number the epoch: the user may count ``epoch += 1`` or leave it; no epoch is trained twice."""
        checks.require_init(self)
        self._finish_epoch()
        if self._stop_request.signal:
            self._leave()
        if self.should_stop:
            print("Training was stopped, so train_loop() does nothing. Loop over trainer.epochs(n) to end the loop too.")
            return False
        self.lr_schedule.require_total()
        self.epoch = max(self.epoch, self.epochs_done + 1)
        self.write_params = write_params
        self._epoch_started = time.perf_counter()
        self.stepper.clip = make_clip(self.clip_grad if clip_grad is None else clip_grad)
        for model in self.model_list:
            if not model.training and any(p.requires_grad for p in model.parameters()):
                model.train()  # only at the top: parts that you froze with .eval() stay so
        return True

    def _before_step(self):
        for call in self.hooks.on_before_step:
            call(self)

    def _after_update(self):
        """Count the update; log, save or leave when it is time."""
        self.global_step += 1
        for call in self.hooks.on_after_step:
            call(self)
        if self.global_step % self.log_per_step == 0:
            self._log()
        if self._save_is_due():
            self._save_last()
        if self._stop_request.signal:
            self._leave()

    def _log(self):
        """Hand out the means of the window: the one wait for the device serves progress bar, TensorBoard and trackers."""
        self.fetch_losses()
        if values := self.running_losses.window():
            for call in self.hooks.on_log:
                call(self, values)

    def fetch_losses(self):
        """Bring the losses of the window to the host and refuse to go on from one that is not finite. Where such updates are
        skipped, their losses count in no mean."""
        window = self.running_losses.fetch()
        if self.skip_non_finite:
            window[:] = [entry for entry in window if math.isfinite(entry[0]["tol_loss"])]
        for position, (losses, _) in enumerate(window):
            if not math.isfinite(losses["tol_loss"]):
                batch = self.batches_done - len(window) + position + 1
                raise FloatingPointError(
                    f"The loss must stay finite; it is {losses['tol_loss']} in epoch {self.epoch}, batch {batch} (all "
                    f"entries: {losses}), seen at update {self.global_step}. Training stops; the files on disk are from "
                    "before. Lower the learning rate, warm up, clip gradients, look at that batch, or set skip_non_finite."
                )

    def _end_training(self):
        result = self.running_losses.compute()
        self._open_epoch = self.epoch
        for call in self.hooks.on_train_end:
            call(self, result)
        rates = " ".join(f"{optimizer.param_groups[0]['lr']:.2e}" for optimizer in self.optimizer_list)
        seconds = time.perf_counter() - self._epoch_started
        print(f"epoch {self.epoch:3d} train | {_line(result)} | lr {rates} | {seconds:.1f} s")
        self.lr_schedule.after_epoch(self.epoch)
        return result

    def _finish_epoch(self, beside=True):
        """The epoch that was trained is over without an evaluation: the next one begins, or the loop ends."""
        if self._open_epoch is not None:
            self._count_epoch()
            self._save_last(beside=beside)

    def _count_epoch(self):
        self.should_stop = self.world.any(self.should_stop)
        self.epochs_done, self._open_epoch, self.batches_done = self._open_epoch, None, 0
        self.running_losses.reset()

    # --- evaluation -----------------------------------------------------------------------------------------------

    def eval(self, save_per_epochs=1):
        """Evaluate on ``eval_loader``, note the best values, step plateau schedules, save.

        Args:
            save_per_epochs: write ``epoch<N>.pth`` when the epoch's number is a multiple of it; 0 writes none.

        Returns:
            The value of ``key_metric``, a float.
        """
        checks.require_init(self)
        checks.require_eval_loader(self)
        if self.should_stop and self._evaluated_epoch == self.epoch:
            return self.eval_result[self.key_metric]  # a plain loop that goes on after the stop
        with self._session(), self._undone_when_cut_short():
            with self._eval_events():
                result = self.eval_result = self._score(self._eval_batches, self.hooks.on_eval_batch)
                score = result[checks.resolve_key(self, result)]
                self._half_evaluated = True
                improved = self._note_best(result)
                print(f"epoch {self.epoch:3d} eval  | {_line(result)}{f' | best {self.key_metric}' if improved else ''}")
                for call in self.hooks.on_eval_result:
                    call(self, result)
                if improved:  # the weights that were scored: a callback may have put averages in their place
                    self._save_best()
            losses = [value for name, value in result.items() if name in self.eval_loss_names and name.endswith("tol_loss")]
            self.lr_schedule.after_epoch(self.epoch, score, losses[0] if losses else None)
            self._evaluated_epoch = self.epoch
            self._save_epoch(save_per_epochs)
        return score

    def eval_loop(self, save_per_epochs=1):
        """The same as ``eval``."""
        return self.eval(save_per_epochs)

    def test(self, loader=None):
        """Losses and metrics on ``loader`` (None: ``eval_loader``) as a dict; nothing is noted or saved."""
        checks.require_init(self)
        if loader is None:
            checks.require_eval_loader(self)
        with self._session(), self._undone_when_cut_short(), self._eval_events():
            batches = self._eval_batches if loader is None else self._by_prefix(loader)
            return self._score(batches, self.hooks.on_eval_batch)

    def score_first_batch(self):
        """Losses and metrics of the first eval batch, for the check before training: callbacks do not see it."""
        return self._score(self._eval_batches, only_first=True)

    @contextmanager
    def _eval_events(self):
        try:
            for call in self.hooks.on_eval_start:
                call(self)
            yield
        finally:
            run_all(self.hooks.on_eval_end, self)

    def _score(self, batches_by_prefix, on_eval_batch=(), only_first=False):
        """Losses and metrics of every loader under its prefix."""
        result, self.eval_loss_names = {}, set()
        if self.stepper.parallel is not None:
            self.stepper.parallel.before_evaluation(self.model_list)
        # not inference_mode: it saves 2%, and what a model keeps from its first evaluation could not be trained with
        with eval_mode(self.model_list), torch.no_grad(), OneForward(self.model_list) as forwards:
            for prefix, batches in batches_by_prefix.items():
                batches = [batches.first()] if only_first else self._until_asked_to_leave(batches.epoch(0))
                world = ranks.Alone() if only_first else self.world
                losses, metrics = self._score_batches(batches, forwards, on_eval_batch, world)
                self.eval_loss_names |= {prefix + name for name in losses}
                result |= {prefix + name: value for name, value in checks.joined(losses, metrics).items()}
        return result

    def _score_batches(self, batches, forwards, on_eval_batch, world):
        """Losses and metrics of one loader: one forward per batch, and no wait for the device before the end."""
        losses, metrics = EpochMetrics(), EpochMetrics()
        only_train_step = self.overrides("train_step") and self.criterion is None
        has_loss = not only_train_step or self.overrides("loss_per_batch")
        try:
            for batch in batches:
                batch, is_spare = batch if type(batch) is Uneven else (batch, False)
                if is_spare:
                    self._join_in(batch, has_loss)
                    continue
                num_samples = self.count_samples(batch)
                if has_loss:
                    with self.stepper.autocast(), forwards.recording():
                        losses.update(loss_dict(self.loss_per_batch(batch)), num_samples)
                with self.stepper.autocast(), forwards.replaying():
                    metrics.update(self.eval_scores_per_batch(batch), num_samples)
                self.global_step_eval += 1
                for call in on_eval_batch:
                    call(self, batch)
            return losses.compute(world), metrics.compute(world)
        finally:
            metrics.reset()

    def _join_in(self, batch, has_loss):
        """The forward of a batch that does not count: the other ranks need this one's part of the weights."""
        with self.stepper.autocast():
            if has_loss:
                self.loss_per_batch(batch)
            else:
                self.inference(input_of(batch, self._input_dtype))

    def overrides(self, name):
        """Whether the subclass has a method of its own by this name."""
        return getattr(type(self), name) is not getattr(TemplateModel, name)

    def better_when(self, name):
        """Whether more or less of a metric or loss is better: "max" or "min"."""
        mode = self.key_metric_mode
        if isinstance(mode, dict):
            mode = mode.get(name)
        elif name != self.key_metric and name in self.eval_loss_names:
            mode = None  # one mode for all speaks of metrics, and of a loss only when it is the key
        is_loss = name in self.eval_loss_names or str(name).endswith("tol_loss")
        return mode or ("min" if is_loss else "max")

    def _note_best(self, result):
        """Keep the best value of everything with its epoch; True when ``key_metric`` is at its best."""
        for name, value in result.items():
            if not isinstance(value, float):
                continue
            if not math.isfinite(value):
                print(f"The evaluation of epoch {self.epoch} gave {name} = {value}, which never counts as best. Look at the "
                      "eval data and at the weights.")
                continue
            best = self.best_metric.get(name, value)
            if value <= best if self.better_when(name) == "min" else value >= best:
                self.best_metric[name], self.best_epoch[name] = value, self.epoch
        return self.best_epoch.get(self.key_metric) == self.epoch


def _line(result):
    return "  ".join(f"{name} {value:.6f}" for name, value in result.items() if isinstance(value, float))
