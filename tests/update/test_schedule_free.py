"""Schedule-free optimizers: trained at one point, evaluated and handed out at another, against plain PyTorch loops."""

import copy
import os

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn

from template.hooks import Callback
from template.tools.throughput import throughput
from template.update.schedule_free import averaged, averaged_to_continue, refuse_sharded, switchable

X, Y = tiny_data()
BATCHES = list(zip(X.split(10), Y.split(10)))  # 6
EVAL_X, EVAL_Y = tiny_data(23, seed=5)


class TwoPoints(torch.optim.Optimizer):
    """A stand-in that tells nobody where it stands: neither its groups nor its state say whether ``eval()`` was called."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "count": 0})
        self.trains = False

    def __getstate__(self):  # what deepcopy takes
        return super().__getstate__() | {"trains": self.trains}

    @torch.no_grad()
    def _move(self, weight):
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    p.lerp_(self.state[p]["z"], weight)

    def train(self):
        if not self.trains:
            self._move(0.1)
        self.trains = True

    def eval(self):
        if self.trains:
            self._move(1 - 1 / 0.9)
        self.trains = False

    @torch.no_grad()
    def step(self, closure=None):
        assert self.trains, "step() at the average"
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.detach().clone())
                p.lerp_(z, 1 / group["count"]).add_(p.grad, alpha=group["lr"] * (0.9 * (1 - 1 / group["count"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])


def of_package(name, **options):
    def make(parameters):
        return getattr(pytest.importorskip("schedulefree"), name)(parameters, **options)

    return make


KINDS = {
    "stand-in": TwoPoints,
    "AdamW": of_package("AdamWScheduleFree", lr=0.02, warmup_steps=4, weight_decay=0.1),
    "SGD": of_package("SGDScheduleFree", lr=0.5),
    "RAdam": of_package("RAdamScheduleFree", lr=0.02),
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trainer_of(make, check_init=True, **attributes):
    model = attributes.pop("model", None) or tiny_model(dropout=0.0)
    trainer = Tiny(model=model, **{"train_loader": BATCHES, "eval_loader": [(EVAL_X, EVAL_Y)], **attributes})
    trainer.optimizer_list = [make(model.parameters())]
    if check_init:
        trainer.check_init(use_tb=False)
    return trainer


def vector(model):
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


class Plain:
    """The plain loop, whose optimizer stays in train mode; what is used are copies of both."""

    def __init__(self, make, epochs):
        self.model = tiny_model(dropout=0.0)
        self.optimizer = make(self.model.parameters())
        self.optimizer.train()
        self.averages, self.losses = [], []  # after each epoch
        for _ in range(epochs):
            for x, y in BATCHES:
                nn.functional.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.averages.append(self.average())
            self.losses.append(nn.functional.cross_entropy(self.averages[-1](EVAL_X), EVAL_Y).item())

    def average(self):
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        optimizer.eval()
        return model


def model_in(path):
    """The weights that a file holds under the key that everybody reads."""
    model = tiny_model()
    model.load_state_dict(torch.load(path, weights_only=True)["model0"])
    return vector(model)


@each_kind
def test_training_is_that_of_a_plain_loop_and_what_is_used_is_the_average(make):
    plain, trainer = Plain(make, 3), trainer_of(make, ckpt_dir="run")
    losses = []
    for _ in trainer.epochs(3):
        trainer.train_loop()
        trainer.eval()
        losses.append(trainer.eval_result["tol_loss"])
    average = vector(plain.averages[-1])
    assert torch.equal(weights(trainer), vector(plain.model)) and not torch.equal(average, vector(plain.model))
    assert losses == plain.losses
    assert trainer.test()["tol_loss"] == plain.losses[-1]
    assert torch.equal(trainer.predict(EVAL_X), plain.averages[-1](EVAL_X).detach())
    trainer.save_state("weights.pth", optim=False)
    trainer.save_state("whole.pth")
    trainer.save_model("model.pth")
    for path in ("run/last.pth", "run/epoch3.pth", "weights.pth", "whole.pth"):
        assert torch.equal(model_in(path), average), path
    assert torch.equal(vector(torch.load("model.pth", weights_only=False)["model0"]), average)
    best = min(range(3), key=lambda epoch: (-trainer_accuracy(plain.averages[epoch]), -epoch))
    assert torch.equal(model_in("run/best.pth"), vector(plain.averages[best]))
    assert torch.equal(weights(trainer), vector(plain.model))


def trainer_accuracy(model):
    return (model(EVAL_X).argmax(1) == EVAL_Y).float().mean().item()


@each_kind
def test_looking_more_often_changes_no_bit_of_the_training(make):
    class Looks(Callback):
        def on_after_step(self, model):
            if model.global_step % 2:
                model.eval()
                model.test()
                model.predict(EVAL_X)
                model.save_state("anything.pth", optim=False)

    trainer = trainer_of(make, callbacks=[Looks()], save_per_steps=3)
    trainer.fit(3)
    assert torch.equal(weights(trainer), vector(Plain(make, 3).model))


class Killed(Exception):
    pass


@each_kind
@pytest.mark.parametrize("update", [6, 9, 12])  # at the end of an epoch, in its middle
def test_a_resumed_run_ends_with_the_same_bits(make, update):
    class Kill(Callback):
        def on_log(self, model, values):
            if model.global_step == update + 1:
                raise Killed

    with pytest.raises(Killed):
        trainer_of(make, ckpt_dir="run", save_per_steps=3, log_per_step=1, callbacks=[Kill()]).fit(3)
    os.unlink("run/crashed.pth")
    again = trainer_of(make, ckpt_dir="run")
    again.load_state("auto")
    assert again.global_step == update
    again.fit(3)
    plain = Plain(make, 3)
    assert torch.equal(weights(again), vector(plain.model)) and again.eval_result["tol_loss"] == plain.losses[-1]
    assert not any("training_point" in state for state in again.optimizer_list[0].state.values())


@each_kind
def test_the_state_that_an_error_left_resumes_by_its_name(make):
    class Breaks(Callback):
        def on_before_step(self, model):
            if model.global_step == 8:
                raise Killed

    with pytest.raises(Killed):
        trainer_of(make, ckpt_dir="run", callbacks=[Breaks()]).fit(3)
    again = trainer_of(make, ckpt_dir="again")
    again.load_state("run/crashed.pth")
    plain = Plain(make, 1)
    for x, y in BATCHES[:2]:
        nn.functional.cross_entropy(plain.model(x), y).backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    assert torch.equal(weights(again), vector(plain.model))


@each_kind
def test_weights_alone_out_of_any_file_are_those_for_use_and_training_may_go_on_from_them(make):
    trainer_of(make, ckpt_dir="run").fit(3)
    plain = Plain(make, 3)
    for name, average in (("epoch2", plain.averages[1]), ("last", plain.averages[2])):
        other = trainer_of(make, check_init=False)
        other.load_state(f"run/{name}.pth", optim=False)
        assert torch.equal(other.predict(EVAL_X), average(EVAL_X).detach())
    other.check_init(use_tb=False)
    assert torch.equal(weights(other), vector(plain.averages[2]))
    other.train_loop()  # a fine-tuning, whose optimizer is new
    model = copy.deepcopy(plain.averages[2])
    optimizer = make(model.parameters())
    optimizer.train()
    for x, y in BATCHES:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(other), vector(model))


@each_kind
def test_weights_that_are_loaded_for_use_beside_a_training_are_used_as_they_are(make):
    trainer = trainer_of(make, ckpt_dir="run")
    trainer.fit(3)
    average = Plain(make, 1).averages[0](EVAL_X).detach()
    trainer.load_state("run/epoch1.pth", optim=False)
    assert torch.equal(trainer.predict(EVAL_X), average) and torch.equal(trainer.predict(EVAL_X), average)
    best = tiny_model(dropout=0.0)
    best.load_state_dict(torch.load("run/best.pth")["model0"])
    trainer.use_best()
    assert torch.equal(trainer.predict(EVAL_X), best(EVAL_X).detach())
    assert trainer.test()["tol_loss"] == nn.functional.cross_entropy(best(EVAL_X), EVAL_Y).item()


@each_kind
def test_after_an_error_in_an_evaluation_training_goes_on_where_it_was(make):
    trainer = trainer_of(make)
    trainer.train_loop()
    metric, trainer.metric = trainer.metric, lambda pred, y: 1 / 0
    for look in (trainer.eval, trainer.test):
        with pytest.raises(ZeroDivisionError):
            look()
    trainer.metric = metric
    assert torch.equal(weights(trainer), vector(Plain(make, 1).model))
    trainer.fit(2)
    assert torch.equal(weights(trainer), vector(Plain(make, 2).model))


@each_kind
def test_a_state_that_does_not_fit_leaves_both_points(make):
    trainer = trainer_of(make)
    trainer.train_loop()
    torch.save({"model0": {"0.weight": torch.zeros(1)}, "optimizer_list0": {}}, "other.pth")
    for optim in (True, False):
        with pytest.raises(ValueError, match="do not fit"):
            trainer.load_state("other.pth", optim=optim)
    plain = Plain(make, 1)
    assert torch.equal(weights(trainer), vector(plain.model))
    assert torch.equal(trainer.predict(EVAL_X), plain.averages[0](EVAL_X).detach())


@each_kind
def test_a_loop_that_switches_by_itself_keeps_its_own_switches(make):
    """As the package's documentation tells people to write it."""
    trainer = trainer_of(make, ckpt_dir="run")
    plain = Plain(make, 0)
    for epoch in trainer.epochs(3):
        trainer.optimizer_list[0].train()
        trainer.train_loop()
        trainer.optimizer_list[0].eval()
        trainer.eval()
        plain.optimizer.train()
        for x, y in BATCHES:
            nn.functional.cross_entropy(plain.model(x), y).backward()
            plain.optimizer.step()
            plain.optimizer.zero_grad()
        plain.optimizer.eval()
        assert torch.equal(weights(trainer), vector(plain.model))
        trainer.wait_for_saves()
        assert torch.equal(model_in(f"run/epoch{epoch}.pth"), vector(plain.model))
    again = trainer_of(make, ckpt_dir="run")
    again.load_state("run/epoch2.pth")
    again.train_loop()
    again.optimizer_list[0].eval()
    assert torch.equal(weights(again), weights(trainer))


