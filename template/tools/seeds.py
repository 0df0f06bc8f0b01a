"""The same training with several seeds: how much of a result is chance, as a line that can be published.

    result = seeds(lambda seed: Digits(Options()), n=5, epochs=30, ckpt_dir="check_point/digits-seeds")
    print(result.lines["acc"])
    # acc 0.9861 ± 0.0042 (mean ± standard deviation, 5 seeds), 95% confidence interval of the mean 0.9809 to 0.9913

The interval is about the chance of the training: other weights, another order. The data is the same in all runs, so it says
nothing of other data; ``kfold`` does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output.text_table import text_table
from ..run.trials import Trials, require_weights

if TYPE_CHECKING:
    from ..template import TemplateModel


@dataclass
class Seeds:
    """What ``seeds`` found. ``print`` shows the runs as a table, and below it a line for each loss and metric."""

    rows: list[dict[str, Any]]
    """For each run its seed, its result, its epochs and its seconds."""
    mean: dict[str, float]
    """``{loss or metric: mean over the seeds}``."""
    std: dict[str, float]
    """The same for the standard deviation, with n - 1 below."""
    interval: dict[str, tuple[float, float]]
    """The same for the confidence interval of the mean."""
    lines: dict[str, str]
    """The same in words."""
    ckpt_dir: str

    def __str__(self) -> str:
        return "\n".join([text_table(self.rows), *self.lines.values()])


def seeds(make_trainer: Callable[[int], TemplateModel], n: int | Sequence[int] = 5, epochs: int | None = None, *,
          ckpt_dir: str | Path | None = None, confidence: float = 0.95, weights: str = "last", arg: Any = None,
          updates: int | None = None) -> Seeds:
    """Train once with each seed. Called again with the same ``ckpt_dir`` it reads the runs that are done, and goes on with
    the one that was cut short, to the same bits; a larger ``n`` adds runs.

    Each run has the folder ``<ckpt_dir>/seed<number>`` and the TensorBoard run ``<name of ckpt_dir>/seed<number>``.

    Args:
        make_trainer: function of a seed that returns a new trainer with a new model, before ``check_init``. Everything
            random in it comes from the seed already, so it need not use it; ``trainer.seed`` is set as well.
        n: number of runs, with the seeds 0, 1, … n - 1, or the seeds themselves; at least 2.
        epochs: of each run; None: the trainer's ``total_epochs``. They are trained by ``trainer.fit(epochs)``.
        ckpt_dir: the folder of all runs; None: a new one with a time stamp.
        confidence: of the interval, between 0 and 1.
        weights: the results are those of the "last" epoch, or of the "best" one, whose result is a little too good to
            publish where the epoch was chosen on the same samples.
        arg: options to store with each run, for ``check_init``.
        updates: the length of each run in updates, in the place of ``epochs``.

    Raises:
        ValueError: fewer than two seeds, or a trainer with a model that was trained before.
    """
    require_weights(weights)
    numbers = list(range(n)) if isinstance(n, int) else list(n)
    if len(set(numbers)) != len(numbers) or len(numbers) < 2 or not all(isinstance(x, int) and x >= 0 for x in numbers):
        raise ValueError(f"n must be a number of at least 2, or at least two different seeds (whole numbers from 0 on), "
                         f"because one run has no spread; got {n!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, for example 0.95; got {confidence!r}.")
    rows = []
    with Trials("seeds", ckpt_dir, {"weights": weights}) as trials:
        for seed in numbers:
            note = trials.run(f"seed{seed}", partial(make_trainer, seed), seed, epochs, arg, weights,
                              updates=updates)
            rows.append({"seed": seed, **note["result"], "epochs": note["epochs"], "seconds": note["seconds"]})
    values = {name: [row[name] for row in rows] for name in note["result"] if all(name in row for row in rows)}
    mean = {name: statistics.fmean(of_name) for name, of_name in values.items()}
    std = {name: statistics.stdev(of_name) if all(map(math.isfinite, of_name)) else math.nan
           for name, of_name in values.items()}
    half = {name: t_quantile((1 + confidence) / 2, len(rows) - 1) * std[name] / math.sqrt(len(rows)) for name in values}
    interval = {name: (mean[name] - half[name], mean[name] + half[name]) for name in values}
    lines = {name: _line(name, mean[name], std[name], interval[name], len(rows), confidence) for name in values}
    found = Seeds(rows, mean, std, interval, lines, str(trials.folder))
    print(found)
    return found


def t_quantile(p: float, degrees: int) -> float:
    """The value below which Student's t with a whole number of degrees of freedom is with probability ``p``.

    The distribution function is a finite sum in the angle whose tangent is t / sqrt(degrees); the angle is found by halving.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, formulas 26.7.3 and 26.7.4.
    """
    if p < 0.5:
        return -t_quantile(1 - p, degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, degrees) < 2 * p - 1 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _share_within(angle, degrees):
    """The probability that |t| is at most ``tan(angle) * sqrt(degrees)``."""
    cosine, is_odd = math.cos(angle), degrees % 2
    term, total = (cosine, cosine) if is_odd else (1.0, 1.0)
    for i in range(3 if is_odd else 2, degrees, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * (total if degrees > 1 else 0.0))
    return math.sin(angle) * total


def _line(name, mean, std, interval, count, confidence):
    """With two significant digits of the deviation."""
    digits = max(0, 1 - math.floor(math.log10(std))) if std > 0 and math.isfinite(std) else 4
    low, high = interval
    return (f"{name} {mean:.{digits}f} ± {std:.{digits}f} (mean ± standard deviation, {count} seeds), "
            f"{100 * confidence:g}% confidence interval of the mean {low:.{digits}f} to {high:.{digits}f}")
