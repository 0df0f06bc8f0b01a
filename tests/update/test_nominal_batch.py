"""A nominal batch size: how many batches an update takes, what weighs what, and how long the run is."""

import copy

import pytest
import torch
from tiny import Rates, Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.data.in_memory import TensorLoader
from template.hooks import Callback
from template.update.nominal_batch import Accumulation, NominalBatch, Rising, accumulation_of


class Sizes(Callback):
    """The number of batches of each update, and the weight decay that it was done with."""

    def __init__(self):
        self.sizes, self.decays, self.batches = [], [], 0

    def on_batch(self, model, batch):
        self.batches += 1

    def on_before_step(self, model):
        self.sizes.append(self.batches)
        self.decays.append([group["weight_decay"] for one in model.optimizer_list for group in one.param_groups])
        self.batches = 0


class StopAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.should_stop = "now"


def trainer_of(folder="run", batch=4, nominal=16, look=None, decay=0.1, callbacks=(), **attributes):
    """53 samples in batches of 4: 14 batches, the last one of 1."""
    model = tiny_model(dropout=attributes.pop("dropout", 0.0))
    look = Sizes() if look is None else look
    trainer = Tiny(model, ckpt_dir=folder, nominal_batch_size=nominal, callbacks=[look, *callbacks],
                   train_loader=DataLoader(TensorDataset(*tiny_data()), batch), **attributes)
    trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=decay)]
    trainer.check_init(use_tb=False)
    trainer.look = look
    return trainer


def sizes_by_hand(num_batches, epochs, batch, nominal, warm_up):
    """Update by update, with numpy's interpolation as the script that the rule is from has it; epochs end a group."""
    import numpy

    sizes = []
    for _ in range(epochs):
        left = num_batches
        while left:
            share = numpy.interp(len(sizes), [0, warm_up], [1, nominal / batch]) if warm_up else nominal / batch
            steps = max(round(nominal / batch), 1) if len(sizes) >= warm_up else max(1, int(share.round()))
            sizes.append(min(steps, left))
            left -= sizes[-1]
    return sizes


@pytest.mark.parametrize("batch, nominal, warm_up", [
    (4, 16, 0), (4, 16, 5), (4, 30, 9), (10, 64, 3), (10, 15, 4), (20, 8, 5)])
def test_updates_take_as_many_batches_as_the_rule_says(batch, nominal, warm_up):
    trainer = trainer_of(batch=batch, nominal=nominal, warm_up_updates=warm_up or None)
    trainer.fit(3)
    expected = sizes_by_hand(-(-53 // batch), 3, batch, nominal, warm_up)
    assert trainer.look.sizes == expected and trainer.global_step == len(expected)
    steps = max(round(nominal / batch), 1)
    assert trainer.accumulate_steps == steps
    assert trainer.look.decays[0] == trainer.look.decays[-1] == [pytest.approx(0.1 * batch * steps / nominal)]


def test_the_training_is_that_of_a_plain_loop_with_every_sample_weighed_alike():
    trainer = trainer_of(warm_up_updates=6, warm_up_momentum=0.5, lr_scheduler_type="linear",
                         lr_scheduler_args={"final_ratio": 0.1}, nominal=18)
    trainer.fit(3)
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1 * 4 * 4 / 18)
    sizes, x, y = sizes_by_hand(14, 3, 4, 18, 6), *tiny_data()
    start, step = 0, 0
    for size in sizes:
        share = min(step / 6, 1.0)
        done = max(step - 6, 0) / (len(sizes) - 6)
        rate = 1e-6 + (0.1 - 1e-6) * share if step < 6 else 0.1 * (1 - 0.9 * done)
        optimizer.param_groups[0].update(lr=rate, momentum=0.5 + 0.4 * share)
        samples = slice(start, min(start + 4 * size, 53))
        nn.functional.cross_entropy(model(x[samples]), y[samples]).backward()
        optimizer.step()
        optimizer.zero_grad()
        start, step = (0 if samples.stop == 53 else samples.stop), step + 1
    expected = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    assert torch.allclose(weights(trainer), expected, atol=1e-6)


def test_a_warm_up_of_epochs_takes_these_epochs_and_the_schedule_ends_with_the_run():
    trainer = trainer_of(batch=2, nominal=16, warm_up_epoch=2, lr_scheduler_type="cosine", lr_scheduler_args={
        "final_ratio": 0.01})
    rates = Rates()
    trainer.callbacks = [*trainer.callbacks, rates]
    trainer.fit(5)
    warm_up = trainer.warm_up_scheduler_list[0].total_epoch
    assert 2 * 27 <= sum(trainer.look.sizes[:warm_up]) < 2 * 27 + 8
    assert rates.rates[warm_up] == [pytest.approx(0.1)]
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.001)
    assert trainer.lr_schedule.schedulers[0].total == trainer.global_step - warm_up


