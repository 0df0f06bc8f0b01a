"""Schedulers that a person built: stepped as often as they are long, by one of the two that could, and told of where they
do not fit."""

import functools
import os

import pytest
import torch
from test_lr_scheduler import BASE, BATCHES, Rates, torch_rates
from tiny import tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from template.hooks import Callback
from template.update.user_schedulers import counts_updates, length_of

UPDATES = 4 * BATCHES


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def optimizer_of(model=None):
    parameters = [nn.Parameter(torch.zeros(1))] if model is None else model.parameters()
    return torch.optim.SGD(parameters, BASE, momentum=0.9)


def trainer_of(make, **attributes):
    """With the scheduler that ``make(optimizer)`` gives; returns the trainer, the scheduler and a list of the rates."""
    model, rates = tiny_model(dropout=0.0), Rates()
    optimizer = optimizer_of(model)
    scheduler = make(optimizer)
    callbacks = [rates, *attributes.pop("callbacks", [])]
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], lr_scheduler_list=[scheduler], callbacks=callbacks,
                           **{"eval_loader": None, **attributes})
    return trainer, scheduler, rates.rates


def warm_up_and_decay(step, num_warmup_steps, num_training_steps):
    """As libraries of transformers build it, with ``functools.partial``."""
    if step < num_warmup_steps:
        return step / num_warmup_steps
    return max(0.0, (num_training_steps - step) / (num_training_steps - num_warmup_steps))


def partial_lambda(optimizer, total, warm_up=5):
    function = functools.partial(warm_up_and_decay, num_warmup_steps=warm_up, num_training_steps=total)
    return torch_schedulers.LambdaLR(optimizer, function)


def sequential(optimizer, total):
    first = torch_schedulers.LinearLR(optimizer, 0.1, total_iters=3)
    return torch_schedulers.SequentialLR(optimizer, [first, torch_schedulers.CosineAnnealingLR(optimizer, total - 3)], [3])


def chained(optimizer, total):
    parts = [torch_schedulers.ConstantLR(optimizer, 0.5, total_iters=3), torch_schedulers.PolynomialLR(optimizer, total)]
    return torch_schedulers.ChainedScheduler(parts)


LONG = {
    "CosineAnnealingLR": torch_schedulers.CosineAnnealingLR,
    "LinearLR": lambda o, total: torch_schedulers.LinearLR(o, 1.0, 0.0, total_iters=total),
    "PolynomialLR": torch_schedulers.PolynomialLR,
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "LambdaLR": partial_lambda,
}


# --- how long they are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LONG.values(), ids=LONG)
def test_the_length_of_a_scheduler_is_known_where_it_is_certain(make):
    assert length_of(make(optimizer_of(), 40)) == 40


def test_it_is_not_guessed_elsewhere():
    optimizer = optimizer_of()
    assert length_of(torch_schedulers.OneCycleLR(optimizer, 0.1, epochs=4, steps_per_epoch=10)) == 40
    for unknown in (torch_schedulers.StepLR(optimizer, 40), torch_schedulers.LambdaLR(optimizer, lambda step: 1.0),
                    torch_schedulers.CosineAnnealingWarmRestarts(optimizer, 40),
                    torch_schedulers.ReduceLROnPlateau(optimizer), object()):
        assert length_of(unknown) is None


@pytest.mark.parametrize("total_steps, total_epochs, updates_per_epoch, expected", [
    (40, 4, 10, True), (40, 4, 9, True), (14, 4, 5, True), (4, 4, 10, False), (4, 6, 10, False), (40, 40, 1, False),
    (40, None, 10, True), (30, None, 391, False), (41, None, 10, False), (40, None, None, False), (40, 4, None, True),
])
def test_one_cycle_counts_updates_wherever_it_has_more_steps_than_there_are_epochs(total_steps, total_epochs,
                                                                                   updates_per_epoch, expected):
    scheduler = torch_schedulers.OneCycleLR(optimizer_of(), 0.1, total_steps=total_steps)
    assert counts_updates(scheduler, total_epochs, updates_per_epoch) is expected


