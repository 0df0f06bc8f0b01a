"""Stop when a metric no longer gets better.

    trainer.callbacks = [EarlyStopping(patience=10)]                    # on key_metric
    trainer.callbacks = [EarlyStopping("train/tol_loss", patience=5)]   # without an eval_loader
    trainer.callbacks = [EarlyStopping(restore_best=True)]              # and use the best weights from then on
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..metrics.best import better_when, find_name, follows_training
from ..output.console import number
from ..output.run_folder import legal
from ..output.warn import warn

if TYPE_CHECKING:
    from ..template import TemplateModel


class EarlyStopping(Callback):
    """Sets ``should_stop`` after ``patience`` results in a row without a gain of more than ``min_delta``.

    Args:
        monitor: name of an eval metric or loss, ``"train/<name>"`` for the training's, None for ``key_metric``.
            "val_acc", "val_loss" and "train_loss" are understood.
        mode: "max" or "min"; None: as the model treats that metric.
        patience: results without a gain that are put up with, at least 1: evaluations, or epochs for a loss of the training.
        min_delta: smallest difference that counts as a gain, in the metric's units.
        restore_best: at the end of the run, stopped or not, put the weights of the best result into the models, as
            ``use_best()`` does. A run that was ended "now", to go on later, keeps its own. For another quantity than
            ``key_metric`` the best ones are kept in ``best_<monitor>.pth``.

    Raises:
        ValueError: a bad argument, or a monitor that no result contains; the message lists what there is.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, patience: int = 10,
                 min_delta: float = 0.0, restore_best: bool = False) -> None:
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
        self.restore_best = restore_best
        self.best: Any = None  # a float, once there was a result
        self.waited = 0
        self._file: Any = None  # that holds the weights of the best result
        self._epoch = 0         # whose training was judged last: where a run goes on with its evaluation it ends again

    @property
    def follows_training(self) -> bool:
        """Whether it monitors a loss of the training, and no evaluation."""
        return self.monitor is not None and self.monitor.startswith(("train/", "train_"))

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if self._is_of_training(model) and model.epoch > self._epoch:
            self._epoch = model.epoch
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
            self._keep_weights(model, name)
            return
        self.waited += 1
        if self.waited >= self.patience:
            model.should_stop = True
            what = "epochs" if self._is_of_training(model) else "evaluations"
            print(f"EarlyStopping: {name} did not get better than {number(self.best)} in {self.waited} {what}.")

    def _keep_weights(self, model, name):
        if self.restore_best:
            self._file = "best.pth" if name == model.key_metric else f"best_{legal(name)}.pth"
            if self._file != "best.pth":  # which eval() writes itself
                model.checkpoints.save_best(self._file)

    def on_exit(self, model: TemplateModel) -> None:
        if self._file is not None and self._is_over(model) and model.path_of(self._file).exists():
            model.use_best(model.path_of(self._file))

    def _is_over(self, model):
        """Whether nothing is left to train: a run that was ended "now" goes on where it was."""
        if model.lifetime.only_looks:  # somebody took other weights behind the training
            return False
        if model.should_stop:
            return model.should_stop != "now"
        if model.total_updates is not None:
            return model.global_step >= model.total_updates
        return model.total_epochs is not None and model.epochs_done >= model.total_epochs

    def _gain(self, value, mode):
        """How much better than the best; a NaN is never better, and anything is better than a NaN."""
        if math.isnan(self.best):
            return math.inf
        gain = value - self.best if mode == "max" else self.best - value
        return -math.inf if math.isnan(gain) else gain

    def start_afresh(self) -> None:
        """A checkpoint was loaded that knows nothing of this."""
        self.best, self.waited, self._file, self._epoch = None, 0, None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "epoch": self._epoch, "file": self._file}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
        self._epoch, self._file = state.get("epoch", 0), state.get("file")
