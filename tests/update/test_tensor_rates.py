"""Learning rates that are tensors (capturable optimizers, compiled steps): the same rates, in the same tensor."""

import os

import pytest
import torch
from test_lr_scheduler import BATCHES, torch_rates, warm_up_rate
from tiny import Rates, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

BASE = 0.0625


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trainer_of(kind=torch.tensor, groups=None, **attributes):
    model, rates = tiny_model(dropout=0.0), Rates()
    optimizer = torch.optim.Adam(groups(model) if groups else model.parameters(), kind(BASE), foreach=False)
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], callbacks=[rates], **attributes)
    return trainer, rates.rates


@pytest.mark.parametrize("attributes", [
    {"lr_scheduler_type": "cosine", "warm_up_updates": 5}, {"lr_scheduler_type": "onecycle"},
    {"lr_scheduler_type": "step", "lr_scheduler_args": {"step_size": 1, "gamma": 0.5}, "warm_up_epoch": 1},
    {"lr_scheduler_type": "loss", "lr_scheduler_args": {"patience": 0, "cooldown": 0}},
    {"lr_scheduler_type": "exponential", "warm_up_updates": 5, "warm_up_mode": "exponential"},
], ids=lambda attributes: attributes["lr_scheduler_type"])
def test_the_rates_are_those_of_numbers_and_the_tensor_stays(attributes):
    expected, ours = trainer_of(float, **attributes), trainer_of(**attributes)
    rate = ours[0].optimizer_list[0].param_groups[0]["lr"]
    for trainer, _ in (expected, ours):
        trainer.fit(4)
    assert [one for one, in ours[1]] == pytest.approx([one for one, in expected[1]], rel=1e-5, abs=1e-9)
    assert ours[0].optimizer_list[0].param_groups[0]["lr"] is rate


def test_a_schedule_equals_that_of_torch_on_a_tensor_of_its_own():
    trainer, rates = trainer_of(lr_scheduler_type="linear")
    trainer.fit(3)
    expected = torch_rates(lambda o: torch_schedulers.LinearLR(o, 1.0, 0.0, total_iters=3 * BATCHES), 3 * BATCHES, lr=BASE)
    assert [one for one, in rates] == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_resumed_run_has_the_same_bits_and_keeps_its_tensor():
    attributes = {"lr_scheduler_type": "cosine", "warm_up_updates": 4}
    whole, _ = trainer_of(**attributes, ckpt_dir="run")
    whole.fit(3)
    for kind, type_of_rate in ((torch.tensor, torch.Tensor), (float, float)):
        again, _ = trainer_of(kind, **attributes)
        rate = again.optimizer_list[0].param_groups[0]["lr"]
        again.load_state("run/epoch2.pth")
        assert isinstance(again.optimizer_list[0].param_groups[0]["lr"], type_of_rate)
        if kind is float:
            break
        again.fit(3)
        assert again.optimizer_list[0].param_groups[0]["lr"] is rate
        assert torch.equal(weights(again), weights(whole))


def test_change_lr_writes_into_the_tensor_and_later_rates_go_on_in_proportion():
    usual, expected = trainer_of(lr_scheduler_type="cosine")
    usual.fit(4)
    trainer, rates = trainer_of(lr_scheduler_type="cosine")
    rate = trainer.optimizer_list[0].param_groups[0]["lr"]
    for epoch in trainer.epochs(4):
        if epoch == 3:
            factor = 0.02 / float(rate)
            trainer.change_lr([0.02])
        trainer.train_loop()
    assert trainer.optimizer_list[0].param_groups[0]["lr"] is rate
    changed = 2 * BATCHES
    assert [one for one, in rates[changed:]] == pytest.approx([factor * one for one, in expected[changed:]], rel=1e-5)


def test_a_warm_up_of_biases_does_not_move_the_other_groups_although_torch_gives_all_one_tensor():
    def groups(model):
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        return [{"params": [p for name, p in model.named_parameters() if not name.endswith("bias")]},
                {"params": biases, "name": "bias"}]

    trainer, rates = trainer_of(groups=groups, warm_up_updates=5, warm_up_bias_lr=0.1)
    trainer.fit(1)
    expected = [[warm_up_rate(k, 5, BASE, "linear"), 0.1 + (BASE - 0.1) * min(k / 5, 1)] for k in range(BATCHES)]
    assert [rate for pair in rates for rate in pair] == pytest.approx([rate for pair in expected for rate in pair], rel=1e-5)


def test_what_is_shown_and_written_are_numbers(capsys, monkeypatch):
    written = {}

    class Writer:
        log_dir = "runs/any"

        def __init__(self, log_dir=None):
            pass

        def add_values(self, values, step):
            written.setdefault(step, {}).update(values)

        def flush(self):
            pass

    attributes = {"lr_scheduler_type": "linear", "log_per_step": 1, "eval_loader": None}
    trainer, rates = trainer_of(**attributes, use_tb=True)
    monkeypatch.setattr("template.callbacks.tensorboard._void", lambda writer, step: None)
    trainer.writer = Writer()
    trainer.fit(2)
    points = {step: values["lr/0"] for step, values in written.items() if "lr/0" in values}
    assert all(type(value) is float for value in points.values())
    assert [points[step] for step in sorted(points)] == [one for one, in rates[1:]] + [0.0]
    trainer.print_final_lr()
    out = capsys.readouterr().out
    assert "tensor" not in out and "optimizer 0: [0.0]" in out


def test_the_weights_are_those_of_a_plain_loop_with_a_tensor_rate():
    x, y = tiny_data()
    batches = list(zip(x.split(10), y.split(10)))
    trainer, _ = trainer_of(train_loader=batches, lr_scheduler_type="step", lr_scheduler_args={"step_size": 1, "gamma": 0.5})
    trainer.fit(3)
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(BASE), foreach=False)
    scheduler = torch_schedulers.StepLR(optimizer, 1, 0.5)
    for _ in range(3):
        for inputs, labels in batches:
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))
