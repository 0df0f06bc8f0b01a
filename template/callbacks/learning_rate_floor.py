"""End the training when the schedule has brought the learning rate down to where nothing is learned any more.

    trainer.lr_scheduler_type = "metric"                 # a plateau schedule
    trainer.callbacks = [LearningRateFloor(1e-6)]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel


class LearningRateFloor(Callback):
    """Sets ``should_stop`` at the end of the first epoch in which the rates of all groups are at ``floor`` or less.

    A warm-up that begins below the floor ends nothing: some rate must have been above it before.

    Args:
        floor: learning rate, above 0.

    Raises:
        ValueError: it is not.
    """

    def __init__(self, floor: float = 1e-7) -> None:
        if not isinstance(floor, (int, float)) or isinstance(floor, bool) or floor <= 0:
            raise ValueError(f"floor must be a learning rate above 0, got {floor!r}.")
        self.floor = floor
        self._was_above = False

    def on_train_start(self, model: TemplateModel) -> None:
        self._was_above = self._was_above or self._highest(model) > self.floor

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        highest = self._highest(model)
        if highest > self.floor:
            self._was_above = True
        elif self._was_above:
            model.should_stop = True
            print(f"LearningRateFloor: the training ends, because no learning rate is above {self.floor:.3g} any more; the "
                  f"highest is {highest:.3g}.")

    def _highest(self, model):
        return max(float(group["lr"]) for optimizer in model.optimizer_list for group in optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {"was_above": self._was_above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._was_above = state["was_above"]