def test_a_schedule_per_epoch_begins_in_the_epoch_behind_the_warm_up():
    trainer = trainer_of(warm_up_epoch=1, lr_scheduler_type="linear", lr_scheduler_interval="epoch")
    trainer.fit(4)
    assert trainer.lr_schedule.schedulers[0].total == 3 and trainer.lr_schedule.schedulers[0].last_epoch == 3
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("update", [1, 3, 7, 12])  # in the warm-up, at the end of an epoch in it, behind it
def test_a_run_that_ends_within_the_warm_up_or_behind_it_goes_on_to_the_same_bits(update):
    options = {"warm_up_epoch": 1.5, "lr_scheduler_type": "cosine", "dropout": 0.2, "nominal": 20}
    whole = trainer_of("whole", **options)
    whole.fit(4)
    parts = trainer_of("parts", callbacks=[StopAt(update)], **options)
    parts.fit(4)
    assert parts.global_step == update
    continued = trainer_of("parts", **options)
    continued.load_state("auto")
    continued.fit(4)
    assert continued.global_step == whole.global_step and torch.equal(weights(continued), weights(whole))
    assert parts.look.sizes[:update] + continued.look.sizes == whole.look.sizes
    assert continued.look.decays[0] == whole.look.decays[0]


def test_weights_that_were_loaded_warm_up_from_one_batch_again():
    trainer = trainer_of("first", warm_up_updates=4)
    trainer.fit(2)
    other = trainer_of("second", warm_up_updates=4)
    other.load_state("first/last.pth", optim=False)
    other.fit(3)
    assert other.look.sizes[:5] == [1, 2, 2, 3, 4]


def test_a_run_counted_in_updates_ends_with_them_and_so_does_the_rate():
    trainer = trainer_of(warm_up_updates=5, lr_scheduler_type="linear", dropout=0.0)
    trainer.fit(updates=11)
    assert trainer.global_step == len(trainer.look.sizes) == 11
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert trainer.total_epochs == 3  # 14 batches are 7 updates, then 4 an epoch: the last of the 11 ends the second


class Told(Callback):
    """What the progress bar is told of each epoch's number of updates, and how many came."""

    def __init__(self):
        self.told, self.came = [], []

    def on_train_start(self, model):
        self.told.append(accumulation_of(model).behind(model.batches_done) + accumulation_of(model).ahead(14))
        self.came.append(0)

    def on_after_step(self, model):
        self.came[-1] += 1


def test_the_updates_of_each_epoch_are_known_before_it():
    told = Told()
    trainer_of(warm_up_updates=12, callbacks=[told]).fit(4)
    assert told.told == told.came == [8, 4, 4, 4]  # 1 1 1 2 2 2 2 3 batches, 3 3 4 4, 4 4 4 2


@pytest.mark.parametrize("behind", ["training", "evaluation"])
def test_another_batch_size_changes_the_number_of_batches_and_the_weight_decay(behind):
    trainer = trainer_of(nominal=18, total_epochs=2)
    trainer.train_loop()
    if behind == "evaluation":
        trainer.eval()
    with pytest.raises(ValueError, match="no one batch_size"):
        trainer.train_loader = [(x, y) for x, y in trainer.train_loader]
    trainer.train_loader = DataLoader(TensorDataset(*tiny_data()), 10)
    trainer.train_loop()
    assert trainer.look.sizes == [4, 4, 4, 2] + [2, 2, 2]
    assert trainer.look.decays[0] == [pytest.approx(0.1 * 16 / 18)] and trainer.look.decays[-1] == [
        pytest.approx(0.1 * 20 / 18)]


def test_a_weight_decay_that_a_callback_changes_stays_and_a_group_that_joins_is_scaled():
    trainer = trainer_of(nominal=18)
    optimizer = trainer.optimizer_list[0]
    optimizer.param_groups[0]["weight_decay"] = 0.5
    trainer.train_loop()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    extra = nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [extra], "weight_decay": 0.9})
    trainer.train_loop()
    assert optimizer.param_groups[1]["weight_decay"] == pytest.approx(0.9 * 16 / 18)


