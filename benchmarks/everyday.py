"""What callbacks and settings of every day cost: an update, and an evaluation, with each of them and without.

    python -m benchmarks.everyday                   # in about two minutes
    python -m benchmarks.everyday --rounds 3 --only EMA Monitor

All train the same small network on the same batches, in turn, in one process, each in a run of its own with the callbacks
that are on by default. What is called "before" is the template of a commit that had none of these features nor
``eval_per_steps`` and the like, taken from git: what they cost when they are off is the difference to it. It is left out
where that commit is not there. Interpret draws its pictures at every evaluation here; ``Interpret(every=5)`` draws fewer.

It measures the host. On a GPU the same work of the host can hide behind that of the device.
"""

import argparse
import importlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .measuring import Process, conditions, in_rounds, require_equal_work, spread

BEFORE = "1151e23d42860516f1cbcd086e130ea2f48c794d"
BATCH = 64
WITHOUT, ALL, OLD = "without any of them", "all of them", "before, which had none"


def features(template):
    """``{name: attributes of a trainer}``."""
    def some_text(trainer):
        return f"{trainer.predict(torch.zeros(1, 64)).argmax()}"

    callbacks = {
        "EMA": [template.EMA()],
        "Monitor": [template.Monitor()],
        "LayerStatistics(every=100)": [template.LayerStatistics(every=100)],
        "EarlyStopping and StopAfter": [template.EarlyStopping(patience=10**9), template.StopAfter(hours=1000)],
        "Interpret": [template.Interpret()],
        "SampleOutputs": [template.SampleOutputs(some_text)],
        "LivePlot, not on a terminal": [template.LivePlot()],
    }
    found = {name: {"callbacks": own} for name, own in callbacks.items()}
    return found | {"train_metrics = True": {"train_metrics": True}}


class Contenders:
    """One trainer for each feature, all in this process.

    Args:
        folder: where runs write.
        names: of features.
        updates: of an epoch.
        batches: of an evaluation.
        before: folder that holds the package ``template_before``, or None.
    """

    def __init__(self, folder, names, updates, batches, before):
        os.chdir(folder)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  no terminal, for the whole process
        import template

        self.updates, self.batches = updates, batches
        chosen = {name: attributes for name, attributes in features(template).items() if name in names}
        together = features(template)
        both = {"train_metrics": True, "callbacks": [one for own in together.values() for one in own.get("callbacks", ())]}
        kinds = {WITHOUT: (template, {})} | ({OLD: (self._old(before), {})} if before else {})
        kinds |= {name: (template, attributes) for name, attributes in chosen.items()} | {ALL: (template, both)}
        self.trainers = {}
        for name, (package, attributes) in kinds.items():
            self.trainers[name] = self._trainer(package, f"check_point/{len(self.trainers)}", attributes)

    def _old(self, before):
        sys.path.insert(0, before)
        return importlib.import_module("template_before")

    def _trainer(self, package, ckpt_dir, attributes):
        class Trainer(package.TemplateModel):
            def metric(self, pred, y):
                return {"acc": (pred.argmax(-1) == y).float().mean()}

        torch.manual_seed(0)
        trainer = Trainer()
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        trainer.model_list, trainer.criterion = [model], nn.CrossEntropyLoss()
        trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.01)]
        trainer.train_loader, trainer.eval_loader = self._loader(self.updates), self._loader(self.batches)
        trainer.device, trainer.seed, trainer.key_metric, trainer.ckpt_dir = "cpu", 0, "acc", ckpt_dir
        for name, value in attributes.items():
            setattr(trainer, name, value)
        trainer.check_init()
        return trainer

    def _loader(self, batches):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batches * BATCH, 64, generator=generator)
        return DataLoader(TensorDataset(x, torch.randint(10, (len(x),), generator=generator)), BATCH)

    def names(self):
        return list(self.trainers)

    def train(self, name):
        """Seconds per update over an epoch, without a checkpoint, and the loss of the epoch."""
        trainer = self.trainers[name]
        started = time.perf_counter()
        means = trainer.train_loop()
        trainer.lifetime.count_epoch()
        return (time.perf_counter() - started) / self.updates, means["tol_loss"]

    def evaluate(self, name):
        """Seconds of an evaluation, of which callbacks hear and nothing is saved, and its loss."""
        trainer = self.trainers[name]
        started = time.perf_counter()
        with trainer.evaluator.events():
            result = trainer.evaluator.score(trainer.hooks.on_eval_batch)
            for call in trainer.hooks.on_eval_result:
                call(trainer, result)
        return time.perf_counter() - started, result["tol_loss"]


def package_of(commit, folder):
    """The template of a commit as ``<folder>/template_before``; None where git does not have it."""
    command = ["git", "archive", "--format=zip", commit, "template"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    with zipfile.ZipFile(io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder)
    (folder / "template").rename(folder / "template_before")
    return str(folder)


# --- measuring and telling ------------------------------------------------------------------------------------------


def measure(process, method, names, rounds):
    """``{name: [seconds]}``."""
    losses = dict.fromkeys(names)

    def run(name):
        seconds, losses[name] = process(method, name)
        return {name: seconds}

    seconds = in_rounds(rounds, [partial(run, name) for name in names])
    if method == "train":
        require_equal_work(losses)
    return seconds


def tell(seconds, title, scale, unit):
    print(f"\n  {title:<46}{unit:>10}   more than without, {unit}", flush=True)
    for name, own in seconds.items():
        more = [scale * (one - other) for one, other in zip(own, seconds[WITHOUT])]
        print(f"    {name:<44}{scale * statistics.median(own):>10.2f}   {'' if name == WITHOUT else spread(more)}".rstrip(),
              flush=True)


def main(arguments=None):
    import template

    names = list(features(template))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=500, help="of an epoch")
    parser.add_argument("--batches", type=int, default=50, help="of an evaluation")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="FEATURE", help=", ".join(names))
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args(arguments)
    print(conditions("1 thread, one process for all, progress bars not drawn", "4 tensors of 9610 parameters in all",
                     f"batches of {BATCH}", f"{options.rounds} rounds: medians (min..max)"))
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        folder = Path(folder).resolve()
        (folder / "runs of all").mkdir()
        before = package_of(BEFORE, folder)
        if before is None:
            print(f"  {OLD}: left out, since git has no commit {BEFORE[:7]} here.")
        with Process(Contenders, folder / "runs of all", options.only, options.updates, options.batches, before,
                     steady=True) as process:
            names = process("names")
            tell(measure(process, "train", names, options.rounds), "an update", 1e6, "us")
            tell(measure(process, "evaluate", names, options.rounds),
                 f"an evaluation of {options.batches} batches", 1e3, "ms")


if __name__ == "__main__":
    main()
