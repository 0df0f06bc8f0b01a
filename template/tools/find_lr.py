"""Which learning rate to begin with: one short training in which the rate grows from tiny to far too large.

    trainer.check_init()
    found = find_lr(trainer)             # some seconds; prints a table
    found.suggestion                     # 0.0021
    found.plot("rates.png")              # loss over rate
    trainer.change_lr([found.suggestion])

The trainer is as before when it returns. A suggestion is a place to begin, for this batch size and these weights: the best
rate for a long run is found by long runs.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017 (the sweep); the half-way point of the valley is
the idea of fastai's ``lr_find``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..output.text_table import text_table
from ..run.as_found import (
    as_found,
    as_in_training,
    batches_again_and_again,
    loss_of,
    nothing_written,
    planned_rates,
    updates,
)
from ..run.checks import check_count
from ..update.lr_scheduler import set_rate

if TYPE_CHECKING:
    from ..template import TemplateModel

_FIRST_LOOK = 10   # updates before which nothing counts as diverged: batches differ
_FALL = 0.1        # of the whole fall of the loss, at which its valley begins
_LINES = 12        # of the printed table


@dataclass
class FoundRate:
    """What a sweep has seen. Rates are those of the first group of the optimizer; other groups went along in proportion."""

    rates: list[float]
    """Of each update, rising."""
    losses: list[float]
    """Of the batches that followed the update with that rate."""
    smoothed: list[float]
    """The same over neighbouring updates; a guide for the eye and for the two below."""
    suggestion: float | None
    """Half way, in powers of ten, between where the loss begins to fall and where it is lowest; None: it did not fall."""
    steepest: float | None
    """Where the loss falls fastest; more daring on noisy losses. None: it did not fall."""
    ended: str
    """Why the sweep ended, in words."""
    optimizer: int | None
    """Index of the optimizer whose rate grew; None: all of them."""
    seconds: float

    def table(self) -> str:
        """Some of the updates, with marks at the two rates."""
        count = len(self.rates)
        shown = set(np.linspace(0, count - 1, min(count, _LINES)).round().astype(int).tolist()) if count else set()
        marks: dict[int, list[str]] = {}
        for name, rate in (("suggestion", self.suggestion), ("steepest", self.steepest)):
            if rate is not None:
                place = int(np.argmin(np.abs(np.log(np.asarray(self.rates) / rate))))
                marks.setdefault(place, []).append(name)
        return text_table([{"rate": f"{self.rates[i]:.2e}", "loss": self.losses[i], "smoothed": self.smoothed[i],
                            "": ", ".join(marks.get(i, []))} for i in sorted(shown | marks.keys())])

    def plot(self, path: str | Path) -> None:
        """Write a picture of loss over rate.

        Raises:
            ImportError: there is no matplotlib.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore  # optional
            from matplotlib.figure import Figure  # type: ignore  # optional
        except ImportError:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from None
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, color="0.75", linewidth=1, label="loss")
        axes.plot(self.rates, self.smoothed, color="tab:blue", linewidth=1.8, label="smoothed")
        for name, rate, color, style in (("suggestion", self.suggestion, "tab:green", "-"),
                                         ("steepest", self.steepest, "tab:orange", "--")):
            if rate is not None:
                axes.axvline(rate, color=color, linestyle=style, linewidth=1.2, label=f"{name} {rate:.2g}")
        if self.rates:
            axes.set_xscale("log")
            low, high = min(self.smoothed), max(self.smoothed[0], *self.smoothed[:_FIRST_LOOK])
            axes.set_ylim(low - 0.1 * (high - low or 1.0), high + 0.5 * (high - low or 1.0))  # the end would hide the valley
        axes.set_xlabel("learning rate" if self.optimizer is None else f"learning rate of optimizer {self.optimizer}")
        axes.set_ylabel("loss of the next batch")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=110)


