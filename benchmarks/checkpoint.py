"""What checkpoints cost: the time for which the training loop stands still, the way to the disk, and the way back.

    python -m benchmarks.checkpoint                  # in two to three minutes
    python -m benchmarks.checkpoint --megabytes 1000 --rounds 3 --folder /mnt/data

How times and ratios come about stands in ``measuring.py``. Contenders whose memory matters have a process of their own,
and what happens once in a process (the first save, a restart) gets a new one each round. They are neither pinned nor is
their allocator fixed: a thread on a CPU of its own, and the page faults of a first save, are part of what is measured.

The thread that writes needs a CPU. Where all are busy the steps of the training wait, for it and for every other program on
the machine. Linux tells how long; taken out, what is left is an estimate for a machine with a CPU to spare.

It does not measure GPUs, file systems over a network, or files that are not in the page cache.
"""

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.checkpoint import files as checkpoint
from template.template import TemplateModel

from .measuring import Process, conditions, in_rounds, row, timed

LAYERS = 50             # 100 parameters, about as many as a ResNet has
FILES = 50              # in the folder that is searched
PRACTICE_SECONDS = 0.5  # how long training steps are timed without a write
BETWEEN_SECONDS = 0.07  # of training between two saves, where these come faster than the disk writes them
SAVES = 12              # then, one after another


# --- contenders: each in a process of its own -----------------------------------------------------------------------


def network(megabytes):
    """Linear layers whose weights and AdamW moments together take so many MB."""
    width = max(1, math.isqrt(int(megabytes * 1e6 / 12 / LAYERS)))
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])


