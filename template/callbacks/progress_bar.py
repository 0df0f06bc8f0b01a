"""A bar per epoch on stderr: loss, learning rate, samples per second, share of the time waited for data, memory, time left.

Without a terminal, one plain line now and then on stdout, so that log files of clusters stay readable.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Callback
from ..output.console import fitting
from ..output.speed import peak_gigabytes

if TYPE_CHECKING:
    from ..template import TemplateModel

_PLAIN_LINE_EVERY_SECONDS = 30.0
_REDRAWN_EVERY_SECONDS = 0.1


class ProgressBar(Callback):
    """Lives on ``on_log``: its numbers are on the host already, it waits for nothing.

    Args:
        show: False shows neither bar nor lines.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.bar: Any = None
        self._tqdm: Any = None
        self._start = None      # of the epoch, see output/speed.py
        self._last_shown = 0.0  # seconds, on time.perf_counter's clock

    def on_train_start(self, model: TemplateModel) -> None:
        if not (self.show and model.is_main):
            return
        self._start, self._last_shown = model.stepper.speed.mark(), time.perf_counter()
        if self._tqdm is None:
            self._tqdm = _find_tqdm()
        if self._tqdm:
            self.bar = self._tqdm(total=model.updates_per_epoch(), initial=_updates_begun(model),
                                  desc=f"epoch {model.epoch}", unit="update", leave=False, dynamic_ncols=True)

    def on_after_step(self, model: TemplateModel) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        now = time.perf_counter()
        every = _PLAIN_LINE_EVERY_SECONDS if self.bar is None else _REDRAWN_EVERY_SECONDS
        if not (self.show and model.is_main) or now - self._last_shown < every:
            return
        self._last_shown = now
        shown = self._entries(model, values)
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
        else:
            of = model.updates_per_epoch() or "?"
            entries = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"epoch {model.epoch} cur:[{_updates_begun(model)}]\\[{of}] {entries}")

    def _entries(self, model, values):
        shown, left_out = fitting({name: f"{value:.4g}" for name, value in values.items()})
        shown = shown | ({"and": f"{left_out} more"} if left_out else {})
        shown["lr"] = f"{model.optimizer_list[0].param_groups[0]['lr']:.2g}"
        speed = model.stepper.speed.since(self._start)
        if speed:
            shown["samples/s"], shown["data"] = f"{speed['samples_per_second']:.3g}", f"{speed['data_wait']:.0%}"
        memory = peak_gigabytes(torch.device(model.device))
        if memory is not None:
            shown["GB"] = f"{memory:.1f}"
        return shown

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self._close()

    def on_exit(self, model: TemplateModel) -> None:
        self._close()

    def _close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _updates_begun(model):
    """Updates of the present epoch, also one of which only a part of the batches is done."""
    return -(-model.batches_done // (model.accumulate_steps * model.world.size))


def _find_tqdm():
    """tqdm's bar class where there is something to draw on, else False: plain lines."""
    try:
        from tqdm.auto import tqdm  # type: ignore  # optional, without types
    except ImportError:
        print("The progress bar is not shown: the package is missing. pip install tqdm")
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return tqdm if hasattr(shell, "kernel") or sys.stderr is not None and sys.stderr.isatty() else False
