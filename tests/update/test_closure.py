"""LBFGS, SAM and own steps: an optimizer that takes a closure gives the weights of a plain loop, forward for forward."""

import os

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer, weights
from torch import nn

from template.hooks import Callback


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: up the gradient, the gradient there, and a step with it from where it began.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2020.
    """

    def __init__(self, params, lr=0.1, rho=0.05):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        for group in self.param_groups:
            norm = torch.stack([p.grad.norm() for p in group["params"]]).norm() + 1e-12
            for p in group["params"]:
                self.state[p]["before"] = p.detach().clone()
                p.add_(p.grad, alpha=float(group["rho"] / norm))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["before"]).add_(p.grad, alpha=-group["lr"])
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM needs a closure"
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


def normed():
    """Whose running statistics count the forwards."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def lbfgs(parameters, **options):
    return torch.optim.LBFGS(parameters, lr=0.3, max_iter=4, history_size=3, **options)


OPTIMIZERS = {
    "LBFGS": lbfgs,
    "strong Wolfe": lambda parameters: lbfgs(parameters, line_search_fn="strong_wolfe"),
    "SAM": SAM,
}
BATCHES = list(zip(*(part.split(10) for part in tiny_data())))  # 6, the last one of 3 samples


def plain_loop(optimizer_of, accumulate=1, clip=None, epochs=2, model=None):
    """What a person writes: the closure of torch's documentation, and for SAM the one of its authors."""
    model = model or normed()
    optimizer = optimizer_of(model.parameters())

    def evaluate(group):
        total = sum(len(y) for _, y in group)
        optimizer.zero_grad()
        losses = []
        for x, y in group:
            loss = nn.functional.cross_entropy(model(x), y)
            if len(group) > 1:
                loss = loss * (len(y) / total)
            loss.backward()
            losses.append(loss.detach())
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return torch.stack(losses).sum()

    for _ in range(epochs):
        for start in range(0, len(BATCHES), accumulate):
            group = BATCHES[start:start + accumulate]
            if isinstance(optimizer, SAM):
                evaluate(group)
            optimizer.step(lambda group=group: evaluate(group))
    return model