def one_cycle(total):
    return lambda optimizer: torch_schedulers.OneCycleLR(optimizer, 0.3, total_steps=total)


def test_one_cycle_reaches_its_end_with_the_weights_of_a_plain_loop(capsys):
    x, y = tiny_data()
    batches = list(zip(x.split(10), y.split(10)))
    trainer, scheduler, rates = trainer_of(
        lambda o: torch_schedulers.OneCycleLR(o, 0.3, epochs=4, steps_per_epoch=BATCHES), train_loader=batches)
    trainer.fit(4)
    plain = tiny_model(dropout=0.0)
    optimizer = optimizer_of(plain)
    own = torch_schedulers.OneCycleLR(optimizer, 0.3, epochs=4, steps_per_epoch=BATCHES)
    expected = []
    for _ in range(4):
        for inputs, labels in batches:
            expected.append(optimizer.param_groups[0]["lr"])
            nn.functional.cross_entropy(plain(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            own.step()
    assert rates == expected and rates[-1] == pytest.approx(0.3 / 25 / 1e4)
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in plain.parameters()]))
    assert "lr_scheduler_list" not in capsys.readouterr().out


def test_one_cycle_of_as_many_steps_as_epochs_steps_once_per_epoch_as_in_2021(capsys):
    trainer, _, rates = trainer_of(one_cycle(4))
    trainer.fit(4)
    assert rates[::BATCHES] == torch_rates(one_cycle(4), 4) and len(set(rates)) == 4
    assert "lr_scheduler_list" not in capsys.readouterr().out


@pytest.mark.parametrize("interval, expected", [("epoch", 4), ("update", UPDATES), (None, UPDATES)])
def test_what_lr_scheduler_interval_says_holds(interval, expected):
    trainer, _, rates = trainer_of(one_cycle(30), lr_scheduler_interval=interval)
    trainer.fit(4)
    assert len(set(rates)) == expected


def test_in_a_plain_loop_whole_epochs_of_steps_are_updates():
    trainer, _, rates = trainer_of(one_cycle(UPDATES))
    for _ in range(4):
        trainer.train_loop()
    assert rates == torch_rates(one_cycle(UPDATES), UPDATES)
    trainer, _, rates = trainer_of(one_cycle(10))
    for _ in range(4):
        trainer.train_loop()
    assert rates[::BATCHES] == torch_rates(one_cycle(10), 4)


def test_a_cycle_that_is_over_before_the_run_is_said_and_holds_its_last_rate(capsys):
    trainer, _, rates = trainer_of(one_cycle(20))
    trainer.fit(4)
    assert rates == torch_rates(one_cycle(20), 20) + [rates[19]] * 4
    said = ("lr_scheduler_list[0] (OneCycleLR) steps once per update. It has 20 steps and the run has 24 updates for it, so "
            "it is over before the run is. Build it for 24 steps, or set lr_scheduler_interval = \"epoch\" if its steps are "
            "epochs.")
    assert capsys.readouterr().out.count(said) == 1


def test_a_cycle_that_counted_batches_where_batches_are_accumulated_is_said(capsys):
    trainer, _, _ = trainer_of(one_cycle(UPDATES), accumulate_steps=3)
    trainer.fit(4)
    assert "It has 24 steps and the run has 8 updates for it, so its end is not reached." in capsys.readouterr().out


