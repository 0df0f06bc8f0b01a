"""What the tool says of trainings whose limit is known, and that nothing is left of it."""

import time

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from template.callbacks.early_stopping import EarlyStopping
from template.tools import throughput as tool
from template.tools.throughput import throughput


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(tool, "_UPDATES_EACH", 20)


class Slow(Dataset):
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.ones(6), index % 3

    def __len__(self):
        return 400


class Heavy(nn.Module):
    """Takes time for each sample, as a large network does, or the same for any batch."""

    def __init__(self, per_sample=0.0, per_batch=0.0):
        super().__init__()
        self.inner, self.per_sample, self.per_batch = nn.Linear(6, 3), per_sample, per_batch

    def forward(self, x):
        time.sleep(self.per_batch + self.per_sample * len(x))
        return self.inner(x)


def test_data_that_is_waited_for_is_the_limit(capsys):
    figures = throughput(tiny_trainer(train_loader=DataLoader(Slow(), 10)))
    assert figures["limit"] == "data"
    assert figures["data"] > 0.01 and figures["both"] > figures["update"] and figures["both"] > 0.01
    assert figures["samples_per_second"] == pytest.approx(10 / figures["both"])
    printed = capsys.readouterr().out
    assert "An update of 10 samples on cpu" in printed and "The data is the limit" in printed and "num_workers=" in printed


def test_updates_that_take_as_long_with_two_samples_are_limited_by_the_host(capsys):
    figures = throughput(tiny_trainer(model=Heavy(per_batch=0.01)))
    assert figures["limit"] == "host"
    printed = capsys.readouterr().out
    assert "larger batch" in printed and "compile = True" in printed and "SGD(…, fused=True)" in printed


def test_advice_that_was_taken_is_not_given_again(capsys):
    trainer = Tiny()
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.1, fused=True)]
    trainer.check_init(use_tb=False)
    throughput(trainer)
    assert "fused" not in capsys.readouterr().out


def test_a_network_that_takes_time_for_each_sample_is_limited_by_the_device(capsys):
    x, y = tiny_data(200)
    figures = throughput(tiny_trainer(model=Heavy(per_sample=0.0005), train_loader=DataLoader(TensorDataset(x, y), 20)))
    assert figures["limit"] == "device" and figures["fixed"] < figures["update"] / 2
    assert "Profile()" in capsys.readouterr().out


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_nothing_is_left_of_it(epochs_before):
    trained = []
    for measures in (False, True):
        trainer = tiny_trainer(ckpt_dir=f"{measures}", lr_scheduler_type="cosine", clip_grad=1.0, accumulate_steps=2,
                               total_epochs=4, callbacks=[EarlyStopping(patience=3)])
        for _ in range(epochs_before):
            trainer.train_loop()
            trainer.eval()
        if measures:
            before = dict(vars(trainer.stepper.speed)), trainer.global_step, len(trainer.optimizer_list[0].state)
            throughput(trainer)
            assert before == (vars(trainer.stepper.speed), trainer.global_step, len(trainer.optimizer_list[0].state))
            assert all(p.grad is None for p in trainer.model_list[0].parameters())
        trainer.fit(4)
        trained.append((weights(trainer), trainer.best_metric))
    assert torch.equal(trained[0][0], trained[1][0]) and trained[0][1] == trained[1][1]


def test_a_network_that_needs_whole_batches_is_measured_without_the_small_one(capsys):
    class Fussy(nn.Linear):
        def forward(self, x):
            if len(x) < 3:
                raise ValueError("too few")
            return super().forward(x)

    x, y = tiny_data(100)
    figures = throughput(tiny_trainer(model=Fussy(6, 3), train_loader=DataLoader(TensorDataset(x, y), 10)))
    assert figures["fixed"] is None and figures["update"] > 0
    assert "a batch of two samples cannot be trained on (ValueError: too few)" in capsys.readouterr().out


def test_it_needs_a_trainer_that_is_set_up():
    with pytest.raises(RuntimeError, match="check_init"):
        throughput(Tiny())


def test_batches_of_every_kind_are_cut_to_two_samples():
    few = tool._few_samples({"x": torch.ones(5, 3), "y": (torch.ones(5), [torch.ones(5, 2), "name", torch.tensor(1.0)])})
    assert few["x"].shape == (2, 3) and few["y"][0].shape == (2,) and few["y"][1][0].shape == (2, 2)
    assert few["y"][1][1] == "name" and few["y"][1][2].dim() == 0
