"""Updates that are not finite: left out as a plain loop would, counted, and refused where leaving out does not help."""

import copy
import math

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn

from template.hooks import Callback
from template.template import TemplateModel
from template.update.guard import SkipGuard
from template.update.stepper import Stepper

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def parameter(*gradient):
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


# --- the guard itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_losses_and_gradients_that_are_not_finite_are_not_allowed(value):
    guard = SkipGuard(9, lambda in_a_row: None)
    guard.watch(torch.tensor(1.0))
    assert guard.allows([parameter(1.0, 2.0)])
    assert not guard.allows([parameter(1.0, 2.0), parameter(1.0, value)])
    guard.watch(torch.tensor(value))
    assert not guard.allows([parameter(1.0)])  # also when its gradient was lost on the way
    guard.finish_group()
    guard.watch(torch.tensor(1.0))
    assert guard.allows([parameter(1.0)])


def test_parameters_without_gradients_and_sparse_ones_are_looked_at_right():
    guard = SkipGuard(9, lambda in_a_row: None)
    assert guard.allows([]) and guard.allows([nn.Parameter(torch.zeros(2))])
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    assert guard.allows([embedding.weight])
    embedding.weight.grad = embedding.weight.grad * INF
    assert not guard.allows([embedding.weight])


def test_what_is_skipped_is_counted_as_a_whole_and_in_a_row():
    told = []
    guard = SkipGuard(9, told.append)
    for loss in (NAN, NAN, 1.0, INF, 1.0):
        guard.watch(torch.tensor(loss))
        guard.allows([])
        guard.finish_group()
    assert told == [1, 2, 1] and guard.skipped == 3


def test_a_group_of_which_one_of_two_updates_was_refused_counts_once():
    told = []
    guard = SkipGuard(9, told.append)
    assert not guard.allows([parameter(NAN)])
    assert guard.allows([parameter(1.0)])  # the other optimizer of a GAN
    guard.finish_group()
    assert told == [1] and guard.skipped == 1


def test_a_loss_that_is_watched_keeps_no_graph():
    guard = SkipGuard(1, lambda in_a_row: None)
    weight = nn.Parameter(torch.ones(1))
    guard.watch((weight * 2).sum())
    assert all(loss.grad_fn is None for loss in guard._losses)


# --- against plain loops that leave the same updates out --------------------------------------------------------------

X, Y = tiny_data(96)
BATCHES = list(zip(X.split(4), Y.split(4)))  # 24
BAD = {2, 3, 7, 11}                          # their losses are spoiled


class Spoiled(Tiny):
    """The losses of some batches are NaN, infinite, or finite with an infinite gradient."""

    def loss_per_batch(self, batch):
        loss = super().loss_per_batch(batch)["tol_loss"]
        return {"tol_loss": spoiled(loss, self.batches_done) if torch.is_grad_enabled() else loss}


