"""What a trainer can be asked for around its loop: files, learning rates, reports.

    trainer.load_state("auto")
    trainer.print_best_metrics()

Each function takes the trainer first, and ``AroundTheLoop`` makes them methods of ``TemplateModel``. None is called by the
training itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import files, saver, sharded, state
from ..checkpoint.added_groups import completed
from ..data.nested import loader_length
from ..output import run_folder
from ..output.console import number
from ..output.event_writer import WriterOfRun
from ..output.summary import print_summary
from ..parallel.ranks import ALONE, Alone
from ..update.built_settings import differences
from ..update.lr_scheduler import set_rate
from ..update.schedule_free import loading
from . import assignments, checks, copies
from .old_names import OtherName
from .predictions import predict
from .reports import describe

if TYPE_CHECKING:
    from ..hooks import Hooks
    from ..template import TemplateModel
    from ..update.stepper import Stepper

_NOT_PRINTED = {"best_metric", "train_loader", "eval_loader", "test_loader", "hooks", "stepper", "lr_schedule",
                "stdout_logger", "running_losses", "attribute_names", "train_batches", "started_in", "asked_dir",
                "checkpoints", "lifetime", "evaluator", "input_dtype"}


# --- files ------------------------------------------------------------------------------------------------------------


def path_of(trainer: TemplateModel, name: str | Path) -> Path:
    """Where the run keeps a file: in ``ckpt_dir``, as seen from where ``check_init`` was called, also after a chdir."""
    return Path(trainer.started_in, trainer.ckpt_dir, name)


def save_state(trainer: TemplateModel, fname: str | Path, optim: bool = True) -> None:
    """Write models, counters and best values to ``fname``; ``optim`` adds all that continuing needs.

    Among several processes rank 0 writes, whether the others call it too or not; they do not wait for the file, and draw new
    random numbers when the run continues from it. Under fsdp every rank has to call it.
    """
    checks.require_init(trainer)
    trainer.checkpoints.wait()
    world = _writers(trainer, "save_state()")
    if world is not None:
        weights = trainer.lifetime.weights
        with weights.of_training() if optim else weights.for_use():
            saved = state.collect(trainer, optim, world=world)
            world.from_main(lambda: files.write(saved, fname))
        print(f"save model state at {fname}")


def _writers(trainer, call):
    """Who writes what all ranks hold: rank 0 by itself, which asks nobody; None on the others. Under fsdp every rank holds a
    part, so that all of them have to take part."""
    if trainer.is_sharded:
        trainer.world.begin(call)
        return trainer.world
    return ALONE if trainer.is_main else None


def load_state(trainer: TemplateModel, fname: str | Path, optim: bool = True, lr_list: Sequence[float] | None = None,
               strict: bool = True) -> str | None:
    """Continue from a checkpoint, of this version or of 2021.

    Args:
        fname: path; "best" and "last" stand for the files of ``ckpt_dir``; "auto" takes the newest valid one, also
            from the run before this one when ``ckpt_dir`` is the default, and says so when there is none. "auto" and
            a ``last.pth`` continue that run in its own folder, any other file begins a branch in a new one.
        optim: False loads weights, counters and best values only.
        lr_list: rates that replace the restored ones, one per optimizer.
        strict: False loads the weights that fit and lists the others.

    Returns:
        The path that was loaded, or None.

    Raises:
        FileNotFoundError, CheckpointError: there is no such file, or it is damaged.
        ValueError: the weights do not fit. Nothing was changed.
    """
    if optim:
        checks.require_init(trainer)
    trainer.world.begin("load_state()")
    trainer.checkpoints.wait()
    saver.wait_for_others()
    path, saved = _find_state(trainer, str(fname))
    if saved is None:
        return None
    if "shards" in saved and not trainer.is_sharded:
        saved = sharded.plain_state(saved)
    if optim and not {"optimizer_list0", "shards"} & saved.keys():
        optim = False
        print(f"{path} holds weights only: optimizers, schedules and the order of data stay as they are.")
    named = state.named_parameters(trainer) if optim else {}
    with loading(trainer.optimizer_list or (), resumes=optim), completed(trainer, saved if optim else {}, named) as added:
        notes = added + state.apply(trainer, saved, optim, strict)
    trainer.lifetime.went_back(only_looks=not optim)
    if optim and (fname == "auto" or path.name == "last.pth"):
        if trainer.is_main:
            files.continue_in(trainer, path.parent, saved)
        ckpt_dir, run_name = trainer.world.share((trainer.ckpt_dir, trainer.run_name))
        vars(trainer).update(ckpt_dir=ckpt_dir, run_name=run_name)
    elif optim and trainer.is_main:
        trainer.checkpoints.lock.claim_or_tell(trainer.path_of("."))
    if optim:  # what callbacks wrote beside the checkpoint belongs to it
        takers = [callback for callback in trainer.hooks.callbacks if hasattr(callback, "take_files")]
        notes += [note for callback in takers for note in callback.take_files(trainer, path.parent)]
    if optim:
        notes += differences(trainer.stepper.built, saved.get("stepper", {}).get("built", []), ["lr"] if lr_list else [])
    if optim and saved.get("seed") not in (None, trainer.seed):
        notes.append(f"seed {saved['seed']} instead of {trainer.seed}: the order of data goes on as it began")
        vars(trainer)["seed"] = saved["seed"]  # an assignment would be refused
        trainer.train_batches.set_seed(trainer.seed)
        trainer.evaluator.set_seed(trainer.seed)
    if lr_list is not None:
        change_lr(trainer, lr_list)
    print(f"load model state from {path}: epoch {trainer.epochs_done} done, {trainer.global_step} updates")
    for note in notes:
        print(f"  {note}")
    return str(path)


def use_best(trainer: TemplateModel, fname: str | Path = "best") -> str:
    """Put the weights of ``best.pth``, or of another file, into the models, to predict, test or export with them.

    It touches no counter and no file: what ``eval``, ``test`` and ``predict`` find then is noted nowhere, and the newest
    checkpoint stays the training's. ``load_state`` is the other wish: to go back to a place in the training.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: there is no ``best.pth`` yet; ``eval()`` writes it.
    """
    checks.require_init(trainer)
    trainer.world.begin("use_best()")
    trainer.lifetime.finish_epoch(beside=False)
    trainer.checkpoints.wait()
    path, saved = _find_state(trainer, str(fname))
    with loading(trainer.optimizer_list, resumes=False):
        state.apply_weights(trainer, saved)
    trainer.lifetime.only_looks = True
    print(f"use the weights of {_as_given(trainer, path)}: {_in_words(path.name, saved)}")
    return str(path)


def _as_given(trainer, path):
    """A file of the run's folder by the name that the folder was given."""
    path = Path(path)
    return Path(trainer.ckpt_dir, path.name) if path.parent == trainer.path_of(".") else path


