"""A bar per epoch on stderr: losses, time that the run still takes, the best value so far, speed, learning rate.

Without a terminal, one plain line now and then on stdout, so that log files of clusters stay readable.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from ..data.nested import loader_length
from ..hooks import Callback
from ..output.speed import peak_gigabytes
from ..output.time_left import clock
from ..update.nominal_batch import accumulation_of

if TYPE_CHECKING:
    from ..template import TemplateModel

_PLAIN_LINE_EVERY_SECONDS = 30.0
_REDRAWN_EVERY_SECONDS = 0.1
_EVALUATION_IS_LONG_AFTER_SECONDS = 2.0
_BAR_WIDTH = 10    # characters; the rest of the line is for numbers
_COLUMNS = 80      # of a terminal that does not tell
_LINE_LENGTH = 130  # characters of a plain line's fields


class ProgressBar(Callback):
    """Lives on ``on_log``: its numbers are on the host already, it waits for nothing.

    Where the line is too short, the fields that come last are left out: data wait and memory go first, the loss stays. An
    evaluation has a bar when it takes longer than two seconds.

    Args:
        show: False shows neither bar nor lines.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.bar: Any = None
        self._tqdm: Any = None
        self._logger: Any = None  # that prints above the bar
        self._in_notebook = False
        self._start = None      # of the epoch, see output/speed.py
        self._last_shown = 0.0  # seconds, on time.perf_counter's clock
        self._first = 0         # update of the run that the epoch began with
        self._updates: int | None = None  # of the present epoch; None where the loader has no length
        self._began: tuple[int, float] | None = None  # the present epoch's number, and seconds on that clock
        self._epoch_seconds: float | None = None      # of the epoch before, with its evaluation

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        if not self._is_shown(model):
            return
        self._start, self._last_shown = model.stepper.speed.mark(), time.perf_counter()
        if self._began is not None and self._began[0] == model.epoch - 1:
            self._epoch_seconds = self._last_shown - self._began[1]
        self._began = model.epoch, self._last_shown
        self._first, self._updates = model.global_step - _updates_begun(model), _updates_of_epoch(model)
        self.bar = self._open(f"epoch {_of_total(model)}", self._updates, _updates_begun(model), "update")
        if self.bar is not None and not self._in_notebook:
            self._logger = model.stdout_logger
            self._logger.before_line = self.bar.clear  # else what is printed within an epoch stands behind the bar

    def on_after_step(self, model: TemplateModel) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        now = time.perf_counter()
        every = _PLAIN_LINE_EVERY_SECONDS if self.bar is None else _REDRAWN_EVERY_SECONDS
        if not self._is_shown(model) or now - self._last_shown < every:
            return
        self._last_shown = now
        fields = self._fields(model, values)
        if self.bar is None:
            line = _fitting(fields, _LINE_LENGTH)
            print(f"epoch {_of_total(model)} cur:[{model.global_step - self._first}]\\[{self._updates or '?'}] {line}")
        else:
            self.bar.set_postfix_str(_fitting(fields, self._room()), refresh=False)

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self._close()

    # --- an evaluation that takes long ----------------------------------------------------------------------------

    def on_eval_batch(self, model: TemplateModel, batch: Any) -> None:
        if self.bar is None:
            if self._tqdm is False or not self._is_shown(model):
                return
            self.bar = self._open("evaluation", model.evaluator.num_batches, 0, "batch", _EVALUATION_IS_LONG_AFTER_SECONDS)
        if self.bar is not None and self.bar.unit == "batch":  # in the midst of an epoch its own bar stays
            self.bar.update()

    def on_eval_end(self, model: TemplateModel) -> None:
        if self.bar is not None and self.bar.unit == "batch":
            self._close()

    def on_exit(self, model: TemplateModel) -> None:
        self._close()

    # --- how it is drawn ------------------------------------------------------------------------------------------

    def _is_shown(self, model):
        """Not beside another callback that shows how far the training is, as ``LivePlot`` does in a notebook."""
        return self.show and model.is_main and not any(getattr(other, "shows_progress", False) for other in
                                                       model.hooks.callbacks)

    def _open(self, title, total, begun, unit, delay=0.0):
        """A bar of tqdm; None where there is nothing to draw on."""
        if self._tqdm is None:
            self._tqdm, self._in_notebook = _find_tqdm()
        if not self._tqdm:
            return None
        text = f"{{desc}} {{percentage:3.0f}}%|{{bar:{_BAR_WIDTH}}}| {{n_fmt}}/{{total_fmt}}{{postfix}}"
        return self._tqdm(total=total, initial=begun, desc=title, unit=unit, delay=delay, leave=False, dynamic_ncols=True,
                          bar_format=None if self._in_notebook or total is None else text)

    def _room(self):
        """Characters that the fields may take on a terminal; None: as many as they like."""
        bar = self.bar
        if self._in_notebook:
            return None
        left_of_them = f"{bar.desc} 100%|{'':{_BAR_WIDTH}}| {bar.total}/{bar.total}, "
        return (bar.format_dict["ncols"] or _COLUMNS) - len(left_of_them) - 1

    def _fields(self, model, values):
        """What there is to say, what matters most first."""
        losses = [f"{name} {value:.4g}" for name, value in values.items()]
        fields = losses[:1]
        if (seconds := self._seconds_left(model)) is not None:
            fields.append(f"{clock(seconds)} left")
        if model.key_metric in model.best_metric:
            fields.append(f"best {model.key_metric} {model.best_metric[model.key_metric]:.4g}")
        speed = model.stepper.speed.since(self._start)
        if speed:
            rate = speed["samples_per_second"]
            fields.append(f"{f'{rate:.0f}' if rate >= 100 else f'{rate:.3g}'} samples/s")
        fields += [f"lr {_rates(model)}", *losses[1:]]
        if speed:
            fields.append(f"{speed['data_wait']:.0%} waited for data")
        memory = peak_gigabytes(torch.device(model.device))
        if memory is not None:
            fields.append(f"{memory:.1f} GB memory")
        return fields

    def _seconds_left(self, model):
        """Of the whole run, where its length is known, by the time of this epoch and of the one before."""
        updates, done = self._updates, model.global_step - self._first
        is_known = model.total_updates is not None or updates and done and model.total_epochs is not None
        if self._start is None or not is_known:
            return None
        speed = model.stepper.speed.since(self._start)
        if model.total_updates is not None:
            return speed["ms_per_update"] / 1000 * max(model.total_updates - model.global_step, 0) if speed else None
        of_this = speed["ms_per_update"] / 1000 * updates if speed else 0.0
        epochs_after = max(model.total_epochs - model.epoch, 0)
        return of_this * max(1 - done / updates, 0) + epochs_after * (self._epoch_seconds or of_this)

    def _close(self):
        if self._logger is not None:
            self._logger.before_line = self._logger = None
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _of_total(model):
    """"2/30", or "2" where nobody said how many epochs there will be."""
    return f"{model.epoch}/{model.total_epochs}" if model.total_epochs else f"{model.epoch}"


