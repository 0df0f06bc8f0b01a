"""What the five styles share: the digits, their order, the network and the numbers that are set by hand.

The order of the samples is a function of the epoch's number, so that every style reads the same batches. Any loop can do
this: it calls ``train_loader.sampler.set_epoch(epoch)`` before it reads an epoch. The template and Lightning call it by
themselves.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where template/ is; in your project: from utils import …

SEED, EPOCHS, PATIENCE, LR = 0, 30, 3, 1e-2
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(1)  # such small tensors are faster so, and each sum is rounded in the same order in every run


class OrderOfEpoch(Sampler):
    """All indices in random order, another one in each epoch."""

    def __init__(self, length):
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def make_loaders():
    """Train and validation loader: 1,438 and 359 images [1, 8, 8] in [0, 1].

    Each loader has a generator of its own. Otherwise it would draw a number from torch's generator at the start of each
    epoch, and dropout, which draws from there too, would depend on how often somebody validates.
    """
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    val, train = (TensorDataset(images[part], labels[part]) for part in (order[:359], order[359:]))
    return (DataLoader(train, 64, sampler=OrderOfEpoch(len(train)), generator=torch.Generator()),
            DataLoader(val, 256, generator=torch.Generator()))


def make_net():
    """A small network with batch normalization and dropout; its weights come from the seed."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2),
                         nn.Linear(64, 10)).to(device)


def figure(accuracy):
    """The line that ``python -m examples`` reads: what was reached, what is good enough, and what a constant answer has."""
    _, val_loader = make_loaders()
    most = val_loader.dataset.tensors[1].bincount().max() / len(val_loader.dataset)
    return f"accuracy {accuracy:.4f} (at least 0.97; most frequent class {most:.3f})"
