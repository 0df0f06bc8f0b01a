"""A trainer against a bare loop: each part of the time in its row, and nothing is left of it."""

import time

import pytest
import torch
from tiny import Tiny, plain, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from template import EMA, Callback, TensorLoader
from template.checkpoint.state import collect
from template.run import bare_loop
from template.run.as_found import as_found
from template.run.bare_loop import PARTS, compared
from template.tools import throughput as tool
from template.tools.throughput import throughput
from template.trackers.base import Tracker

SLEEP = 0.04


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(tool, "_UPDATES_EACH", 5)
    monkeypatch.setattr(bare_loop, "_UPDATES_EACH", 2)
    monkeypatch.setattr(bare_loop, "_WARM_UP", 1)
    monkeypatch.setattr(bare_loop, "_ROUNDS", 2)


def state_of(trainer):
    return repr(plain({name: part for name, part in collect(trainer).items() if name != "run_name"}))


def comparison(trainer):
    with as_found(trainer):
        return compared(trainer)


# --- where the time goes ----------------------------------------------------------------------------------------------


class SlowData(Dataset):
    def __getitem__(self, index):
        time.sleep(SLEEP / 10)
        return torch.ones(6), index % 3

    def __len__(self):
        return 60


class SlowCriterion(nn.CrossEntropyLoss):
    def forward(self, pred, y):
        time.sleep(SLEEP)
        return super().forward(pred, y)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(SLEEP)
        return gradient


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(SLEEP)
        return super().step(closure)


def slow_callback(event):
    return type("Slow", (Callback,), {event: lambda self, model, *args: time.sleep(SLEEP)})()


class SlowCount(Tiny):
    def count_samples(self, batch):
        time.sleep(SLEEP)
        return super().count_samples(batch)


def with_slow_backward():
    model = nn.Sequential(tiny_model(), nn.Identity())
    model[1].forward = SlowBackward.apply
    return tiny_trainer(model=model)


def with_slow_optimizer():
    model = tiny_model()
    return tiny_trainer(model=model, optimizer_list=[SlowSGD(model.parameters(), 0.1)])


def with_slow_count():
    trainer = SlowCount()
    trainer.check_init(use_tb=False)
    return trainer


@pytest.mark.parametrize("part, make, is_in_bare", [
    ("reading data", lambda: tiny_trainer(train_loader=DataLoader(SlowData(), 10), preflight=False), True),
    ("forward and loss", lambda: tiny_trainer(criterion=SlowCriterion()), True),
    ("backward", with_slow_backward, True),
    ("optimizer", with_slow_optimizer, True),
    ("callbacks and logging", lambda: tiny_trainer(callbacks=[slow_callback("on_batch")]), False),
    ("callbacks and logging", lambda: tiny_trainer(callbacks=[slow_callback("on_before_step")]), False),
    ("callbacks and logging", lambda: tiny_trainer(callbacks=[slow_callback("on_after_step")]), False),
    ("callbacks and logging", lambda: tiny_trainer(callbacks=[slow_callback("on_log")], log_per_step=1), False),
    ("the template itself", with_slow_count, False),
])
def test_what_is_slow_shows_in_its_row_and_the_shares_are_the_whole(part, make, is_in_bare):
    found = comparison(make())
    shares = found.shares()
    assert tuple(shares) == PARTS and sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert [name for name, seconds in found.parts.items() if min(seconds) >= SLEEP * 0.99] == [part]
    assert len(found.trainer) == len(found.bare) == 2 and found.updates in (1, 2)
    assert min(found.trainer) >= SLEEP * 0.99 and (min(found.bare) >= SLEEP * 0.99) == is_in_bare


def test_the_bare_loop_does_the_work_of_a_hand_written_one():
    trainer = tiny_trainer(model=tiny_model(dropout=0.0), clip_grad=0.5, accumulate_steps=2,
                           train_loader=DataLoader(TensorDataset(*tiny_data(40)), 10))
    model, criterion = tiny_model(dropout=0.0), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(7)
    for _ in range(3):
        for number, (x, y) in enumerate(DataLoader(TensorDataset(*tiny_data(40)), 10), 1):
            (criterion(model(x), y) / 2).backward()
            if number % 2 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    loop = bare_loop._bare(trainer)
    torch.manual_seed(7)
    for _ in range(6):
        next(loop)
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.state_dict().values()]))


# --- what it is given -------------------------------------------------------------------------------------------------


class Alternating(Tiny):
    def train_step(self, batch):
        losses = self.loss_per_batch(batch)
        self.backward(losses["tol_loss"])
        self.update(0)
        return losses