class FiniteOnly(torch.autograd.Function):
    """A finite loss with an infinite gradient."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * INF


def spoiled(loss, number):
    kinds = {2: lambda: loss * NAN, 3: lambda: loss + INF, 7: lambda: FiniteOnly.apply(loss), 11: lambda: -loss * INF}
    return kinds[number]() if number in BAD else loss


def spoiled_trainer(**attributes):
    model = tiny_model(dropout=0.0)
    options = {"train_loader": BATCHES, "eval_loader": None, "skip_non_finite": 2, "preflight": False}
    trainer = Spoiled(model=model, **{**options, **attributes})
    trainer.optimizer_list = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9),
                              torch.optim.AdamW(model[3].parameters(), 0.01)]
    trainer.check_init(use_tb=False)
    return trainer


def plain_loop(epochs, accumulate_steps, clip):
    """Leaves an update out when one of its batches is spoiled; both optimizers belong to one update."""
    model = tiny_model(dropout=0.0)
    optimizers = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9),
                  torch.optim.AdamW(model[3].parameters(), 0.01)]
    for _ in range(epochs):
        for first in range(0, len(BATCHES), accumulate_steps):
            group = range(first, min(first + accumulate_steps, len(BATCHES)))
            if BAD & set(group):
                continue
            for number in group:
                x, y = BATCHES[number]
                loss = nn.functional.cross_entropy(model(x), y)
                (loss if len(group) == 1 else loss * (1 / len(group))).backward()
            clip(model)
            for optimizer in optimizers[::-1]:
                optimizer.step()
                optimizer.zero_grad()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate_steps, skipped", [(1, 4), (2, 3), (4, 3), (5, 3)])
@pytest.mark.parametrize("clip_grad", [None, 0.5, {"value": 0.02}], ids=["no clip", "norm", "value"])
def test_the_bits_are_those_of_a_plain_loop_that_leaves_the_same_updates_out(accumulate_steps, skipped, clip_grad):
    def clip(model):
        in_our_order = [*model[3].parameters(), *model[0].parameters()]  # the norm is a sum
        if clip_grad == 0.5:
            nn.utils.clip_grad_norm_(in_our_order, 0.5)
        elif clip_grad:
            nn.utils.clip_grad_value_(in_our_order, 0.02)

    trainer = spoiled_trainer(accumulate_steps=accumulate_steps, clip_grad=clip_grad, skip_non_finite=3)
    trainer.fit(2)
    assert torch.equal(weights(trainer), plain_loop(2, accumulate_steps, clip))
    assert trainer.skipped_updates == 2 * skipped
    assert trainer.global_step == 2 * math.ceil(24 / accumulate_steps)  # a skipped update counts: schedules go on


def test_with_nothing_to_skip_the_bits_are_those_of_a_run_without_a_guard():
    trainers = []
    for number in (5, 0):
        trainers.append(tiny_trainer(skip_non_finite=number, ckpt_dir=f"run{number}", clip_grad=1.0))
        trainers[-1].fit(2)
    guarded, free = trainers
    assert torch.equal(weights(guarded), weights(free)) and guarded.skipped_updates == 0
    assert guarded.best_metric == free.best_metric


def test_a_discriminators_update_that_is_refused_does_not_stop_the_generators():
    """With gradients of their own, each optimizer's are looked at when it is updated."""
    class Gan(TemplateModel):
        def __init__(self):
            super().__init__()
            self.model_list = [nn.Linear(6, 2), nn.Linear(6, 2)]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1) for model in self.model_list]
            self.train_loader, self.skip_non_finite = BATCHES[:1], 1

        def train_step(self, batch):
            loss = FiniteOnly.apply(self.model_list[1](batch[0]).square().mean())
            self.backward(loss, 1)
            self.update(1)
            loss = self.model_list[0](batch[0]).square().mean()
            self.backward(loss, 0)
            self.update(0)
            return {"tol_loss": loss}

    trainer = Gan()
    trainer.check_init(use_tb=False)
    before = copy.deepcopy([model.weight.detach() for model in trainer.model_list])
    trainer.train_loop()
    generator, discriminator = [torch.equal(model.weight, old) for model, old in zip(trainer.model_list, before)]
    assert not generator and discriminator and trainer.skipped_updates == 1


def test_means_leave_the_skipped_batches_out():
    trainer = spoiled_trainer(log_per_step=3)
    for optimizer in trainer.optimizer_list:
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay, so one pass by hand gives the mean
    result = trainer.train_loop()
    counted = [number for number in range(24) if number not in BAD - {7}]  # the loss of 7 is finite, its gradient is not
    x, y = (torch.cat([BATCHES[number][i] for number in counted]) for i in (0, 1))
    expected = nn.functional.cross_entropy(trainer.model_list[0](x), y).item()
    assert result["tol_loss"] == pytest.approx(expected, rel=1e-5)


def test_each_skipped_update_is_told_with_its_place(capsys):
    spoiled_trainer().train_loop()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Skipped")]
    assert told == [f"Skipped an update: loss or gradient was not finite (epoch 1, update {number + 1}, up to batch "
                    f"{number + 1}); {count} so far." for count, number in enumerate(sorted(BAD), 1)]


def test_in_fp16_gradients_that_overflow_are_the_scalers_business_and_a_loss_that_is_not_finite_the_guards():
    weight = nn.Parameter(torch.ones(2))
    told = []
    stepper = Stepper([torch.optim.SGD([weight], 1.0)], CPU, amp="fp16", guard=SkipGuard(9, told.append))
    for factor, changes in ((1e-3, True), (INF, False), (1e-3, True)):  # an infinite gradient of a finite loss
        before = weight.detach().clone()
        for group in stepper.groups([torch.ones(2)]):
            for _, _ in group:
                loss = weight.mean() * 1e-3
                stepper.backward(loss if factor == 1e-3 else FiniteOnly.apply(loss))
            stepper.finish_group()
        assert torch.equal(weight, before) != changes
    assert told == [] and stepper.scaler.get_scale() == 65536.0 / 2
    for group in stepper.groups([torch.ones(2)]):
        for _, _ in group:
            stepper.backward(weight.mean() * NAN)
        stepper.finish_group()
    assert told == [1] and weight.isfinite().all()


# --- where it does not help -------------------------------------------------------------------------------------------


def test_more_in_a_row_than_allowed_stop_with_epoch_update_and_batch_and_keep_the_files():
    trainer = spoiled_trainer(skip_non_finite=1, ckpt_dir="run", save_per_steps=1)
    message = r"2 updates in a row are not, and skip_non_finite is 1 \(epoch 1, update 4, up to batch 4\)"
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit(1)
    assert torch.load("run/last.pth")["global_step"] == 3
    assert weights(trainer).isfinite().all() and not trainer.checkpoints.saver.failed