def test_callbacks_see_the_average_throughout_the_evaluation_and_may_put_others_in_its_place():
    class Sees(Callback):
        def on_eval_start(self, model):
            self.start = weights(model)
            for p in model.model_list[0].parameters():
                p.data.zero_()

        def on_eval_batch(self, model, batch):
            self.batch = weights(model)

    sees = Sees()
    trainer = trainer_of(TwoPoints, callbacks=[sees])
    trainer.train_loop()
    trainer.eval()
    plain = Plain(TwoPoints, 1)
    assert torch.equal(sees.start, vector(plain.averages[0])) and not sees.batch.any()
    assert torch.equal(weights(trainer), vector(plain.model))


@each_kind
def test_statistics_of_batchnorm_can_be_renewed_at_the_average_without_a_change_of_the_training(make):
    def norm_model():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def renew(model):
        model.train()
        with torch.no_grad():
            for x, _ in BATCHES:
                model(x)

    class Renews(Callback):
        def on_eval_start(self, model):
            renew(model.model_list[0])

    trainer = trainer_of(make, model=norm_model(), callbacks=[Renews()], preflight=False)
    trainer.fit(2)
    plain, losses = norm_model(), []
    optimizer = make(plain.parameters())
    optimizer.train()
    for _ in range(2):
        for x, y in BATCHES:
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        model, own = copy.deepcopy((plain, optimizer))
        own.eval()
        renew(model)
        model.eval()
        losses.append(nn.functional.cross_entropy(model(EVAL_X), EVAL_Y).item())
        plain[1].load_state_dict({**plain[1].state_dict(), **dict(model[1].named_buffers())})
    assert trainer.eval_result["tol_loss"] == losses[-1]
    trained = torch.cat([p.detach().double().flatten() for p in trainer.model_list[0].parameters()])
    assert torch.equal(trained, torch.cat([p.detach().double().flatten() for p in plain.parameters()]))