def test_without_a_bare_loop_a_sentence_says_why_and_the_parts_are_there(capsys):
    trainer = Alternating()
    trainer.check_init(use_tb=False)
    found = throughput(trainer, compare=True)["comparison"]
    assert found.bare == [] and found.ratio is None and sum(found.shares().values()) == pytest.approx(1)
    said = capsys.readouterr().out
    assert "no bare loop to compare with, because this trainer has a train_step of its own" in said
    assert "your trainer, ms an update" in said and "a bare loop, ms" not in said


def test_data_and_losses_that_only_the_trainer_understands_are_read_and_computed_by_it():
    class Own(Tiny):
        def loss_per_batch(self, batch):
            return {"loss": self.criterion(self.model_list[0](batch["a"][0]), batch["b"][1])}

        def metric(self, pred, y):
            return {}

    x, y = tiny_data()
    loader = DataLoader(TensorDataset(x, y), 10)
    trainer = Own(train_loader={"a": loader, "b": loader}, eval_loader=None)
    trainer.check_init(use_tb=False)
    assert comparison(trainer).ratio > 0
    doubles = DataLoader(TensorDataset(x.double(), y), 10)  # the template converts them, and criterion(model(x), y) fails
    assert comparison(tiny_trainer(train_loader=doubles)).ratio > 0
    assert comparison(tiny_trainer(train_loader=TensorLoader(x, y, batch_size=10))).ratio > 0
    assert comparison(tiny_trainer(train_loader=[(x[:9], y[:9])] * 3)).ratio > 0


def test_callbacks_that_send_or_cannot_be_copied_are_named_and_not_called():
    class Mine(Tracker):
        def on_log(self, model, values):
            raise AssertionError

    class Holds(Callback):
        def __init__(self):
            self.file = open(__file__)

        def on_after_step(self, model):
            raise AssertionError

    holds = Holds()
    found = comparison(tiny_trainer(callbacks=[Mine(), holds], log_per_step=1))
    holds.file.close()
    assert found.notes == ["Not called, because it would show or send something: ProgressBar, Mine.",
                           "Not called, because it cannot be copied: Holds."]
    assert str(found).endswith("\n".join(found.notes))


# --- nothing is left --------------------------------------------------------------------------------------------------


class Writes(Callback):
    """It counts, changes a hook, prints, and writes to the run's folder."""

    def __init__(self):
        self.count, self.seen = 0, []

    def on_train_start(self, model):
        model.model_list[0].register_forward_hook(lambda *args: None)

    def on_after_step(self, model):
        self.count += 1
        self.seen.append(model.global_step)
        print("noise")
        model.path_of("notes.txt").write_text(f"{self.count}")
        model.writer.add_scalar("own", 1.0, model.global_step)


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_the_trainer_its_files_and_its_training_are_as_where_nothing_was_compared(epochs_before, capsys):
    ends = []
    for compares in (False, True):
        own = Writes()
        trainer = tiny_trainer(use_tb=True, ckpt_dir=f"{compares}", callbacks=[EMA(0.9), own], lr_scheduler_type="cosine",
                               accumulate_steps=2, total_epochs=3, log_per_step=2, key_metric="tol_loss")
        for _ in range(epochs_before):
            trainer.train_loop()
            trainer.eval()
        trainer.stdout_logger.flush()
        generators = torch.get_rng_state().clone()
        folder = trainer.path_of(".")
        files = {path: path.read_bytes() for path in folder.iterdir()}
        before, counted, hooks = state_of(trainer), (own.count, list(own.seen)), trainer.hooks.callbacks
        if compares:
            capsys.readouterr()
            throughput(trainer, compare=True)
            said = capsys.readouterr().out
            assert "noise" not in said and "Not called, because it would show or send something: ProgressBar." in said
        trainer.stdout_logger.flush()
        assert {path: path.read_bytes() for path in folder.iterdir()} == files and state_of(trainer) == before
        assert (own.count, own.seen) == counted and trainer.hooks.callbacks == hooks
        assert not trainer.model_list[0]._forward_hooks or epochs_before
        assert torch.equal(torch.get_rng_state(), generators) and trainer.ckpt_dir == f"{compares}"
        trainer.fit(3)
        ends.append((weights(trainer), trainer.best_metric, own.count))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


def test_after_an_error_in_a_callback_everything_is_back_too(capsys):
    class Fails(Callback):
        def on_after_step(self, model):
            raise ZeroDivisionError

    trainer = tiny_trainer(callbacks=[Fails()], ckpt_dir="run")
    before = state_of(trainer), dict(vars(trainer.stepper)), trainer.running_losses
    with pytest.raises(ZeroDivisionError):
        comparison(trainer)
    assert (state_of(trainer), vars(trainer.stepper), trainer.running_losses) == before and trainer.ckpt_dir == "run"
    print("said again")
    assert "said again" in capsys.readouterr().out
