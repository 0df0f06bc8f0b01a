"""Stochastic weight averaging: against torch's ``AveragedModel`` and ``update_bn`` in plain loops."""

import os
import signal

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from template import SWA, Callback
from template.callbacks.swa import _mean_over_ranks

X, Y = tiny_data()
BATCHES = list(zip(X.split(10), Y.split(10)))  # 6
EVAL_X, EVAL_Y = tiny_data(23, seed=5)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def normed():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trainer_of(*callbacks, check_init=True, **attributes):
    trainer = Tiny(model=attributes.pop("model", None) or normed(), callbacks=list(callbacks), preflight=False,
                   **{"train_loader": BATCHES, "eval_loader": [(EVAL_X, EVAL_Y)], **attributes})
    if check_init:
        trainer.check_init(use_tb=False)
    return trainer


def plain(epochs, first, swa_lr=None, model=None):
    """``(the model, its AveragedModel with the statistics of update_bn)`` after a plain loop."""
    model = normed() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = AveragedModel(model)
    for epoch in range(1, epochs + 1):
        if swa_lr is not None and epoch >= first:
            optimizer.param_groups[0]["lr"] = swa_lr
        for x, y in BATCHES:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        if epoch >= first:
            average.update_parameters(model)
    update_bn([x for x, _ in BATCHES], average)
    return model, average.module.eval()


def vector(model):
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def without_counter(state):
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("start, first", [(0.75, 4), (0.5, 3), (3, 3), (1, 1), (0.01, 1), (0.99, 4)])
def test_it_is_torch_s_average_with_the_statistics_of_update_bn_and_training_is_as_without_it(start, first):
    swa = SWA(start)
    trainer = trainer_of(swa, ckpt_dir="run")
    trainer.fit(4)
    model, average = plain(4, first)
    assert swa.averaged_epochs == 5 - first
    assert torch.equal(weights(trainer), vector(model))
    torch.testing.assert_close(trainer.predict(EVAL_X), average(EVAL_X).detach())
    loss = nn.functional.cross_entropy(average(EVAL_X), EVAL_Y).item()
    assert trainer.eval_result["tol_loss"] == pytest.approx(loss, rel=1e-6)
    swa.save("mean.pth")
    saved = without_counter(torch.load("mean.pth", weights_only=True)["model0"])
    for name, value in without_counter(average.state_dict()).items():
        torch.testing.assert_close(saved[name], value)
    last = torch.load("run/last.pth", weights_only=True)["model0"]
    assert all(torch.equal(last[name], value) for name, value in model.state_dict().items())


def test_before_the_start_the_weights_of_the_training_are_used():
    swa = SWA(3)
    trainer = trainer_of(swa)
    for _ in range(2):
        trainer.train_loop()
        trainer.eval()
    model, _ = plain(2, 3)
    assert torch.equal(trainer.predict(EVAL_X), model.eval()(EVAL_X).detach())
    with pytest.raises(RuntimeError, match="there is none yet: it begins at the end of the first epoch behind start=3"):
        swa.save("mean.pth")


def test_swa_lr_is_the_rate_from_the_start_on_whatever_the_schedule_says():
    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_before_step(self, model):
            self.seen.append(model.optimizer_list[0].param_groups[0]["lr"])

    rates = Rates()
    trainer = trainer_of(SWA(3, swa_lr=0.03), rates, lr_scheduler_type="cosine")
    trainer.fit(4)
    assert rates.seen[12:] == [0.03] * 12 and len(set(rates.seen[:12])) == 12
    trainer = trainer_of(SWA(3, swa_lr=0.03))
    trainer.fit(4)
    model, average = plain(4, 3, swa_lr=0.03)
    assert torch.equal(weights(trainer), vector(model))
    torch.testing.assert_close(trainer.predict(EVAL_X), average(EVAL_X).detach())


