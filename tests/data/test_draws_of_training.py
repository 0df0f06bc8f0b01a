"""What a training step itself draws from numpy and ``random`` (mixup) goes on to the same numbers, whatever the data is."""

import random

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_data
from torch.utils.data import DataLoader, TensorDataset

from template import TensorLoader

X, Y = tiny_data(40)


class Batches:
    def __iter__(self):
        for chosen in torch.randperm(40).split(4):
            yield X[chosen], Y[chosen]


def samples(**options):
    return DataLoader(list(zip(X, Y)), 4, shuffle=True, **options)


def tensors():
    return DataLoader(TensorDataset(X, Y), 4, shuffle=True)


LOADERS = {
    "a DataLoader over tensors": tensors,
    "a DataLoader over samples": samples,
    "TensorLoader": lambda: TensorLoader(X, Y, batch_size=4, shuffle=True),
    "a list": lambda: list(zip(X.split(4), Y.split(4))),
    "a class with __iter__": Batches,
    "a dict of loaders": lambda: {"one": samples(), "other": tensors()},
}


class Mixup(Tiny):
    def __init__(self, **attributes):
        super().__init__(eval_loader=None, **attributes)
        self.drawn = []

    def loss_per_batch(self, batch):
        batch = batch["other"] if isinstance(batch, dict) else batch
        self.drawn.append((np.random.beta(1, 1), random.random(), torch.rand(()).item()))
        return super().loss_per_batch((batch[0] * self.drawn[-1][0] + self.drawn[-1][1], batch[1]))


def trained(updates, **attributes):
    trainer = Mixup(**attributes)
    trainer.check_init(use_tb=False)
    trainer.load_state("auto")
    trainer.fit(updates=updates)
    return trainer


def check(make):
    whole = trained(17, train_loader=make(), ckpt_dir="whole")
    before = trained(7, train_loader=make(), ckpt_dir="parts")
    after = trained(17, train_loader=make(), ckpt_dir="parts")
    assert before.drawn == whole.drawn[:7]
    assert after.drawn == whole.drawn[7:]
    assert len(set(whole.drawn)) == 17
    for one, other in zip(whole.model_list[0].parameters(), after.model_list[0].parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_run_that_goes_on_within_an_epoch_draws_what_the_whole_one_draws(make):
    check(make)


@pytest.mark.slow
def test_it_does_so_where_workers_read_the_data():
    check(lambda: samples(num_workers=1))
