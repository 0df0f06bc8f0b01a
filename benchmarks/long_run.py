"""What an epoch costs after so many epochs, and an update after so many updates: it should not grow.

    python -m benchmarks.long_run                                  # 1,000 epochs, 50,000 updates, in about a minute
    python -m benchmarks.long_run --epochs 10000 --updates 200000

A model of 27 parameters is trained with the defaults: evaluation, checkpoints, TensorBoard, history. Epochs of two updates
show what is done once an epoch. One epoch of many updates shows what is done at each. Memory is what the process has in
use at that moment.

The time is that of the process's threads on the CPU, which other programs change less than the time on the clock; that is
shown beside it. Every ``epoch<N>.pth`` is kept, so the folder grows by one file an epoch; their size is what must stay.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.template import TemplateModel

from .by_hand import SEED
from .measuring import Process, conditions

PARTS = 8  # measurements of a run


class Trainer(TemplateModel):
    def __init__(self, updates):
        super().__init__()
        model = nn.Linear(8, 3)
        x, y = torch.randn(8 * updates, 8), torch.randint(0, 3, (8 * updates,))
        self.model_list, self.optimizer_list = [model], [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(TensorDataset(x, y), 8, shuffle=True)
        self.eval_loader = DataLoader(TensorDataset(x[:16], y[:16]), 8)
        self.device, self.seed, self.ckpt_dir = "cpu", SEED, "check_point/run"


class Meter(Callback):
    """Notes time and memory after every so many updates."""

    def __init__(self, every):
        self.every, self.notes = every, []

    def on_after_step(self, model):
        if model.global_step % self.every == 0:
            self.notes.append((model.global_step, time.perf_counter(), time.process_time(), memory()))


class Run:
    """In a process of its own, whose memory is measured."""

    def __init__(self, folder):
        os.chdir(folder)

    def epochs(self, count):
        """``[(epoch, seconds, seconds on the CPU, MB in use, bytes of last.pth, files, bytes of all files)]``"""
        trainer, every, found = Trainer(updates=2), max(1, count // PARTS), []
        trainer.check_init()
        started, on_cpu = time.perf_counter(), time.process_time()
        for epoch in trainer.epochs(count):
            trainer.train_loop()
            trainer.eval()
            if epoch % every == 0:
                trainer.wait_for_saves()
                seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - on_cpu
                sizes = [file.stat().st_size for file in Path("check_point/run").iterdir()]
                last = Path("check_point/run/last.pth").stat().st_size
                found.append((epoch, seconds / every, cpu_seconds / every, memory(), last, len(sizes), sum(sizes)))
                started, on_cpu = time.perf_counter(), time.process_time()
        return found

    def updates(self, count):
        """``[(update, seconds, seconds on the CPU, MB in use)]`` of a single epoch."""
        trainer, meter = Trainer(updates=count), Meter(max(1, count // PARTS))
        trainer.callbacks = [meter]
        trainer.check_init()
        trainer.train_loop()
        return [(after[0], (after[1] - before[1]) / meter.every, (after[2] - before[2]) / meter.every, after[3])
                for before, after in zip(meter.notes, meter.notes[1:])]


def memory():
    """MB that the process has in use now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=1, help="how often all is measured")
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args()
    print(conditions("1 thread"), flush=True)
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
            for name in ("epochs", "updates"):
                Path(folder, name).mkdir()
            print(f"\n  {'epoch':>7}{'ms an epoch':>13}{'on the CPU':>12}{'MB in use':>11}{'last.pth':>10}{'files':>8}"
                  f"{'MB of them':>12}")
            with Process(Run, Path(folder, "epochs")) as process:
                for epoch, seconds, cpu_seconds, in_use, last, files, size in process("epochs", options.epochs):
                    print(f"  {epoch:>7,}{1e3 * seconds:>13.2f}{1e3 * cpu_seconds:>12.2f}{in_use:>11.1f}{last:>10,}"
                          f"{files:>8,}{size / 1e6:>12.1f}", flush=True)
            print(f"\n  {'update':>7}{'us an update':>13}{'on the CPU':>12}{'MB in use':>11}")
            with Process(Run, Path(folder, "updates")) as process:
                for update, seconds, cpu_seconds, in_use in process("updates", options.updates):
                    print(f"  {update:>7,}{1e6 * seconds:>13.1f}{1e6 * cpu_seconds:>12.1f}{in_use:>11.1f}", flush=True)


if __name__ == "__main__":
    main()
