"""When rates change: at the end of an epoch, whoever evaluates in its middle, and up to the end of a run that changes."""

import itertools
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lr_scheduler import BASE, BATCHES, Rates, torch_rates, warm_up_rate
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from template.hooks import Callback
from template.update.lr_scheduler import NamedSchedule

STEP = {"lr_scheduler_type": "step", "lr_scheduler_args": {"step_size": 1, "gamma": 0.5}}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def rate_of(trainer):
    return trainer.optimizer_list[0].param_groups[0]["lr"]


# --- evaluations in the middle of an epoch ----------------------------------------------------------------------------


class EvaluatesAfter(Callback):
    """After so many updates of an epoch, counted from the run's start."""

    def __init__(self, *updates):
        self.updates = updates

    def on_after_step(self, model):
        if model.global_step in self.updates:
            model.eval()


class EvaluatesInside(Tiny):
    """In ``train_step``, of the third batch of each epoch."""

    def train_step(self, batch):
        if self.batches_done == 2:
            self.eval()
        return super().train_step(batch)


@pytest.mark.parametrize("attributes", [
    STEP, {"lr_scheduler_type": "cosine", "lr_scheduler_interval": "epoch"}, STEP | {"warm_up_epoch": 2},
    STEP | {"warm_up_updates": 8}, STEP | {"warm_up_updates": 6}, STEP | {"accumulate_steps": 4},
], ids=["step", "cosine", "epochs of warm-up", "updates of warm-up", "an epoch of warm-up", "accumulated"])
def test_an_evaluation_in_the_middle_of_an_epoch_moves_no_rate(attributes):
    expected, ours = Rates(), []
    tiny_trainer(callbacks=[expected], **attributes).fit(4)
    for kind, callbacks in ((Tiny, [EvaluatesAfter(3, 4, 10)]), (EvaluatesInside, [])):
        rates = Rates()
        trainer = kind(callbacks=[rates, *callbacks], **attributes)
        trainer.check_init(use_tb=False)
        trainer.fit(4)
        ours.append(rates.rates)
    assert ours == [expected.rates] * 2 and len(set(expected.rates)) > 2


def test_the_weights_are_those_of_a_plain_loop_that_steps_behind_each_epoch():
    x, y = tiny_data()
    batches = list(zip(x.split(6), y.split(6)))  # 9
    trainer = EvaluatesInside(model=tiny_model(dropout=0.0), train_loader=batches, **STEP)
    trainer.check_init(use_tb=False)
    trainer.fit(3)
    plain = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), BASE, momentum=0.9)
    scheduler = torch_schedulers.StepLR(optimizer, 1, 0.5)
    for _ in range(3):
        for inputs, labels in batches:
            nn.functional.cross_entropy(plain(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in plain.parameters()]))


def plateau_trainer(values, callbacks=(), kind=Tiny, **attributes):
    """``values``: what each evaluation gives in turn."""
    values = iter(values)
    trainer = kind(callbacks=list(callbacks), preflight=False, eval_loader=[tiny_data(10)], lr_scheduler_type="metric",
                   lr_scheduler_args={"patience": 0, "cooldown": 0, "factor": 0.5}, **attributes)
    trainer.metric = lambda pred, y: {"score": next(values)}
    trainer.check_init(use_tb=False)
    return trainer


def plateau_rates(values):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], BASE)
    plateau = torch_schedulers.ReduceLROnPlateau(optimizer, mode="max", patience=0, cooldown=0, factor=0.5, min_lr=1e-9)
    rates = []
    for value in values:
        rates.append(optimizer.param_groups[0]["lr"])
        plateau.step(value)
    return rates


def rates_of_epochs(trainer, epochs, evaluates=True):
    rates = []
    for _ in trainer.epochs(epochs):
        rates.append(rate_of(trainer))
        trainer.train_loop()
        if evaluates:
            trainer.eval(save_per_epochs=0)
    return rates


def test_a_plateau_looks_at_the_evaluation_behind_the_epoch_when_there_were_others_in_it():
    ends = [3.0, 4.0, 4.0, 5.0, 4.0, 6.0]
    values = [value for end in ends for value in (end + 10 * (-1) ** int(end), end)]
    trainer = plateau_trainer(values, [EvaluatesAfter(*range(3, 40, BATCHES))])
    assert rates_of_epochs(trainer, 6) == plateau_rates(ends)


