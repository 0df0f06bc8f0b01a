"""Transfer learning: parameter groups that are added in the middle of a run are scheduled, clipped, saved and continued."""

import math
import os

import pytest
import torch
from tiny import Rates, Tiny, tiny_data, tiny_trainer, weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from template.hooks import Callback

OWN, FIRST = 0.01, 0.1  # rates of the new group and of the one that is there from the start
BATCHES = 6             # of an epoch


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def frozen_body():
    torch.manual_seed(0)
    body, head = nn.Linear(6, 16), nn.Linear(16, 3)
    body.requires_grad_(False)
    return nn.Sequential(body, nn.ReLU(), head)


class Transfer(Tiny):
    """Trains the head alone; ``unfreeze`` is for later."""

    def __init__(self, scheduler=None, **attributes):
        model = frozen_body()
        optimizer = torch.optim.SGD(model[2].parameters(), FIRST, momentum=0.9)
        super().__init__(model=model, optimizer_list=[optimizer], **attributes)
        if scheduler is not None:
            self.lr_scheduler_list = [scheduler(optimizer)]

    def unfreeze(self):
        optimizer, body = self.optimizer_list[0], self.model_list[0][0]
        if len(optimizer.param_groups) == 1:  # else it was done before this run was continued
            body.requires_grad_(True)
            optimizer.add_param_group({"params": body.parameters(), "lr": OWN})


def train(epochs=6, at=3, load=None, **attributes):
    """The trainer, and the rates of each update; the body is unfrozen before epoch ``at``."""
    rates = Rates()
    trainer = Transfer(callbacks=[rates, *attributes.pop("callbacks", [])], **attributes)
    trainer.check_init(use_tb=False)
    if load is not None:
        trainer.load_state(load)
    for epoch in trainer.epochs(epochs):
        if epoch == at:
            trainer.unfreeze()
        trainer.train_loop()
        trainer.eval()
    return trainer, rates.rates


SCHEDULES = {
    "none": {},
    "cosine": {"lr_scheduler_type": "cosine"},
    "cosine per epoch": {"lr_scheduler_type": "cosine", "lr_scheduler_interval": "epoch"},
    "warm-up": {"lr_scheduler_type": "cosine", "warm_up_epoch": 4},
    "momentum": {"lr_scheduler_type": "linear", "warm_up_epoch": 4, "warm_up_momentum": 0.5},
    "one cycle": {"lr_scheduler_type": "onecycle"},
    "step": {"lr_scheduler_type": "step", "lr_scheduler_args": {"step_size": 1, "gamma": 0.5}},
    "loss": {"lr_scheduler_type": "loss", "lr_scheduler_args": {"patience": 0, "cooldown": 0}},
    "LambdaLR": {"scheduler": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda epoch: 0.9**epoch)},
    "OneCycleLR": {"scheduler": lambda optimizer: torch_schedulers.OneCycleLR(optimizer, FIRST, total_steps=36)},
    "annealing": {"scheduler": lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, 6)},
    "min_lr": {"scheduler": lambda optimizer: torch_schedulers.ReduceLROnPlateau(optimizer, patience=0, min_lr=[1e-3])},
    "sequence": {"lr_scheduler_interval": "update", "scheduler": lambda optimizer: torch_schedulers.SequentialLR(
        optimizer, [torch_schedulers.LinearLR(optimizer, total_iters=18), torch_schedulers.CosineAnnealingLR(optimizer, 18)],
        [18])},
}
RISING = {"warm-up", "momentum", "sequence"}  # in epoch 3


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_group_starts_at_its_own_rate_and_goes_on_in_proportion(name):
    _, rates = train(**SCHEDULES[name])
    assert [len(group) for group in rates] == [1] * 2 * BATCHES + [2] * 4 * BATCHES
    joined = rates[2 * BATCHES:]
    if name in RISING:  # to its own rate, which it has when the first group has its own
        at_the_top = max(joined)
        assert at_the_top == pytest.approx([FIRST, OWN], rel=1e-6)
        share = OWN / FIRST
    else:
        assert joined[0][1] == OWN
        share = OWN / joined[0][0]
    assert [new for _, new in joined] == pytest.approx([share * old for old, _ in joined], rel=1e-5, abs=1e-6)  # of init_lr


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_group_keeps_the_rates_that_it_had_alone(name):
    expected, found = (train(at=at, **SCHEDULES[name])[1] for at in (99, 3))
    assert [rates[0] for rates in found] == [rates[0] for rates in expected]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cut", [2, 4])
def test_a_run_that_is_continued_ends_with_the_same_bits(name, cut):
    whole, rates = train(ckpt_dir="whole", **SCHEDULES[name])
    continued, others = train(load=f"whole/epoch{cut}.pth", **SCHEDULES[name])
    assert torch.equal(weights(whole), weights(continued)) and others == rates[cut * BATCHES:]
    assert all(p.requires_grad for p in continued.model_list[0].parameters())


