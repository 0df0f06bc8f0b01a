"""One model from several checkpoints: the mean of their weights is often better than each of them, and costs nothing to run.

    found = soup(trainer, ["epoch28.pth", "epoch29.pth", "best.pth"])             # scores; nothing is changed
    found = soup(trainer, files, how="greedy", use=True)                          # and the soup is in the models
    trainer.save_state("soup.pth", optim=False)

The files must come from one starting point: epochs of one run, or several runs that fine-tune the same weights. The mean of
two models that were trained from scratch with different seeds is no model. Scores are those of ``eval_loader``; what was
chosen by them (``"greedy"``, ``"learned"``) is flattered by them, so report the score of data that chose nothing:
``trainer.test()``.

Source: Wortsman et al., "Model soups", 2022. "learned" searches the mixing weights with the (1+1) evolution strategy and its
1/5 success rule (Rechenberg, 1973), because a metric has no gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..checkpoint import files as checkpoint_files
from ..checkpoint import sharded, state
from ..data.shares import Uneven
from ..metrics.best import better_when, resolve_key
from ..metrics.modes import eval_mode
from ..output.text_table import text_table
from ..run.as_found import as_found, look_for_signal, nothing_written
from ..run.checks import check_count, require_eval_loader
from ..run.defaults import input_of
from ..run.setup import batches_to_train
from ..update.schedule_free import loading

if TYPE_CHECKING:
    from ..template import TemplateModel

KINDS = ("uniform", "greedy", "learned")


@dataclass
class Soup:
    """What was mixed, and how it scores."""

    how: str
    key: str
    """The metric or loss that decides."""
    scores: dict[str, float]
    """``{file: key of that file alone}``."""
    weights: dict[str, float]
    """``{file: its share in the soup}``; they sum to 1."""
    score: float
    """``key`` of the soup."""
    result: dict[str, Any]
    """Everything that the evaluation of the soup gave."""
    is_better: bool
    """Whether the soup is better than the best file."""
    seconds: float
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows: list[dict[str, Any]] = [{"file": name, self.key: score, "share": self.weights.get(name, 0.0)}
                                      for name, score in self.scores.items()]
        return text_table([*rows, {"file": f"{self.how} soup", self.key: self.score, "share": 1.0}])


def soup(trainer: TemplateModel, files: Iterable[str | Path], how: str = "uniform", use: bool = False, trials: int = 30,
         batchnorm_batches: int | None = 100) -> Soup:
    """Mix the weights of checkpoints, and score the mix by ``key_metric`` on ``eval_loader``.

    Args:
        files: two or more, of this version or of 2021; names without a folder are looked for in ``ckpt_dir`` too.
        how: "uniform", the mean of all; "greedy", from the best file on, each that does no harm; "learned", the shares are
            searched for.
        use: put the soup into the models. As after ``use_best()``, counters, optimizers and files stay, and evaluations are
            noted nowhere until training goes on.
        trials: evaluations that "learned" may take. It keeps the weights of all files in the host's memory; the others
            hold two at a time.
        batchnorm_batches: from so many training batches the statistics of BatchNorm are taken anew for each mix; None: the
            whole loader; 0: the mean of the files' statistics stays, which is wrong where weights differ much.

    Raises:
        RuntimeError: ``check_init`` was not called.
        FileNotFoundError, CheckpointError: a file is not there, or damaged.
        ValueError: an argument does not fit, or weights do not fit the models. Nothing was changed.
    """
    if how not in KINDS:
        raise ValueError(f"how must be one of {list(KINDS)}, got {how!r}.")
    check_count("trials", trials)
    started = time.perf_counter()
    with as_found(trainer, "soup()"):
        require_eval_loader(trainer)
        pot = _Pot(trainer, [_find(trainer, file) for file in files], batchnorm_batches, keeps_all=how == "learned")
        found, mixed = _cook(pot, how, trials)
    found.seconds = time.perf_counter() - started
    if use:
        trainer.lifetime.finish_epoch(beside=False)
        with loading(trainer.optimizer_list, resumes=False):
            state.apply_weights(trainer, mixed)
        trainer.lifetime.only_looks = True
    if trainer.is_main:
        with nothing_written(trainer):
            _tell(found, use)
    return found


def _find(trainer, file) -> Path:
    path = Path(file)
    if not path.is_file() and trainer.path_of(path).is_file():
        return trainer.path_of(path)
    if not path.is_file() and path.suffix == "" and trainer.path_of(f"{path}.pth").is_file():
        return trainer.path_of(f"{path}.pth")  # "best"
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}, nor of that name in {trainer.ckpt_dir}.")
    return path


class _Pot:
    """Weights of several files, read one at a time, and the scores of their mixes.

    Args:
        keeps_all: all files' weights stay in the host's memory, for mixing them again and again.
    """

    def __init__(self, trainer, paths: Sequence[Path], batchnorm_batches, keeps_all):
        self.trainer, self.paths, self.batchnorm_batches, self.keeps_all = trainer, paths, batchnorm_batches, keeps_all
        self.names = [path.name if len({p.name for p in paths}) == len(paths) else str(path) for path in paths]
        if len(paths) < 2 or len(set(self.names)) < len(paths):
            raise ValueError(f"A soup needs two or more different files, got {[str(path) for path in paths]}.")
        self.norms = [part for model in trainer.model_list for part in model.modules()
                      if isinstance(part, _NormBase) and part.track_running_stats and part.running_mean is not None]
        self.read_before: dict[int, dict[str, Any]] = {}
        self.criterion = {name: part for name, part in self.as_saved().items() if name == "criterion"}  # the trainer's own
        self.key = ""
        self.result: dict[str, Any] = {}

    def weights_of(self, index) -> dict[str, Any]:
        if index not in self.read_before:
            if not self.keeps_all:
                self.read_before.clear()
            saved = state.with_lists(checkpoint_files.read(self.paths[index]))
            if "shards" in saved:
                saved = sharded.plain_state(saved)
            self.read_before[index] = state.weights_in(saved)
        return self.read_before[index]

    def mix(self, shares: Sequence[float]) -> dict[str, Any]:
        """The weighted mean, in float64 of what is float. Of whole numbers (counters, positions) the first file's count."""
        total: dict[str, Any] = {}
        kinds: dict[tuple[str, str], torch.dtype] = {}
        chosen = [index for index, share in enumerate(shares) if share]
        for index in chosen:
            own = self.weights_of(index)
            if index != chosen[0] and own.keys() != total.keys():
                self._leave_out_criterion(index, chosen[0], own, total)
            for name, part in own.items():
                if name == "criterion" and index != chosen[0] and name not in total:
                    continue
                sums = total.setdefault(name, {})
                if index != chosen[0] and part.keys() != sums.keys():
                    differing = sorted(part.keys() ^ sums.keys())[:3]
                    raise ValueError(f"The files of a soup must hold the same weights; {self.paths[index]} differs from "
                                     f"{self.paths[chosen[0]]} in {differing}.")
                for key, value in part.items():
                    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
                        sums.setdefault(key, value)
                        continue
                    kinds.setdefault((name, key), value.dtype)
                    if key in sums and sums[key].shape != value.shape:
                        raise ValueError(f"The files of a soup must hold weights of one shape; {key} of {name} is "
                                         f"{list(value.shape)} in {self.paths[index]}, before {list(sums[key].shape)}.")
                    scaled = value.double() * shares[index]
                    sums[key] = sums[key] + scaled if key in sums else scaled
        return {name: {key: value.to(kinds[name, key]) if (name, key) in kinds else value for key, value in sums.items()}
                for name, sums in total.items()}

    def _leave_out_criterion(self, index, first, own, total):
        """A file of 2021 holds no weights of it: the trainer's own stay then. Models have to be in all files."""
        differing = sorted(own.keys() ^ total.keys())
        if differing != ["criterion"]:
            raise ValueError(f"The files of a soup must hold the same models; {self.paths[index]} differs from "
                             f"{self.paths[first]} in {differing}.")
        total.pop("criterion", None)

    def score(self, shares: Sequence[float]) -> float:
        """``key_metric`` of a mix, which is in the models then."""
        trainer = self.trainer
        is_mix = sum(1 for share in shares if share) > 1
        state.apply_weights(trainer, self.criterion | self.mix(shares))
        if is_mix and self.norms and self.batchnorm_batches != 0:
            self._renew_statistics()
        self.result = trainer.evaluator.score()
        look_for_signal(trainer)
        self.key = resolve_key(trainer, self.result) if not self.key else self.key
        return float(self.result[self.key])

    def is_better(self, one: float, other: float) -> bool:
        """NaN is never."""
        return one < other if better_when(self.trainer, self.key) == "min" else one > other

    @torch.no_grad()
    def _renew_statistics(self):
        """The mean over batches of each BatchNorm's statistics, as ``torch.optim.swa_utils.update_bn`` takes it, but with
        dropout off, as the statistics are used."""
        trainer, momenta = self.trainer, [norm.momentum for norm in self.norms]
        with eval_mode(trainer.model_list):
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean
                nn.Module.train(norm)
            for count, batch in enumerate(batches_to_train(trainer, trainer.train_loader).epoch(1)):
                if count == self.batchnorm_batches:
                    break
                batch = batch.batch if type(batch) is Uneven else batch
                with trainer.stepper.autocast():
                    if trainer.evaluator.has_loss:
                        trainer.loss_per_batch(batch)
                    else:
                        trainer.inference(input_of(batch, trainer.input_dtype))
        for norm, momentum in zip(self.norms, momenta):
            norm.momentum = momentum
        if trainer.stepper.parallel is not None:
            trainer.stepper.parallel.before_evaluation()

    def as_saved(self) -> dict[str, Any]:
        """The weights that are in the models now."""
        return {name: {key: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
                       for key, value in part.items()}
                for name, part in state.weights_in(state.collect(self.trainer, optim=False)).items()}