def _in_words(name, saved):
    """Of ``best.pth``, the best value is that of its weights. Any other file holds the best one until then."""
    key, where = saved.get("key_metric"), f"epoch {saved.get('epoch')}"
    value = saved.get("best_metric", {}).get(key)
    if name == "best.pth" and value is not None:
        return f"{where}, {key} {number(value)}"
    return where if saved.get("global_step") is None else f"{where}, update {saved['global_step']}"


def _find_state(trainer, name) -> tuple[Any, Any]:
    """``(path, state)``, or two None; rank 0 decides, every rank reads."""
    found = {}

    def find():
        found["path"], found["state"] = files.find_state(trainer, name)
        return found["path"]

    path = trainer.world.from_main(find)
    if path is None:
        return None, None
    return path, state.with_lists(found["state"] if trainer.is_main else files.read(path))


def save_model(trainer: TemplateModel, fname: str | Path) -> None:
    """Pickle the whole modules as ``{"model0": …}``: ``torch.load(fname, weights_only=False)`` gives them back where
    their classes can be imported. For a file that outlives the code, use ``save_state``. Rank 0 writes.

    Raises:
        ValueError: under fsdp, where each rank holds a part of the models.
    """
    if trainer.is_sharded:
        raise ValueError("save_model() pickles whole models, and under parallel='fsdp' each rank holds a part of them. Use "
                         "save_state(fname, optim=False), which gathers the weights; one process can load them with "
                         "load_state(fname, optim=False), and call save_model() there.")
    world = _writers(trainer, "save_model()")
    if world is None:
        return
    models = {f"model{i}": state.unwrap(model) for i, model in enumerate(trainer.model_list)}
    with trainer.lifetime.weights.for_use():
        world.from_main(lambda: torch.save(models, fname))
    print(f"save model at {fname}")


