"""``compile = "step"``: the update as one graph, with the numbers, files and callbacks of one that is not compiled."""

import itertools
import re

import pytest
import torch
from tiny import Rates, Tiny, tiny_data, tiny_model, tiny_trainer, weights, whole_and_continued
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from template.callbacks.ema import EMA
from template.callbacks.tensorboard import TensorBoard
from template.hooks import Callback
from template.update import compiled_step
from template.update.step_rules import NotCaptured, Plan, apply


@pytest.fixture(autouse=True)
def no_graphs():
    """As in a new process."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_kernels(monkeypatch):
    """Graphs are captured, and run by torch as they are: no compiler takes its seconds."""
    real = torch.compile
    monkeypatch.setattr(compiled_step, "_BACKEND", "eager")
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, backend="eager", **options: real(
        function, backend=backend, **options))


class Net(nn.Module):
    """With statistics in buffers and random numbers. In float64, where only rounding is left of differences."""

    def __init__(self, dropout=0.2):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.last = nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, x):
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


def adamw(model):
    return [torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)]


def sgd_and_adam(model):
    groups = [{"params": model.first.parameters(), "lr": 0.05}, {"params": model.norm.parameters(), "weight_decay": 0.1}]
    return [torch.optim.SGD(groups, 0.1, 0.9, nesterov=True), torch.optim.Adam(model.last.parameters(), 0.01, amsgrad=True)]


def of(kind=Tiny, make=adamw, **attributes):
    """A trainer whose batches have 10 samples, and no evaluation."""
    model = attributes.pop("model", None) or Net()
    x, y = tiny_data(50)
    batches = [(x[i:i + 10], y[i:i + 10]) for i in range(0, 50, 10)]
    settings = {"model": model, "optimizer_list": make(model), "train_loader": batches, "eval_loader": None}
    trainer = kind(**{**settings, **attributes})
    trainer.check_init(use_tb=False)
    return trainer


def captured(trainer):
    """How many graphs of whole updates there are, and how many that end with the gradients."""
    return tuple(sum(graph._seen.values()) for graph in (trainer.stepper._whole, trainer.stepper._part))


def told(capsys):
    """What was said of the step, without how each line begins and the place in the code."""
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if 'compile = "step"' in line]
    return [line.removeprefix('compile = "step": ') for line in lines]


def assert_same(one, other):
    """Weights and what the optimizers keep, up to rounding in float64."""
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-9, atol=1e-12)
    for first, second in zip(one.optimizer_list, other.optimizer_list):
        first, second = first.state_dict(), second.state_dict()
        assert first["param_groups"] == second["param_groups"]
        torch.testing.assert_close(first["state"], second["state"], rtol=1e-9, atol=1e-12)


# --- the rules --------------------------------------------------------------------------------------------------------

SGD_OPTIONS = [dict(zip(("momentum", "weight_decay", "maximize", "nesterov"), values))
               for values in itertools.product((0, 0.9), (0, 0.1), (False, True), (False, True))
               if values[0] or not values[3]]
ADAM_OPTIONS = [dict(zip(("weight_decay", "amsgrad", "maximize"), values), betas=(0.8, 0.99), eps=1e-3)
                for values in itertools.product((0, 0.1), (False, True), (False, True))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind, options", [(torch.optim.SGD, options) for options in SGD_OPTIONS]
                         + [(kind, options) for kind in (torch.optim.Adam, torch.optim.AdamW) for options in ADAM_OPTIONS])
def test_the_rules_are_those_of_torch(kind, options, dtype):
    """Rates change from step to step, and torch's own step comes in between."""
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, n).to(dtype)) for n in (3, 5)] for _ in range(2))
    mine, expected = kind(ours, 0.1, **options), kind(theirs, 0.1, **options)
    plan = None
    for step in range(5):
        gradients = [torch.randn(p.shape, dtype=dtype) for p in ours]
        for parameters in (ours, theirs):
            for p, gradient in zip(parameters, gradients):
                p.grad = gradient.clone()
        for optimizer in (mine, expected):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        expected.step()
        if step == 3:
            mine.step()
            continue
        plan = plan if plan is not None and plan.holds() else Plan([mine])
        with torch.no_grad():
            apply(plan.rules, plan.numbers(), plan.parameters, gradients, plan.state)
        plan.count()
    bounds = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours, theirs, **bounds)
    torch.testing.assert_close(mine.state_dict()["state"], expected.state_dict()["state"], **bounds)