def test_the_row_goes_on_over_the_end_of_an_epoch():
    trainer = spoiled_trainer(train_loader=BATCHES[:3], skip_non_finite=1)  # the last of three is spoiled
    trainer.fit(3)
    assert trainer.skipped_updates == 3  # one each, with good ones between
    trainer = spoiled_trainer(train_loader=BATCHES[:4], skip_non_finite=2)
    trainer.fit(3)
    trainer = Spoiled(train_loader=BATCHES[:4], eval_loader=None, skip_non_finite=2, preflight=False)
    trainer.loss_per_batch = lambda batch: trainer.criterion(trainer.inference(batch[0]), batch[1]) * (
        NAN if (trainer.epoch, trainer.batches_done) in {(1, 3), (2, 0), (2, 1)} else 1)
    trainer.check_init(use_tb=False)
    with pytest.raises(FloatingPointError, match="3 updates in a row .*epoch 2, update 6, up to batch 2"):
        trainer.fit(2)


def test_a_statistic_that_became_nan_stops_because_no_skipped_update_undoes_it():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = tiny_data(10)
    trainer = tiny_trainer(model=model, train_loader=[(x, y), (x * NAN, y), (x, y)], skip_non_finite=5, preflight=False)
    with pytest.raises(FloatingPointError, match=r"\['1.running_mean', '1.running_var'\] are NaN.*epoch 1, update 2"):
        trainer.train_loop()
    assert trainer.skipped_updates == 1


def test_a_buffer_that_is_infinite_on_purpose_is_no_reason_to_stop():
    model = tiny_model(dropout=0.0)
    model.register_buffer("mask", torch.full((2, 2), -INF).triu(1))
    trainer = spoiled_trainer()
    trainer.model_list[0].register_buffer("mask", model.mask)
    trainer.fit(1)
    assert trainer.skipped_updates == 4


def test_by_default_nothing_is_skipped_and_the_loss_stops_the_run():
    trainer = spoiled_trainer(skip_non_finite=0)
    assert trainer.stepper.guard is None
    with pytest.raises(FloatingPointError, match="it is nan in epoch 1, batch 3 .*set skip_non_finite"):
        trainer.fit(1)
    assert trainer.skipped_updates == 0


@pytest.mark.parametrize("skip_non_finite, waits", [(0, 0), (3, 6)])
def test_only_where_updates_may_be_skipped_does_each_cost_a_wait_for_the_device(skip_non_finite, waits, monkeypatch):
    trainer = tiny_trainer(skip_non_finite=skip_non_finite, preflight=False, train_loader=BATCHES[:6], log_per_step=100)
    calls = []
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name,
                            lambda self, *args, name=name, original=original: calls.append(name) or original(self, *args))
    trainer.train_loop()
    assert len(calls) == waits + 1  # and one for the log


# --- continued --------------------------------------------------------------------------------------------------------


def test_the_number_of_skipped_updates_travels_in_the_checkpoint():
    trainer = spoiled_trainer(ckpt_dir="run")
    trainer.fit(2)
    again = spoiled_trainer(ckpt_dir="run")
    again.load_state("auto")
    assert again.skipped_updates == trainer.skipped_updates == 8
    again.fit(3)
    assert again.skipped_updates == 12


def test_the_number_of_skipped_updates_outlasts_a_part_of_the_run_without_a_guard():
    spoiled_trainer(ckpt_dir="run").fit(1)
    off = spoiled_trainer(ckpt_dir="run", skip_non_finite=0, train_loader=BATCHES[:2])  # of which none is spoiled
    off.load_state("auto")
    assert off.stepper.guard is None and off.skipped_updates == 4
    off.fit(2)
    assert off.skipped_updates == 4
    on = spoiled_trainer(ckpt_dir="run")
    on.load_state("auto")
    assert on.skipped_updates == 4
    on.fit(3)
    assert on.skipped_updates == 8
    on.load_state("last")  # in the same process: what was counted is not counted twice
    assert on.skipped_updates == 8
    on.fit(4)
    assert on.skipped_updates == 12


def test_a_file_from_before_there_was_a_guard_loads():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(1)
    state = torch.load("run/last.pth")
    del state["stepper"]["skipped"]
    torch.save(state, "old.pth")
    trainer.load_state("old.pth")
    assert trainer.skipped_updates == 0


def test_a_run_with_skipped_updates_that_is_continued_ends_with_the_same_bits():
    class Interrupt(Callback):
        def on_after_step(self, model):
            if model.global_step == 28:
                raise KeyboardInterrupt

    whole = spoiled_trainer(ckpt_dir="whole")
    whole.fit(2)
    with pytest.raises(KeyboardInterrupt):
        spoiled_trainer(ckpt_dir="cut", save_per_steps=3, callbacks=[Interrupt()]).fit(2)
    again = spoiled_trainer(ckpt_dir="cut")
    again.load_state("auto")
    again.fit(2)
    assert torch.equal(weights(again), weights(whole)) and again.skipped_updates == whole.skipped_updates