def test_a_plateau_takes_the_last_evaluation_in_the_epoch_when_none_follows():
    lasts = [3.0, 4.0, 4.0, 5.0, 4.0, 6.0]
    values = [value for last in lasts for value in (9.0, last)]
    trainer = plateau_trainer(values, [EvaluatesAfter(*range(2, 40, BATCHES), *range(5, 40, BATCHES))])
    assert rates_of_epochs(trainer, 6, evaluates=False) == plateau_rates(lasts)


def test_what_an_evaluation_in_the_epoch_gave_travels_in_the_checkpoint():
    lasts = [3.0, 2.0, 1.0]
    whole = plateau_trainer(lasts, [EvaluatesAfter(2, 8, 14)])
    expected = rates_of_epochs(whole, 3, evaluates=False)

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_log(self, model, values):
            if model.global_step == 10:
                raise Killed

    with pytest.raises(Killed):
        trainer = plateau_trainer(lasts, [EvaluatesAfter(2, 8, 14), Kill()], ckpt_dir="run", save_per_steps=3)
        rates_of_epochs(trainer, 3, evaluates=False)
    again = plateau_trainer(lasts[2:], [EvaluatesAfter(14)], ckpt_dir="run")
    again.load_state("auto")
    assert again.global_step >= 9
    assert rates_of_epochs(again, 3, evaluates=False) == expected[1:]
    assert rate_of(again) == rate_of(whole)


def test_beside_a_plateau_the_other_schedules_step_in_every_epoch_evaluated_or_not():
    models = [tiny_model(), nn.Linear(3, 3)]
    optimizers = [torch.optim.SGD(model.parameters(), BASE) for model in models]
    schedulers = [torch_schedulers.ReduceLROnPlateau(optimizers[0], "max"), torch_schedulers.StepLR(optimizers[1], 1, 0.5)]
    trainer = tiny_trainer(model_list=models, optimizer_list=optimizers, lr_scheduler_list=schedulers)
    for epoch in trainer.epochs(4):
        trainer.train_loop()
        if epoch % 2 == 0:
            trainer.eval()
    assert optimizers[1].param_groups[0]["lr"] == BASE * 0.5 ** 4 and schedulers[0].last_epoch == 2


def test_an_epoch_that_no_plateau_heard_of_is_said_once(capsys):
    trainer = plateau_trainer(itertools.repeat(1.0))
    rates_of_epochs(trainer, 3, evaluates=False)
    assert capsys.readouterr().out.count("Epoch 1 was not evaluated, so plateau schedules did not step") == 1


@pytest.mark.parametrize("kind", ["after an update", "inside an update"])
def test_an_evaluation_in_the_middle_neither_ends_the_epoch_nor_writes_its_file(kind):
    class Looks(Callback):
        files = []

        def on_log(self, model, values):
            if model.global_step == 5:
                model.wait_for_saves()
                self.files.append(sorted(name for name in os.listdir("run") if name.endswith(".pth")))

    attributes = {"ckpt_dir": "run", "log_per_step": 1, "model": tiny_model(dropout=0.0)}
    if kind == "inside an update":
        trainer = EvaluatesInside(callbacks=[Looks()], **attributes)
    else:
        trainer = Tiny(callbacks=[EvaluatesAfter(3), Looks()], **attributes)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert Looks.files.pop() == ["best.pth", "last.pth"]
    assert trainer.epochs_done == 0 and trainer.global_step == BATCHES
    assert torch.load("run/last.pth")["global_step"] == 3  # behind the running update, where it is exact
    trainer.eval()
    assert trainer.epochs_done == 1 and os.path.exists("run/epoch1.pth")


@pytest.mark.parametrize("kind", [Tiny, EvaluatesInside])
def test_what_is_saved_for_an_evaluation_in_the_middle_resumes_to_the_same_bits(kind):
    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_batch(self, model, batch):
            if model.global_step == 4 and model.epoch == 1:
                raise Killed

    def build(folder, callbacks):
        trainer = kind(ckpt_dir=folder, callbacks=[*callbacks, EvaluatesAfter(3)] if kind is Tiny else callbacks, **STEP)
        trainer.check_init(use_tb=False)
        return trainer

    whole = build("whole", [])
    whole.fit(2)
    with pytest.raises(Killed):
        build("run", [Kill()]).fit(2)
    again = build("run", [])
    again.load_state("auto")
    assert again.global_step == 3
    again.fit(2)
    assert torch.equal(weights(again), weights(whole)) and again.best_metric == whole.best_metric


