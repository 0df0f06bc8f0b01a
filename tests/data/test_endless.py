"""Samplers and loaders without an end, as people write them for trainings that count updates."""

import random

import numpy as np
import pytest
import torch
from tiny import CPU, Tiny, stream, tiny_data, tiny_trainer, weights
from torch.utils.data import DataLoader, TensorDataset

from template.data.loaders import make_batches
from template.data.nested import loader_length


class Endless:
    """The data again and again, each time in another order from a generator of its own."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        order = np.random.RandomState(4)
        while True:
            yield from order.permutation(self.count).tolist()


class EndlessWithLength(Endless):
    """The same from torch's generator; its length is that of the data."""

    def __len__(self):
        return self.count

    def __iter__(self):
        while True:
            yield from torch.randperm(self.count).tolist()


class EndlessBatches(Endless):
    def __iter__(self):
        while True:
            yield random.sample(range(self.count), random.randint(2, 6))


def data():
    return TensorDataset(*tiny_data(20))


LOADERS = {
    "sampler": lambda: DataLoader(data(), 4, sampler=Endless(20)),
    "with a length": lambda: DataLoader(data(), 4, sampler=EndlessWithLength(20)),
    "batch_sampler": lambda: DataLoader(data(), batch_sampler=EndlessBatches(20)),
}


class Killed(Exception):
    pass


class Interrupted(Tiny):
    """Stops as a crash does, before update ``kill_at``."""

    kill_at = None

    def loss_per_batch(self, batch):
        if self.kill_at == self.global_step and self.model_list[0].training:
            raise Killed
        return super().loss_per_batch(batch)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_training_by_updates_reads_a_sampler_without_an_end_and_goes_on_in_it(kind, monkeypatch):
    monkeypatch.setattr("template.data.loaders._MOST_BATCHES", 50)

    def build(folder, kill_at=None):
        trainer = Interrupted(train_loader=LOADERS[kind](), ckpt_dir=folder, save_per_steps=1, eval_loader=None)
        trainer.kill_at = kill_at
        trainer.check_init(use_tb=False)
        return trainer

    whole = build("whole")
    whole.fit(updates=10)  # twice the length of one
    with pytest.raises(Killed):
        build("parts", kill_at=7).fit(updates=10)
    continued = build("parts")
    continued.load_state("auto")
    continued.fit(updates=10)
    assert whole.global_step == continued.global_step == 10
    assert torch.equal(weights(whole), weights(continued))


def test_it_has_no_length_and_one_that_ends_keeps_its_own(monkeypatch):
    monkeypatch.setattr("template.data.loaders._MOST_BATCHES", 50)
    assert all(loader_length(make_batches(make(), 3, CPU)) is None for make in LOADERS.values())

    class Ends(EndlessBatches):
        def __iter__(self):
            yield from torch.randperm(self.count).split(4)

    batches = make_batches(DataLoader(data(), batch_sampler=Ends(20)), 3, CPU)
    assert len(stream(batches, 1)) == 5 and stream(batches, 2, start=3) == stream(batches, 2)[3:] and not batches.notes()


class GoesOn:
    """Says a length, and goes on beyond it."""

    def __len__(self):
        return 3

    def __iter__(self):
        while True:
            yield tiny_data(5)


@pytest.mark.parametrize("updates", [4, 6, 7])
def test_a_loader_that_goes_on_beyond_its_length_is_left_when_the_updates_are_done(updates):
    trainer = tiny_trainer(train_loader=GoesOn(), eval_loader=None)
    trainer.fit(updates=updates)
    assert trainer.global_step == updates
