"""How the template's overhead per update grows with the size of what is trained: it should not.

    python -m benchmarks.growth                     # in about two minutes
    python -m benchmarks.growth --rounds 3 --largest 1e6

Overhead is the time of an update (with metrics: of an eval batch) in the template minus that in a hand-written loop of equal
work, which has the same progress bar and writes the same numbers to TensorBoard. What is inside an update is the same code
for both. Beyond a million parameters the differences drown in the noise of updates that take up to half a second.

It counts neither the start of an epoch nor checkpoints; see ``loop.py`` and ``checkpoint.py`` for those.
"""

import argparse
import gc
import itertools
import math
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from template import Callback
from template.template import TemplateModel

from .by_hand import LOG_EVERY, SEED, Samples
from .measuring import Process, in_rounds, require_equal_work, spread, steady_conditions

BATCH = 8


class Case(NamedTuple):
    """What is trained; the same functions serve both contenders."""

    width: int = 32
    layers: int = 2        # linear ones, with one tensor each
    losses: int = 1        # entries of the dict of losses
    callbacks: int = 0
    metrics: int | None = None  # None: training is timed, else an evaluation with so many of them
    optimizers: int = 1
    updates: int = 200     # or eval batches

    def models(self):
        models = [nn.Sequential(*[nn.Linear(self.width, self.width, bias=False) for _ in range(self.layers)])
                  for _ in range(self.optimizers)]
        for layer in itertools.chain(*models):
            nn.init.eye_(layer.weight)  # else 400 layers end in denormal numbers, which are slow
        return models

    def optimizers_of(self, models):
        return [torch.optim.SGD(model.parameters(), 1e-2 / self.layers) for model in models]

    def loader(self):
        x = torch.randn(self.updates * BATCH, self.width, generator=torch.Generator().manual_seed(SEED))
        return DataLoader(Samples(x, torch.zeros(len(x), dtype=torch.long)), BATCH)

    def losses_of(self, models, x):
        loss = torch.stack([model(x).square().mean() for model in models]).sum()
        return {"tol_loss": loss} | {f"part{number}": loss / number for number in range(1, self.losses)}

    def metrics_of(self, pred):
        return {f"metric{number}": (pred > number).float().mean() for number in range(self.metrics or 0)}


# --- contenders -----------------------------------------------------------------------------------------------------


class ByHand:
    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.bar_class, self.writer, self.update = tqdm, SummaryWriter(folder), 0

    def build(self, case):
        self.models = self.optimizers = None
        gc.collect()
        self.case, self.models, self.loader = case, case.models(), case.loader()
        self.optimizers = case.optimizers_of(self.models)

    def run(self):
        """Seconds per update, or per eval batch, and the last loss."""
        if self.case.metrics is not None:
            return self._evaluate()
        window = torch.zeros(self.case.losses)
        with self.bar_class(total=self.case.updates, leave=False, dynamic_ncols=True) as bar:
            started = time.perf_counter()
            for x, _ in self.loader:
                losses = self.case.losses_of(self.models, x)
                losses["tol_loss"].backward()
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                window += torch.stack(list(losses.values())).detach()
                self.update += 1
                bar.update()
                if self.update % LOG_EVERY == 0:
                    self._log(bar, dict(zip(losses, (window / LOG_EVERY).tolist())))
                    window.zero_()
            seconds = time.perf_counter() - started
        return seconds / self.case.updates, losses["tol_loss"].item()

    def _log(self, bar, means):
        if not math.isfinite(means["tol_loss"]):
            raise FloatingPointError(f"The losses are {means} at update {self.update}.")
        for name, mean in means.items():
            self.writer.add_scalar(f"update/{name}", mean, self.update)
        rates = {f"lr/{number}": optimizer.param_groups[0]["lr"] for number, optimizer in enumerate(self.optimizers)}
        for name, rate in rates.items():
            self.writer.add_scalar(name, rate, self.update)
        bar.set_postfix({name: f"{value:.4g}" for name, value in (means | rates).items()}, refresh=False)

    def _evaluate(self):
        started = time.perf_counter()
        total, sums, samples = torch.zeros(()), torch.zeros(self.case.metrics), 0
        with torch.no_grad():
            for x, _ in self.loader:
                pred = self.models[0](x)
                total += pred.square().mean() * len(x)
                if self.case.metrics:
                    sums += torch.stack(list(self.case.metrics_of(pred).values())) * len(x)
                samples += len(x)
        loss, _ = (total / samples).item(), (sums / samples).tolist()
        return (time.perf_counter() - started) / self.case.updates, loss


