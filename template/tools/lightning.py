"""A ``TemplateModel`` as a ``LightningModule``: ``lightning.Trainer`` runs the same subclass, with Lightning's callbacks.

    module = as_lightning(Trainer())                       # in place of check_init(); pip install lightning
    best = ModelCheckpoint(monitor="val_acc", mode="max")
    lightning.Trainer(max_epochs=20, callbacks=[best, EarlyStopping(monitor="val_loss")]).fit(module)
    lightning.Trainer().test(module, ckpt_path=best.best_model_path)

The loop, the device, precision, logging and the checkpoints are Lightning's then. Losses, metrics, optimizers, schedules and
the order of the data are those of the subclass: on one device the numbers are those of its own loop, to the last bit.

What it logs has Lightning's names: "train_loss", "val_loss" and "test_loss" for ``tol_loss``, "val_acc" for a metric "acc",
"val_clean/acc" for one of several loaders, and "train_loss_step" for each update. They are means over samples.

A setting that Lightning's ``Trainer`` has an argument for is refused with that argument. Nothing is written under
``check_point/``, and the callbacks of the template do not run.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.loaders import make_batches
from ..data.seeding import capture_rng, derive, restore_rng, seed_everything, seed_of_run
from ..metrics.best import better_when, find_name, follows_training, note_best, score_of
from ..metrics.epoch import EpochMetrics, all_of
from ..metrics.modes import train_mode
from ..metrics.one_forward import OneForward
from ..output.run_folder import _TIME_STAMP
from ..output.warn import warn
from ..parallel.ranks import ALONE, Alone
from ..run.checks import check_attributes, joined, require_no_init, short
from ..run.class_attributes import template_of
from ..run.defaults import follow_reduction, input_of, loss_dict, parameter_dtype
from ..run.evaluation import Evaluator
from ..run.old_names import adopt_old_names
from ..run.prepare import prepare
from ..run.train_metrics import set_train_metrics
from ..update.schedule import build_schedule
from ..update.schedule_free import switchable
from ..update.stepper import make_clip

if TYPE_CHECKING:
    from ..template import TemplateModel


def as_lightning(trainer: TemplateModel) -> Any:
    """A ``LightningModule`` that trains, evaluates and predicts as ``trainer`` says.

    It brings its data along: ``fit(module)`` and ``validate(module)`` read ``train_loader`` and ``eval_loader``, in the
    order that ``seed`` and the epoch give. Loaders that are given to ``fit(module, …)`` are read in their own order.
    ``module.history`` has the values of each epoch as Python's floats; Lightning rounds what is logged to float32.

    Args:
        trainer: on which ``check_init()`` was not called. With one optimizer Lightning optimizes automatically; with
            several, or with a ``train_step`` of your own, the module does ("manual optimization").

    Raises:
        ImportError: Lightning is not installed.
        RuntimeError: ``check_init()`` was called.
        TypeError, ValueError: a setting is missing or wrong, or Lightning has to be told it; the message says how.
    """
    library = _lightning()
    require_no_init(trainer)
    adopt_old_names(trainer, trainer._overrides)
    check_attributes(trainer, trainer._overrides)
    _refuse_settings(trainer)
    return _module_class(library)(trainer)


def _lightning():
    """The package that the script imported, under its new name or its old one: the classes of the two do not mix."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    names.sort(key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").split(".")[0] not in ("lightning", "pytorch_lightning"):
                raise  # it is there, and misses something itself
    raise ImportError("as_lightning() needs Lightning, which is not installed: pip install lightning")


@functools.cache
def _module_class(library):
    return type("LightningTemplate", (_Module, library.LightningModule), {})


# --- settings ---------------------------------------------------------------------------------------------------------

_KEPT = {"model_list", "optimizer_list", "criterion", "train_loader", "eval_loader", "test_loader", "seed", "slice_tensors",
         "channels_last", "compile", "matmul_precision", "lr_scheduler_list", "lr_scheduler_type", "lr_scheduler_args",
         "lr_scheduler_interval", "warm_up_epoch", "warm_up_updates", "warm_up_mode", "warm_up_init_lr", "warm_up_momentum",
         "warm_up_bias_lr", "warm_up_scheduler_list", "key_metric", "key_metric_mode", "one_forward", "eval_metrics",
         "train_metrics"}