@pytest.mark.parametrize("length, every, averaged", [
    ({"updates": 20}, 3, [15, 18]),           # behind 12 of 20; the last epoch ends in its middle
    ({"updates": 20}, None, [18]),            # the epochs end with 6, 12 and 18, and 12 is not behind 12
    ({"updates": 24}, None, [18, 24]),        # 14.4
    ({"total": 4}, 5, [15, 20]),              # epochs 3 and 4: updates 13 to 24
])
def test_a_run_that_counts_updates_averages_behind_its_share_of_them(length, every, averaged):
    swa = SWA(0.6, every=every)
    trainer = trainer_of(swa, ckpt_dir="run")
    trainer.fit(**length)
    model = normed()
    optimizer, average = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), AveragedModel(model)
    for update in range(1, trainer.global_step + 1):
        x, y = BATCHES[(update - 1) % 6]
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if update in averaged:
            average.update_parameters(model)
    update_bn([x for x, _ in BATCHES], average)
    assert swa.averaged_epochs == len(averaged) and torch.equal(weights(trainer), vector(model))
    torch.testing.assert_close(trainer.predict(EVAL_X), average.module.eval()(EVAL_X).detach())


@pytest.mark.parametrize("average", [SWA(0.5, every=2), SWA(0.5, swa_lr=0.02, every=2)], ids=["plain", "swa_lr"])
def test_a_run_over_updates_that_was_cut_goes_on_to_the_same_bits(average):
    def run(folder, *cut):
        swa = SWA(average.start, average.swa_lr, average.every)
        trainer = trainer_of(swa, *cut, ckpt_dir=folder, lr_scheduler_type="cosine",
                             train_loader=DataLoader(TensorDataset(X, Y), 10, shuffle=True))
        trainer.load_state("auto")
        trainer.fit(updates=16)
        return weights(trainer), trainer.predict(EVAL_X), swa.averaged_epochs

    class Stop(Callback):
        def on_after_step(self, model):
            if model.global_step in (9, 13):
                model.should_stop = "now"

    whole = run("whole")
    run("run", Stop())
    run("run", Stop())
    found = run("run")
    assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[1]) and found[2] == whole[2] == 4


def test_a_run_over_updates_in_which_no_epoch_ends_late_enough_is_told_how_to_average():
    endless = trainer_of(SWA(0.75))
    with pytest.raises(ValueError, match=r"none of them lies behind update 12 of 16\. Say every how many updates: "
                                         r"SWA\(0\.75, every=1\)"):
        endless.fit(updates=16)
    with pytest.raises(ValueError, match="every must be a whole number of updates of at least 1, .* got 0"):
        SWA(0.5, every=0)


def test_a_model_without_batchnorm_needs_no_pass():
    count = []

    class Counting(Tiny):
        def inference(self, x):
            count.append(len(x))
            return super().inference(x)

    trainer = Counting(model=tiny_model(dropout=0.0), callbacks=[SWA(1)], train_loader=BATCHES, eval_loader=None,
                       preflight=False)
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    assert len(count) == 12