def _updates_begun(model):
    """Updates of the present epoch, also one of which only a part of the batches is done."""
    return accumulation_of(model).behind(-(-model.batches_done // model.world.size))


def _updates_of_epoch(model):
    """Of the present epoch; None where the loader has no length."""
    batches, done = loader_length(model.train_batches), model.batches_done // model.world.size
    return None if batches is None else _updates_begun(model) + accumulation_of(model).ahead(batches - done)


def _rates(model):
    """The present learning rate, or the lowest and the highest of all parameter groups."""
    rates = sorted({float(group["lr"]) for optimizer in model.optimizer_list for group in optimizer.param_groups})
    return f"{rates[0]:.2g}" if len(rates) == 1 else f"{rates[0]:.2g} to {rates[-1]:.2g}"


def _fitting(fields, room):
    """As many of the first fields as there is room for, one after another."""
    text = fields[0]
    for field in fields[1:]:
        if room is not None and len(text) + 2 + len(field) > room:
            break
        text += f", {field}"
    return text


def _find_tqdm():
    """``(tqdm's bar class, whether it draws in a notebook)``; False for the class where there is nothing to draw on."""
    try:
        from tqdm.auto import tqdm  # type: ignore  # optional, without types
    except ImportError:
        print("The progress bar is not shown: the package is missing. pip install tqdm")
        return False, False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_notebook = hasattr(shell, "kernel")
    return tqdm if in_notebook or sys.stderr is not None and sys.stderr.isatty() else False, in_notebook
