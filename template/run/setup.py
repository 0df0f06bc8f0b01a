"""How ``check_init`` builds what the loop runs on, in this order: the other processes, the models, the seed, the data, the
learning rate, the update, the callbacks, and last the run's folder and log.

    set_up(trainer, callbacks, overrides, log_name="log.txt", clean_log=False, arg=None, use_tb=True)

Every part is given what it needs; from then on the loop only calls them.
"""

from __future__ import annotations

import atexit
import inspect
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import own_objects
from ..checkpoint.state import refuse_unsavable
from ..data.lengths import notes_on_last_round
from ..data.limited import limited
from ..data.loaders import make_batches
from ..data.seeding import seed_everything, seed_of_run
from ..data.shares import Share
from ..hooks import Hooks
from ..metrics.best import better_when
from ..metrics.epoch import all_of
from ..output import run_folder, run_lock
from ..output.logger import Logger
from ..output.warn import warnings_noted
from ..parallel import ranks
from ..parallel.equality import SameWeights
from ..parallel.gradients import make_parallel
from ..update import schedule_free
from ..update.closure import ClosureStepper, takes_closure
from ..update.compiled_step import NOT_CAPTURED, CompiledStepper, missing_torch
from ..update.fused import refuse_in_parts, use_fused_form
from ..update.guard import make_guard
from ..update.nominal_batch import follow_nominal_batch, note_on_nominal_batch
from ..update.optimizers import sizes
from ..update.schedule import build_schedule
from ..update.stepper import Stepper
from .checks import check_attributes, note_on_evaluations, require_no_init
from .copies import require_original
from .defaults import loss_dict, parameter_dtype
from .devices import named_device
from .evaluation import Evaluator
from .half_precision import warn_of_gpu
from .layers_and_schedulers import check_length
from .old_names import adopt_old_names
from .preflight import look_apart, preflight
from .prepare import STEP, TellCompiling, prepare
from .train_metrics import set_train_metrics
from .unfrozen import Unfrozen
from .weights_for_use import attach_sources

if TYPE_CHECKING:
    from ..template import TemplateModel


def set_up(trainer: TemplateModel, callbacks, overrides, log_name, clean_log, arg, use_tb, log_path=None):
    """Check what was set in a ``TemplateModel`` and build its parts. What is warned of meanwhile stands in the log too.

    Args:
        callbacks: function of the user's own, which gives the default set and these.
        overrides: function of a method's name: whether the subclass has one of its own.
        log_name, clean_log, arg, use_tb, log_path: as in ``check_init``.
    """
    require_no_init(trainer)
    require_original(trainer)
    adopt_old_names(trainer, overrides)
    trainer.device = named_device(trainer.device)  # a class body may have set it
    log_name = log_name if log_path is None else os.path.abspath(log_path)
    earlier: list[str] = []
    with warnings_noted(earlier.append):
        check_attributes(trainer, overrides)
        _build(trainer, callbacks(trainer.callbacks or ()), overrides, log_name, clean_log, arg, use_tb)
    for text in earlier:  # most came before there was a log
        trainer.stdout_logger.note(text)


def _build(trainer, callbacks, overrides, log_name, clean_log, arg, use_tb):
    device = _meet_others(trainer)
    _prepare_models(trainer, device)
    seed, reached_weights = trainer.world.share(seed_of_run(trainer.seed))
    trainer.seed = seed_everything(seed, trainer.deterministic, trainer.world.rank)
    seed_of_run(seed)  # and the next trainer gets one of its own
    parallel = None
    if trainer.world.size > 1:
        parallel = make_parallel(trainer, device, overrides("train_step"), overrides("count_samples"))
        trainer.is_sharded = parallel.is_sharded
        refuse_in_parts(trainer.optimizer_list if trainer.is_sharded else ())
    attach_sources(trainer, callbacks)

    trainer.train_batches = batches_to_train(trainer, trainer.train_loader, trainer.limit_train_batches)
    trainer.evaluator = Evaluator(trainer, overrides)
    trainer.evaluator.set_loader(trainer.eval_loader, trainer.limit_eval_batches)
    trainer.evaluator.set_test_loader(trainer.test_loader)
    trainer.evaluator.agree()
    set_train_metrics(trainer, trainer.train_metrics)

    nominal = follow_nominal_batch(trainer)
    check_length(trainer, trainer.updates_per_epoch())
    trainer.lr_schedule = build_schedule(trainer, trainer.updates_per_epoch(), better_when(trainer, trainer.key_metric))
    trainer.stepper = _stepper(trainer, device, parallel, overrides)
    extra = [*nominal, *preflight(trainer), Unfrozen(trainer), *([TellCompiling()] if trainer.compile else []),
             *([SameWeights()] if parallel else [])]
    hooks = Hooks([*callbacks, *extra])
    refuse_unsavable(trainer, hooks.callbacks)
    _open_run(trainer, log_name, clean_log, arg, use_tb)
    trainer.hooks = hooks  # from here on check_init counts as done
    trainer.checkpoints.begin(replaces_run=trainer.overwrite)
    if trainer.is_main:
        run_folder.announce(trainer)
    if not reached_weights:
        print(f"  Weights that were drawn before do not come from seed {seed}. To repeat them too, call "
              f"seed_everything({seed}) before you build the models.")
    for note in notes_on_last_round(trainer.train_loader, trainer.world.size):
        print(f"  {note}")
    if trainer.eval_loader is None:
        print(f"  {note_on_evaluations(trainer, overrides)}")
    for line in (*note_on_nominal_batch(trainer), *sizes(trainer.optimizer_list)):
        print(f"  {line}")
    for note in (*trainer.train_batches.notes(), *own_objects.notes(trainer)):
        print(f"  resume: {note}")
    for note in schedule_free.notes(trainer.model_list, trainer.optimizer_list):
        print(f"  {note}")