def wait_for_saves(trainer: TemplateModel) -> None:
    """Until every checkpoint that was begun is on the disk; the end of the loop, ``close`` and ``load_state`` do it."""
    trainer.checkpoints.wait()


def close(trainer: TemplateModel) -> None:
    """End of training: save an epoch that was not evaluated, try once more what could not be saved, run the callbacks'
    clean-up, give stdout back.

    Safe to call twice; a later ``train_loop`` opens everything again.
    """
    trainer.lifetime.close()


def eval_loop(trainer: TemplateModel, save_per_epochs: int = 1) -> float:
    """The same as ``eval``."""
    return trainer.eval(save_per_epochs)


# --- learning rates ---------------------------------------------------------------------------------------------------


def updates_per_epoch(trainer: TemplateModel) -> int | None:
    """Updates of one epoch on this process, known after ``check_init``; None when ``train_loader`` has no length."""
    batches = loader_length(trainer.train_batches)
    return None if batches is None else math.ceil(batches / trainer.accumulate_steps)


def note_predictions(trainer: TemplateModel, pred: Any, y: Any, losses: Any = None) -> None:
    """Say in your own ``loss_per_batch``, ``train_step`` or ``eval_scores_per_batch`` what was predicted for the present
    batch, where it cannot be known by itself, for instance because a model is called twice. ``train_metrics`` then take it
    in training, and ``on_eval_predictions`` in an evaluation; with neither of them nothing happens.

    Args:
        losses: of each sample [N]; None: the criterion's, if it gives the losses that you report.
    """
    trainer.running_losses.metrics.note(pred, y)
    trainer.evaluator.heard.note(pred, y, losses)


def update_lr_scheduler(trainer: TemplateModel, key_metric: float | None = None,
                        avg_batch_loss: float | None = None, step: Any = None) -> None:
    """Step warm-up or schedule for the present epoch; ``train_loop`` and ``eval`` already do, and one epoch counts
    once. ``step`` is taken, as in early 2021, and not needed."""
    trainer.lr_schedule.after_epoch(trainer.epoch, key_metric, avg_batch_loss)


