"""The callbacks behind ``KerasModel.fit``: the file of the best weights, and callbacks that were written for torchkeras."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint import files, state
from ...checkpoint.saver import IN_PLACE
from ...hooks import EVENTS, Callback

if TYPE_CHECKING:
    from ...keras_model import KerasModel
    from ...template import TemplateModel

_OLD_EVENTS = ("on_fit_start", "on_train_epoch_end", "on_validation_epoch_end", "on_fit_end")


class BestWeights(Callback):
    """Keeps the best weights at ``ckpt_path``, and what the history has before the first epoch."""

    def __init__(self, model: KerasModel, own_save: Callable[[str, Any], None] | None) -> None:
        self.model = model
        self.own_save = own_save  # what somebody wrote in the place of save_ckpt
        self.trainer: Any = None
        self.baseline: dict[str, Any] = {}

    def look_for_monitor(self, names: list[str], of_training: bool) -> None:
        """The first batch of the validation gave these names: one that is not there would end the run behind the epoch."""
        key = self.trainer.key_metric
        if not of_training and not key.startswith("train/") and key not in names and self.trainer.gives_metrics:
            given = [f"val_{'loss' if name == 'tol_loss' else name}" for name in names]
            raise ValueError(f"monitor must be something that the validation gives, which is {given}, or the same of the "
                             f"training; got {self.model.monitor!r}.")

    def on_eval_start(self, model: Any) -> None:
        model.begin_evaluation()

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        self.write_if_best(model)

    def write_if_best(self, trainer: Any) -> None:
        """The weights for use, where they are the best ones until now."""
        if trainer.best_epoch.get(trainer.key_metric) != trainer.epoch:
            return
        path = Path(self.model.ckpt_path).expanduser()
        with trainer.lifetime.weights.for_use():
            if self.own_save is not None:
                if trainer.is_main:
                    self.own_save(self.model.ckpt_path, self.model.accelerator)
                return
            weights = state.collect(trainer, optim=False)["model0"]  # on every rank, which may each have a part
            if trainer.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                trainer.checkpoints.saver.save(path, weights, lambda saved: files.write(saved, path),
                                               trainer.lifetime.where(), replaced=IN_PLACE)

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": dict(self.baseline),
                "objects": {name: part.state_dict() for name, part in self.trainer.objects().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.baseline = dict(state["baseline"])
        for name, part in self.trainer.objects().items():
            if name in state["objects"]:
                part.load_state_dict(state["objects"][name])


class OldCallback(Callback):
    """An object with the events of torchkeras' callbacks, which get the ``KerasModel``."""

    def __init__(self, callback: Any, model: KerasModel) -> None:
        self.callback = callback
        self.model = model
        if not any(hasattr(callback, name) for name in _OLD_EVENTS):
            raise TypeError("callbacks must hold callbacks of this folder, or objects with one of "
                            f"{list(_OLD_EVENTS)}; got {callback!r}. Derive it from Callback, whose events are in "
                            "docs/callbacks.md.")

    def tell(self, name: str) -> None:
        if hasattr(self.callback, name):
            getattr(self.callback, name)(self.model)

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self.tell("on_train_epoch_end")

    def on_epoch_end(self, model: TemplateModel, results: dict[str, Any]) -> None:
        self.tell("on_validation_epoch_end")


def is_ours(callback: Any) -> bool:
    """Whether it has events of this folder."""
    return isinstance(callback, Callback) or any(hasattr(callback, event) for event in EVENTS)