def vector(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def trainer_of(optimizer_of, kind=Tiny, **attributes):
    model = attributes.pop("model", None) or normed()
    trainer = kind(model=model, optimizer_list=[optimizer_of(model.parameters())], **{"train_loader": BATCHES, **attributes})
    trainer.check_init(use_tb=False)
    return trainer


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_with_a_closure_trains_like_a_plain_loop(name, accumulate, clip):
    expected = plain_loop(OPTIMIZERS[name], accumulate, clip)
    trainer = trainer_of(OPTIMIZERS[name], accumulate_steps=accumulate, clip_grad=clip)
    trainer.fit(2)
    assert torch.equal(weights(trainer), vector(expected)), "weights, statistics and their count"
    assert trainer.global_step == 2 * -(-6 // accumulate)


def test_dropout_draws_as_many_numbers_as_in_a_plain_loop():
    def model():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    trainer = trainer_of(lbfgs, model=model(), eval_loader=None, preflight=False)
    torch.manual_seed(7)
    trainer.fit(1)
    plain = model()
    torch.manual_seed(7)
    plain_loop(lbfgs, model=plain, epochs=1)
    assert torch.equal(weights(trainer), vector(plain))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_continued_run_ends_with_the_same_bits(name):
    def build(folder):
        return trainer_of(OPTIMIZERS[name], ckpt_dir=folder, lr_scheduler_type="cosine", total_epochs=4)

    whole = build("whole")
    whole.fit(4)
    continued = build("parts")
    continued.load_state("whole/epoch2.pth")
    continued.fit(4)
    assert torch.equal(weights(whole), weights(continued))


def test_a_loss_that_adds_up_is_what_the_line_search_sees():
    seen = []

    class Noted(torch.optim.LBFGS):
        def step(self, closure):
            return super().step(lambda: seen.append(float(loss := closure())) or loss)

    trainer = trainer_of(lambda parameters: Noted(parameters, lr=0.1, max_iter=1), accumulate_steps=2, preflight=False,
                         criterion=nn.CrossEntropyLoss(reduction="sum"), train_loader=BATCHES[:2], eval_loader=None)
    with torch.no_grad():
        expected = sum(float(nn.functional.cross_entropy(normed()(x), y, reduction="sum")) for x, y in BATCHES[:2])
    trainer.fit(1)
    assert seen[0] == pytest.approx(expected)


def test_events_schedule_and_losses_come_once_per_update():
    class Counts(Callback):
        calls = 0

        def on_before_step(self, model):
            self.calls += 1

    trainer = trainer_of(OPTIMIZERS["strong Wolfe"], callbacks=[counts := Counts()], lr_scheduler_type="linear")
    result = trainer.fit(1)
    assert counts.calls == trainer.global_step == trainer.lr_schedule.schedulers[0].last_epoch == 6
    assert result["tol_loss"] > 0


# --- a train_step of one's own -----------------------------------------------------------------------------------------


class OwnClosure(Tiny):
    """Steps LBFGS itself, and says nothing about it."""

    def train_step(self, batch):
        x, y = batch
        optimizer, losses = self.optimizer_list[0], []

        def closure():
            optimizer.zero_grad()
            losses.append(nn.functional.cross_entropy(self.inference(x), y))
            self.backward(losses[-1])
            return losses[-1]

        optimizer.step(closure)
        return losses[0]


class OwnSam(Tiny):
    """Both halves by hand, as the authors of SAM write it."""

    says_so = True

    def train_step(self, batch):
        optimizer, loss = self.optimizer_list[0], self.loss_per_batch(batch)["tol_loss"]
        self.backward(loss)
        optimizer.first_step(zero_grad=True)
        self.backward(self.loss_per_batch(batch)["tol_loss"])
        optimizer.second_step(zero_grad=not self.says_so)
        if self.says_so:
            self.update(step=False)
        return loss


class Silent(OwnSam):
    says_so = False


class OwnLoss(Tiny):
    """Only the way to the gradients is its own."""

    def train_step(self, batch):
        x, y = batch
        loss = nn.functional.cross_entropy(self.inference(x), y)
        self.backward(loss, 0)
        self.update(0)
        return loss


@pytest.mark.parametrize("name, kind", [("LBFGS", OwnClosure), ("strong Wolfe", OwnClosure), ("SAM", OwnSam),
                                        ("SAM", Silent), ("LBFGS", OwnLoss), ("SAM", OwnLoss)])
def test_a_train_step_of_ones_own_may_step_or_leave_it_to_the_loop(name, kind):
    trainer = trainer_of(OPTIMIZERS[name], kind)
    trainer.fit(2)
    assert torch.equal(weights(trainer), vector(plain_loop(OPTIMIZERS[name])))
    assert trainer.global_step == 12 and all(p.grad is None for p in trainer.model_list[0].parameters())


def test_any_optimizer_may_be_stepped_by_train_step():
    class Own(Tiny):
        def train_step(self, batch):
            loss = self.loss_per_batch(batch)["tol_loss"]
            self.backward(loss)
            self.optimizer_list[0].step()
            self.update(step=False)
            return loss

    own, usual = trainer_of(lambda parameters: torch.optim.Adam(parameters, 0.01), Own), trainer_of(
        lambda parameters: torch.optim.Adam(parameters, 0.01))
    own.fit(2)
    usual.fit(2)
    assert torch.equal(weights(own), weights(usual))


def test_two_backwards_may_go_through_one_graph():
    class Twice(Tiny):
        def train_step(self, batch):
            x, y = batch
            hidden = self.inference(x)
            loss = nn.functional.cross_entropy(hidden, y)
            self.backward(loss, 0, retain_graph=True)
            self.backward(0.1 * hidden.square().mean())
            return loss

    class Once(Tiny):
        def loss_per_batch(self, batch):
            x, y = batch
            pred = self.inference(x)
            return nn.functional.cross_entropy(pred, y) + 0.1 * pred.square().mean()

    twice, once = (trainer_of(lambda parameters: torch.optim.SGD(parameters, 0.1), kind) for kind in (Twice, Once))
    twice.fit(1)
    once.fit(1)
    torch.testing.assert_close(weights(twice), weights(once))


def test_another_optimizer_beside_it_keeps_its_gradients():
    """LBFGS is stepped first, and evaluates both losses; SGD then steps with the gradient of the first evaluation."""
    def parts():
        model = normed()
        return model, [torch.optim.SGD(model[:2].parameters(), 0.1), lbfgs(model[3].parameters())]

    model, optimizers = parts()
    trainer = tiny_trainer(model=model, optimizer_list=optimizers, train_loader=BATCHES)
    trainer.fit(1)
    plain, (sgd, second) = parts()
    for x, y in BATCHES:
        def evaluate(x=x, y=y):
            plain.zero_grad()
            loss = nn.functional.cross_entropy(plain(x), y)
            loss.backward()
            return loss

        first = [evaluate()]
        kept = [p.grad for p in plain[:2].parameters()]
        second.step(lambda first=first, evaluate=evaluate: first.pop() if first else evaluate())
        for p, gradient in zip(plain[:2].parameters(), kept):
            p.grad = gradient
        sgd.step()
        plain.zero_grad()
    assert torch.equal(weights(trainer), vector(plain))


# --- what is refused, and what goes along -------------------------------------------------------------------------------


def test_fp16_is_refused_before_the_training():
    with pytest.raises(ValueError, match="amp = 'fp16' does not go with LBFGS"):
        trainer_of(lbfgs, amp="fp16")


def test_two_updates_of_it_in_one_train_step_are_refused():
    class Twice(Tiny):
        def train_step(self, batch):
            for _ in range(2):
                loss = self.loss_per_batch(batch)["tol_loss"]
                self.backward(loss, 0)
                self.update(0)
            return loss

    with pytest.raises(ValueError, match=r"called update\(0\) twice, and LBFGS takes a closure"):
        trainer_of(lbfgs, Twice).fit(1)


def test_an_update_that_is_not_finite_is_skipped():
    x, y = tiny_data()
    x[12] = float("nan")
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    trainer = tiny_trainer(model=model, optimizer_list=[lbfgs(model.parameters())], skip_non_finite=1,
                           train_loader=list(zip(x.split(10), y.split(10))))
    trainer.fit(1)
    assert trainer.skipped_updates == 1 and weights(trainer).isfinite().all()


def test_one_that_says_so_is_given_a_closure():
    class Greedy(torch.optim.SGD):
        takes_closure = True

        def step(self, closure=None):
            losses.append(float(closure()))
            return super().step()

    losses = []
    trainer = trainer_of(lambda parameters: Greedy(parameters, 0.1))
    trainer.fit(1)
    plain = trainer_of(lambda parameters: torch.optim.SGD(parameters, 0.1))
    plain.fit(1)
    assert len(losses) == 6 and torch.equal(weights(trainer), weights(plain))
