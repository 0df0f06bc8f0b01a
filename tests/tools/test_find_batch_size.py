"""The search on models whose limit is known, because they raise what a full memory raises."""

import pytest
import torch
from tiny import tiny_data, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import TensorLoader
from template.tools import find_batch_size as tool
from template.tools.find_batch_size import find_batch_size

ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.8 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Limited(nn.Module):
    """Fits ``limit`` samples; takes time on ``clock`` for each batch and each sample."""

    clock = 0.0

    def __init__(self, limit=10**9, error=ERRORS[0], per_batch=0.0, per_sample=0.0):
        super().__init__()
        self.inner, self.limit, self.error = nn.Linear(6, 3), limit, error
        self.per_batch, self.per_sample = per_batch, per_sample

    def forward(self, x):
        if len(x) > self.limit:
            raise self.error
        Limited.clock += self.per_batch + self.per_sample * len(x)
        return self.inner(x)


def loader(count=1000, batch_size=10):
    return DataLoader(TensorDataset(*tiny_data(count)), batch_size, shuffle=True)


def in_true_time(test):
    test.takes_time = True
    return test


@pytest.fixture(autouse=True)
def always_gains(monkeypatch, request):
    """Times of a tiny network are noise: the search is to end at the memory, as on a GPU."""
    if not getattr(request.function, "takes_time", False):
        monkeypatch.setattr(tool._Search, "_gained", lambda self, size, larger: True)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_largest_size_is_found_whatever_a_full_memory_raises(error, capsys):
    found = find_batch_size(tiny_trainer(model=Limited(100, error), train_loader=loader()), num_updates=1)
    assert 100 - 100 // 8 <= found.largest <= 100
    assert all(row.fits == (row.batch_size <= 100) for row in found.rows)
    printed = capsys.readouterr().out
    assert "out of memory" in printed and f"Up to {found.largest} samples fit" in printed


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 9, 10, 11, 37, 640, 999])
def test_the_result_fits_and_is_within_an_eighth_of_the_limit(limit):
    found = find_batch_size(tiny_trainer(model=Limited(limit), train_loader=loader(), eval_loader=None), num_updates=1)
    assert found.largest <= limit and limit - found.largest <= max(8, limit // 8)


def test_it_goes_down_where_the_present_size_does_not_fit():
    found = find_batch_size(tiny_trainer(model=Limited(5), train_loader=loader(), eval_loader=None), num_updates=1)
    assert found.largest == 5


def test_a_single_sample_that_does_not_fit_is_an_error_that_says_what_to_do():
    trainer = tiny_trainer(model=Limited(0), train_loader=loader(), eval_loader=None)
    with pytest.raises(RuntimeError, match="Not even a batch of one sample.*bf16"):
        find_batch_size(trainer)


def test_the_data_set_and_highest_are_limits():
    trainer = tiny_trainer(model=Limited(), train_loader=loader(70))
    found = find_batch_size(trainer, num_updates=1)
    assert found.largest == 70 and found.ended == "the data set ends there"
    assert find_batch_size(trainer, highest=50, num_updates=1).largest == 50
    assert find_batch_size(trainer, smallest=500, num_updates=1).largest == 70


def test_other_errors_come_through():
    trainer = tiny_trainer(model=Limited(15, RuntimeError("shapes do not fit")), train_loader=loader())
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        find_batch_size(trainer, num_updates=1)


def test_a_batch_norm_never_sees_a_last_batch_of_one_sample():
    model = nn.Sequential(nn.BatchNorm1d(6), Limited(30))
    find_batch_size(tiny_trainer(model=model, train_loader=loader(41, 20), eval_loader=None), num_updates=2)


def test_tensor_loaders_and_accumulation_are_tried_as_they_are():
    x, y = tiny_data(200)
    trainer = tiny_trainer(model=Limited(25), accumulate_steps=3, train_loader=TensorLoader(x, y, batch_size=10))
    found = find_batch_size(trainer, num_updates=1)
    assert 20 <= found.largest <= 25 and trainer.train_loader.batch_size == 10


@in_true_time
def test_the_suggestion_is_where_larger_batches_stop_paying(monkeypatch):
    monkeypatch.setattr(tool.time, "perf_counter", lambda: Limited.clock)
    model = Limited(per_batch=0.004, per_sample=0.00005)  # 64 samples: 8,900 a second; 512: 17,300; the limit: 20,000
    found = find_batch_size(tiny_trainer(model=model, train_loader=loader(4000, 8), eval_loader=None), highest=2048,
                            num_updates=2)
    assert found.suggestion == 1024
    assert "larger hardly pays" in found.table() or found.suggestion == found.largest


@in_true_time
def test_on_a_cpu_it_ends_where_two_doublings_brought_nothing(monkeypatch):
    monkeypatch.setattr(tool, "_GAINS", 1e9)
    found = find_batch_size(tiny_trainer(model=Limited(), train_loader=loader(1000)), num_updates=1)
    assert found.largest == 40 and "two doublings" in found.ended


def test_what_it_cannot_resize_is_refused_in_words():
    trainer = tiny_trainer(train_loader=list(loader(30)))
    with pytest.raises(ValueError, match="needs a DataLoader with a batch_size, or a TensorLoader; got list"):
        find_batch_size(trainer)
    for arguments in ({"smallest": 0}, {"highest": 1.5}, {"num_updates": 0}):
        with pytest.raises(ValueError, match="must be a whole number"):
            find_batch_size(tiny_trainer(), **arguments)