def change_lr(trainer: TemplateModel, lr_list: Sequence[float]) -> None:
    """Set the rate of every group of each optimizer; schedules go on in proportion, a warm-up takes it as its goal.

    Args:
        lr_list: one rate per optimizer.
    """
    if len(lr_list) != len(trainer.optimizer_list):
        raise ValueError(f"lr_list needs one rate per optimizer ({len(trainer.optimizer_list)}), got {lr_list!r}.")
    if trainer.lr_schedule is not None:
        trainer.lr_schedule.take_new_groups()
    for index, (optimizer, lr) in enumerate(zip(trainer.optimizer_list, lr_list)):
        ratios = [lr / float(group["lr"]) if group["lr"] else 1.0 for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            set_rate(group, lr)
        if trainer.lr_schedule is not None:
            trainer.lr_schedule.rescale(index, ratios)


# --- reports ----------------------------------------------------------------------------------------------------------


def num_parameters(trainer: TemplateModel) -> int:
    """Print and return the number of trainable parameters over all models."""
    count = sum(p.numel() for model in trainer.model_list for p in model.parameters() if p.requires_grad)
    trainer.lifetime.say(f"Trainable parameters: {count:,}")
    return count


def get_model_info(trainer: TemplateModel, fake_inp: Any) -> None:
    """Print a table of layers for ``fake_inp``, an input with batch dimension, and write the graph to TensorBoard."""
    with trainer.lifetime.session("get_model_info()" if trainer.is_sharded else None):
        print_summary(trainer, fake_inp)
        for callback in trainer.hooks.callbacks:
            if hasattr(callback, "write_graph"):
                callback.write_graph(trainer, fake_inp)


def print_best_metrics(trainer: TemplateModel) -> None:
    """Print the best value of each metric and loss with its epoch."""
    trainer.lifetime.say("Best metrics:", *(f"  {name}: {value:.6g} (epoch {trainer.best_epoch.get(name, '?')})"
                                            for name, value in trainer.best_metric.items()))


def print_final_lr(trainer: TemplateModel) -> None:
    """Print the present learning rates of every optimizer."""
    rates = ([float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizer_list)
    trainer.lifetime.say("Final learning rate:", *(f"  optimizer {i}: {own}" for i, own in enumerate(rates)))


def print_all_member(trainer: TemplateModel, print_model: bool = False) -> None:
    """Print every attribute that was set; loaders, internals and, unless asked for, the models are left out."""
    hidden = _NOT_PRINTED if print_model else _NOT_PRINTED | {"model_list"}
    trainer.lifetime.say("Template config:", *(f"  {name}: {value}" for name, value in vars(trainer).items()
                                               if name not in hidden and not name.startswith("_")))


# --- as methods -------------------------------------------------------------------------------------------------------


class AroundTheLoop:
    """The part of ``TemplateModel`` that is not the loop: every function of this file as a method, and what can be read."""

    world: Alone           # TemplateModel.__init__ makes these, and the properties below read them
    hooks: Hooks
    stepper: Stepper
    run_name: str | None
    _writer: WriterOfRun

    predict = predict
    note_predictions = note_predictions
    path_of = path_of
    updates_per_epoch = updates_per_epoch
    save_state = save_state
    load_state = load_state
    use_best = use_best
    save_model = save_model
    wait_for_saves = wait_for_saves
    close = close
    eval_loop = eval_loop
    update_lr_scheduler = update_lr_scheduler
    change_lr = change_lr
    num_parameters = num_parameters
    get_model_info = get_model_info
    print_best_metrics = print_best_metrics
    print_final_lr = print_final_lr
    print_all_member = print_all_member
    warm_up_type = OtherName("warm_up_mode")
    __repr__ = describe
    __getstate__ = copies.state_to_copy
    __setstate__ = copies.take_state

    if not TYPE_CHECKING:  # a checker would let every misspelt name pass
        __setattr__ = assignments.set_attribute

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes: the only one, or rank 0."""
        return self.world.is_main

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of ``history.csv``: ``{"epoch": 1, "global_step": 40, "train/tol_loss": 0.7, "eval/acc": 0.8, …}``."""
        if self.hooks is None:
            return []
        for callback in self.hooks.callbacks:
            if isinstance(rows := getattr(callback, "rows", None), list):  # of History, or of somebody's own in its place
                return rows
        raise RuntimeError("trainer.history shows the rows of the callback History, and this run has none. Add it to the "
                           "list callbacks, or put callbacks/history.py back if you deleted it.")

    @property
    def skipped_updates(self) -> int:
        """Updates skipped until now because a loss or gradient was not finite, see ``skip_non_finite``."""
        return self.stepper.skipped

    @property
    def writer(self) -> Any:
        """The run's TensorBoard ``SummaryWriter``, made when first asked for; None when TensorBoard is off or absent."""
        is_open = self.hooks is not None
        return self._writer.get(run_folder.place(Path(run_folder.TENSORBOARD_ROOT, str(self.run_name))) if is_open else None)

    @writer.setter
    def writer(self, writer: Any) -> None:
        self._writer.set(writer)