@pytest.mark.slow
@each_kind
def test_throughput_leaves_both_points(make):
    trainer = trainer_of(make)
    throughput(trainer)
    trainer.train_loop()
    throughput(trainer)
    plain = Plain(make, 1)
    assert torch.equal(weights(trainer), vector(plain.model))
    assert torch.equal(trainer.predict(EVAL_X), plain.averages[0](EVAL_X).detach())
    trainer.fit(2)
    assert torch.equal(weights(trainer), vector(Plain(make, 2).model))


@each_kind
def test_a_warm_up_and_a_schedule_go_with_it(make):
    trainer = trainer_of(make, lr_scheduler_type="linear", warm_up_updates=3, ckpt_dir="run")
    trainer.fit(2)
    again = trainer_of(make, lr_scheduler_type="linear", warm_up_updates=3, ckpt_dir="run")
    again.load_state("run/epoch1.pth")
    again.fit(2)
    assert torch.equal(weights(again), weights(trainer))
    assert trainer.optimizer_list[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_beside_another_optimizer_only_the_own_parameters_are_switched():
    model = tiny_model(dropout=0.0)
    trainer = trainer_of(TwoPoints, check_init=False, model=model)
    trainer.optimizer_list = [TwoPoints(model[0].parameters()), torch.optim.SGD(model[3].parameters(), 0.1)]
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trained = [p.detach().clone() for p in model.parameters()]
    with averaged(trainer.optimizer_list):
        same = [torch.equal(p, value) for p, value in zip(model.parameters(), trained)]
    assert same == [False, False, True, True]
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), trained))


def test_for_all_other_optimizers_nothing_is_done(monkeypatch):
    optimizers = [kind([nn.Parameter(torch.zeros(2))], 0.1) for kind in (torch.optim.SGD, torch.optim.AdamW)]
    assert switchable(optimizers) == ()
    monkeypatch.setattr(torch.Tensor, "clone", None)
    with averaged(optimizers), averaged_to_continue(optimizers):
        pass


def test_what_does_not_go_with_it_is_said_at_the_start(capsys):
    with pytest.raises(ValueError, match="parallel = 'fsdp' does not go with TwoPoints.*Set parallel = 'ddp'"):
        refuse_sharded([TwoPoints(tiny_model().parameters())])
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    trainer_of(TwoPoints, model=model)
    assert capsys.readouterr().out.count("BatchNorm gathers its statistics at the point that a schedule-free") == 1
    trainer_of(TwoPoints)
    assert "BatchNorm" not in capsys.readouterr().out
