"""A trace of a few updates by ``torch.profiler``: which operators the time goes to.

    trainer.callbacks = [Profile()]                     # python train.py --profile

Prints the most expensive operators and leaves ``trace.json`` in the run's folder: open it in https://ui.perfetto.dev. While
it records, updates are slower; before and after it costs next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel

_ROWS = 10


class Profile(Callback):
    """Records once, at the start of a run.

    Args:
        updates: how many are recorded.
        after: how many go before, in which caches fill and models compile.

    Raises:
        ValueError: not a whole number of at least 1.
    """

    def __init__(self, updates: int = 5, after: int = 10) -> None:
        for name, value in (("updates", updates), ("after", after)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        self.updates = updates
        self.after = after
        self._profiler: Any = None
        self._last: Any = None  # update, that is recorded

    def on_train_start(self, model: TemplateModel) -> None:
        if self._last is None and model.is_main:
            self._last = model.global_step + self.after + self.updates
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=self.after - 1, warmup=1, active=self.updates, repeat=1),
                on_trace_ready=lambda profiler: self._tell(model, profiler),
            )
            self._profiler.start()

    def on_after_step(self, model: TemplateModel) -> None:
        if self._profiler is not None:
            self._profiler.step()
            if model.global_step == self._last:
                self._stop()

    def on_exit(self, model: TemplateModel) -> None:
        if self._profiler is not None:
            self._stop()
            print(f"Profile: the run ended before update {self._last}, so what was recorded is not complete.")

    def _stop(self):
        profiler, self._profiler = self._profiler, None
        profiler.stop()

    def _tell(self, model, profiler):
        path = model.path_of("trace.json")
        profiler.export_chrome_trace(str(path))
        on_gpu = torch.device(model.device).type == "cuda"
        kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: getattr(event, kind), reverse=True)
        events = [event for event in events if not event.key.startswith("ProfilerStep")]
        total = sum(getattr(event, kind) for event in events)
        where = "GPU" if on_gpu else "CPU"
        print(f"Profile of updates {self._last - self.updates + 1} to {self._last}, time on the {where}; the trace is "
              f"{os.path.relpath(path)}, for https://ui.perfetto.dev")
        print(f"  {'ms an update':>12}  {'share':>5}  {'calls':>6}  operator")
        for event in events[:_ROWS]:
            microseconds = getattr(event, kind)
            print(f"  {microseconds / 1000 / self.updates:>12.3f}  {microseconds / total:>5.0%}  "
                  f"{event.count / self.updates:>6g}  {event.key}")