def test_a_stop_that_an_evaluation_in_the_middle_asked_for_still_evaluates_the_end_of_the_epoch():
    class Stops(EvaluatesAfter):
        def on_eval_result(self, model, result):
            model.should_stop = True

    trainer = tiny_trainer(callbacks=[Stops(3)])
    scores = []
    trainer.metric = lambda pred, y: {"score": float(trainer.global_step)}
    for _ in trainer.epochs(3):
        trainer.train_loop()
        scores.append(trainer.eval())
    assert scores == [float(BATCHES)]


# --- nothing to evaluate ----------------------------------------------------------------------------------------------

LOSS = {"lr_scheduler_args": {"patience": 0, "cooldown": 0, "factor": 0.5, "threshold": 0.5}, "eval_loader": None}


def test_without_evaluations_type_loss_follows_the_training_loss():
    trainer = tiny_trainer(lr_scheduler_type="loss", **LOSS)
    rates, losses = [], []
    for _ in trainer.epochs(6):
        rates.append(rate_of(trainer))
        losses.append(trainer.train_loop()["tol_loss"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], BASE)
    plateau = torch_schedulers.ReduceLROnPlateau(optimizer, min_lr=1e-9, **LOSS["lr_scheduler_args"])
    expected = []
    for loss in losses:
        expected.append(optimizer.param_groups[0]["lr"])
        plateau.step(loss)
    assert rates == expected and len(set(rates)) > 2
    again = tiny_trainer(lr_scheduler_type="loss", ckpt_dir="again", **LOSS)
    again.fit(3)
    third = tiny_trainer(lr_scheduler_type="loss", ckpt_dir="again", **LOSS)
    third.load_state("auto")
    third.fit(6)
    assert torch.equal(weights(third), weights(trainer)) and rate_of(third) == rate_of(trainer)


def test_a_loss_of_ones_own_that_is_given_by_hand_comes_before_the_training_loss():
    trainer = tiny_trainer(lr_scheduler_type="loss", **LOSS)
    rates = []
    for epoch in trainer.epochs(5):
        rates.append(rate_of(trainer))
        trainer.train_loop()
        trainer.update_lr_scheduler(avg_batch_loss=float(epoch))  # worse each time
    assert rates == [BASE * 0.5 ** max(epoch - 1, 0) for epoch in range(5)]


def test_a_plateau_that_can_never_hear_anything_is_warned_of():
    with pytest.warns(UserWarning, match=r"lr_scheduler_type='metric' follows an evaluation, and there is no eval_loader"):
        tiny_trainer(lr_scheduler_type="metric", eval_loader=None)
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), BASE)
    with pytest.warns(UserWarning, match=r"lr_scheduler_list\[0\] \(ReduceLROnPlateau, mode='max'\) follows an evaluation"):
        tiny_trainer(model=model, optimizer_list=[optimizer], eval_loader=None,
                     lr_scheduler_list=[torch_schedulers.ReduceLROnPlateau(optimizer, "max")])


# --- another number of updates ----------------------------------------------------------------------------------------


class Changes(Callback):
    """Sets ``accumulate_steps`` behind updates."""

    def __init__(self, changes):
        self.changes = changes

    def on_after_step(self, model):
        if model.global_step in self.changes:
            model.accumulate_steps = self.changes[model.global_step]


SHAPES = {"cosine": lambda s: (1 + math.cos(math.pi * s)) / 2, "linear": lambda s: 1 - s}


def onecycle(s, start=0.3, low=1 / 25, final=1 / 25e4):
    if s < start:
        return low + (1 - low) * (1 - math.cos(math.pi * s / start)) / 2
    return final + (1 - final) * (1 + math.cos(math.pi * (s - start) / (1 - start))) / 2


SHAPES["onecycle"] = onecycle