@pytest.mark.parametrize("make", LONG.values(), ids=LONG)
@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_a_scheduler_that_was_built_for_updates_or_batches_and_steps_per_epoch_is_said_once(make, accumulate_steps, capsys):
    for steps, word in {UPDATES: "batches" if accumulate_steps > 1 else "updates", UPDATES // 3: "updates"}.items():
        is_the_run = accumulate_steps == 4 or steps == UPDATES
        trainer, scheduler, _ = trainer_of(lambda o, steps=steps: make(o, steps), accumulate_steps=accumulate_steps)
        trainer.fit(4)
        said = (f"lr_scheduler_list[0] ({type(scheduler).__name__}) has {steps} steps, as many as this run has {word}, but "
                "it steps once per epoch and takes 4 of them. Set lr_scheduler_interval = \"update\".")
        assert capsys.readouterr().out.count(said) == is_the_run


@pytest.mark.parametrize("attributes, steps", [
    ({}, 4), ({}, 15), ({}, 100), ({"lr_scheduler_interval": "epoch"}, UPDATES),
    ({"lr_scheduler_interval": "update"}, UPDATES), ({"lr_scheduler_interval": "update"}, 5),
])
def test_nothing_is_said_where_the_length_may_be_meant(attributes, steps, capsys):
    trainer, _, _ = trainer_of(lambda o: torch_schedulers.CosineAnnealingLR(o, steps), **attributes)
    trainer.fit(4)
    assert "lr_scheduler_list" not in capsys.readouterr().out


def test_a_scheduler_that_ended_with_the_run_is_said_when_the_run_gets_fewer_updates(capsys):
    trainer, _, _ = trainer_of(lambda o: torch_schedulers.CosineAnnealingLR(o, UPDATES), lr_scheduler_interval="update")
    for epoch in trainer.epochs(4):
        if epoch == 3:
            trainer.accumulate_steps = 2
        trainer.train_loop()
    assert "(CosineAnnealingLR) steps once per update. It has 24 steps and the run has 18 updates" in capsys.readouterr().out


@pytest.mark.parametrize("total", [UPDATES, 4])
def test_a_resumed_run_steps_as_the_first_part_did_also_when_it_is_made_longer(total):
    def build(folder):
        return trainer_of(one_cycle(total), ckpt_dir=folder)

    whole, _, expected = build("whole")
    whole.fit(4)
    build("run")[0].fit(2)  # for which 4 steps would be updates
    for load_first in (True, False):
        first, _, _ = build(f"run{load_first}")
        for epoch in first.epochs(4):
            first.train_loop()
            if epoch == 2:
                break
        again, _, rates = build(f"run{load_first}")
        again.load_state("auto")
        again.fit(4 if load_first else 6)
        assert rates[:2 * BATCHES] == expected[2 * BATCHES:]


# --- who steps them ---------------------------------------------------------------------------------------------------

STEPPED = "is stepped by your own code, so it is left to that from here on"


def half(optimizer):
    return torch_schedulers.StepLR(optimizer, 1, 0.5)


def plain_rates(make, epochs, per_update=False):
    rates = torch_rates(make, epochs * BATCHES if per_update else epochs)
    return rates if per_update else [rate for rate in rates for _ in range(BATCHES)]


@pytest.mark.parametrize("make", [
    half, lambda o: torch_schedulers.MultiStepLR(o, [1, 3], 0.1), lambda o: torch_schedulers.CosineAnnealingLR(o, 4),
    lambda o: torch_schedulers.LambdaLR(o, lambda step: 1 / (1 + step)), one_cycle(4), lambda o: sequential(o, 6),
    lambda o: chained(o, 6), lambda o: torch_schedulers.CosineAnnealingWarmRestarts(o, 2),
    lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
], ids=["StepLR", "MultiStepLR", "CosineAnnealingLR", "LambdaLR", "OneCycleLR", "SequentialLR", "ChainedScheduler",
        "WarmRestarts", "CyclicLR"])
@pytest.mark.parametrize("place", ["behind the training", "behind the evaluation"])
def test_a_list_that_the_loop_steps_itself_is_stepped_once(make, place, capsys):
    trainer, scheduler, rates = trainer_of(make, eval_loader=[tiny_data(10)])
    for _ in trainer.epochs(4):
        trainer.train_loop()
        if place == "behind the training":
            scheduler.step()
        trainer.eval()
        if place == "behind the evaluation":
            scheduler.step()
    assert rates == plain_rates(make, 4)
    assert capsys.readouterr().out.count(f"lr_scheduler_list[0] ({type(scheduler).__name__}) {STEPPED}") == 1
    own = optimizer_of()
    reference = make(own)
    for _ in range(4):
        own.step()
        reference.step()
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == own.param_groups[0]["lr"]
    assert trainer.optimizer_list[0].param_groups[0]["momentum"] == own.param_groups[0]["momentum"]


def test_one_that_a_train_step_steps_with_each_update_is_stepped_once(capsys):
    for interval in (None, "update", "epoch"):
        trainer, scheduler, rates = trainer_of(one_cycle(UPDATES), lr_scheduler_interval=interval)

        def train_step(batch, trainer=trainer, scheduler=scheduler):
            loss = trainer.criterion(trainer.inference(batch[0]), batch[1])
            trainer.backward(loss)
            trainer.update()
            scheduler.step()
            return loss

        trainer.train_step = train_step
        trainer.fit(4)
        assert rates == torch_rates(one_cycle(UPDATES), UPDATES), interval
        assert capsys.readouterr().out.count(STEPPED) == 1


def test_one_that_a_callback_steps_with_each_update_is_stepped_once_from_the_second_update_on(capsys):
    class Steps(Callback):
        def on_after_step(self, model):
            model.lr_scheduler_list[0].step()

    trainer, _, rates = trainer_of(one_cycle(UPDATES), callbacks=[Steps()])
    trainer.fit(4)
    expected = torch_rates(one_cycle(UPDATES), UPDATES)
    assert rates[:1] + rates[2:] == expected[:1] + expected[2:]
    assert capsys.readouterr().out.count(STEPPED) == 1


@pytest.mark.parametrize("interval", [None, "update"])
def test_warm_restarts_that_are_stepped_by_fractions_of_epochs_are_stepped_once(interval, capsys):
    """``step(epoch + i / n)``, as torch's documentation has it."""
    class Steps(Callback):
        def on_after_step(self, model):
            model.lr_scheduler_list[0].step(model.epoch - 1 + (model.batches_done - 1) / BATCHES)

    def make(optimizer):
        return torch_schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2)

    trainer, _, rates = trainer_of(make, callbacks=[Steps()], lr_scheduler_interval=interval)
    trainer.fit(4)
    optimizer = optimizer_of()
    scheduler, expected = make(optimizer), []
    for update in range(UPDATES):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(update // BATCHES + update % BATCHES / BATCHES)
    assert rates == expected
    assert capsys.readouterr().out.count(STEPPED) == (interval is None)  # per update, theirs comes last and holds


def test_a_plateau_that_the_loop_steps_itself_is_stepped_once(capsys):
    def make(optimizer):
        return torch_schedulers.ReduceLROnPlateau(optimizer, "max", patience=1, factor=0.5)

    trainer, scheduler, rates = trainer_of(make, eval_loader=[tiny_data(10)])
    values = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    trainer.metric = lambda pred, y: {"score": next(values)}
    trainer.evaluator.score_first_batch = lambda look: {"score": 0.1}
    for _ in trainer.epochs(8):
        trainer.train_loop()
        scheduler.step(trainer.eval())
    own = optimizer_of()
    plateau, expected = make(own), []
    for value in [0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]:
        expected += [own.param_groups[0]["lr"]] * BATCHES
        plateau.step(value)
    assert rates == expected and len(set(expected)) > 2
    assert capsys.readouterr().out.count(STEPPED) == 1


def test_of_two_schedulers_the_other_one_is_still_stepped_here():
    models = [tiny_model(), nn.Linear(3, 3)]
    optimizers = [optimizer_of(model) for model in models]
    schedulers = [half(optimizer) for optimizer in optimizers]
    trainer = tiny_trainer(model_list=models, optimizer_list=optimizers, lr_scheduler_list=schedulers, eval_loader=None)
    for _ in trainer.epochs(5):
        trainer.train_loop()
        schedulers[0].step()
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [BASE * 0.5 ** 5] * 2


def test_a_warm_up_that_the_loop_steps_itself_is_stepped_once():
    from template.update.lr_scheduler import WarmUpLR

    model, rates = tiny_model(), Rates()
    optimizer = optimizer_of(model)
    warm_up = WarmUpLR(optimizer, 4)
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], warm_up_scheduler_list=[warm_up], callbacks=[rates],
                           eval_loader=None)
    for _ in trainer.epochs(5):
        trainer.train_loop()
        warm_up.step()
    assert rates.rates[::BATCHES] == torch_rates(lambda o: WarmUpLR(o, 4), 5)


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # torch, of winding forward
def test_one_that_was_wound_forward_or_loaded_before_the_training_is_stepped_here(capsys):
    trainer, scheduler, rates = trainer_of(half)
    for _ in range(2):
        scheduler.step()
    trainer.fit(3)
    assert rates == plain_rates(half, 5)[2 * BATCHES:]
    saved = {"scheduler": scheduler.state_dict(), "lr": trainer.optimizer_list[0].param_groups[0]["lr"]}
    trainer, scheduler, rates = trainer_of(half)
    scheduler.load_state_dict(saved["scheduler"])
    trainer.optimizer_list[0].param_groups[0]["lr"] = saved["lr"]
    trainer.fit(2)
    assert rates == plain_rates(half, 7)[5 * BATCHES:]
    assert STEPPED not in capsys.readouterr().out


