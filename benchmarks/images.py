"""What reading a folder of JPEG images costs, against the loop that one writes by hand over the same ``DataLoader``.

    python -m benchmarks.images                         # in about two minutes
    python -m benchmarks.images --images 5000 --workers 8 --size 224 --rounds 5

The images are made here. The dataset decodes them with Pillow, crops and flips at random, and gives tensors, as one does
without torchvision; workers read ahead and stay between epochs. By hand the order and the crops are whatever the generators
give. In the template both follow from the seed, the epoch and the number of the batch, for any number of workers, which is
what it takes to continue a run bit for bit; the figure says what that costs. Both only train.

Nothing is pinned, and images come from the page cache: it measures decoding and the way of the batches, and no disk. Where
Linux tells, the time that the loop and its workers are on a CPU stands below: other programs do not count in it.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from template.template import TemplateModel

from .by_hand import SEED
from .measuring import Process, conditions, in_rounds, require_equal_work, row

BATCH = 32
CLASSES = 3
NEEDS_PILLOW = "The figures of images are unmeasured here: the package is missing. pip install pillow"


def write_images(folder, count, size):
    """Smooth noise, more of one colour than of the others, which is the class: ``<class>/<number>.jpg``."""
    from PIL import Image

    noise = np.random.default_rng(SEED)
    for number in range(count):
        label = number % CLASSES
        coarse = noise.integers(0, 180, (8, 8, 3))
        coarse[..., label] += 60
        path = folder / str(label) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


class Images(Dataset):
    """``(image [3, H, W], label)``, cropped to 7/8 of its size and mirrored at random."""

    def __init__(self, folder):
        self.paths = sorted(Path(folder).glob("*/*.jpg"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from PIL import Image

        path = self.paths[index]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        size = len(pixels) * 7 // 8
        top, left = torch.randint(len(pixels) - size + 1, (2,)).tolist()
        pixels = pixels[top:top + size, left:left + size]
        if torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        image_3HW = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255
        return image_3HW, int(path.parent.name)


def network():
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES))


def loader_of(images, workers):
    return DataLoader(Images(images), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


# --- contenders -----------------------------------------------------------------------------------------------------


class Contender:
    """Subclasses define ``epoch``, which gives the mean loss, and ``num_batches``."""

    def run(self):
        """``({what: seconds per batch}, mean loss)`` over an epoch."""
        before = on_the_cpu()
        loss = self.epoch()
        after = on_the_cpu()
        return {what: (after[what] - then) / self.num_batches for what, then in before.items()}, loss


def on_the_cpu():
    """``{what: seconds until now}``: by the clock, of this process on a CPU, and of its workers."""
    found = {CLOCK: time.perf_counter(), LOOP: time.process_time()}
    try:
        told = [Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split() for child in active_children()]
    except OSError:
        return found
    ticks = sum(int(user) + int(system) for *_, user, system in (fields[:13] for fields in told))
    return found | {WORKERS: ticks / os.sysconf("SC_CLK_TCK")}


CLOCK, LOOP, WORKERS = "by the clock", "the loop on a CPU", "the workers on a CPU, together"


class ByHand(Contender):
    def __init__(self, images, workers, folder):
        self.model, self.criterion, self.loader = network(), nn.CrossEntropyLoss(), loader_of(images, workers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.num_batches = len(self.loader)

    def epoch(self):
        total = torch.zeros(())
        for x, y in self.loader:
            loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total.add_(loss.detach(), alpha=len(y))
        return total.item() / len(self.loader.dataset)


class Ours(Contender):
    def __init__(self, images, workers, folder):
        os.chdir(folder)
        self.trainer, model = TemplateModel(), network()
        self.trainer.model_list, self.trainer.criterion = [model], nn.CrossEntropyLoss()
        self.trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)]
        self.trainer.train_loader = loader_of(images, workers)
        self.trainer.device, self.trainer.seed = "cpu", SEED
        self.trainer.check_init()
        self.num_batches = len(self.trainer.train_loader)

    def epoch(self):
        loss = self.trainer.train_loop()["tol_loss"]
        self.trainer.lifetime.count_epoch()  # over, without a checkpoint
        return loss


CONTENDERS = {"the plain DataLoader loop": ByHand, "this template": Ours}


# --- measuring and telling ------------------------------------------------------------------------------------------


def measure(folder, images, workers, rounds):
    """``{(name, what): [seconds per batch of each round]}``.

    Every round has new processes, and in each the first epoch does not count. Where a worker's memory happens to lie decides
    how much of it goes back to the system behind each batch, and that stays as it is for as long as the worker lives.
    """
    losses = dict.fromkeys(CONTENDERS)

    def run(name):
        own_folder = Path(tempfile.mkdtemp(dir=folder))
        with Process(CONTENDERS[name], images, workers, own_folder, steady=True, pinned=False, has_workers=True) as process:
            process("run")
            seconds, losses[name] = process("run")
        return {(name, what): value for what, value in seconds.items()}

    seconds = in_rounds(rounds, [partial(run, name) for name in CONTENDERS], practice=0)
    require_equal_work(losses)
    return seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default=".", help="where images and runs are written")
    options = parser.parse_args(arguments)
    try:
        import PIL
    except ImportError:
        print(NEEDS_PILLOW)
        return
    print(conditions(f"Pillow {PIL.__version__}", "1 thread for the loop and for each worker", "page cache warm",
                     f"{options.rounds} rounds: medians, ratios (min..max) within a round"), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        folder = Path(folder).resolve()
        write_images(folder / "images", options.images, options.size)
        seconds = measure(folder, folder / "images", options.workers, options.rounds)
    print(f"\n{options.images} JPEG images of {options.size}x{options.size}, {options.workers} workers, batches of {BATCH}; "
          "time per batch")
    by_hand = next(iter(CONTENDERS))
    for what in dict.fromkeys(what for _, what in seconds):
        print(f" {what}:")
        for name in CONTENDERS:
            row(name, seconds[name, what], *([] if name == by_hand else [seconds[by_hand, what], by_hand]))


if __name__ == "__main__":
    main()