def shares(changes, total):
    """How much of the run is done before each update: ``changes`` are ``{update: updates that are left from there}``."""
    share, since, end, found = 0.0, 0, total, []
    k = 0
    while k < end:
        if k in changes:
            share, since, end = share + (1 - share) * (k - since) / (end - since), k, k + changes[k]
        found.append(share + (1 - share) * (k - since) / (end - since))
        k += 1
    return found


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("steps, changes, left", [
    # 4 epochs of 6 batches; after an update: the batches per update from there, and the updates that are then left
    ({12: 2}, {12: 6}, 24),
    ({6: 3, 10: 6}, {6: 6, 10: 1}, 24),
    ({3: 2}, {3: 11}, 24),
    ({1: 2, 3: 1}, {1: 12, 3: 19}, 24),
], ids=["between epochs", "twice", "within an epoch", "up and down"])
def test_a_larger_batch_from_some_update_on_bends_the_schedule_and_ends_it_with_the_run(kind, steps, changes, left):
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type=kind, callbacks=[rates, Changes(steps)], eval_loader=None)
    trainer.fit(4)
    expected = [BASE * SHAPES[kind](share) for share in shares(changes, left)]
    assert len(rates.rates) == len(expected) == trainer.global_step
    assert rates.rates == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rate_of(trainer) == pytest.approx(BASE * SHAPES[kind](1.0), abs=1e-12)
    jumps = [abs(a - b) for a, b in zip(rates.rates, rates.rates[1:])]
    assert max(jumps) < BASE * 0.5  # it goes on from the rate that it had


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_warm_up_that_is_running_keeps_its_updates_and_the_schedule_the_rest(kind):
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type=kind, warm_up_updates=8, callbacks=[rates, Changes({3: 2, 11: 3})],
                           eval_loader=None)
    trainer.fit(4)
    # 3 updates of one batch, then of two: 2 more in the first epoch, 3 in each later one; in the last epoch 2 of three
    warm = [warm_up_rate(k, 8, BASE, "linear") for k in range(8)]
    expected = warm + [BASE * SHAPES[kind](share) for share in shares({11 - 8: 2}, 14 - 8)]
    assert trainer.global_step == len(expected) == 13
    assert rates.rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("attributes", [{}, {"warm_up_updates": 8}, {"warm_up_epoch": 2}], ids=str)
def test_a_schedule_per_epoch_still_ends_with_the_run(attributes):
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type="linear", lr_scheduler_interval="epoch", lr_scheduler_args={"final_ratio": 0.5},
                           callbacks=[rates, Changes({4: 2, 9: 3})], eval_loader=None, **attributes)
    trainer.fit(6)
    assert rate_of(trainer) == pytest.approx(0.5 * BASE)
    schedule = trainer.lr_scheduler_list[0]
    assert schedule.last_epoch == schedule.total


def test_another_train_loader_bends_the_schedule_too():
    x, y = tiny_data()
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type="cosine", callbacks=[rates], eval_loader=None)
    for epoch in trainer.epochs(4):
        if epoch == 3:
            trainer.train_loader = list(zip(x.split(5), y.split(5)))  # 11
        trainer.train_loop()
    expected = [BASE * SHAPES["cosine"](share) for share in shares({12: 22}, 24)]
    assert rates.rates == pytest.approx(expected, rel=1e-9, abs=1e-12) and len(rates.rates) == 34


def test_a_loader_that_gives_other_numbers_than_its_length_says_is_caught_up_with():
    class Odd(list):
        def __len__(self):
            return 9

    x, y = tiny_data()
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type="linear", train_loader=Odd(zip(x.split(10), y.split(10))), callbacks=[rates],
                           eval_loader=None, total_epochs=3)
    trainer.fit(3)
    expected = [BASE * (1 - share) for share in shares({6: 12}, 27)]  # planned for 9 an epoch, and for 6 behind the first
    assert rates.rates == pytest.approx(expected, rel=1e-9) and len(expected) == 18


@pytest.mark.parametrize("cut", [5, 7, 8, 12, 14])
@pytest.mark.parametrize("attributes", [{}, {"warm_up_updates": 6}], ids=str)
def test_a_resumed_run_has_the_same_rates_whatever_was_changed_before_or_after(cut, attributes):
    def build(folder, *callbacks):
        rates = Rates()
        trainer = tiny_trainer(lr_scheduler_type="cosine", save_per_steps=1, ckpt_dir=folder, eval_loader=None,
                               callbacks=[rates, Changes({7: 2, 11: 3}), *callbacks], **attributes)
        return trainer, rates.rates

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_batch(self, model, batch):
            if model.global_step == cut:
                raise Killed

    whole, expected = build("whole")
    whole.fit(5)
    trainer, _ = build("run", Kill())
    with pytest.raises(Killed):
        trainer.fit(5)
    again, rates = build("run")
    again.load_state("auto")
    again.accumulate_steps = 3 if cut >= 11 else 2 if cut >= 7 else 1
    again.fit(5)
    assert rates == expected[cut:]
    assert torch.equal(weights(again), weights(whole))


