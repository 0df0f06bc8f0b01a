"""End the training after some time, before a cluster does: saved, and continued by the next start.

    trainer.callbacks = [StopAfter(hours=11.5)]          # of a job that may take 12
    trainer.load_state("auto")                           # goes on where the job before it was ended
    trainer.fit(100)

It looks behind each update, and not within an evaluation: leave time for one, and for writing a checkpoint.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel


class StopAfter(Callback):
    """Sets ``should_stop = "now"`` behind the first update that ends later than ``hours`` and ``minutes``.

    They are counted from when the object is made, in this process: each start of the script has as much time again, as each
    job of a cluster has. The program goes on behind the loop.

    Raises:
        ValueError: they are not numbers, or come to nothing.
    """

    def __init__(self, hours: float = 0, minutes: float = 0) -> None:
        for name, value in (("hours", hours), ("minutes", minutes)):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}.")
        if not hours + minutes:
            raise ValueError("StopAfter needs a time: StopAfter(hours=11.5), or StopAfter(minutes=30).")
        self.seconds: float = 3600 * hours + 60 * minutes
        self._began = time.monotonic()

    def on_after_step(self, model: TemplateModel) -> None:
        if time.monotonic() - self._began >= self.seconds and not model.should_stop:
            model.should_stop = "now"
            print(f"StopAfter: {self.seconds / 60:.6g} minutes are over at epoch {model.epoch}, update {model.global_step}. "
                  "The next start goes on from here with load_state('auto').")