class Noisy(nn.Module):
    """Random numbers, a frozen BatchNorm, and state that a forward changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.a, self.norm, self.frozen = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8).eval()
        self.drop, self.b = nn.Dropout(0.3), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.b(self.drop(self.frozen(self.norm(self.a(x))).relu()))


class Augmented(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(6), y


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_pass_changes_no_bit_of_the_training_and_leaves_layers_alone_that_are_frozen(workers):
    def build(*callbacks):
        loader = DataLoader(Augmented(X, Y), 10, shuffle=True, num_workers=workers)
        trainer = trainer_of(*callbacks, model=Noisy(), train_loader=loader)
        trainer.fit(3)
        return trainer, torch.rand(3)

    swa = SWA(1)
    (trainer, drawn), (without, drawn_without) = build(swa), build()
    assert torch.equal(weights(trainer), weights(without))
    assert trainer.model_list[0].calls == 18
    names = set(swa.state_dict()["statistics"])
    assert names == {"model0.norm.running_mean", "model0.norm.running_var"}
    assert trainer.model_list[0].norm.momentum == 0.1 and torch.equal(drawn, drawn_without)


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("update", [12, 15, 18])
def test_a_resumed_run_ends_with_the_same_bits(update):
    class Kill(Callback):
        def on_log(self, model, values):
            if model.global_step == update + 1:
                raise Killed

    def build(*callbacks):
        return trainer_of(SWA(2, swa_lr=0.05), *callbacks, ckpt_dir="run", model=Noisy(), log_per_step=1, save_per_steps=3,
                          train_loader=DataLoader(Augmented(X, Y), 10, shuffle=True))

    whole = build()
    whole.fit(4)
    expected, scores = whole.predict(EVAL_X), dict(whole.eval_result)
    with pytest.raises(Killed):
        trainer = build(Kill())
        trainer.fit(4)
    folder = trainer.ckpt_dir
    again = build()
    again.load_state(f"{folder}/last.pth")
    assert again.global_step == update
    again.fit(4)
    assert torch.equal(weights(again), weights(whole)) and torch.equal(again.predict(EVAL_X), expected)
    assert again.eval_result == scores


def test_a_signal_in_the_pass_ends_it_soon_and_it_is_done_when_the_run_goes_on(capsys):
    class Signals(Tiny):
        """A Ctrl-C arrives in the second batch of the first pass."""

        forwards = 0

        def inference(self, x):
            if not torch.is_grad_enabled() and self.model_list[0].training:
                self.forwards += 1
                if self.forwards == 2:
                    signal.raise_signal(signal.SIGINT)
            return super().inference(x)

    def build():
        trainer = Signals(model=normed(), callbacks=[SWA(1)], train_loader=BATCHES, eval_loader=[(EVAL_X, EVAL_Y)],
                          preflight=False, ckpt_dir="run")
        trainer.check_init(use_tb=False)
        return trainer

    trainer = build()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(2)
    assert trainer.forwards == 2
    again = build()
    again.forwards = 10
    again.load_state("auto")
    again.fit(2)
    model, average = plain(2, 1)
    assert torch.equal(weights(again), vector(model))
    torch.testing.assert_close(again.predict(EVAL_X), average(EVAL_X).detach())


def test_the_ranks_join_their_statistics_by_their_numbers_of_batches():
    class World:
        def gather(self, own):
            return [own, {"m": torch.tensor([4.0, 0.0])}]

    joined = _mean_over_ranks(World(), {"m": torch.tensor([1.0, 3.0])}, [2, 1])
    torch.testing.assert_close(joined["m"], torch.tensor([2.0, 2.0]))


class Once:
    """One that no check sees through: its second epoch is empty."""

    def __init__(self):
        self.batches = iter(BATCHES)

    def __iter__(self):
        yield from self.batches


def test_a_loader_that_can_be_read_only_once_is_told():
    trainer = trainer_of(SWA(1), train_loader=Once(), eval_loader=None)
    with pytest.warns(UserWarning, match="SWA found no batch in train_loader for the statistics of BatchNorm"):
        trainer.train_loop()


@pytest.mark.parametrize("arguments, rule", [
    ({"start": 0}, "start must be a share of the run between 0 and 1, such as 0.75, or the number of an epoch.*got 0"),
    ({"start": 1.0}, "got 1.0"), ({"start": True}, "got True"), ({"start": "half"}, "got 'half'"),
    ({"swa_lr": 0}, "swa_lr must be a learning rate above 0, or None to leave it as it is; got 0"),
])
def test_bad_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SWA(**arguments)


def test_a_share_of_a_run_whose_length_nobody_knows_is_refused_and_an_epoch_that_never_comes_is_told():
    trainer = trainer_of(SWA(0.75))
    with pytest.raises(ValueError, match=r"SWA\(start=0.75\) begins behind that share of the run, and its length is not"):
        trainer.train_loop()
    trainer = trainer_of(SWA(9))
    with pytest.warns(UserWarning, match="averages from epoch 9 on, and this run ends with epoch 2, so nothing is averaged"):
        trainer.fit(2)
