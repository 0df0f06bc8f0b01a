"""What an update costs on a GPU, how often the host waits for it, and what the way of the data to it costs.

    python -m benchmarks.gpu                                          # without a CUDA device: one line that says so
    python -m benchmarks.gpu --modes eager --rounds 3
    python -m benchmarks.gpu --device cpu --updates 2 --batch-size 8 --modes eager      # that it runs, not how fast

A small residual network and a small transformer train under bf16 on data that is on the device, eager and compiled, by hand
and in the template with its defaults; the hand-written loop looks at its loss as often as the template does. Times lie
between two waits for an idle device. Syncs are what ``torch.cuda.set_sync_debug_mode("warn")`` warns of.

The data path: batches of a ``TensorLoader`` whose ``transform`` crops and flips, against a loader in the manner of airbench:
everything on the device, one random crop and flip of all images and one permutation per epoch, then slices.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from template import Callback, TensorLoader
from template.data.loaders import make_batches
from template.template import TemplateModel

from .by_hand import LOG_EVERY, SEED, Slices
from .measuring import Process, conditions, in_rounds, require_equal_work, row

VOCABULARY = 256


# --- what is trained ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet():
    """18 layers for images [B, 3, 32, 32]."""
    blocks = [Residual(max(64, width // (2 if stride > 1 else 1)), width, stride)
              for width in (64, 128, 256, 512) for stride in ((1 if width == 64 else 2), 1)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Transformer(nn.Module):
    """Tokens [B, T] to scores [B, VOCABULARY, T] of the next ones."""

    def __init__(self, width=256, layers=4, length=128):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens):
        hidden = self.encoder(self.embedding(tokens) + self.positions, mask=self.mask, is_causal=True)
        return self.head(hidden).transpose(1, 2)


def images(count, generator):
    x = torch.randn(count, 3, 32, 32, generator=generator)
    return x, (x.flatten(1) @ torch.randn(3072, 10, generator=generator)).argmax(1)


def sentences(count, generator):
    x = torch.randint(VOCABULARY, (count, 128), generator=generator)
    return x, (7 * x + 3) % VOCABULARY


class Job(NamedTuple):
    network: callable
    make_data: callable
    batch_size: int
    updates: int      # per measurement, which is an epoch
    compiled: bool
    device: str

    def model(self):
        torch.manual_seed(SEED)
        return self.network()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), 2e-4, momentum=0.9)

    def data(self):
        x, y = self.make_data(self.batch_size * self.updates, torch.Generator().manual_seed(SEED))
        return x.to(self.device), y.to(self.device)


NETWORKS = {"Residual network": (resnet, images, 256), "Transformer": (Transformer, sentences, 64)}


# --- contenders -----------------------------------------------------------------------------------------------------


def wait_for(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class Contender:
    """Subclasses define ``train``, one epoch, which sets ``seconds`` and ``loss``, the mean over its samples."""

    def run(self):
        self.train()
        return self.seconds / self.job.updates, self.loss

    def syncs(self):
        """Waits for the device per update."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught) / self.job.updates


class ByHand(Contender):
    def __init__(self, job, folder):
        self.job = job
        self.model = job.model().to(job.device)
        if job.compiled:
            self.model = torch.compile(self.model)
        self.optimizer, self.criterion = job.optimizer(self.model), nn.CrossEntropyLoss()
        self.loader = Slices(*job.data(), job.batch_size, shuffle=True)

    def train(self):
        self.model.train()
        total, window = 0.0, torch.zeros((), device=self.job.device)
        wait_for(self.job.device)
        started = time.perf_counter()
        for number, (x, y) in enumerate(self.loader, 1):
            with torch.autocast(torch.device(self.job.device).type, torch.bfloat16):
                loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            window += loss.detach()
            if number % LOG_EVERY == 0 or number == self.job.updates:
                total += window.item()
                window.zero_()
        wait_for(self.job.device)
        self.seconds, self.loss = time.perf_counter() - started, total / self.job.updates


class Stopwatch(Callback):
    """From behind the default callbacks' start of an epoch to behind their end of it."""

    def on_train_start(self, model):
        wait_for(model.device)
        self.started = time.perf_counter()

    def on_train_end(self, model, result):
        wait_for(model.device)
        self.seconds = time.perf_counter() - self.started


class Trainer(TemplateModel):
    def __init__(self, job):
        super().__init__()
        self.model_list = [job.model()]
        self.optimizer_list = [job.optimizer(self.model_list[0])]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = TensorLoader(*job.data(), batch_size=job.batch_size, shuffle=True)
        self.callbacks = [Stopwatch()]
        self.device, self.amp, self.compile, self.seed = job.device, "bf16", job.compiled, SEED


