"""Stop when a metric no longer gets better.

    trainer.callbacks = [EarlyStopping(patience=10)]                    # on key_metric
    trainer.callbacks = [EarlyStopping("train/tol_loss", patience=5)]   # without an eval_loader
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..metrics.best import better_when, find_name, follows_training
from ..output.console import number
from ..output.warn import warn

if TYPE_CHECKING:
    from ..template import TemplateModel


class EarlyStopping(Callback):
    """Sets ``should_stop`` after ``patience`` results in a row without a gain of more than ``min_delta``.

    Args:
        monitor: name of an eval metric or loss, ``"train/<name>"`` for the training's, None for ``key_metric``.
            "val_acc", "val_loss" and "train_loss" are understood.
        mode: "max" or "min"; None: as the model treats that metric.
        patience: results without a gain that are put up with, at least 1.
        min_delta: smallest difference that counts as a gain, in the metric's units.

    Raises:
        ValueError: a bad argument, or a monitor that no result contains; the message lists what there is.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, patience: int = 10,
                 min_delta: float = 0.0) -> None:
        if mode not in (None, "max", "min"):
            raise ValueError(f"mode must be 'max', 'min' or None, got {mode!r}.")
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a whole number of at least 1, got {patience!r}.")
        if min_delta < 0:
            raise ValueError(f"min_delta must be 0 or more, got {min_delta!r}.")
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.best: Any = None  # a float, once there was a result
        self.waited = 0

    @property
    def follows_training(self) -> bool:
        """Whether it monitors a loss of the training, and no evaluation."""
        return self.monitor is not None and self.monitor.startswith(("train/", "train_"))

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if self._is_of_training(model):
            self._judge(model, {f"train/{name}": value for name, value in result.items()})

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if not self._is_of_training(model):
            self._judge(model, result)

    def _is_of_training(self, model):
        return self.follows_training or self.monitor is None and follows_training(model)

    def look_for_monitor(self, names: list[str], of_training: bool) -> None:
        """Warn where the first batch of the training, or of the evaluation, does not give what is monitored."""
        if self.monitor is not None and self.follows_training == of_training and find_name(self.monitor, names) is None:
            warn(f"EarlyStopping monitors {self.monitor!r}, and the first batch gave {names}. If no batch gives it, an "
                 "error ends the training behind the epoch. Set monitor to one of these.")

    def _judge(self, model, result):
        asked = self.monitor or model.key_metric
        name = find_name(asked, result)
        if name is None:
            raise ValueError(f"EarlyStopping monitors {asked!r}, which is not among {list(result)}. Set monitor to one of "
                             "these.")
        mode = self.mode or better_when(model, name)
        value = result[name]
        if self.best is None or self._gain(value, mode) > self.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            model.should_stop = True
            print(f"EarlyStopping: {name} did not get better than {number(self.best)} in {self.waited} epochs.")

    def _gain(self, value, mode):
        """How much better than the best; a NaN is never better, and anything is better than a NaN."""
        if math.isnan(self.best):
            return math.inf
        gain = value - self.best if mode == "max" else self.best - value
        return -math.inf if math.isnan(gain) else gain

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
