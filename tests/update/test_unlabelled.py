import functools
import warnings

import pytest
import torch
from tiny import tiny_data, tiny_model, weights
from torch.optim import optimizer as of_all

from template.update import unlabelled
from template.update.unlabelled import step

X, Y = tiny_data()
KINDS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1),
    "Adam, amsgrad, foreach": lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True, foreach=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.9),
    "Adagrad, fused": lambda parameters: torch.optim.Adagrad(parameters, 0.01, fused=True),
}


class Own(torch.optim.SGD):
    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step(closure)


def trained(make, do_step, updates=4, prepare=lambda optimizer: None):
    """The model and its optimizer after a few updates on the same batch."""
    model = tiny_model(dropout=0.0)
    optimizer = make(model.parameters())
    prepared = prepare(optimizer)
    for _ in range(updates):
        torch.nn.functional.cross_entropy(model(X), Y).backward()
        do_step(optimizer)
        optimizer.zero_grad()
        if isinstance(prepared, torch.optim.lr_scheduler.LRScheduler):
            prepared.step()
    return model, optimizer


def bits(model):
    return weights(type("Holder", (), {"model_list": [model]}))


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_weights_are_those_of_the_optimizer_s_own_step_to_the_last_bit(make):
    ours, optimizer = trained(make, step)
    theirs, other = trained(make, lambda one: one.step())
    assert torch.equal(bits(ours), bits(theirs))
    assert not torch.equal(bits(ours), bits(tiny_model()))
    for state, expected in zip(optimizer.state.values(), other.state.values()):
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(expected[name])) for name in expected)
    assert torch.is_grad_enabled()


def labels(monkeypatch, **options):
    """The labels that are opened in one training."""
    names, original = [], torch.autograd.profiler.record_function

    def noted(name, *args):
        names.append(name)
        return original(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.profiler, "record_function", noted)
        trained(KINDS["SGD"], step, **options)
    return [name for name in names if ".step" in name]


def test_no_label_is_opened_while_nobody_profiles_also_under_a_scheduler_of_torch_s(monkeypatch):
    assert labels(monkeypatch) == []
    assert labels(monkeypatch, prepare=lambda one: torch.optim.lr_scheduler.StepLR(one, 2)) == []
    assert labels(monkeypatch, prepare=lambda one: one.register_step_post_hook(lambda *_: None)) == []


def test_a_profiler_sees_the_label_of_each_step():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trained(KINDS["SGD"], step, updates=3)
    assert [event.count for event in profile.key_averages() if event.key == "Optimizer.step#SGD.step"] == [3]


@pytest.mark.parametrize("before", [(), ("own",), ("global",), ("own", "global")])
def test_hooks_are_called_with_what_torch_gives_them_and_in_its_order(before):
    def calls(do_step):
        seen = []

        def note(name):
            return lambda optimizer, args, kwargs: seen.append((name, args == (optimizer,), kwargs))

        handles = [of_all.register_optimizer_step_post_hook(note("global post"))]
        if "global" in before:
            handles.append(of_all.register_optimizer_step_pre_hook(note("global pre")))

        def prepare(optimizer):
            optimizer.register_step_post_hook(note("post"))
            if "own" in before:
                optimizer.register_step_pre_hook(note("pre"))

        try:
            trained(KINDS["SGD"], do_step, updates=1, prepare=prepare)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    assert calls(step) == calls(lambda one: one.step())
    assert len(calls(step)) == 2 + len(before)


def test_a_scheduler_of_torch_s_knows_that_the_optimizer_was_stepped():
    def with_scheduler(do_step):
        return trained(KINDS["SGD"], do_step, prepare=lambda one: torch.optim.lr_scheduler.StepLR(one, 1, 0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Detected call of `lr_scheduler.step()` before `optimizer.step()`"
        (ours, optimizer), (theirs, _) = with_scheduler(step), with_scheduler(lambda one: one.step())
    assert torch.equal(bits(ours), bits(theirs))
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4


def test_a_step_of_one_s_own_and_what_others_put_around_one_are_called(monkeypatch):
    _, optimizer = trained(lambda parameters: Own(parameters, 0.1), step)
    assert optimizer.steps == 4

    calls = []

    def around(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            calls.append(function)
            return function(*args, **kwargs)

        return wrapper

    def wrap_object(optimizer):
        optimizer.step = around(optimizer.step)

    def wrap_scheduled(optimizer):
        torch.optim.lr_scheduler.StepLR(optimizer, 10)
        wrap_object(optimizer)

    for prepare in (wrap_object, wrap_scheduled):
        calls.clear()
        trained(KINDS["SGD"], step, prepare=prepare)
        assert len(calls) == 4
    calls.clear()
    monkeypatch.setattr(Own, "step", around(Own.step))
    trained(lambda parameters: Own(parameters, 0.1), step)
    assert len(calls) == 4


def test_a_torch_without_the_names_that_are_looked_at_steps_in_its_own_way(monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(of_all, "_global_optimizer_pre_hooks")
        unknown = unlabelled._label_of_torch()
    assert unknown is not unlabelled._LABEL
    monkeypatch.setattr(unlabelled, "_LABEL", unknown)
    assert len(labels(monkeypatch)) == 4


def test_what_is_no_optimizer_of_torch_is_stepped_as_it_is():
    class Other:
        steps = 0

        def step(self):
            self.steps += 1

    other = Other()
    step(other)
    assert other.steps == 1