def _cook(pot: _Pot, how: str, trials: int) -> tuple[Soup, dict[str, Any]]:
    count = len(pot.paths)
    alone = [pot.score(_one(count, index)) for index in range(count)]
    order = sorted(range(count), key=lambda i: _rank(pot, alone[i]))
    shares = {"uniform": _uniform, "greedy": _greedy, "learned": _learned}[how](pot, alone, order, trials)
    score = pot.score(shares)
    result, best = dict(pot.result), alone[order[0]]
    notes = []
    if pot.norms:
        mean_of = "the files' statistics, averaged" if pot.batchnorm_batches == 0 else \
            f"statistics of {pot.batchnorm_batches or 'all'} training batches"
        notes.append(f"BatchNorm: {len(pot.norms)} layers have {mean_of}.")
    worst = alone[order[-1]]
    if pot.is_better(worst, score):
        notes.append("The soup is worse than every file: they do not come from one starting point, or lie far apart.")
    if how != "uniform":
        notes.append("The eval data chose this soup; report the score of other data: trainer.test().")
    found = Soup(how, pot.key, dict(zip(pot.names, alone)), {name: share for name, share in zip(pot.names, shares) if share},
                 score, result, pot.is_better(score, best), 0.0, notes)
    return found, pot.as_saved()