def test_what_the_rules_do_not_have_is_refused():
    def refused(make, change=None):
        p = nn.Parameter(torch.zeros(3))
        optimizer = make([p])
        if change:
            change(optimizer, p)
        with pytest.raises(NotCaptured) as refusal:
            plan = Plan([optimizer])
            plan.require_no_hooks()
        return str(refusal.value)

    sgd = torch.optim.SGD
    assert "RMSprop is none of" in refused(torch.optim.RMSprop)
    assert "Mine is none of" in refused(type("Mine", (sgd,), {}))
    assert "dampening" in refused(lambda p: sgd(p, 0.1, 0.9, dampening=0.1))
    assert "differentiable" in refused(lambda p: sgd(p, 0.1, differentiable=True))
    assert "has hooks" in refused(sgd, lambda optimizer, p: optimizer.register_step_post_hook(print))
    assert "has hooks" in refused(sgd, lambda optimizer, p: optimizer.register_step_pre_hook(print))
    assert "was replaced" in refused(sgd, lambda optimizer, p: setattr(optimizer, "step", print))
    assert "hooks on its gradient" in refused(sgd, lambda optimizer, p: p.register_hook(print))
    assert "float32 or float64" in refused(lambda p: sgd([p[0].detach().bfloat16().requires_grad_()], 0.1))
    shared = nn.Parameter(torch.zeros(3))
    with pytest.raises(NotCaptured, match="in two optimizers"):
        Plan([sgd([shared]), sgd([shared])])


# --- whole updates ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_states_and_losses_are_those_of_a_run_that_is_not_compiled(without_kernels, capsys):
    """With rates that change in each update, BatchNorm, dropout, clipping and a short last batch with a graph of its own."""
    def run(compile):
        loader = DataLoader(TensorDataset(*tiny_data(23)), 10, shuffle=True)
        trainer = of(ckpt_dir=str(compile), compile=compile, make=sgd_and_adam, train_loader=loader, clip_grad=0.5,
                     lr_scheduler_type="cosine", lr_scheduler_interval="update", total_epochs=3, callbacks=[EMA(0.9)])
        losses = [trainer.train_loop(), trainer.train_loop(), trainer.train_loop()]
        return trainer, losses, [average for _, average in trainer.callbacks[0].weights_for_use(trainer)]

    eager, expected, expected_averages = run(False)
    compiled, losses, averages = run("step")
    assert captured(compiled) == (2, 0) and told(capsys) == []
    assert losses == [pytest.approx(result, rel=1e-9) for result in expected]
    assert_same(compiled, eager)
    torch.testing.assert_close(averages, expected_averages)


class Looks(Callback):
    """Halves the gradients of every third update."""

    def reads_gradients(self, model):
        return model.global_step % 3 == 0

    def on_before_step(self, model):
        if self.reads_gradients(model):
            for p in model.stepper.parameters():
                if p.requires_grad:
                    p.grad /= 2


@pytest.mark.slow
def test_updates_with_and_without_a_graph_take_turns(without_kernels, capsys):
    """A callback gets the gradients where it asks for them. Accumulation, another momentum, a checkpoint that is loaded, a
    layer that is trained from then on and a hook on another one come in the middle."""
    def run(compile):
        trainer = of(compile=compile, callbacks=[Looks()], ckpt_dir=str(compile), make=sgd_and_adam)
        trainer.model_list[0].first.requires_grad_(False)
        trainer.train_loop()
        trainer.save_state("between.pth")
        trainer.accumulate_steps = 2
        trainer.train_loop()
        trainer.accumulate_steps = 1
        trainer.load_state("between.pth")
        trainer.train_loop()  # ends the epoch that was saved
        trainer.model_list[0].first.requires_grad_(True)
        for group in trainer.optimizer_list[0].param_groups:
            group["momentum"] = 0.5
        trainer.model_list[0].last.register_forward_hook(lambda module, inputs, output: output * 2)
        trainer.train_loop()
        return trainer

    eager = run(False)
    capsys.readouterr()
    compiled = run("step")
    assert told(capsys) == ["The optimizers step outside of the graph. on_before_step of Looks is given the gradients."]
    assert captured(compiled)[0] == 2 and captured(compiled)[1] >= 2
    assert_same(compiled, eager)


def test_histograms_of_gradients_belong_to_the_same_update_in_a_run_that_goes_on_in_the_middle_of_an_epoch():
    """Else that update would have no graph in the one run, and one in the other: not the same bits."""
    trainer, board = tiny_trainer(use_tb=True), TensorBoard()
    trainer.write_params = True
    board.on_train_start(trainer)
    assert board.reads_gradients(trainer)
    trainer.batches_done, trainer.global_step = 2, 2
    board.on_train_start(trainer)
    assert not board.reads_gradients(trainer)


# --- and what is none -------------------------------------------------------------------------------------------------


class Prints(Tiny):
    def loss_per_batch(self, batch):
        print(end="")
        return super().loss_per_batch(batch)


class Counts(Tiny):
    def loss_per_batch(self, batch):
        loss = super().loss_per_batch(batch)["tol_loss"]
        return {"tol_loss": loss * (1 + self.global_step), "plain": loss}


class Own(Tiny):
    def train_step(self, batch):
        return super().train_step(batch)


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2).double()


