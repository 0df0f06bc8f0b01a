"""What a trainer says of itself: at log points, behind an epoch, at the end of a run, and in ``print(trainer)``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..output import run_folder
from ..output.console import number, values_line
from ..update.guard import fetch_losses

if TYPE_CHECKING:
    from ..template import TemplateModel

_MOST_SHOWN = 3  # best values in a line
_FILES = ("best.pth", "last.pth", "history.csv", "history.png", "log.txt")


def describe(trainer: TemplateModel) -> str:
    """The trainer in a few lines: its run, how far it is, what is best, where it runs, how large the models are."""
    kind = type(trainer).__name__
    models = trainer.model_list or []
    count = sum(p.numel() for model in models for p in model.parameters() if p.requires_grad)
    parts = " + ".join(type(model).__name__ for model in models) or "no model yet"
    lines = [f"{parts}: {count:,} trainable parameters, on {trainer.device}"]
    if trainer.hooks is None:
        return "\n  ".join([f"{kind}, before check_init()", *lines])
    of = f" of {trainer.total_epochs}" if trainer.total_epochs else ""
    lines = [f"epoch {trainer.epochs_done}{of} done, {trainer.global_step:,} updates", *lines]
    if best := best_in_words(trainer):
        lines.insert(1, f"best {best}")
    return "\n  ".join([f"{kind} in {trainer.ckpt_dir}", *lines])


def best_in_words(trainer: TemplateModel) -> str:
    """"acc 0.9732 (epoch 28), tol_loss 0.0912 (epoch 25)": ``key_metric`` first; "" before the first evaluation."""
    names = sorted(trainer.best_metric, key=lambda name: (name != trainer.key_metric, not name.endswith("tol_loss")))
    texts = [f"{name} {number(trainer.best_metric[name])} (epoch {trainer.best_epoch.get(name, '?')})" for name in names]
    left_out = f", and {len(texts) - _MOST_SHOWN} more: print_best_metrics()" if len(texts) > _MOST_SHOWN else ""
    return ", ".join(texts[:_MOST_SHOWN]) + left_out


def log_window(trainer: TemplateModel) -> None:
    """Hand out the means of the window: the one wait for the device serves progress bar, TensorBoard and trackers."""
    fetch_losses(trainer)
    if values := trainer.running_losses.window():
        for call in trainer.hooks.on_log:
            call(trainer, values)


def tell_training(trainer: TemplateModel, result, best: str, rates: str, seconds: float) -> None:
    """The line of an epoch; ``best`` is what ``note_training`` gave."""
    print(f"epoch {trainer.epoch:3d} train | {values_line(result)}{best} | lr {rates} | {seconds:.1f} s")


def tell_evaluation(trainer: TemplateModel, result, improved: str = "") -> None:
    """The line of an evaluation; ``improved`` is what ``note_best`` gave."""
    line = values_line(result, [trainer.key_metric])
    if trainer.lifetime.only_looks:
        print(f"weights eval   | {line} | not noted, see use_best")
        return
    where = f" at update {trainer.global_step}" if trainer.lifetime.is_mid_epoch else " "
    best = f" | {improved} {trainer.key_metric}" if improved else ""
    print(f"epoch {trainer.epoch:3d} eval{where} | {line}{best}")


def tell_end(trainer: TemplateModel, seconds: float) -> None:
    """The last lines of a run: what was best, and where everything is.

    Args:
        seconds: that it took, in this process.
    """
    best, done = best_in_words(trainer), trainer.epochs_done
    folder = trainer.path_of(".")
    files = [name for name in _FILES if (folder / name).exists()]
    what = f"{done} epoch{'s' * (done != 1)}" if trainer.total_updates is None else f"{trainer.global_step:,} updates"
    lines = [f"=== {what} done, {_clock(seconds)} ===", *([f"  best {best}"] if best else []),
             f"  {trainer.ckpt_dir}: {', '.join(files)}"]
    if trainer.run_name and os.path.isdir(os.path.join(trainer.started_in, run_folder.TENSORBOARD_ROOT, trainer.run_name)):
        lines.append(f"  curves: tensorboard --logdir {run_folder.TENSORBOARD_ROOT.removeprefix('./')}")
    trainer.lifetime.say(*lines)


def _clock(seconds):
    """In words: "42.1 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