def test_it_is_told_once_and_costs_nothing_when_it_is_off(capfd):
    trainer = trainer_of(nominal=18, warm_up_updates=3)
    said = capfd.readouterr().out
    assert said.count("nominal batch of 18 samples: 4 batches of 4 per update, rising from 1 during the warm-up; weight "
                      "decay is multiplied by 0.889") == 1
    assert any(isinstance(one, NominalBatch) for one in trainer.hooks.callbacks)
    trainer.fit(2)
    assert not any(isinstance(one, Rising) for one in trainer.hooks.callbacks)  # which is called for every update
    off = trainer_of("off", nominal=None, accumulate_steps=2)
    assert not any(isinstance(one, NominalBatch) for one in off.hooks.callbacks) and off.lr_schedule.accumulation is None
    assert "nominal" not in capfd.readouterr().out
    assert off.optimizer_list[0].param_groups[0]["weight_decay"] == 0.1


def test_loaders_that_tell_their_batch_size_are_taken_and_a_copy_of_a_trainer_has_it_too():
    data = TensorDataset(*tiny_data())
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), 8, False)
    for loader in (TensorLoader(*tiny_data(), batch_size=8), DataLoader(data, batch_sampler=sampler)):
        trainer = Tiny(nominal_batch_size=32, train_loader=loader)
        trainer.check_init(use_tb=False)
        assert trainer.accumulate_steps == 4
    other = copy.deepcopy(trainer)
    other.train_loader = TensorLoader(*tiny_data(), batch_size=8)
    other.check_init(use_tb=False)
    assert other.accumulate_steps == 4 and other.optimizer_list[0].param_groups[0]["weight_decay"] == 0


class Batches:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("attributes, message", [
    ({"nominal_batch_size": 64, "accumulate_steps": 2}, "here 6, and accumulate_steps = 2 says something else"),
    ({"nominal_batch_size": 0}, "nominal_batch_size must be a whole number of at least 1, got 0"),
    ({"nominal_batch_size": 6.5}, "whole number"),
    ({"nominal_batch_size": 64, "train_loader": Batches([tiny_data()])}, r"\(a Batches\) has no one batch_size"),
    ({"nominal_batch_size": 64, "train_loader": {"a": TensorLoader(*tiny_data(), batch_size=8)}}, r"\(a dict\) has no one")])
def test_what_cannot_be_known_or_says_two_things_is_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        Tiny(**attributes).check_init(use_tb=False)


def test_afterwards_it_is_fixed_and_so_is_the_number_of_batches():
    trainer = trainer_of()
    with pytest.raises(AttributeError, match="accumulate_steps follows nominal_batch_size = 16"):
        trainer.accumulate_steps = 8
    with pytest.raises(AttributeError, match="nominal_batch_size cannot change after check_init"):
        trainer.nominal_batch_size = 32


class WarmUp:
    def __init__(self, total_epoch, last_epoch):
        self.total_epoch, self.last_epoch = total_epoch, last_epoch


@pytest.mark.parametrize("taken", [0, 3, 10, 14])
@pytest.mark.parametrize("steps, share, length", [(1, 1.0, 0), (4, 4.0, 0), (4, 3.7, 10), (3, 2.6, 14)])
def test_updates_that_are_counted_ahead_are_those_of_walking_there(taken, steps, share, length):
    plan = Accumulation(steps, share, [WarmUp(length, min(taken, length))] if length else ())
    ends, done, left = [], 0, 5
    for _ in range(6):  # epochs of 11 batches, the first with 5
        while left > 0:
            left -= plan.size(plan.taken + done)
            done += 1
        ends.append(done)
        left = 11
    assert plan.ahead(5) == ends[0]
    assert [plan.of_epochs(5, 11, epochs) for epochs in range(7)] == [0, *ends]
    assert [plan.epochs_within(updates, 5, 11) for updates in range(ends[-1])] == [
        sum(end <= updates for end in ends) for updates in range(ends[-1])]
    if 2 <= plan.taken < plan.length:
        assert plan.behind(plan.size(plan.taken - 1) + plan.size(plan.taken - 2)) == 2
    elif plan.taken >= plan.length:
        assert [plan.behind(batches) for batches in (1, steps, steps + 1)] == [1, 1, 1 + 1]