class Ours(Contender):
    def __init__(self, job, folder):
        os.chdir(folder)
        self.job, self.trainer = job, Trainer(job)
        self.trainer.check_init()

    def train(self):
        self.loss = self.trainer.train_loop()["tol_loss"]
        self.trainer.lifetime.count_epoch()  # over, without a checkpoint
        self.seconds = self.trainer.callbacks[0].seconds


# --- the data path --------------------------------------------------------------------------------------------------


def crop_and_flip(x, y, padding=4):
    """A window of each image [B, C, H, W] at random, mirrored at random."""
    size, device = x.shape[-1], x.device
    offsets = torch.randint(2 * padding + 1, (2, len(x), 1), device=device) + torch.arange(size, device=device)
    rows, columns = offsets
    columns = torch.where(torch.rand(len(x), 1, device=device) < 0.5, columns.flip(1), columns)
    number = torch.arange(len(x), device=device)[:, None, None]
    padded = functional.pad(x, (padding,) * 4, mode="reflect")
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), y


class Airbench(Slices):
    """Crops and flips all images at the start of an epoch."""

    def __iter__(self):
        x, y = crop_and_flip(self.x, self.y)
        order = torch.randperm(len(x), device=x.device)
        for part in order.split(self.batch_size):
            yield x[part], y[part]


class DataPath:
    """Seconds per batch of either way."""

    def __init__(self, job, folder):
        self.job = job
        self.airbench = Airbench(*job.data(), job.batch_size)
        loader = TensorLoader(*job.data(), batch_size=job.batch_size, shuffle=True, transform=crop_and_flip)
        self.batches, self.epoch = make_batches(loader, SEED, torch.device(job.device)), 0

    def run_airbench(self):
        return self._time(self.airbench)

    def run_ours(self):
        self.epoch += 1
        return self._time(self.batches.epoch(self.epoch))

    def _time(self, batches):
        wait_for(self.job.device)
        started = time.perf_counter()
        count = sum(1 for _ in batches)
        wait_for(self.job.device)
        return (time.perf_counter() - started) / count


# --- measuring and telling ------------------------------------------------------------------------------------------

CONTENDERS = {"by hand": ByHand, "this template": Ours}


def measure_and_tell(folder, title, job, rounds):
    with ExitStack() as stack:
        processes, losses = {}, dict.fromkeys(CONTENDERS)
        for name, kind in CONTENDERS.items():
            (folder / name).mkdir(parents=True)
            process = Process(kind, job, folder / name, steady=True, pinned=False)  # compiling takes all CPUs there are
            processes[name] = stack.enter_context(process)

        def run(name):
            seconds, losses[name] = processes[name]("run")
            return {name: seconds}

        seconds = in_rounds(rounds, [partial(run, name) for name in CONTENDERS])
        require_equal_work(losses)
        on_gpu = torch.device(job.device).type == "cuda"
        syncs = {name: f"{process('syncs'):.2f} syncs per update, " if on_gpu else "" for name, process in processes.items()}
    print(f"\n{title}")
    for name, own in seconds.items():
        compared = {} if name == "by hand" else {"of": seconds["by hand"], "of_what": "by hand, "}
        row(name, own, **compared, note=f"{syncs[name]}loss {losses[name]:.4f}")


def measure_and_tell_data_path(folder, job, rounds):
    with Process(DataPath, job, folder, steady=True, pinned=False) as process:
        seconds = in_rounds(rounds, [lambda: {"airbench": process("run_airbench")}, lambda: {"ours": process("run_ours")}])
    print(f"\nThe data path, a batch of {job.batch_size} images, cropped and flipped on the device")
    row("in the manner of airbench", seconds["airbench"])
    row("this template, TensorLoader with a transform", seconds["ours"], seconds["airbench"], "in the manner of airbench")
    rate = job.batch_size / statistics.median(seconds["ours"])
    print(f"  {rate:,.0f} images per second")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=100, help="of each contender in a round")
    parser.add_argument("--batch-size", type=int, help="else what suits the network")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("The GPU figures are unmeasured here: there is no CUDA device.")
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(conditions(f"device {name}, bf16", f"{options.rounds} rounds: medians, ratios (min..max) within a round"),
          flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        folder = Path(folder).resolve()
        for title, (network, make_data, batch_size) in NETWORKS.items():
            for mode in options.modes:
                job = Job(network, make_data, options.batch_size or batch_size, options.updates, mode == "compiled",
                          options.device)
                measure_and_tell(folder / title / mode, f"{title}, batch {job.batch_size}, {mode}", job, options.rounds)
        job = Job(None, images, options.batch_size or 512, options.updates, False, options.device)
        measure_and_tell_data_path(folder, job, options.rounds)


if __name__ == "__main__":
    main()
