"""What the template is measured against: the loops that one writes by hand, plain and with everything that a run needs.

    loop = Equipped(MLP, "tensors", Path("/tmp/run"))
    seconds_per_update = loop.epochs(5)
    loss, accuracy = loop.result()

Contenders derive from ``Contender``. Jobs are learnable noise: a linear teacher names the class of random inputs. Only
``Slices`` serves a GPU too.
"""

import csv
import math
import os
import random
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

SEED = 0
CLASSES = 10
EVAL_SAMPLES = 1024
EVAL_BATCH = 256
LOG_EVERY = 5  # updates: the template's default
LINE_EVERY = 50


# --- jobs -----------------------------------------------------------------------------------------------------------


def tiny_mlp():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def small_cnn():
    """The one of ``train.py``, without dropout."""
    def block(channels_in, channels_out):
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(*block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 128), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(512, CLASSES))


class Job(NamedTuple):
    """What is trained: the same weights, data and optimizer for every contender."""

    network: callable
    shape: tuple          # of one input
    batch_size: int
    updates: int          # per epoch
    learning_rate: float

    def model(self):
        torch.manual_seed(SEED)
        return self.network()

    def optimizer(self, parameters):
        return torch.optim.SGD(parameters, self.learning_rate, momentum=0.9)

    def data(self):
        """Inputs and labels for training, and for evaluation."""
        generator = torch.Generator().manual_seed(SEED)
        count = self.batch_size * self.updates
        x = torch.randn(count + EVAL_SAMPLES, *self.shape, generator=generator)
        y = (x.flatten(1) @ torch.randn(math.prod(self.shape), CLASSES, generator=generator)).argmax(1)
        return (x[:count], y[:count]), (x[count:], y[count:])


MLP = Job(tiny_mlp, (64,), batch_size=32, updates=1000, learning_rate=2e-3)
CNN = Job(small_cnn, (1, 8, 8), batch_size=64, updates=12, learning_rate=2e-3)


# --- data -----------------------------------------------------------------------------------------------------------