def test_loading_a_checkpoint_is_no_step_of_somebody_else(capsys):
    trainer, _, _ = trainer_of(half, ckpt_dir="run", eval_loader=[tiny_data(10)])
    trainer.fit(3)
    trainer.load_state("run/epoch1.pth")
    trainer.fit(4)
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == BASE * 0.5 ** 4
    trainer.update_lr_scheduler()
    assert STEPPED not in capsys.readouterr().out


def test_a_length_that_is_another_one_in_the_file_is_told_and_can_be_set(capsys):
    def make(length):
        return lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, length)

    trainer_of(make(2), ckpt_dir="run")[0].fit(1)
    for length, count in ((2, 0), (4, 1)):
        trainer, scheduler, _ = trainer_of(make(length), ckpt_dir="run")
        capsys.readouterr()
        trainer.load_state("auto")
        assert capsys.readouterr().out.count("goes on with T_max = 2 of the file, not with 4") == count
        trainer.close()
    trainer, scheduler, _ = trainer_of(make(4), ckpt_dir="other")
    trainer.load_state("run/last.pth")
    scheduler.T_max = 4
    trainer.fit(3)
    assert scheduler.get_last_lr()[0] < BASE / 2 and scheduler.last_epoch == 3


def test_a_resumed_loop_that_steps_its_list_itself_has_the_rates_of_the_whole_run():
    def loop(trainer, scheduler, epochs, stop=None):
        for epoch in trainer.epochs(epochs):
            trainer.train_loop()
            scheduler.step()
            trainer.eval()
            if epoch == stop:
                break

    trainer, scheduler, _ = trainer_of(half, ckpt_dir="run", eval_loader=[tiny_data(10)])
    loop(trainer, scheduler, 5, stop=3)
    again, scheduler, rates = trainer_of(half, ckpt_dir="run", eval_loader=[tiny_data(10)])
    again.load_state("auto")
    loop(again, scheduler, 5)
    assert rates == plain_rates(half, 5)[3 * BATCHES:]


def test_a_scheduler_of_somebodys_own_without_a_count_is_stepped_here_as_ever():
    class Own:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.param_groups[0]["lr"] *= 0.5

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    trainer, _, rates = trainer_of(Own)
    trainer.fit(3)
    assert rates == [BASE * 0.5 ** epoch for epoch in range(3) for _ in range(BATCHES)]
