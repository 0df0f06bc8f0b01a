"""Whether a model can learn at all: it is trained on the same batch again and again, which any sound setup learns by heart.

    trainer.check_init()
    verdict = overfit(trainer)                       # some seconds; says in words what it saw
    verdict.can_learn                                # True

It finds a loss that depends on no weight, labels that went astray, a rate of 0, layers that forward() leaves out. It says
nothing about data that was not in the batches. The trainer is as before when it returns.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..data.nested import Fresh, copied
from ..data.seeding import rng_kept
from ..data.shares import Uneven
from ..metrics.best import better_when
from ..metrics.epoch import EpochMetrics
from ..metrics.modes import eval_mode
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
from ..run.checks import check_count, parameter_names, some
from ..run.defaults import score_dict
from ..update.lr_scheduler import set_rate

if TYPE_CHECKING:
    from ..template import TemplateModel

_LEARNED = 0.1       # of the loss at the beginning: less is learning by heart
_SOMETHING = 0.7     # less is learning
_NEAR_PERFECT = 0.99  # of a score that is 1 where everything is right
_LOOKS = 8           # lines of the printed table


@dataclass
class Verdict:
    """What the training on few batches has shown."""

    can_learn: bool
    """The loss fell to a tenth, or a score that counts what is right is at 1."""
    text: str
    """The verdict in words."""
    before: float
    """The loss of the first update."""
    after: float
    """The mean loss of the last pass over the batches."""
    losses: list[float]
    """Of every update."""
    scores: dict[str, tuple[float, float]]
    """``{metric: (before, after)}`` on the same batches, in eval mode."""
    no_gradient: list[str] = field(default_factory=list)
    """Trainable parameters that no update gave a gradient."""
    zero_gradient: list[str] = field(default_factory=list)
    """Those whose gradient was 0 in every update: behind a dead activation, or multiplied with 0."""
    not_moved: list[str] = field(default_factory=list)
    """Trainable parameters with the same values as before, to the bit."""
    seconds: float = 0.0

    def table(self) -> str:
        """The loss at some of the updates."""
        count = len(self.losses)
        shown = sorted({round(i * (count - 1) / max(_LOOKS - 1, 1)) for i in range(_LOOKS)}) if count else []
        return text_table([{"update": i + 1, "loss": self.losses[i]} for i in shown])


def overfit(trainer: TemplateModel, batches: int = 1, updates: int = 200, lr: float | None = None) -> Verdict:
    """Train on the first ``batches`` batches of ``train_loader`` for so many updates, and say what came of it.

    Updates are those of training, at the rates that the run is planned with: a warm-up or a schedule is left out. Among
    several processes every rank has to call it.

    Args:
        batches: how many different ones, read once: augmentation does not change them any more.
        updates: in all; each takes ``accumulate_steps`` of the batches in turn.
        lr: a rate for all groups, in place of the planned ones.

    Raises:
        RuntimeError: ``check_init`` was not called.
        ValueError: an argument does not fit, or weights are divided among the ranks.
    """
    check_count("batches", batches)
    check_count("updates", updates)
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"lr must be a rate above 0, or None for those of the run; got {lr!r}.")
    started = time.perf_counter()
    with as_found(trainer, "overfit()"):
        as_in_training(trainer)
        verdict = _train(trainer, batches, updates, lr)
    verdict.seconds = time.perf_counter() - started
    if trainer.is_main:
        with nothing_written(trainer):
            print(verdict.table())
            print(f"{verdict.text} ({verdict.seconds:.1f} s; nothing of it was kept.)")
    return verdict


def _train(trainer, num_batches, num_updates, lr):
    fixed = [copied(batch) for batch in itertools.islice(batches_again_and_again(trainer), num_batches)]
    _set_rates(trainer, lr)
    watch, scores = _Watch(trainer), _scores(trainer, fixed)
    losses: list[float] = []
    for losses_of_update in itertools.islice(updates(trainer, Fresh(map(copied, itertools.cycle(fixed)))), num_updates):
        losses.append(loss_of(losses_of_update))
        if not math.isfinite(losses[-1]):
            break
    after = _scores(trainer, fixed) if math.isfinite(losses[-1]) else {}
    both = {name: (value, after[name]) for name, value in scores.items() if name in after}
    tail = losses[-max(1, math.ceil(num_batches / trainer.accumulate_steps)):]
    verdict = Verdict(False, "", losses[0], sum(tail) / len(tail), losses, both, *watch.findings())
    verdict.can_learn, verdict.text = _judge(trainer, verdict, num_batches)
    return verdict


def _set_rates(trainer, lr):
    for optimizer, own in zip(trainer.optimizer_list, planned_rates(trainer)):
        for group, rate in zip(optimizer.param_groups, own):
            set_rate(group, rate if lr is None else lr)


class _Watch:
    """Which parameters get gradients and move. It looks at gradients right before each update, without a wait."""

    def __init__(self, trainer):
        names = parameter_names(trainer)
        self.named = [(names.get(p, "?"), p) for p in trainer.stepper.parameters() if p.requires_grad]
        self.before = [p.detach().clone() for _, p in self.named]
        self.got, self.largest = set(), {}
        trainer.stepper.before_step = self.look

    def look(self):
        for index, (_, p) in enumerate(self.named):
            if p.grad is not None:
                self.got.add(index)
                values = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
                if values.numel():
                    largest = values.detach().abs().max()
                    self.largest[index] = torch.maximum(self.largest[index], largest) if index in self.largest else largest

    def findings(self):
        """Names of those without a gradient, with none but zeros, and of those that did not move."""
        none = [name for i, (name, _) in enumerate(self.named) if i not in self.got]
        zero = [self.named[i][0] for i, largest in self.largest.items() if largest.item() == 0]
        still = [name for (name, p), old in zip(self.named, self.before) if torch.equal(p.detach(), old)]
        return none, zero, still


def _scores(trainer, batches):
    """The metrics of the batches in eval mode; ``{}`` where they cannot be computed from so few."""
    metrics = EpochMetrics()
    try:
        with rng_kept(), eval_mode(trainer.model_list), torch.no_grad():
            for batch in batches:
                batch = batch.batch if type(batch) is Uneven else batch
                with trainer.stepper.autocast():
                    metrics.update(score_dict(trainer.eval_scores_per_batch(batch)), trainer.count_samples(batch))
        return {name: value for name, value in metrics.compute().items() if isinstance(value, float)}
    except Exception as error:  # an AUROC of one class: the losses tell enough
        print(f"  The metrics of these batches could not be computed: {type(error).__name__}: {error}")
        return {}
    finally:
        metrics.reset()


def _judge(trainer, verdict: Verdict, num_batches) -> tuple[bool, str]:
    before, after, count = verdict.before, verdict.after, len(verdict.losses)
    on = "one batch" if num_batches == 1 else f"{num_batches} batches"
    fall = f"the loss went from {before:.4g} to {after:.4g} in {count} updates on {on}"
    fall += "".join(f", {name} from {old:.4g} to {new:.4g}" for name, (old, new) in verdict.scores.items())
    parts = _about_parameters(verdict)
    if not math.isfinite(after):
        return False, (f"The training diverged: the loss was no number any more after {count} updates. Lower the learning "
                       f"rate (find_lr(trainer) finds one), or clip gradients.{parts}")
    perfect = [name for name, (_, new) in verdict.scores.items()
               if better_when(trainer, name) == "max" and _NEAR_PERFECT <= new <= 1.0]
    if before > 0 and after <= _LEARNED * before or perfect and after < before:
        return True, f"The model can learn: {fall}.{parts}"
    if before > 0 and after <= _SOMETHING * before:
        return False, (f"The model learns, but it did not learn {on} by heart: {fall}. Give it more updates or a larger "
                       "rate (find_lr(trainer) finds one). If the loss stays where it is, labels may contradict each other, "
                       f"or dropout may be strong.{parts}")
    if before <= 0 and after < before:
        return True, f"The loss falls: {fall}. Whether that is enough cannot be told from a loss below 0.{parts}"
    return False, (f"The model did not learn: {fall}. Look at the labels, at the rate ({_rates_in_words(trainer)}), and at "
                   f"whether the loss depends on what the model says.{parts}")


def _rates_in_words(trainer) -> str:
    return ", ".join(f"{rate:.2g}" for own in planned_rates(trainer) for rate in dict.fromkeys(own))


def _about_parameters(verdict) -> str:
    lines: list[Any] = []
    if verdict.no_gradient:
        lines.append(f" {some(verdict.no_gradient)} got no gradient: forward() does not use them, or .detach() or no_grad() "
                     "is on the way.")
    if verdict.zero_gradient:
        lines.append(f" The gradient of {some(verdict.zero_gradient)} was 0 in every update: what comes behind them is dead "
                     "(ReLUs that are always 0) or multiplied with 0.")
    still = [name for name in verdict.not_moved if name not in (*verdict.no_gradient, *verdict.zero_gradient)]
    if still:
        lines.append(f" {some(still)} had gradients and did not move: their rate is 0 or too small for their dtype.")
    return "".join(lines)
