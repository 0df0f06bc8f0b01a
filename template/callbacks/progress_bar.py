"""A bar per epoch on stderr: loss, learning rate, samples per second, memory, time left.

Without a terminal, one plain line now and then on stdout, so that log files of clusters stay readable.
"""

import sys
import time

import torch

from ..hooks import Callback

_PLAIN_LINE_EVERY_SECONDS = 30.0


class ProgressBar(Callback):
    """Lives on ``on_log``: its numbers are on the host already, it waits for nothing.

    Args:
        show: False shows neither bar nor lines.
    """

    def __init__(self, show=True):
        self.show = show
        self.bar = None
        self._tqdm = None
        self._samples = 0
        self._since = 0.0
        self._last_line = 0.0

    def on_train_start(self, model):
        if not self.show:
            return
        self._samples, self._since = 0, time.perf_counter()
        self._last_line = self._since
        if self._tqdm is None:
            self._tqdm = _find_tqdm()
        if self._tqdm:
            self.bar = self._tqdm(total=model.updates_per_epoch(), initial=model.batches_done // model.accumulate_steps,
                                  desc=f"epoch {model.epoch}", unit="update", leave=False, dynamic_ncols=True)

    def on_batch(self, model, batch):
        self._samples += model.count_samples(batch)

    def on_after_step(self, model):
        if self.bar is not None:
            self.bar.update()

    def on_log(self, model, values):
        if not self.show:
            return
        now = time.perf_counter()
        if self.bar is None and now - self._last_line < _PLAIN_LINE_EVERY_SECONDS:
            return
        shown = {name: f"{value:.4g}" for name, value in values.items()}
        shown["lr"] = f"{model.optimizer_list[0].param_groups[0]['lr']:.2g}"
        shown["samples/s"] = f"{self._samples / max(now - self._since, 1e-9):.3g}"
        if torch.device(model.device).type == "cuda":
            shown["GB"] = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
        else:
            self._last_line = now
            of = model.updates_per_epoch() or "?"
            done = -(-model.batches_done // model.accumulate_steps)
            print(f"epoch {model.epoch} cur:[{done}]\\[{of}] " + "  ".join(f"{k} {v}" for k, v in shown.items()))

    def on_train_end(self, model, result):
        self._close()

    def on_exit(self, model):
        self._close()

    def _close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _find_tqdm():
    """tqdm's bar class where there is something to draw on, else False: plain lines."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        print("The progress bar is not shown: the package is missing. pip install tqdm")
        return False
    in_notebook = "ipykernel" in sys.modules
    return tqdm if in_notebook or sys.stderr.isatty() else False