class Samples(Dataset):
    """A dataset of one's own: samples one by one."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    def __len__(self):
        return len(self.x)


class Slices:
    """Batches of tensors in memory, as fast as one can write it by hand."""

    def __init__(self, x, y, batch_size, shuffle=False, generator=None):
        self.x, self.y, self.batch_size, self.shuffle, self.generator = x, y, batch_size, shuffle, generator

    def __len__(self):
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self):
        if not self.shuffle:
            yield from zip(self.x.split(self.batch_size), self.y.split(self.batch_size))
            return
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        for part in order.split(self.batch_size):
            yield self.x.index_select(0, part), self.y.index_select(0, part)


def load(form, x, y, batch_size, **options):
    """A loader over "samples" (which nobody can slice), over "tensors" (which one can), or "slices" itself."""
    if form == "slices":
        return Slices(x, y, batch_size, **options)
    dataset = {"samples": Samples, "tensors": TensorDataset}[form](x, y)
    return DataLoader(dataset, batch_size, **options)


# --- loops ----------------------------------------------------------------------------------------------------------


class Contender:
    """Trains in a folder of its own. Subclasses define ``train`` and ``evaluate``, each of one epoch, and ``result``."""

    updates = None  # per epoch

    def epochs(self, count):
        """Seconds per update of whole epochs: training, evaluation, and what is logged and saved until it is on the disk."""
        started = time.perf_counter()
        for _ in range(count):
            self.train()
            self.evaluate()
        self.finish()
        return (time.perf_counter() - started) / (count * self.updates)

    def training(self, count):
        """Seconds per update of the training alone, with nothing left to write when it begins."""
        seconds = 0.0
        for _ in range(count):
            started = time.perf_counter()
            self.train()
            seconds += time.perf_counter() - started
            self.evaluate()
            self.finish()
        return seconds / (count * self.updates)

    def finish(self):
        """Until everything is on the disk."""


class Plain(Contender):
    """Training and evaluation; nothing is told, logged or saved."""

    def __init__(self, job, form, folder):
        train, held_out = job.data()
        self.updates = job.updates
        self.model = job.model()
        self.optimizer = job.optimizer(self.model.parameters())
        self.criterion = nn.CrossEntropyLoss()
        self.generator = torch.Generator().manual_seed(SEED)
        self.train_loader = load(form, *train, job.batch_size, shuffle=True, generator=self.generator)
        self.eval_loader = load(form, *held_out, EVAL_BATCH)
        self.scores = None

    def train(self):
        self.model.train()
        for x, y in self.train_loader:
            loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def evaluate(self):
        self.scores = score(self.model, self.eval_loader, self.criterion)

    def result(self):
        return self.scores


def score(model, loader, criterion):
    """Mean loss and accuracy; one wait for the device each, at the end."""
    loss, correct, count = torch.zeros(()), torch.zeros((), dtype=torch.long), 0
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            pred = model(x)
            loss.add_(criterion(pred, y), alpha=len(y))
            correct += (pred.argmax(1) == y).sum()
            count += len(y)
    return loss.item() / count, correct.item() / count


class Equipped(Plain):
    """The same with what the template does unasked: a bar, TensorBoard, losses that must be finite, a history, and after
    each epoch a checkpoint from which the run would continue with the same bits, and the best weights."""

    def __init__(self, job, form, folder):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        super().__init__(job, form, folder)
        self.folder, self.bar_class = folder, tqdm
        self.writer = SummaryWriter(folder / "runs")
        self.epoch, self.update, self.position = 0, 0, 0
        self.window, self.window_samples = torch.zeros(()), 0  # since the last log point
        self.total, self.samples = 0.0, 0                      # of the epoch
        self.best = -math.inf
        self.history = []

    def train(self):
        self.epoch += 1
        self.position, self.total, self.samples = 0, 0.0, 0
        self.started = time.perf_counter()
        self.generator.manual_seed(SEED * 1_000_003 + self.epoch)  # the order follows from (seed, epoch)
        self.model.train()
        with self.bar_class(total=self.updates, desc=f"epoch {self.epoch}", unit="update", leave=False,
                            dynamic_ncols=True) as bar:
            for x, y in self.train_loader:
                loss = self.criterion(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.window.add_(loss.detach(), alpha=len(y))
                self.window_samples += len(y)
                self.position += 1
                self.update += 1
                bar.update()
                if self.update % LOG_EVERY == 0:
                    self.log(bar)
            if self.window_samples:
                self.log(bar)
        self.seconds = time.perf_counter() - self.started

    def log(self, bar):
        total = self.window.item()
        loss, rate = total / self.window_samples, self.optimizer.param_groups[0]["lr"]
        if not math.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss} at update {self.update}.")
        self.writer.add_scalar("update/loss", loss, self.update)
        self.writer.add_scalar("lr", rate, self.update)
        self.total += total
        self.samples += self.window_samples
        speed = self.samples / (time.perf_counter() - self.started)
        bar.set_postfix({"loss": f"{loss:.4g}", "lr": f"{rate:.2g}", "samples/s": f"{speed:.3g}"}, refresh=False)
        self.window.zero_()
        self.window_samples = 0

    def evaluate(self):
        super().evaluate()
        loss, accuracy = self.scores
        row = {"epoch": self.epoch, "update": self.update, "train_loss": self.total / self.samples, "eval_loss": loss,
               "accuracy": accuracy, "lr": self.optimizer.param_groups[0]["lr"], "seconds": self.seconds}
        for name in ("train_loss", "eval_loss", "accuracy"):
            self.writer.add_scalar(f"epoch/{name}", row[name], self.epoch)
        print(row)
        self.history.append(row)
        with open(self.folder / "history.csv", "a") as file:
            writer = csv.DictWriter(file, row)
            if len(self.history) == 1:
                writer.writeheader()
            writer.writerow(row)
        if accuracy >= self.best:
            self.best = accuracy
            self.save({"model": self.model.state_dict(), "epoch": self.epoch, "best": self.best}, "best.pth")
        self.save(self.state(), "last.pth")

    def state(self):
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "epoch": self.epoch, "update": self.update, "position": self.position, "seed": SEED, "history": self.history,
            "window": self.window, "window_samples": self.window_samples, "total": self.total, "samples": self.samples,
            "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        }

    def save(self, state, name):
        """Either the old file or the whole new one is there, at any moment."""
        path = self.folder / name
        with open(f"{path}.tmp", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)

    def finish(self):
        self.writer.flush()


class Lines(Plain):
    """The plain loop with what many scripts have: TensorBoard and a printed line every ``LINE_EVERY`` updates, and a
    checkpoint after each epoch."""

    def __init__(self, job, form, folder):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(job, form, folder)
        self.folder, self.writer = folder, SummaryWriter(folder / "runs")
        self.update, self.window = 0, torch.zeros(())

    def train(self):
        self.model.train()
        for x, y in self.train_loader:
            loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.window += loss.detach()
            self.update += 1
            if self.update % LINE_EVERY == 0:
                mean = self.window.item() / LINE_EVERY
                self.window.zero_()
                self.writer.add_scalar("loss", mean, self.update)
                print(f"update {self.update}: loss {mean:.4f}")

    def evaluate(self):
        super().evaluate()
        print("loss {:.4f}, accuracy {:.4f}".format(*self.scores))
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "update": self.update},
                   self.folder / "last.pth.tmp")
        os.replace(self.folder / "last.pth.tmp", self.folder / "last.pth")

    def finish(self):
        self.writer.flush()