class Checkpointed(Tiny):
    def inference(self, x):
        return checkpoint(self.model_list[0], x, use_reentrant=False)


WHOLE = "The update is not captured; the models alone are compiled, as with compile = True."
APART = "The optimizers step outside of the graph."


@pytest.mark.slow
@pytest.mark.parametrize("settings, expected", [
    (dict(kind=Prints), rf"{WHOLE} .*builtin operator `print`.*\(File .*test_compiled_step.py.*, in loss_per_batch\)"),
    (dict(kind=Counts), rf"{WHOLE} It was compiled 4 times for batches of one shape.*self.global_step.*"),
    (dict(kind=Own), rf"{WHOLE} train_step is your own.*"),
    (dict(kind=Checkpointed), rf"{WHOLE} Activation checkpointing .*"),
    (dict(amp="fp16"), rf"{WHOLE} amp = 'fp16' scales the loss.*"),
    (dict(train_metrics=True), rf"{WHOLE} train_metrics needs.*"),
    (dict(make=lambda model: [torch.optim.LBFGS(model.parameters(), max_iter=2)]), rf"{WHOLE} An optimizer takes a .*"),
    (dict(make=lambda model: [torch.optim.RMSprop(model.parameters())]), rf"{APART} RMSprop is none of .*"),
    (dict(skip_non_finite=1), rf"{APART} skip_non_finite .*"),
    (dict(callbacks=[Rates()]), rf"{APART} on_before_step of Rates is given the gradients."),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_what_cannot_be_captured_is_told_and_computed_all_the_same(settings, expected, without_kernels, capsys, recwarn):
    eager = of(ckpt_dir="eager", **settings)
    eager.fit(2)
    assert told(capsys) == []
    compiled = of(ckpt_dir="step", compile="step", **settings)
    compiled.fit(2)
    (line,) = told(capsys)
    assert re.fullmatch(expected, line), line
    assert_same(compiled, eager)


@pytest.mark.slow
def test_a_parameter_without_a_gradient_stays_without_a_state(without_kernels, capsys):
    model = Unused()
    trainer = of(model=model, compile="step", preflight=False)
    trainer.fit(1)
    assert told(capsys) == [f"{APART} A parameter gets no gradient."]
    state = trainer.optimizer_list[0].state
    assert model.unused.weight not in state and model.last.weight in state


@pytest.mark.slow
def test_a_mistake_is_explained_as_ever(without_kernels):
    class Wrong(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch)["tol_loss"].detach()

    with pytest.raises(ValueError, match="The loss must be a tensor that depends on a trainable parameter"):
        of(Wrong, compile="step", preflight=False).fit(1)
    with pytest.raises(ValueError, match="labels"):
        x, y = tiny_data(10)
        of(compile="step", train_loader=[(x, y + 3)]).fit(1)


@pytest.mark.slow
def test_the_check_before_training_leaves_nothing_behind(without_kernels):
    with_check, without = (of(compile="step", preflight=preflight, ckpt_dir=str(preflight)) for preflight in (True, False))
    for trainer in (with_check, without):
        torch.manual_seed(0)
        trainer.fit(1)
    assert torch.equal(weights(with_check), weights(without))
    assert with_check.model_list[0].norm.num_batches_tracked == 5


# --- with kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_give_the_numbers_of_a_plain_loop_and_a_run_goes_on_to_the_bit(capsys):
    """In float32, with dropout that is 0 for the plain loop; files of the one are those of the other."""
    x, y = tiny_data(50)
    batches = [(x[i:i + 10], y[i:i + 10]) for i in range(0, 50, 10)]
    expected = tiny_model(dropout=0.0)
    optimizer, loss = torch.optim.AdamW(expected.parameters(), 0.01), nn.CrossEntropyLoss()
    for features, labels in batches * 2:
        loss(expected(features), labels).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def build(ckpt_dir, dropout=0.2, compile="step"):
        model = tiny_model(dropout=dropout)
        return tiny_trainer(ckpt_dir=ckpt_dir, model=model, optimizer_list=[torch.optim.AdamW(model.parameters(), 0.01)],
                            train_loader=batches, eval_loader=None, clip_grad=1.0, compile=compile)

    trainer = build("plain", dropout=0.0)
    trainer.fit(2)
    assert captured(trainer) == (1, 0) and told(capsys) == []
    torch.testing.assert_close(trainer.model_list[0].state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trainer.optimizer_list[0].state_dict()["state"], optimizer.state_dict()["state"], rtol=1e-3,
                               atol=1e-5)
    eager = build("plain", dropout=0.0, compile=False)
    eager.load_state("auto")
    assert eager.global_step == 10 and torch.equal(weights(eager), weights(trainer))
    eager.fit(3)

    whole, continued = whole_and_continued(build, 3, 1)
    assert torch.equal(weights(whole), weights(continued)) and captured(continued) == (1, 0)
    assert not torch.equal(weights(whole), weights(eager))