def test_a_run_that_is_resumed_with_larger_batches_goes_on_from_the_rate_that_it_had():
    trainer = tiny_trainer(lr_scheduler_type="cosine", ckpt_dir="run", eval_loader=None)
    for epoch in trainer.epochs(4):
        trainer.train_loop()
        if epoch == 2:
            break
    x, y = tiny_data()
    rates = Rates()
    again = tiny_trainer(lr_scheduler_type="cosine", ckpt_dir="run", callbacks=[rates], eval_loader=None,
                         train_loader=list(zip(x.split(20), y.split(20))))  # 3
    again.load_state("auto")
    again.fit(4)
    expected = [BASE * SHAPES["cosine"](share) for share in shares({12: 6}, 24)]
    assert rates.rates == pytest.approx(expected[12:], rel=1e-9, abs=1e-12)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_as_long_as_nothing_changes_no_epoch_plans_anew(data):
    batches, epochs, steps = (data.draw(st.integers(1, most)) for most in (9, 6, 4))
    interval = data.draw(st.sampled_from(["epoch", "update"]))
    per_epoch = math.ceil(batches / steps)
    warm_up = data.draw(st.sampled_from([{}, {"warm_up_updates": 3}, {"warm_up_updates": per_epoch}, {"warm_up_epoch": 1},
                                         {"warm_up_epoch": 1.5}]))
    trainer = tiny_trainer(lr_scheduler_type="linear", lr_scheduler_interval=interval, accumulate_steps=steps,
                           train_loader=[(torch.zeros(1, 6), torch.zeros(1).long())] * batches, eval_loader=None,
                           total_epochs=epochs, preflight=False, **warm_up)
    schedule, named = trainer.lr_schedule, trainer.lr_scheduler_list[0]
    total = named.total
    for epoch in range(1, epochs + 1):
        schedule.begin_epoch(trainer)
        assert (named.total, named.since) == (total, 0), f"at the start of epoch {epoch}"
        for update in range(per_epoch):
            trainer.optimizer_list[0].step()
            schedule.after_update()
            trainer.batches_done = min((update + 1) * steps, batches)
            schedule.replan(trainer)
            assert (named.total, named.since) == (total, 0), f"behind update {update} of epoch {epoch}"
        trainer.lifetime.open_epoch = epoch
        schedule.after_epoch(epoch)
        schedule.replan(trainer)
        trainer.epochs_done, trainer.batches_done, trainer.lifetime.open_epoch = epoch, 0, None
    assert (named.total, named.since) == (total, 0)
    assert named.last_epoch == total or total == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["cosine", "linear", "polynomial", "exponential", "onecycle"]), st.integers(1, 40),
       st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=4))
def test_whatever_ends_are_set_the_rate_is_continuous_and_arrives(kind, total, changes):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], BASE)
    schedule = NamedSchedule(optimizer, kind, total)
    for wait, left in changes:
        for _ in range(min(wait, schedule.total - schedule.last_epoch - 1)):
            optimizer.step()
            schedule.step()
        before = schedule.get_lr()
        schedule.end_at(schedule.last_epoch + left)
        assert schedule.get_lr() == pytest.approx(before, rel=1e-12)
    end = schedule.total
    while schedule.last_epoch < end:
        assert schedule.share() < 1
        optimizer.step()
        schedule.step()
    assert schedule.share() == 1.0
    last = {"cosine": 0.0, "linear": 0.0, "polynomial": 0.0, "exponential": 0.01, "onecycle": 1 / 25e4}[kind]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(BASE * last)


def test_of_several_changes_between_two_steps_only_the_last_one_counts():
    schedules = []
    for ends in ((20,), (13, 20), (7, 31, 20)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], BASE)
        schedule = NamedSchedule(optimizer, "cosine", 10)
        for _ in range(4):
            optimizer.step()
            schedule.step()
        for end in ends:
            schedule.end_at(end)
        schedules.append((schedule.since, schedule.share_since, schedule.total))
    assert schedules == [(4, 0.4, 20)] * 3
    schedule.end_at(10)
    assert (schedule.since, schedule.share_since, schedule.total) == (0, 0.0, 10)  # as if nothing had been


def test_of_a_run_that_is_made_longer_after_its_updates_changed_the_whole_schedule_is_taken():
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type="cosine", callbacks=[rates, Changes({6: 2})], eval_loader=None)
    trainer.fit(3)  # 6, 3 and 3 updates
    trainer.fit(5)
    expected = torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, 18), 18)
    assert rates.rates[12:] == pytest.approx(expected[12:], rel=1e-9, abs=1e-12)
