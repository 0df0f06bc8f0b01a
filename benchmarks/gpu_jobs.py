"""What ``python -m benchmarks.gpu`` trains and reads, by hand and in the template: what runs in the contenders' processes.

    pairs = Pairs("/tmp/run")
    pairs.build(Job("Residual network", "cuda", amp="bf16"))
    pairs.run("by hand")                    # seconds per update and the loss, over an epoch
    pairs.resize(100)                       # updates of an epoch from now on

Times lie between two waits for an idle device. The hand-written loop looks at its loss as often as the template does. Syncs
are what ``torch.cuda.set_sync_debug_mode("warn")`` warns of.
"""

import gc
import os
import time
import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from template import Callback, TensorLoader
from template.data.loaders import make_batches
from template.template import TemplateModel

from .by_hand import LOG_EVERY, SEED, Slices

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


def resnet(width=64, stages=4):
    """18 layers for images [B, 3, 32, 32], or fewer; ``width`` channels in the first."""
    blocks = []
    for stage in range(stages):
        channels = width << stage
        blocks += [Residual(channels // 2 if stage else width, channels, 2 if stage else 1), Residual(channels, channels, 1)]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width << (stages - 1), 10))


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
    """On the device of the generator."""
    x = torch.randn(count, 3, 32, 32, generator=generator, device=generator.device)
    return x, (x.flatten(1) @ torch.randn(3072, 10, generator=generator, device=generator.device)).argmax(1)


def sentences(count, generator):
    x = torch.randint(VOCABULARY, (count, 128), generator=generator, device=generator.device)
    return x, (7 * x + 3) % VOCABULARY


RESIDUAL, TRANSFORMER = "Residual network", "Transformer"
NETWORKS = {  # (network, a tiny one to try the program, data, batch size)
    RESIDUAL: (resnet, lambda: resnet(4, stages=1), images, 256),
    TRANSFORMER: (Transformer, lambda: Transformer(width=16, layers=1), sentences, 64),
}


class Job(NamedTuple):
    """What is trained, and how: the same for both contenders."""

    network: str                # of NETWORKS
    device: str
    amp: str | None = None      # or "bf16"
    channels_last: bool = False
    compiled: bool = False
    is_tiny: bool = False
    updates: int = 10           # of an epoch, which is what is timed

    @property
    def batch_size(self):
        return 4 if self.is_tiny else NETWORKS[self.network][3]

    @property
    def how(self):
        """In words: "bf16, channels_last, compiled"."""
        words = [self.amp or "float32", *["channels_last"] * self.channels_last, *["compiled"] * self.compiled]
        return ", ".join(words)

    @property
    def title(self):
        return f"{self.network}, {self.how}"

    def model(self):
        torch.manual_seed(SEED)
        large, tiny, _, _ = NETWORKS[self.network]
        return (tiny if self.is_tiny else large)()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), 2e-4, momentum=0.9)

    def data(self):
        generator = torch.Generator(self.device).manual_seed(SEED)
        return NETWORKS[self.network][2](self.batch_size * self.updates, generator)


# --- contenders -----------------------------------------------------------------------------------------------------