def batches_to_train(trainer: TemplateModel, loader, limit=None):
    """What ``loader`` gives this process in training; ``limit`` is ``limit_train_batches``."""
    share = Share(trainer.world.rank, trainer.world.size, gather=trainer.world.gather, name="train_loader")
    batches = make_batches(loader, trainer.seed, torch.device(trainer.device), trainer.slice_tensors, share)
    if trainer.world.size > 1:
        batches.agree()
    return limited(batches, limit, "limit_train_batches")


def _meet_others(trainer):
    """Join the other processes, if there are any; returns the ``torch.device`` of this one."""
    device = ranks.own_device(torch.device(trainer.device))
    if trainer.parallel is not None:
        trainer.world = ranks.join(device)
        trainer.world.begin("check_init()")
        trainer.world.tell_place(weakref.WeakMethod(trainer.lifetime.where))
        trainer.lifetime.stop_request.world = trainer.running_losses.world = trainer.world
    return device


def _prepare_models(trainer, device):
    warn_of_gpu(trainer.amp, device)
    if trainer.matmul_precision is not None:
        torch.set_float32_matmul_precision(trainer.matmul_precision)
    sync_batchnorm = trainer.sync_batchnorm and trainer.world.size > 1
    prepare(trainer.model_list, device, trainer.channels_last, sync_batchnorm, trainer.compile)
    for part in (trainer.criterion, *all_of(trainer.eval_metrics)):
        if isinstance(part, torch.nn.Module):  # torchmetrics' objects are modules too
            part.to(device)
    trainer.input_dtype = parameter_dtype(trainer.model_list)
    for optimizer in trainer.optimizer_list if trainer.fused else ():
        use_fused_form(optimizer)


def _stepper(trainer, device, parallel, overrides):
    def before_step():
        for call in trainer.hooks.on_before_step:
            call(trainer)

    guard = make_guard(trainer, trainer.skip_non_finite)
    kind: Any = Stepper
    if any(map(takes_closure, trainer.optimizer_list)):
        kind = partial(ClosureStepper, lambda batch: trainer.train_step(batch))
    count = trainer.count_samples if overrides("count_samples") else trainer._counter.count  # what the method of ours calls
    if trainer.compile == STEP:
        kind = _compiled_stepper(trainer, kind, parallel, overrides)
    return kind(trainer.optimizer_list, device, trainer.accumulate_steps, trainer.amp, trainer.clip_grad,
                count, before_step, trainer.lr_schedule.after_update, guard, parallel)


def _compiled_stepper(trainer, kind, parallel, overrides):
    """Said here is what stands in the way of a graph for the whole run; the rest shows when the first update is captured."""
    reason = missing_torch()
    if kind is not Stepper:
        reason = "An optimizer takes a closure."
    elif parallel is not None:
        reason = "Several processes exchange their gradients."
    elif overrides("train_step"):
        reason = "train_step is your own; backward() and update() in it are not captured."
    if reason:
        print(f"  {NOT_CAPTURED} {reason}")
        return kind
    own_step = inspect.getattr_static(type(trainer), "train_step")
    return partial(CompiledStepper, lambda batch: loss_dict(trainer.loss_per_batch(batch)), own_step,
                   lambda: "train_metrics needs what the models predict." if trainer.train_metrics else "",
                   lambda: trainer.hooks.reader_of_gradients(trainer), lambda batch: look_apart(trainer, batch))


def _open_run(trainer, log_name, clean_log, arg, use_tb):
    """Folder, log and options of the run; nothing is written before all that can be refused was looked at."""
    world = trainer.world
    trainer.started_in = os.getcwd()
    trainer.asked_dir = str(run_folder.place(trainer.ckpt_dir))
    trainer.ckpt_dir, trainer.run_name = world.from_main(
        lambda: run_folder.prepare(trainer.asked_dir, trainer.run_name, trainer.overwrite, trainer.checkpoints.lock))
    trainer.lifetime.folder.is_new = world.size == 1 and set(os.listdir(trainer.ckpt_dir)) <= {run_lock.NAME}
    trainer.stdout_logger = Logger(run_folder.place(trainer.path_of(log_name)) if world.is_main else os.devnull)
    if clean_log and world.is_main:
        trainer.stdout_logger.clean()
    trainer.stdout_logger.install_for_cell()
    weakref.finalize(trainer, trainer.stdout_logger.restore).atexit = False
    atexit.register(_close_if_alive, weakref.ref(trainer))
    if not (use_tb and world.is_main):
        trainer.writer = None
    trainer.run_options = {**trainer.run_options, **run_folder.as_dict(arg)}


def _close_if_alive(reference):
    trainer = reference()
    if trainer is not None:
        trainer.lifetime.close_at_exit()
