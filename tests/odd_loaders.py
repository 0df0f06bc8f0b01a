"""Datasets, samplers and loaders as people write them, for the tests of several rooms."""

import random

import numpy as np
import torch
from tiny import tiny_data
from torch.utils.data import Dataset, default_collate

SAMPLES = 23


class Augmented(Dataset):
    """(index, one number from each global generator); keeps a list of what was read."""

    def __init__(self, count=SAMPLES):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(int(index))
        return int(index), torch.rand(()).item(), np.random.rand(), random.random(), torch.randn(2)


def mixing(samples):
    """A collate function with randomness of its own."""
    batch = default_collate(samples)
    return [*batch, torch.rand(len(samples)), torch.tensor(random.random() + np.random.rand())]


class EvenFirst:
    """A sampler of the user: the even indices in random order, then the odd ones."""

    def __init__(self, count, generator=None):
        self.count, self.generator = count, generator

    def __len__(self):
        return self.count

    def __iter__(self):
        order = torch.randperm(self.count, generator=self.generator).tolist()
        yield from sorted(order, key=lambda index: index % 2)


class GrowingBatches:
    """A batch sampler of the user: sizes 1, 2, 3, …; fills one list again and again."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return next(n for n in range(1, 99) if n * (n + 1) // 2 >= self.count)

    def __iter__(self):
        batch, size = [], 1
        for index in random.sample(range(self.count), self.count):
            batch.append(index)
            if len(batch) == size:
                yield batch
                batch.clear()
                size += 1
        if batch:
            yield batch


class Stateful:
    """Batches in an order of its own, which it goes on with where its state says; notes what it reads."""

    def __init__(self, count=11, size=5):
        x, y = tiny_data(count * size)
        self.batches, self.read = list(zip(x.split(size), y.split(size))), []
        self.position = self.begin = 0
        self.broken = None

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.position, self.begin = self.begin, 0
        while self.position < len(self):
            if self.position == self.broken:
                raise KeyError("a broken sample")
            self.read.append(self.position)
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.begin = state["position"]