def wait_for(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class ByHand:
    def __init__(self, job):
        self.job = job
        self.model = job.model().to(job.device)
        if job.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.criterion, self.optimizer = nn.CrossEntropyLoss(), job.optimizer(self.model)
        if job.compiled:
            self.model = torch.compile(self.model)

    def read(self, x, y):
        """Train on these from now on."""
        self.loader = Slices(x, y, self.job.batch_size, shuffle=True)

    def train(self):
        """Seconds and mean loss of an epoch."""
        self.model.train()
        kind, total, number = torch.device(self.job.device).type, 0.0, 0
        window = torch.zeros((), device=self.job.device)
        wait_for(self.job.device)
        started = time.perf_counter()
        for number, (x, y) in enumerate(self.loader, 1):
            with torch.autocast(kind, torch.bfloat16, enabled=self.job.amp is not None):
                loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            window += loss.detach()
            if number % LOG_EVERY == 0 or number == len(self.loader):
                total += window.item()
                window.zero_()
        wait_for(self.job.device)
        return time.perf_counter() - started, total / number


class Stopwatch(Callback):
    """From behind the default callbacks' start of an epoch to behind their end of it."""

    def on_train_start(self, model):
        wait_for(model.device)
        self.started = time.perf_counter()

    def on_train_end(self, model, result):
        wait_for(model.device)
        self.seconds = time.perf_counter() - self.started


class Ours:
    def __init__(self, job, data, folder):
        os.chdir(folder)
        self.job, self.watch = job, Stopwatch()
        trainer = self.trainer = TemplateModel()
        model = job.model()
        trainer.model_list, trainer.optimizer_list = [model], [job.optimizer(model)]
        trainer.criterion = nn.CrossEntropyLoss()
        trainer.device, trainer.seed, trainer.callbacks = job.device, SEED, [self.watch]
        trainer.amp, trainer.channels_last, trainer.compile = job.amp, job.channels_last, job.compiled
        trainer.ckpt_dir, trainer.overwrite = f"check_point/{job.title}", True
        self.read(*data)
        trainer.check_init()

    def read(self, x, y):
        self.trainer.train_loader = TensorLoader(x, y, batch_size=self.job.batch_size, shuffle=True)

    def train(self):
        loss = self.trainer.train_loop()["tol_loss"]
        self.trainer.lifetime.count_epoch()  # over, without a checkpoint
        return self.watch.seconds, loss


BY_HAND, OURS = "by hand", "this template"


class Pairs:
    """Both contenders of a job in one process, on one device; then those of the next job."""

    def __init__(self, folder):
        self.folder, self.contenders = folder, {}
        torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1.0)  # the first optimizer of a process imports torch._dynamo

    def build(self, job):
        self.contenders.clear()  # their memory is free from here on
        gc.collect()
        self.job, data = job, job.data()
        self.contenders |= {BY_HAND: ByHand(job), OURS: Ours(job, data, self.folder)}
        self.contenders[BY_HAND].read(*data)

    def resize(self, updates):
        self.job = self.job._replace(updates=updates)
        data = self.job.data()
        for contender in self.contenders.values():
            contender.read(*data)

    def run(self, name):
        """Seconds per update, and the loss."""
        seconds, loss = self.contenders[name].train()
        return seconds / self.job.updates, loss

    def syncs(self, name):
        """Waits for the device per update."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.contenders[name].train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught) / self.job.updates


class Cifar:
    """``demo_cifar10`` as it is, on random images: its network, its loaders with their crops and flips, its settings."""

    def __init__(self, device, compiled, is_tiny, folder):
        from demo_cifar10.data import random_data
        from demo_cifar10.train import Cifar10, Options

        os.chdir(folder)
        options = Options(synthetic=True, width=4, batch_size=8, amp="off") if is_tiny else Options(synthetic=True)
        self.num_images = 16 if is_tiny else 50 * options.batch_size
        kind = type("Cifar10OnDevice", (Cifar10,), {"device": device})
        self.trainer = kind(options, *random_data(self.num_images, options.batch_size, SEED))
        self.trainer.compile, self.trainer.total_epochs = compiled, 10_000
        self.trainer.eval_loader = None
        self.watch = Stopwatch()
        self.trainer.callbacks = [self.watch]
        self.trainer.check_init()
        self.settings = f"batch {options.batch_size}, {self.trainer.amp or 'float32'}"

    def told(self):
        return self.settings

    def run(self):
        """Images per second over an epoch."""
        self.trainer.train_loop()
        self.trainer.lifetime.count_epoch()
        return self.num_images / self.watch.seconds


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

    def __init__(self, device, batch_size, num_batches):
        self.device, self.epoch = device, 0
        x, y = images(batch_size * num_batches, torch.Generator(device).manual_seed(SEED))
        self.airbench = Airbench(x, y, batch_size)
        loader = TensorLoader(x, y, batch_size=batch_size, shuffle=True, transform=crop_and_flip)
        self.batches = make_batches(loader, SEED, torch.device(device))

    def run_airbench(self):
        return self._time(self.airbench)

    def run_ours(self):
        self.epoch += 1
        return self._time(self.batches.epoch(self.epoch))

    def _time(self, batches):
        wait_for(self.device)
        started = time.perf_counter()
        count = sum(1 for _ in batches)
        wait_for(self.device)
        return (time.perf_counter() - started) / count