def find_lr(trainer: TemplateModel, lowest: float = 1e-7, highest: float = 10.0, num_updates: int = 100,
            optimizer: int | None = None) -> FoundRate:
    """Raise the rate from update to update, from ``lowest`` to ``highest`` in equal factors, until the loss diverges.

    Updates are those of training, with its accumulation, mixed precision and clipping; schedules do not step. A loader that
    is shorter than the sweep goes round. Among several processes every rank has to call it.

    Args:
        num_updates: of the whole sweep, at least 20.
        optimizer: index of the one whose rate grows, beside the others at the rates of the run; None: all, in the
            proportions that their rates have.

    Raises:
        RuntimeError: ``check_init`` was not called.
        ValueError: an argument does not fit, or weights are divided among the ranks.
    """
    check_count("num_updates", num_updates)
    if num_updates < 20:
        raise ValueError(f"num_updates must be at least 20, so that there is a curve to look at; got {num_updates}.")
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"lowest and highest must be rates above 0, the lowest first; got {lowest!r} and {highest!r}.")
    count = len(trainer.optimizer_list or ())
    if optimizer is not None and optimizer not in range(count):
        raise ValueError(f"optimizer must be an index of optimizer_list, 0 to {count - 1}, or None for all; got "
                         f"{optimizer!r}.")
    started = time.perf_counter()
    rates = [lowest * (highest / lowest) ** (i / (num_updates - 1)) for i in range(num_updates)]
    with as_found(trainer, "find_lr()"):
        as_in_training(trainer)
        losses, ended = _sweep(trainer, rates, optimizer)
    found = _read(rates, losses, ended, optimizer, time.perf_counter() - started)
    if trainer.is_main:
        with nothing_written(trainer):
            _tell(trainer, found)
    return found


def _sweep(trainer, rates, index):
    """The loss of each update, and why it ended. The loss that the k-th rate leads to is that of the update after it, so
    one more update follows the last rate."""
    planned = planned_rates(trainer)
    chosen = range(len(planned)) if index is None else [index]
    first = next((rate for i in chosen for rate in planned[i] if rate), 1.0)
    losses: list[float] = []
    best = mean = weight = 0.0
    steps = updates(trainer, batches_again_and_again(trainer))
    for rate in [*rates, rates[-1]]:
        for i, own in enumerate(planned):
            for group, planned_rate in zip(trainer.optimizer_list[i].param_groups, own):
                set_rate(group, rate * (planned_rate or first) / first if i in chosen else planned_rate)
        try:
            loss = loss_of(next(steps, {}))
        except (ValueError, RuntimeError, ArithmeticError):
            if trainer.world.size == 1 and not _are_finite(trainer):  # it is about weights that are no numbers
                return losses, f"the weights are not finite after a rate of {rate:.2g}"
            raise
        losses.append(loss)
        if not math.isfinite(loss):
            return losses[:-1], f"the loss is not finite after a rate of {rate:.2g}"
        mean, weight = 0.8 * mean + 0.2 * loss, 0.8 * weight + 0.2
        recent = mean / weight
        best = recent if len(losses) == 1 else min(best, recent)
        if len(losses) > _FIRST_LOOK and recent > best + 2 * max(losses[0] - best, abs(losses[0]) / 2):
            return losses, f"the loss diverges at a rate of {rate:.2g}"
    return losses, f"the loss does not diverge up to {rates[-1]:.2g}"


def _are_finite(trainer):
    return all(bool(torch.isfinite(p).all()) for p in trainer.stepper.parameters())


def _read(rates, losses, ended, optimizer, seconds):
    """The two rates, from losses of which each follows one update."""
    after = losses[1:]
    rates = rates[:len(after)]
    smoothed = _smooth(np.asarray(after, dtype=float))
    suggestion = steepest = None
    if len(after) >= _FIRST_LOOK:
        top, lowest = float(np.median(after[:_FIRST_LOOK])), int(np.argmin(smoothed))
        noise = float(np.std(np.asarray(after[:_FIRST_LOOK]) - smoothed[:_FIRST_LOOK]))
        fall = top - float(smoothed[lowest])
        if fall > max(2 * noise, 1e-3 * abs(top)) and lowest > 0:
            begin = max((i for i in range(lowest) if smoothed[i] >= top - _FALL * fall), default=0)
            suggestion = math.sqrt(rates[begin] * rates[lowest])
            slopes = np.gradient(smoothed[:lowest + 1])
            steepest = rates[int(np.argmin(slopes))]
    return FoundRate(rates, after, smoothed.tolist(), suggestion, steepest, ended, optimizer, seconds)


def _smooth(losses):
    """A mean weighted by a bell over 3 updates to each side, without the lag that a running mean has."""
    if not len(losses):
        return losses
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / 1.5) ** 2)
    return weights @ losses / weights.sum(1)


def _tell(trainer, found):
    print(found.table())
    whose = "" if found.optimizer is None else f" of optimizer {found.optimizer}"
    print(f"{len(found.rates)} updates in {found.seconds:.1f} s; {found.ended}.")
    if found.suggestion is None:
        print("The loss did not fall at any rate, so nothing is suggested. overfit(trainer) says whether the model can "
              "learn.")
        return
    planned = planned_rates(trainer)[found.optimizer or 0][0]
    print(f"suggestion{whose}: {found.suggestion:.2g} (middle of the valley); steepest fall at {found.steepest:.2g}; the "
          f"run is planned with {planned:.2g}. Nothing was changed.")