_NOT_NEEDED = {  # they change no number of the training
    "ckpt_dir": "default_root_dir=…", "run_name": "logger=…", "overwrite": "logger=…", "log_per_step": "log_every_n_steps=…",
    "device": "accelerator=…, devices=…", "preflight": "num_sanity_val_steps=…", "keep_checkpoints": "ModelCheckpoint",
    "save_per_steps": "ModelCheckpoint", "save_per_seconds": "ModelCheckpoint", "stop_when_save_fails": "ModelCheckpoint"}
_IN_LIGHTNING: dict[str, Callable[[Any], str]] = {
    "accumulate_steps": lambda steps: f"lightning.Trainer(accumulate_grad_batches={steps})",
    "amp": lambda amp: f"lightning.Trainer(precision=\"{'16' if amp == 'fp16' else amp}-mixed\")",
    "clip_grad": lambda clip: f"lightning.Trainer({_clip_argument(clip)})",
    "deterministic": lambda _: "lightning.Trainer(deterministic=True)",
    "callbacks": lambda _: "callbacks of Lightning: lightning.Trainer(callbacks=[…])",
    "limit_train_batches": lambda limit: f"lightning.Trainer(limit_train_batches={limit})",
    "limit_eval_batches": lambda limit: f"lightning.Trainer(limit_val_batches={limit})",
    "eval_per_steps": lambda steps: f"lightning.Trainer(val_check_interval={steps}), which counts batches",
    "total_epochs": lambda total: f"lightning.Trainer(max_epochs={total})",
    "total_updates": lambda total: f"lightning.Trainer(max_steps={total})",
    "parallel": lambda parallel: f"lightning.Trainer(strategy={parallel or 'auto'!r}, devices=…)",
    "parallel_options": lambda _: "a strategy object with these options: lightning.Trainer(strategy=…)",
    "sync_batchnorm": lambda _: "lightning.Trainer(sync_batchnorm=True)",
}


def _clip_argument(clip):
    options = clip if isinstance(clip, dict) else {"norm": clip}
    if "value" in options:
        return f"gradient_clip_val={options['value']}, gradient_clip_algorithm=\"value\""
    return f"gradient_clip_val={options.get('norm')}"


def _refuse_settings(trainer):
    """What was set and would be ignored: an error where the numbers depend on it, else a warning."""
    default = vars(template_of(trainer)())
    kept = _KEPT | ({"clip_grad"} if _is_manual(trainer) else set())
    changed = {}
    for name in sorted(default.keys() & trainer._settings - kept):
        value = getattr(trainer, name)
        if value != default[name] and (value or default[name]) and not _is_like_default(name, value):
            changed[name] = value
    refused = {name: value for name, value in changed.items() if name not in _NOT_NEEDED}
    if _is_manual(trainer) and "accumulate_steps" in refused:
        raise ValueError(f"accumulate_steps must be 1 under Lightning where there are several optimizers or a train_step of "
                         f"your own, got {trainer.accumulate_steps}: Lightning accumulates gradients for a single optimizer "
                         "only. Use larger batches, or train with the template's own loop.")
    if refused:
        lines = [f"  {name} = {short(value)}: {_IN_LIGHTNING[name](value)}" if name in _IN_LIGHTNING else
                 f"  {name} = {short(value)}: only the template's own loop can do this" for name, value in refused.items()]
        raise ValueError("Under as_lightning() the loop is Lightning's, which would not see these settings of the trainer. "
                         "Leave them at their defaults, and say this instead:\n" + "\n".join(lines))
    for optimizer in switchable(trainer.optimizer_list):
        raise ValueError(f"as_lightning() does not go with {type(optimizer).__name__}, whose train() and eval() Lightning "
                         "would not call. Use another optimizer, or train with the template's own loop.")
    if changed:
        named = ", ".join(f"{name} (in Lightning: {_NOT_NEEDED[name]})" for name in changed)
        warn(f"Lightning writes the files and the log under as_lightning(), so these settings do nothing: {named}.")