class Stopwatch(Callback):
    """From behind the default callbacks' start of an epoch to the end of its last update."""

    def on_train_start(self, model):
        self.started = time.perf_counter()

    def on_after_step(self, model):
        self.stopped = time.perf_counter()


class Idle(Callback):
    def on_after_step(self, model):
        pass


class Trainer(TemplateModel):
    def __init__(self, case, ckpt_dir):
        super().__init__()
        self.case = case
        self.model_list = case.models()
        self.optimizer_list = case.optimizers_of(self.model_list)
        self.train_loader = self.eval_loader = case.loader()
        self.stopwatch = Stopwatch()
        self.callbacks = [self.stopwatch, *[Idle() for _ in range(case.callbacks)]]
        self.device, self.seed, self.key_metric, self.ckpt_dir = "cpu", SEED, "tol_loss", ckpt_dir

    def loss_per_batch(self, batch):
        self.losses = self.case.losses_of(self.model_list, batch[0])
        return self.losses

    def eval_scores_per_batch(self, batch):
        return self.case.metrics_of(self.model_list[0](batch[0])) if self.case.metrics else {}


class Ours:
    trainer = None

    def __init__(self, folder):
        os.chdir(folder)
        self.numbers = itertools.count()

    def build(self, case):
        self.trainer = None
        gc.collect()
        self.trainer = Trainer(case, f"check_point/{next(self.numbers)}")
        self.trainer.check_init()

    def run(self):
        trainer, updates = self.trainer, self.trainer.case.updates
        if trainer.case.metrics is not None:
            started = time.perf_counter()
            result = trainer.test()
            return (time.perf_counter() - started) / updates, result["tol_loss"]
        trainer.train_loop()
        trainer.lifetime.count_epoch()  # over, without a checkpoint
        return (trainer.stopwatch.stopped - trainer.stopwatch.started) / updates, trainer.losses["tol_loss"].item()


# --- measuring and telling ------------------------------------------------------------------------------------------


def of_parameters(count):
    """Two tensors; the larger, the fewer updates."""
    return Case(width=math.isqrt(count // 2), updates=max(3, min(200, 50_000_000 // count)))


GROWTH = {
    "tensors of 64 parameters": {count: Case(width=8, layers=count, updates=400 // count + 20) for count in (4, 40, 400)},
    "entries of the dict of losses": {count: Case(losses=count) for count in (1, 4, 16)},
    "callbacks that do nothing": {count: Case(callbacks=count) for count in (0, 3, 10)},
    "metrics, per eval batch": {count: Case(metrics=count) for count in (0, 2, 8)},
    "optimizers": {count: Case(optimizers=count) for count in (1, 2, 4)},
    "parameters, in 2 tensors": {10**power: of_parameters(10**power) for power in range(3, 9)},
}
CONTENDERS = {"by hand": ByHand, "template": Ours}


def measure(processes, case, rounds):
    """``({contender: [seconds]}, {contender: last loss})``."""
    losses = dict.fromkeys(processes)

    def run(name):
        seconds, losses[name] = processes[name]("run")
        return {name: seconds}

    for process in processes.values():
        process("build", case)
    seconds = in_rounds(rounds, [partial(run, name) for name in processes])
    require_equal_work(losses)
    return seconds, losses


def tell(size, seconds, losses):
    times = "".join(f"{1e6 * statistics.median(seconds[name]):>11.1f}" for name in CONTENDERS)
    overhead = spread([1e6 * (one - other) for one, other in zip(seconds["template"], seconds["by hand"])], digits=0)
    final = "  ".join(f"{losses[name]:.4f}" for name in CONTENDERS)
    print(f"    {size:<30,}{times}      {overhead:<28} {final}", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest", type=float, default=1e8, help="number of parameters")
    parser.add_argument("--updates", type=int, default=200, help="in a round, at most")
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args(arguments)
    print(steady_conditions(options.rounds))
    print("\nOverhead of the template per update over a hand-written loop of equal work, as this grows:", flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder, ExitStack() as stack:
        processes = {}
        for name, kind in CONTENDERS.items():
            own_folder = Path(folder).resolve() / name
            own_folder.mkdir()
            processes[name] = stack.enter_context(Process(kind, own_folder, steady=True))
        for what, cases in GROWTH.items():
            print(f"\n  {what:<32}{'by hand':>11}{'template':>11} us   overhead, us{'':<16}loss by hand, template")
            for size, case in cases.items():
                if size <= options.largest:
                    case = case._replace(updates=min(case.updates, options.updates))
                    tell(size, *measure(processes, case, options.rounds))


if __name__ == "__main__":
    main()