def test_a_file_with_a_group_more_says_what_was_added(capsys):
    train(ckpt_dir="whole")
    trainer = Transfer()
    trainer.check_init(use_tb=False)
    trainer.load_state("whole/last.pth")
    assert "optimizer 0: 1 parameter group added, as in the file" in capsys.readouterr().out
    assert [len(group["params"]) for group in trainer.optimizer_list[0].param_groups] == [2, 2]
    assert trainer.optimizer_list[0].param_groups[1]["params"] == list(trainer.model_list[0][0].parameters())
    trainer.save_state("again.pth")  # and a third one can go on from there
    third = Transfer()
    third.check_init(use_tb=False)
    third.load_state("again.pth")
    assert len(third.optimizer_list[0].param_groups) == 2


def test_a_file_that_does_not_fit_leaves_groups_and_freezing_alone():
    train(ckpt_dir="whole")
    state = torch.load("whole/last.pth")
    state["optimizer_list0"]["state"] = {0: "nothing that an optimizer knows"}
    state["callbacks"] = None
    torch.save(state, "broken.pth")
    trainer = Transfer()
    trainer.check_init(use_tb=False)
    before = weights(trainer)
    with pytest.raises(TypeError):
        trainer.load_state("broken.pth")
    assert len(trainer.optimizer_list[0].param_groups) == 1 and torch.equal(weights(trainer), before)
    assert not any(p.requires_grad for p in trainer.model_list[0][0].parameters())


def test_a_group_added_before_loading_takes_the_place_of_the_files_one():
    whole, _ = train(ckpt_dir="whole", lr_scheduler_type="cosine")
    trainer = Transfer(lr_scheduler_type="cosine")
    trainer.check_init(use_tb=False)
    trainer.unfreeze()
    trainer.load_state("whole/epoch4.pth")
    trainer.fit(6)
    assert torch.equal(weights(trainer), weights(whole))


def test_the_whole_run_is_that_of_a_plain_loop():
    x, y = tiny_data()
    batches = list(zip(x.split(10), y.split(10)))
    trainer, _ = train(train_loader=batches, lr_scheduler_type="cosine", clip_grad=0.1)
    model = frozen_body()
    optimizer = torch.optim.SGD(model[2].parameters(), FIRST, momentum=0.9)
    start = 1.0  # the cosine where the group joins
    for epoch in range(6):
        if epoch == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters(), "lr": OWN})
            start = (1 + math.cos(math.pi * 12 / 36)) / 2
        for number, (inputs, labels) in enumerate(batches):
            factor = (1 + math.cos(math.pi * (epoch * BATCHES + number) / 36)) / 2
            for group, base in zip(optimizer.param_groups, (FIRST, OWN / start)):
                group["lr"] = base * factor
            nn.functional.cross_entropy(model(inputs), labels).backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)
            optimizer.step()
            optimizer.zero_grad()
    expected = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(trainer), expected, rtol=1e-5, atol=1e-7)


class UnfreezesAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.unfreeze()


def test_a_callback_may_add_a_group_in_the_middle_of_an_epoch():
    _, rates = train(at=99, callbacks=[UnfreezesAt(14)], lr_scheduler_type="cosine")
    factors = [(1 + math.cos(math.pi * update / 36)) / 2 for update in range(36)]
    assert [len(group) for group in rates[:15]] == [1] * 14 + [2]
    assert [new for _, new in rates[14:]] == pytest.approx([OWN * factor / factors[14] for factor in factors[14:]], abs=1e-7)


def test_change_lr_sets_the_rate_of_new_groups_too():
    trainer = Transfer(lr_scheduler_type="cosine", total_epochs=4, callbacks=[rates := Rates()])
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.unfreeze()
    trainer.change_lr([0.02])
    trainer.train_loop()
    assert rates.rates[BATCHES] == [0.02, 0.02] and rates.rates[-1][0] == pytest.approx(rates.rates[-1][1])


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_group_without_a_rate_takes_the_one_that_the_optimizer_was_made_with(kind):
    model = frozen_body()
    optimizer = torch.optim.Adam(model[2].parameters(), kind(0.0625), foreach=False)
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], lr_scheduler_type="linear", callbacks=[rates := Rates()])
    for epoch in trainer.epochs(4):
        if epoch == 3:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters()})
        trainer.train_loop()
    own = 0.0625 if kind is float else 0.03125  # a tensor follows the schedule, which torch's default is then
    assert rates.rates[12] == [0.03125, own]
    assert rates.rates[-1] == pytest.approx([0.0625 / 24, 2 * own / 24])


def test_of_several_optimizers_only_the_one_with_the_group_changes():
    model = frozen_body()
    body, head = model[0], model[2]
    first, second = torch.optim.SGD([head.bias], 0.1), torch.optim.Adam([head.weight], 0.2)
    trainer = tiny_trainer(model=model, optimizer_list=[first, second], lr_scheduler_type="linear", total_epochs=2)
    trainer.train_loop()
    body.requires_grad_(True)
    second.add_param_group({"params": body.parameters(), "lr": 0.01})
    trainer.train_loop()
    assert len(trainer.lr_schedule.schedulers[0].base_lrs) == 1
    assert trainer.lr_schedule.schedulers[1].base_lrs == pytest.approx([0.2, 0.02])