def _is_like_default(name, value):
    return name == "parallel" and value == "ddp" or name == "ckpt_dir" and bool(_TIME_STAMP.fullmatch(Path(value).name))


def _is_manual(trainer):
    return len(trainer.optimizer_list) > 1 or trainer._overrides("train_step")


# --- what the template asks -------------------------------------------------------------------------------------------


class _Stepper:
    """In the place of ``update/stepper.py``: ``backward`` and ``update`` of a ``TemplateModel``, done by Lightning.

    Args:
        module: the ``LightningModule``.
        clip: of ``make_clip``, for manual optimization.
    """

    parallel = None
    guard = None
    skipped = 0
    is_between_updates = True
    adds_up = False

    def __init__(self, module, clip):
        self.module, self.clip = module, clip
        self.loss = None       # of the present batch, where Lightning goes backward by itself
        self.updated = False   # by the user's train_step

    def autocast(self):
        return nullcontext()  # Lightning's is around the whole step

    def backward(self, loss, index=None, retain_graph=None):
        if self.module.automatic_optimization:
            self.loss = loss
            return
        if index is not None and self.module.trainer.world_size > 1:
            raise ValueError("backward(loss, index) gives a part of the gradients, and Lightning's DDP waits for all of "
                             "them after each backward. Use one device, or the template's own loop under torchrun.")
        inputs = None if index is None else [p for p in self.parameters([index]) if p.requires_grad]
        self.module.manual_backward(loss, retain_graph=retain_graph, inputs=inputs)

    def parameters(self, chosen):
        optimizers = self.module.template.optimizer_list
        return [p for i in chosen for group in optimizers[i].param_groups for p in group["params"]]

    def update(self, index=None, step=True):
        self.updated = True
        optimizers = self.module.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        chosen = range(len(optimizers))[::-1] if index is None else [index]
        if step:
            if self.clip is not None:
                self.clip(self.parameters(chosen))
            for i in chosen:
                optimizers[i].step()
        for i in chosen:
            optimizers[i].zero_grad()


class _Loader:
    """The batches of the template for Lightning, of the epoch that it is in.

    Args:
        batches: of ``make_batches``.
        epoch: function of nothing that gives the epoch's number.
    """

    def __init__(self, batches, epoch):
        self.batches, self.epoch = batches, epoch
        self.reached = [0, 0]  # epoch, and batches that were read of it
        self.starts_at = [0, 0]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        epoch = self.epoch()
        start = self.starts_at[1] if self.starts_at[0] == epoch else 0
        self.starts_at, self.reached = [0, 0], [epoch, start]
        for batch in self.batches.epoch(epoch, start):
            self.reached[1] += 1
            yield batch

    def state_dict(self):
        return {"reached": list(self.reached)}

    def load_state_dict(self, state):
        self.starts_at = list(state["reached"])


class _Processes(Alone):
    """Those that Lightning started; see ``parallel/ranks.py``."""

    def __init__(self):
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.is_main = self.rank == 0  # type: ignore[misc]

    def gather(self, value):
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def share(self, value=None):
        return self.gather(value)[0]

    def from_main(self, function):
        return self.share(function() if self.is_main else None)

    def any(self, flag):
        return any(self.gather(bool(flag)))


# --- what Lightning calls ---------------------------------------------------------------------------------------------