def fill_moments(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


class Plain:
    """What one writes by hand."""

    def __init__(self, folder, megabytes, has_moments=True, device="cpu"):
        self.path = Path(folder) / "plain.pth"
        self.model = network(megabytes).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        if has_moments:
            fill_moments(self.model, self.optimizer)

    def save(self):
        started = time.perf_counter()
        torch.save({"model0": self.model.state_dict(), "optimizer_list0": self.optimizer.state_dict()}, self.path)
        return {"plain": time.perf_counter() - started}

    def save_and_sync(self):
        started = time.perf_counter()
        with open(self.path, "wb") as file:
            torch.save({"model0": self.model.state_dict(), "optimizer_list0": self.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        return {"synced": time.perf_counter() - started}

    def save_often(self):
        return standstills("plain often", self.save)

    def load(self):
        started = time.perf_counter()
        saved = torch.load(self.path.with_name("last.pth"), map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model0"])
        self.optimizer.load_state_dict(saved["optimizer_list0"])
        return {"plain load": time.perf_counter() - started}


class Job(TemplateModel):
    def __init__(self, folder, megabytes, device):
        super().__init__()
        model = network(megabytes)
        inputs, labels = torch.zeros(4, model[0].in_features), torch.zeros(4, dtype=torch.long)
        self.model_list = [model]
        self.optimizer_list = [torch.optim.AdamW(model.parameters(), 1e-4)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(TensorDataset(inputs, labels), 2, shuffle=True)
        self.eval_loader = DataLoader(TensorDataset(inputs[:2], labels[:2]), 2)
        self.device, self.ckpt_dir, self.seed = device, str(folder), 0
        self.keep_checkpoints = 1


class Ours:
    """A ``TemplateModel`` at the end of its epochs: it writes ``last.pth`` and ``epoch<N>.pth``, and keeps what was before
    as ``previous.pth``."""

    def __init__(self, folder, megabytes, has_moments=True, device="cpu"):
        self.folder = Path(folder)
        self.trainer = Job(folder, megabytes, device)
        self.trainer.check_init(use_tb=False)
        if has_moments:
            fill_moments(self.trainer.model_list[0], self.trainer.optimizer_list[0])
        self.steps = {"short": Steps(width=128), "long": Steps(width=768)}

    def _save(self):
        """How long the loop stands still."""
        self.trainer.epoch += 1
        started = time.perf_counter()
        self.trainer.checkpoints.save_last(self.folder / f"epoch{self.trainer.epoch}.pth")
        return time.perf_counter() - started

    def save(self):
        started = time.perf_counter()
        standstill = self._save()
        self._wait()
        return {"standstill": standstill, "on disk": time.perf_counter() - started}

    def save_beside_short_steps(self):
        return self._save_beside("short")

    def save_beside_long_steps(self):
        return self._save_beside("long")

    def _save_beside(self, name):
        steps, saver = self.steps[name], self.trainer.checkpoints.saver
        end = time.perf_counter() + PRACTICE_SECONDS
        alone, alone_on_cpu, _ = steps.run_until(lambda: time.perf_counter() > end)
        standstill = self._save()
        beside, beside_on_cpu, count = steps.run_until(lambda: not saver.is_writing())
        self._wait()
        return {
            f"{name} alone": alone, f"{name} beside": beside, f"{name} lost": standstill + count * (beside - alone),
            f"{name} alone on cpu": alone_on_cpu, f"{name} beside on cpu": beside_on_cpu,
            f"{name} lost on cpu": standstill + count * (beside_on_cpu - alone_on_cpu),
        }

    def save_often(self):
        """``last.pth`` alone, as ``save_per_steps`` writes it."""
        seconds = standstills("often", self.trainer.checkpoints.save_last)
        self._wait()
        return seconds

    def _wait(self):
        self.trainer.wait_for_saves()
        self.trainer.checkpoints.saver.raise_failure()

    def load(self):
        started = time.perf_counter()
        self.trainer.load_state(self.folder / "last.pth")
        return {"our load": time.perf_counter() - started}


def standstills(name, save):
    """Of a training that saves again and again: the mean over its saves, and the longest."""
    steps, seconds = Steps(width=768), []
    for _ in range(SAVES):
        end = time.perf_counter() + BETWEEN_SECONDS
        steps.run_until(lambda: time.perf_counter() > end)  # noqa: B023
        started = time.perf_counter()
        save()
        seconds.append(time.perf_counter() - started)
    return {name: statistics.mean(seconds), f"{name}, longest": max(seconds)}


class Steps:
    """Training of a small network, which goes on while a checkpoint is written."""

    def __init__(self, width):
        self.x, self.y = torch.randn(64, width), torch.zeros(64, dtype=torch.long)
        self.model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                                   nn.Linear(width, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, foreach=True)
        for _ in range(3):
            self.step()

    def step(self):
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run_until(self, is_over):
        """At least one step. Mean seconds per step, the same without the wait for a free CPU, and the number of steps."""
        count, waited, started = 0, waited_for_cpu(), time.perf_counter()
        while not count or not is_over():
            self.step()
            count += 1
        seconds, waited = time.perf_counter() - started, waited_for_cpu() - waited
        return seconds / count, (seconds - waited) / count, count


def waited_for_cpu():
    """Seconds for which this thread could have run and every CPU had other work; always 0 where the system does not tell.

    What it waits for Python's lock is not in it.
    """
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


# --- measuring ------------------------------------------------------------------------------------------------------


def measure_saving(folder, megabytes, rounds):
    for name in ("plain", "ours"):
        (folder / name).mkdir(parents=True)

    def first_save():
        with Process(Ours, folder / "new", megabytes) as process:
            seconds = process("save")
        shutil.rmtree(folder / "new")
        return {"first": seconds["standstill"]}

    with Process(Plain, folder / "plain", megabytes) as plain, Process(Ours, folder / "ours", megabytes) as ours:
        return in_rounds(rounds, [
            lambda: plain("save"), lambda: plain("save_and_sync"), first_save, lambda: ours("save"),
            lambda: ours("save_beside_short_steps"), lambda: ours("save_beside_long_steps"),
            lambda: plain("save_often"), lambda: ours("save_often"),
        ])


def measure_loading(folder, megabytes, rounds):
    """Each load in a new process, as after a restart; ``folder`` holds a ``last.pth``."""
    def load(kind):
        with Process(kind, folder, megabytes, False) as process:
            return process("load")

    path = folder / "last.pth"
    return in_rounds(rounds, [
        lambda: load(Plain), lambda: load(Ours),
        timed("verify", lambda: checkpoint._damaged_record(path), 3),
    ], practice=0)


def measure_finding(folder, megabytes, rounds):
    """The newest of ``last.pth``, ``previous.pth`` and epoch files, each as large as ``megabytes``."""
    folder.mkdir()
    last, previous = folder / "last.pth", folder / "previous.pth"
    with Process(Ours, folder, megabytes) as process:
        process("save")
        process("save")
    for path in checkpoint.epoch_files(folder):
        path.unlink()
    for number in range(1, FILES - 1):
        shutil.copyfile(last, folder / f"epoch{number}.pth")

    def find(expected):
        found, _, _ = checkpoint.newest(folder)
        if found != folder / expected:
            raise RuntimeError(f"The newest checkpoint must be {expected}; {found} was found.")

    def find_behind_damage():
        for path in (last, previous):
            turn_bits_around(path)
        seconds = timed("find behind damage", lambda: find(f"epoch{FILES - 2}.pth"), 5)()
        for path in (last, previous):
            turn_bits_around(path)
        return seconds

    return in_rounds(rounds, [
        timed("load one", lambda: torch.load(last, weights_only=True), 5), timed("find", lambda: find("last.pth"), 5),
        find_behind_damage,
    ])


def turn_bits_around(path):
    """Damage a file in one block near its end, or repair it."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size * 9 // 10)
        block = file.read(4096)
        file.seek(-len(block), os.SEEK_CUR)
        file.write(bytes(255 - byte for byte in block))


# --- telling --------------------------------------------------------------------------------------------------------


def tell_saving(megabytes, seconds):
    synced = seconds["synced"]
    print(f"\nThe loop stands still, at each save of {megabytes:g} MB (weights and AdamW moments)")
    row("torch.save", seconds["plain"], synced, "torch.save + fsync")
    row("torch.save + fsync", synced)
    row("this template, every save but the first", seconds["standstill"], seconds["plain"], "torch.save")
    row("this template, the first", seconds["first"], seconds["plain"], "torch.save")
    print(f"A save after every {1000 * BETWEEN_SECONDS:g} ms of training, {SAVES} of them: on average, and the longest")
    for what in ("", ", longest"):
        row(f"often, torch.save{what}", seconds[f"plain often{what}"])
        row(f"often, this template{what}", seconds[f"often{what}"], seconds[f"plain often{what}"], "torch.save")
    print("The file is complete")
    row("on the disk, read back and renamed", seconds["on disk"], synced, "torch.save + fsync")
    for cpu, remark in (("", ""), (" on cpu", ", waits for a free CPU taken out")):
        print(f"Training goes on while it is written{remark}")
        for name in ("short", "long"):
            alone = seconds[f"{name} alone{cpu}"]
            row(f"a {name} step", seconds[f"{name} beside{cpu}"], alone,
                f"the {1000 * statistics.median(alone):.2f} ms without a write")
            row(f"a save in all: standstill and slower {name} steps", seconds[f"{name} lost{cpu}"], synced,
                "torch.save + fsync")


def tell_loading(megabytes, size, seconds):
    print(f"\nThe way back, {megabytes:g} MB")
    row("torch.load + load_state_dict", seconds["plain load"])
    row("load_state, which verifies first and can go back", seconds["our load"], seconds["plain load"],
        "torch.load + load_state_dict")
    rate = size / 1e9 / statistics.median(seconds["verify"])
    row("verify the file", seconds["verify"], note=f"{rate:.2f} GB/s")


def tell_finding(size, seconds):
    print(f"\nThe newest of {FILES} checkpoints of {size / 1e6:.1f} MB, verified and loaded")
    row("torch.load of one of them", seconds["load one"])
    row("last.pth is whole", seconds["find"], seconds["load one"], "torch.load of one")
    row("last.pth and previous.pth are damaged", seconds["find behind damage"], seconds["load one"], "torch.load of one")


def file_system(folder):
    """Type of the file system that ``folder`` is on, where the system tells it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "file system unknown"
    folder = folder.resolve()
    return max((len(where), kind) for where, kind in mounts if folder.is_relative_to(where))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[200, 20], help="sizes of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=".", help="where to write: the file system that is measured")
    options = parser.parse_args()
    largest = max(options.megabytes)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        folder = Path(folder)
        print(conditions("loop on 1 thread", file_system(folder), "page cache warm",
                         f"{options.rounds} rounds: medians, ratios (min..max) within a round"), flush=True)
        for megabytes in options.megabytes:
            tell_saving(megabytes, measure_saving(folder / f"{megabytes:g}", megabytes, options.rounds))
        saved = folder / f"{largest:g}" / "ours"
        tell_loading(largest, (saved / "last.pth").stat().st_size, measure_loading(saved, largest, options.rounds))
        seconds = measure_finding(folder / "many", largest / FILES, options.rounds)
        tell_finding((folder / "many" / "last.pth").stat().st_size, seconds)


if __name__ == "__main__":
    main()
