"""How many functions an update calls in the folder: each costs 0.1 us in a hot loop, and up to 1 us between two updates."""

import gc
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny import Tiny, tiny_data
from torch.utils.data import DataLoader, TensorDataset

import template
from template import Callback, TensorLoader

X, Y = tiny_data(160)
FOLDER = str(Path(template.__file__).parent)


class Batches:
    def __iter__(self):
        return zip(X.split(8), Y.split(8))


LOADERS = {  # and the most calls
    "TensorLoader": (lambda: TensorLoader(X, Y, batch_size=8, shuffle=True), 39),
    "DataLoader over tensors": (lambda: DataLoader(TensorDataset(X, Y), 8, shuffle=True), 39),
    "a class with __iter__": (Batches, 40),
    "a list": (lambda: list(Batches()), 37),
    "DataLoader over samples": (lambda: DataLoader(list(zip(X, Y)), 8, shuffle=True), 40),
}


class Counts(Callback):
    """Of each update of an epoch: the functions of the folder that were called, from one ``on_batch`` to the next."""

    def __init__(self):
        self.updates = []

    def on_batch(self, model, batch):
        self.updates.append(Counter())

    def note(self, frame, event, argument):
        if event == "call" and self.updates and frame.f_code.co_filename.startswith(FOLDER):
            self.updates[-1][frame.f_code.co_name] += 1


@pytest.mark.parametrize("make, most", LOADERS.values(), ids=LOADERS)
def test_an_update_calls_no_more_functions_of_the_folder_than_it_did(make, most):
    counts = Counts()
    trainer = Tiny(train_loader=make(), eval_loader=None, callbacks=[counts], log_per_step=5)
    trainer.check_init(use_tb=False)
    trainer.train_loop()  # what happens once is over
    counts.updates.clear()
    gc.collect()
    gc.disable()  # else other tests' trainers may be finalized within an update
    sys.setprofile(counts.note)
    try:
        trainer.train_loop()
    finally:
        sys.setprofile(None)
        gc.enable()
    plain = [calls for number, calls in enumerate(counts.updates[:-1], 1) if number % 5]
    assert len(plain) == 16
    for calls in plain:
        assert calls == plain[0] and calls.total() <= most, dict(calls)


def test_a_list_of_batches_is_read_without_a_look_at_the_generators(monkeypatch):
    trainer = Tiny(train_loader=list(Batches()), eval_loader=None)
    trainer.check_init(use_tb=False)

    def refused(*args):
        raise AssertionError("Nothing of a list can draw random numbers.")

    monkeypatch.setattr("template.data.loaders.seed_data", refused)
    monkeypatch.setattr("template.data.loaders.sample_rng", refused)
    assert len(list(trainer.train_batches.epoch(1, start=3))) == 17
