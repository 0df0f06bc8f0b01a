"""What an evaluation with ten metrics costs, against one that is written by hand.

    python -m benchmarks.evaluation                     # in about two minutes
    python -m benchmarks.evaluation --only "ten scores" --forms slices --rounds 3

A tiny MLP, so that everything beside the network shows. Two kinds of metrics: ten numbers for each batch, which are averaged
over samples, and ten scores that follow from one confusion matrix at the end. By hand both are as cheap as one can write
them: one running tensor for all ten, and one wait for the device at the end. ``metric()`` of the template is written as the
docs show it; a second row has its accumulators made once. All read the same batches, and every one of the ten values must
agree, else there are no figures.

Times are those that the thread is on a CPU, so other programs count less; nothing here waits for a disk or another process.
``test()`` is what is timed: what an ``eval()`` does besides, such as writing a checkpoint, is in ``loop.py``.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import nn

from template import Confusion, TensorLoader
from template.template import TemplateModel

from .by_hand import CLASSES, SEED, load, tiny_mlp
from .measuring import Process, in_rounds, ratio, steady_conditions

BATCH = 32


def data(batches):
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batches * BATCH, 64, generator=generator)
    return x, (x @ torch.randn(64, CLASSES, generator=generator)).argmax(1)


def network():
    torch.manual_seed(SEED)
    return tiny_mlp()


def loader_of(form, x, y):
    return load(form, x, y, BATCH)


# --- ten numbers of a batch, the same functions for all ---------------------------------------------------------------


def ten_numbers(pred, y):
    """Means over the samples of a batch, as 0-dim tensors."""
    log_probabilities = pred.log_softmax(1)
    best, classes = pred.topk(5, 1)
    right = classes == y[:, None]
    true = pred.gather(1, y[:, None])[:, 0]
    return {
        "top1": right[:, 0].float().mean(), "top3": right[:, :3].any(1).float().mean(),
        "top5": right.any(1).float().mean(),
        "likelihood": log_probabilities.gather(1, y[:, None]).mean(), "largest": log_probabilities.amax(1).mean(),
        "margin": (best[:, 0] - best[:, 1]).mean(), "regret": (best[:, 0] - true).mean(), "true": true.mean(),
        "norm": pred.square().mean(), "bias": pred.mean(),
    }


def ten_scores(counts_CC):
    """What scikit-learn would give, from counts of (true class, predicted class)."""
    counts = counts_CC.double()
    hits, true, guessed, total = counts.diagonal(), counts.sum(1), counts.sum(0), counts.sum()
    missed, false = true - hits, guessed - hits
    occurs = true + guessed > 0

    def over(numerator, denominator):
        return torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), 0.0)

    def macro(values):
        return values[occurs].mean()

    f1, chance = over(2 * hits, 2 * hits + missed + false), (true * guessed).sum() / total
    spread = ((total**2 - guessed.square().sum()) * (total**2 - true.square().sum())).sqrt()
    return {
        "acc": hits.sum() / total, "precision": macro(over(hits, guessed)), "recall": macro(over(hits, true)),
        "f1": macro(f1), "f1 weighted": (f1 * true).sum() / total, "iou": macro(over(hits, hits + missed + false)),
        "specificity": macro(over(total - true - false, total - true)), "balanced": over(hits, true)[true > 0].mean(),
        "matthews": (hits.sum() * total - (true * guessed).sum()) / spread,
        "kappa": (hits.sum() - chance) / (total - chance),
    }


# --- contenders -----------------------------------------------------------------------------------------------------


class Contender:
    """Subclasses define ``evaluate``, which gives ``{name: value}``, the loss among them."""

    def run(self):
        """Seconds per batch that this thread was on a CPU, and the values."""
        started = time.thread_time()
        values = self.evaluate()
        return (time.thread_time() - started) / self.batches, values


class ByHand(Contender):
    def __init__(self, kind, form, batches, folder):
        self.batches, self.model, self.criterion = batches, network(), nn.CrossEntropyLoss()
        self.loader = loader_of(form, *data(batches))
        self.evaluate = {"ten numbers": self._numbers, "ten scores": self._scores}[kind]

    def _numbers(self):
        self.model.eval()
        sums, samples = torch.zeros(11), 0
        with torch.no_grad():
            for x, y in self.loader:
                pred = self.model(x)
                values = {"tol_loss": self.criterion(pred, y)} | ten_numbers(pred, y)
                sums.add_(torch.stack(list(values.values())), alpha=len(y))
                samples += len(y)
        return dict(zip(values, (sums / samples).tolist()))

    def _scores(self):
        self.model.eval()
        total, samples = torch.zeros(()), 0
        counts = torch.zeros(CLASSES * CLASSES, dtype=torch.long)
        with torch.no_grad():
            for x, y in self.loader:
                pred = self.model(x)
                total.add_(self.criterion(pred, y), alpha=len(y))
                counts += torch.bincount(y * CLASSES + pred.argmax(1), minlength=CLASSES * CLASSES)
                samples += len(y)
        scores = ten_scores(counts.view(CLASSES, CLASSES))
        return {"tol_loss": total.item() / samples} | {name: value.item() for name, value in scores.items()}


class Numbers(TemplateModel):
    def metric(self, pred, y):
        return ten_numbers(pred, y)


class Scores(TemplateModel):
    def metric(self, pred, y):
        return self.scores_of(Confusion(CLASSES).update(pred, y))

    def scores_of(self, confusion):
        return {
            "acc": confusion.accuracy(), "precision": confusion.precision(), "recall": confusion.recall(),
            "f1": confusion.f1(), "f1 weighted": confusion.f1("weighted"), "iou": confusion.iou(),
            "specificity": confusion.specificity(), "balanced": confusion.balanced_accuracy(),
            "matthews": confusion.matthews(), "kappa": confusion.kappa(),
        }


class ScoresMadeOnce(Scores):
    def __init__(self):
        super().__init__()
        self.confusion = Confusion(CLASSES)
        self.scores = self.scores_of(self.confusion)

    def metric(self, pred, y):
        self.confusion.update(pred, y)
        return self.scores


class Ours(Contender):
    def __init__(self, kind, form, batches, folder, subclass):
        os.chdir(folder)
        self.batches = batches
        trainer = self.trainer = subclass()
        x, y = data(batches)
        model = network()
        trainer.model_list, trainer.criterion = [model], nn.CrossEntropyLoss()
        trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.01)]
        trainer.train_loader = TensorLoader(x[:BATCH], y[:BATCH], batch_size=BATCH)
        trainer.eval_loader = TensorLoader(x, y, batch_size=BATCH) if form == "slices" else loader_of(form, x, y)
        trainer.device, trainer.seed, trainer.key_metric = "cpu", SEED, "tol_loss"
        trainer.check_init()

    def evaluate(self):
        return self.trainer.test()


BY_HAND, OURS = "by hand", "this template"
KINDS = {
    "ten numbers": {BY_HAND: (ByHand,), OURS: (Ours, Numbers)},
    "ten scores": {BY_HAND: (ByHand,), OURS: (Ours, Scores), f"{OURS}, metrics made once": (Ours, ScoresMadeOnce)},
}
FORMS = {"tensors": "DataLoader(TensorDataset)", "slices": "tensors in memory; by hand the best slicing loop",
         "samples": "a DataLoader that cannot be sliced"}


# --- measuring and telling ------------------------------------------------------------------------------------------


def measure(folder, kind, form, batches, rounds):
    """``{name: [seconds per batch of each round]}``.

    Raises:
        RuntimeError: a value of the two differs.
    """
    values = {}
    with ExitStack() as stack:
        processes = {}
        for name, (contender, *subclass) in KINDS[kind].items():
            (folder / name).mkdir(parents=True)
            process = Process(contender, kind, form, batches, folder / name, *subclass, steady=True)
            processes[name] = stack.enter_context(process)

        def run(name):
            seconds, values[name] = processes[name]("run")
            return {name: seconds}

        seconds = in_rounds(rounds, [partial(run, name) for name in processes])
    for name in seconds:
        require_equal_values(values[BY_HAND], values[name])
    return seconds


def require_equal_values(expected, found):
    """Refuse figures of evaluations that did not find the same."""
    apart = {name: (value, found.get(name)) for name, value in expected.items()
             if not math.isclose(value, found.get(name, math.nan), rel_tol=1e-4, abs_tol=1e-5)}
    if apart or len(expected) != len(found):
        raise RuntimeError("Both evaluations must give the same values. "
                           f"By hand and in the template: {apart}; the names are "
                           f"{list(expected)} and {list(found)}.")


def tell(kind, form, batches, seconds):
    print(f"\n{kind.capitalize()}, tiny MLP 64-64-10, {batches} batches of {BATCH}, {FORMS[form]}")
    for name, own in seconds.items():
        compared = "" if name == BY_HAND else f"{ratio(own, seconds[BY_HAND])} of by hand"
        print(f"  {name:<36}{1e6 * statistics.median(own):>9.1f} us per batch   {compared}".rstrip(), flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=1000, help="of an evaluation")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="which metrics")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of the data")
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args(arguments)
    print(steady_conditions(options.rounds), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        for kind in options.only:
            for form in options.forms:
                own_folder = Path(folder).resolve() / kind / form
                tell(kind, form, options.batches, measure(own_folder, kind, form, options.batches, options.rounds))


if __name__ == "__main__":
    main()
