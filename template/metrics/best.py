"""Which value of a metric or loss is the best one, and in which epoch it came.

    better_when(trainer, "acc")          # "max" or "min"
    note_best(trainer, result)           # True when key_metric is at its best
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..template import TemplateModel


def better_when(trainer: TemplateModel, name: str | None) -> str:
    """Whether more or less of a metric or loss is better: "max" or "min"."""
    mode = trainer.key_metric_mode
    if isinstance(mode, dict):
        mode = mode.get(str(name))
    elif name != trainer.key_metric and name in trainer.eval_loss_names:
        mode = None  # one mode for all speaks of metrics, and of a loss only when it is the key
    is_loss = name in trainer.eval_loss_names or str(name).endswith("tol_loss")
    return mode or ("min" if is_loss else "max")


def note_best(trainer: TemplateModel, result) -> bool:
    """Keep the best value of everything in ``best_metric`` with its epoch; True when ``key_metric`` is at its best."""
    for name, value in result.items():
        if not isinstance(value, float):
            continue
        if not math.isfinite(value):
            print(f"The evaluation of epoch {trainer.epoch} gave {name} = {value}, which never counts as best. Look at the "
                  "eval data and at the weights.")
            continue
        best = trainer.best_metric.get(name, value)
        if value <= best if better_when(trainer, name) == "min" else value >= best:
            trainer.best_metric[name], trainer.best_epoch[name] = value, trainer.epoch
    return trainer.best_epoch.get(trainer.key_metric) == trainer.epoch