def _one(count, index):
    return [1.0 if i == index else 0.0 for i in range(count)]


def _rank(pot, score):
    """Smaller is better; NaN comes last."""
    if score != score:
        return float("inf")
    return score if better_when(pot.trainer, pot.key) == "min" else -score


def _uniform(pot, alone, order, trials):
    return [1 / len(alone)] * len(alone)


def _greedy(pot, alone, order, trials):
    """From the best file on: a file stays in where the mean with it is no worse."""
    chosen, best = [order[0]], alone[order[0]]
    for index in order[1:]:
        tried = [*chosen, index]
        score = pot.score([1 / len(tried) if i in tried else 0.0 for i in range(len(alone))])
        if not pot.is_better(best, score) and score == score:
            chosen, best = tried, score
    return [1 / len(chosen) if i in chosen else 0.0 for i in range(len(alone))]


def _learned(pot, alone, order, trials):
    """Shares are the softmax of free numbers, which take random steps that count when they do no harm: longer ones after a
    success, shorter ones after failures. It begins at the better one of the mean of all and the best file."""
    count, drawn = len(alone), np.random.default_rng(0)
    uniform = [1 / count] * count
    best_shares, best = _one(count, order[0]), alone[order[0]]
    score = pot.score(uniform)
    numbers = np.zeros(count)
    if not pot.is_better(best, score) and score == score:
        best_shares, best = uniform, score
    else:
        numbers[order[0]] = 3.0
    length = 1.0
    for _ in range(trials - 1):
        step = numbers + length * drawn.standard_normal(count)
        shares = np.exp(step - step.max())
        shares = (shares / shares.sum()).tolist()
        score = pot.score(shares)
        if not pot.is_better(best, score) and score == score:
            numbers, best_shares, best = step, shares, score
            length *= 1.5
        else:
            length *= 1.5 ** -0.25  # in balance at one success in five
    return best_shares


def _tell(found: Soup, is_used: bool) -> None:
    print(found.table())
    better = "better than" if found.is_better else "not better than"
    print(f"The {found.how} soup is {better} the best file. "
          f"{'It is in the models now.' if is_used else 'Nothing was changed.'} ({found.seconds:.1f} s)")
    for note in found.notes:
        print(f"  {note}")