class _Module:
    """The hooks of a ``LightningModule``, which is mixed in by ``_module_class``."""

    trainer: Any          # of Lightning
    log: Any
    device: torch.device
    automatic_optimization: bool
    optimizers: Any

    def __init__(self, template: TemplateModel):
        super().__init__()
        self.template = template
        self.models = template.model_list if isinstance(template.model_list, nn.ModuleList) else nn.ModuleList(
            template.model_list)
        if isinstance(template.criterion, nn.Module):
            self.criterion = template.criterion
        self.history: list[dict[str, Any]] = []
        self.automatic_optimization = not _is_manual(template)
        template.seed, _ = seed_of_run(template.seed)
        _seed(template.seed)
        if template.matmul_precision is not None:
            torch.set_float32_matmul_precision(template.matmul_precision)
        device = next((p.device for p in self.models.parameters()), torch.device("cpu"))
        prepare(template.model_list, device, template.channels_last, compile=template.compile)
        template.evaluator = Evaluator(template, template._overrides)
        template.stepper = _Stepper(self, make_clip(template.clip_grad))  # type: ignore[assignment]
        set_train_metrics(template, template.train_metrics)
        self._asked = template.lr_scheduler_list, template.warm_up_scheduler_list
        self._loaders: dict[str, Any] = {}     # by stage: those of the template, for Lightning
        self._scores: dict[int, Any] = {}      # by number of the loader: its prefix, losses and metrics
        self._noted = -1                       # number of the batch whose losses were noted last
        self._result: dict[str, Any] = {}      # of the validation of the present epoch
        self._resumed: Any = None              # what a checkpoint holds
        self._rng: Any = None                  # before a validation

    def forward(self, *inputs):
        return self.template.inference(inputs[0] if len(inputs) == 1 else inputs)

    # --- data -----------------------------------------------------------------------------------------------------

    def train_dataloader(self):
        return self._data("train", {"": self.template.train_loader}, self._epoch_to_read)[0]

    def val_dataloader(self):
        return self._data("val", self.template.eval_loader)

    def test_dataloader(self):
        loader = self.template.test_loader
        return self._data("test", self.template.eval_loader if loader is None else loader)

    def _epoch_to_read(self):
        return 1 if self.trainer.overfit_batches else self.trainer.current_epoch + 1

    def _data(self, stage, loaders, epoch=lambda: 0):
        """A list of loaders; among several processes those of the user, into which Lightning puts its sampler."""
        loaders = loaders if isinstance(loaders, dict) else {"": loaders} if loaders is not None else {}
        self._loaders[stage] = {}
        if self.trainer.world_size > 1:
            for loader in loaders.values():
                if not isinstance(loader, torch.utils.data.DataLoader):
                    raise ValueError("Lightning divides the data of a DataLoader among several processes, and "
                                     f"{stage}_loader is a {type(loader).__name__}. Give a DataLoader, or use one device.")
            return list(loaders.values())
        template, device = self.template, self.trainer.strategy.root_device
        for name, loader in loaders.items():
            batches = make_batches(loader, template.seed, device, template.slice_tensors)
            self._loaders[stage][name] = _Loader(batches, epoch)
        return list(self._loaders[stage].values())

    # --- optimizers and schedules -----------------------------------------------------------------------------------

    def configure_optimizers(self):
        """The optimizers alone: the template steps its schedules itself, at its own moments."""
        template, lightning = self.template, self.trainer
        total = lightning.estimated_stepping_batches  # it has the loaders made
        batches = lightning.num_training_batches
        template.train_batches = range(batches) if batches != math.inf else iter(())
        template.accumulate_steps = lightning.accumulate_grad_batches
        template.total_epochs = template.total_updates = None
        updates = template.updates_per_epoch()
        if lightning.max_epochs and lightning.max_epochs > 0:
            template.total_epochs = lightning.max_epochs
        if lightning.max_steps > 0:
            steps = math.ceil(lightning.max_steps / (1 if self.automatic_optimization else len(template.optimizer_list)))
            if template.total_epochs is None or updates is None or steps < updates * template.total_epochs:
                template.total_epochs, template.total_updates = None, steps
        template.lr_scheduler_list, template.warm_up_scheduler_list = self._asked
        template.epoch = template.epochs_done = template.batches_done = template.global_step = 0
        template.lr_schedule = build_schedule(template, updates, better_when(template, template.key_metric))
        assert total is not None
        return list(template.optimizer_list)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)  # type: ignore[misc]
        self._updated()

    def _updated(self):
        self.template.global_step += 1
        self.template.lr_schedule.after_update()

    # --- training ---------------------------------------------------------------------------------------------------

    def on_fit_start(self):
        self.history.clear()
        if getattr(self, "_compiler_ctx", None):
            raise ValueError("torch.compile(module) would compile the counting around the models too, and fails. Set "
                             "trainer.compile = True before as_lightning(trainer), which compiles the models alone.")
        if not self.automatic_optimization and self.template.clip_grad and self.trainer.precision == "16-mixed":
            raise ValueError("clip_grad with several optimizers or a train_step of your own does not go with Lightning's "
                             'precision="16-mixed", which hides the scale of the gradients. Use "bf16-mixed".')

    def on_train_start(self):
        if self._resumed is not None:
            self._take_up(self._resumed)
            self._resumed = None
        self._begin()
        self.template.lr_schedule.begin_epoch(self.template)

    def on_train_epoch_start(self):
        template = self.template
        template.epoch, template.batches_done = self.trainer.current_epoch + 1, 0
        template.running_losses.reset()
        template.accumulate_steps = self.trainer.accumulate_grad_batches  # a callback of Lightning may change it
        if self.trainer.world_size > 1:  # of rank 0 alone a checkpoint would have the random numbers
            _seed(derive(template.seed, template.epoch), self.trainer.global_rank)
        self._result = {}
        self._begin()
        template.lr_schedule.begin_epoch(template)

    def _begin(self):
        """Training or an evaluation begins, on a device and in a dtype that Lightning chose."""
        template = self.template
        template.device, template.input_dtype = self.device, parameter_dtype(template.model_list)
        template.world = _Processes() if self.trainer.world_size > 1 else ALONE
        template.running_losses.world = template.world
        for metric in all_of(template.eval_metrics):
            if isinstance(metric, nn.Module):
                metric.to(self.device)
        follow_reduction(template, template.criterion)
        if self.trainer.training:
            train_mode(template.model_list)

    def on_train_batch_start(self, batch, batch_idx):
        self._noted = -1

    def training_step(self, batch, batch_idx):
        template, stepper = self.template, self.template.stepper
        num_samples = self._count(batch)
        stepper.loss, stepper.updated = None, False
        losses = loss_dict(template.train_step(batch), needs_total=False)
        if not self.automatic_optimization:
            if not stepper.updated:
                stepper.update()
            self._updated()
        if self._noted != batch_idx:  # an optimizer with a closure asks again
            self._noted = batch_idx
            template.batches_done += 1
            template.running_losses.update(losses, num_samples)
            for name, loss in losses.items():
                self.log(f"train_{_lightning_name(name)}_step", loss.detach() if torch.is_tensor(loss) else loss,
                         prog_bar=name == "tol_loss", batch_size=max(num_samples, 1))
            if template.batches_done % self.trainer.log_every_n_steps == 0:
                template.running_losses.window()
        return stepper.loss if num_samples else None

    def _count(self, batch):
        count = self.template.count_samples(batch)
        return count.item() if hasattr(count, "item") else count

    def on_train_epoch_end(self):
        template, schedule = self.template, self.template.lr_schedule
        template.running_losses.window()
        means = template.running_losses.compute()
        self._tell("train", means)
        self._note_row({f"train_{_lightning_name(name)}": value for name, value in means.items()})
        value = self._note_training(means)
        schedule.after_epoch(template.epoch)
        if self._result:
            template.eval_result = self._result
            losses = [self._result[name] for name in template.eval_loss_names if name.endswith("tol_loss")]
            schedule.after_epoch(template.epoch, score_of(template, self._result), losses[0] if losses else None)
        elif template.eval_loader is None:
            schedule.note_result(template.epoch, value, means.get("tol_loss"))
        schedule.finish_epoch(template.epoch)
        template.epochs_done, template.batches_done = template.epoch, 0

    def _note_training(self, means):
        """The value of ``key_metric`` where it is one of the training."""
        template = self.template
        key = find_name(template.key_metric, [f"train/{name}" for name in means]) if follows_training(template) else None
        if key is None:
            return None
        template.key_metric = key
        note_best(template, {key: score_of(template, {})})
        return score_of(template, {})

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def on_validation_start(self):
        self._rng = capture_rng()

    def on_validation_epoch_start(self):
        self._begin_scores("val")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self._score(batch, dataloader_idx)

    def on_validation_epoch_end(self):
        result = self._end_scores("val")
        restore_rng(self._rng)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._result = result
            score_of(self.template, result)
            note_best(self.template, result)

    def on_test_epoch_start(self):
        self._begin_scores("test")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self._score(batch, dataloader_idx)

    def on_test_epoch_end(self):
        self._end_scores("test")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        """What the models say of ``x``, ``(x,)`` or ``(x, …, y)``."""
        return self.template.inference(input_of(batch, parameter_dtype(self.template.model_list)))

    def _begin_scores(self, stage):
        self._begin()
        self._scores = {}
        self._names = list(self._loaders.get(stage, ()))
        self.template.eval_loss_names = set()

    def _score(self, batch, number):
        template, evaluator = self.template, self.template.evaluator
        if number not in self._scores:
            name = self._names[number] if number < len(self._names) else f"dataloader_{number}" if number else ""
            self._scores[number] = name, EpochMetrics(), EpochMetrics()
        evaluator.loader_name, losses, metrics = self._scores[number]
        passes_on = template.one_forward or evaluator.writes_losses and not evaluator.writes_scores
        with OneForward(template.model_list if passes_on else ()) as forwards:
            evaluator._way_to_score(forwards)(batch, self._count(batch), losses, metrics)
        template.global_step_eval += 1

    def _end_scores(self, stage):
        template, result = self.template, {}
        try:
            for name, losses, metrics in self._scores.values():
                prefix = f"{name}/" if name else ""
                own = losses.compute(template.world)
                template.eval_loss_names |= {prefix + loss for loss in own}
                result |= {prefix + key: value for key, value in joined(own, metrics.compute(template.world)).items()}
        finally:
            for _, _, metrics in self._scores.values():
                metrics.reset()
            template.evaluator.loader_name, self._scores = "", {}
        self._tell(stage, result)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._note_row({f"{stage}_{_lightning_name(name)}": value for name, value in result.items()})
        return result

    def _tell(self, stage, result):
        for name, value in result.items():
            if isinstance(value, float):
                self.log(f"{stage}_{_lightning_name(name)}", value, on_step=False, on_epoch=True, batch_size=1,
                         prog_bar=stage != "test", sync_dist=self.template.world.size > 1)

    def _note_row(self, means):
        epoch = self.template.epoch
        if not self.history or self.history[-1]["epoch"] != epoch:
            self.history.append({"epoch": epoch})
        self.history[-1] = {"epoch": epoch} | means | self.history[-1]

    # --- checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint):
        template = self.template
        if template.lr_schedule is None:
            return
        counters = {name: getattr(template, name) for name in _COUNTERS}
        loader = self._loaders.get("train", {}).get("")
        checkpoint["template"] = {
            **counters, "seed": template.seed, "rng": capture_rng(), "schedule": template.lr_schedule.state_dict(),
            "running_losses": template.running_losses.state_dict(), "loader": loader and loader.state_dict(),
            "result": {name: value for name, value in self._result.items() if isinstance(value, float)},
            "eval_loss_names": sorted(template.eval_loss_names)}

    def on_load_checkpoint(self, checkpoint):
        if self.trainer.state.fn == "fit":
            self._resumed = checkpoint.get("template")

    def _take_up(self, state):
        template = self.template
        for name in _COUNTERS:
            setattr(template, name, state[name])
        template.eval_loss_names, self._result = set(state["eval_loss_names"]), state["result"]
        template.lr_schedule.load_state_dict(state["schedule"])
        template.running_losses.load_state_dict(state["running_losses"])
        loader = self._loaders.get("train", {}).get("")
        if loader is not None and state["loader"] is not None:
            template.seed = loader.batches.seed = state["seed"]
            loader.load_state_dict(state["loader"])
        if self.trainer.world_size == 1:
            restore_rng(state["rng"])


_COUNTERS = ("epoch", "epochs_done", "batches_done", "global_step", "global_step_eval", "best_metric", "best_epoch",
             "key_metric")


def _seed(seed, rank=0):
    """All generators, and the next trainer gets a seed of its own."""
    seed_everything(seed, rank=rank)
    seed_of_run(seed)


def _lightning_name(name):
    """ "tol_loss" is "loss" in Lightning, "clean/tol_loss" is "clean/loss"."""
    head, _, tail = name.rpartition("/")
    tail = "loss" if tail == "tol_loss" else tail
    return f"{head}/{tail}" if head else tail
