"""Learning rates of whole runs, update by update, against closed forms and torch's own schedulers."""

import io
import math
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_trainer
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import DataLoader, IterableDataset

from template.hooks import Callback
from template.update.lr_scheduler import NamedSchedule, WarmUpLR, build_scheduler

BASE = 0.1  # the tiny trainer's rate
INIT = 1e-6  # warm_up_init_lr
BATCHES = 6  # of its training epoch


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Hundreds of short runs: whether their checkpoints would outlive a power cut does not matter here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Rates(Callback):
    """The rate (and momentum) that each update was done with; ``per_epoch`` notes how many updates an epoch had."""

    def __init__(self):
        self.rates, self.momenta, self.per_epoch = [], [], []

    def on_train_start(self, model):
        self.per_epoch.append(0)

    def on_before_step(self, model):
        group = model.optimizer_list[0].param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["momentum"] if "momentum" in group else group["betas"][0])
        self.per_epoch[-1] += 1


def recorded(epochs=4, **attributes):
    """Rates of every update of a run through ``TemplateModel``, and the trainer."""
    rates = Rates()
    trainer = tiny_trainer(**{"callbacks": [rates], "eval_loader": None, **attributes})
    trainer.fit(epochs)
    return rates.rates, trainer


def torch_rates(make_scheduler, steps, lr=BASE):
    """Rates of ``steps`` steps of a scheduler of torch, on an optimizer of its own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def warm_up_rate(k, total, base, mode, init=INIT):
    if k >= total:
        return base
    return {"linear": init + (base - init) * k / total, "constant": init,
            "exponential": math.exp(math.log(init) + (math.log(base) - math.log(init)) * k / total)}[mode]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def optimizer_of(*rates, kind=torch.optim.SGD, names=None, **options):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    for group, name in zip(groups, names or []):
        group["name"] = name
    return kind(groups, **options)


def lrs(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


# --- WarmUpLR -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["linear", "exponential", "constant"]), st.integers(1, 30),
       st.lists(st.floats(1e-3, 10), min_size=1, max_size=3), st.floats(1e-7, 9e-4))
def test_every_group_is_warmed_up_along_the_closed_form_to_exactly_its_own_rate(mode, total, bases, init):
    optimizer = optimizer_of(*bases)
    warm_up = WarmUpLR(optimizer, total, init, mode)
    for k in range(total + 3):
        assert lrs(optimizer) == pytest.approx([warm_up_rate(k, total, base, mode, init) for base in bases], rel=1e-9)
        assert warm_up.finished == (k >= total)
        assert (lrs(optimizer) == bases) == warm_up.finished
        optimizer.step()
        warm_up.step()


def test_the_signature_of_2021_is_accepted():
    optimizer = optimizer_of(0.1)
    warm_up = WarmUpLR(optimizer, 4, 1e-3, "linear", -1, False)
    assert lrs(optimizer) == [1e-3] and warm_up.total_epoch == 4
    assert WarmUpLR(optimizer_of(0.1), total_epoch=5).init_lr == 1e-6


@pytest.mark.parametrize(("kind", "options", "read"), [
    (torch.optim.SGD, {"momentum": 0.9}, lambda group: group["momentum"]),
    (torch.optim.RMSprop, {"momentum": 0.9}, lambda group: group["momentum"]),
    (torch.optim.AdamW, {"betas": (0.9, 0.99)}, lambda group: group["betas"][0]),
])
def test_momentum_is_warmed_up_linearly_to_exactly_its_own_value(kind, options, read):
    optimizer = optimizer_of(0.1, 0.2, kind=kind, **options)
    warm_up = WarmUpLR(optimizer, 5, init_momentum=0.5)
    for k in range(8):
        expected = 0.5 + 0.4 * min(k / 5, 1)
        assert [read(group) for group in optimizer.param_groups] == pytest.approx([expected] * 2)
        optimizer.step()
        warm_up.step()
    assert [read(group) for group in optimizer.param_groups] == [0.9, 0.9]
    if kind is torch.optim.AdamW:
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_without_init_momentum_momentum_is_left_alone():
    optimizer = optimizer_of(0.1, momentum=0.9)
    warm_up = WarmUpLR(optimizer, 3)
    optimizer.param_groups[0]["momentum"] = 0.7  # the user's own doing
    optimizer.step()
    warm_up.step()
    assert optimizer.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("mode", ["linear", "exponential", "constant"])
def test_groups_named_bias_come_down_linearly_from_a_rate_of_their_own(mode):
    optimizer = optimizer_of(0.01, 0.01, names=["weight", "bias"])
    warm_up = WarmUpLR(optimizer, 4, mode=mode, init_bias_lr=0.1)
    for k in range(6):
        expected = [warm_up_rate(k, 4, 0.01, mode), 0.1 + (0.01 - 0.1) * min(k / 4, 1)]
        assert lrs(optimizer) == pytest.approx(expected)
        optimizer.step()
        warm_up.step()
    assert lrs(optimizer) == [0.01, 0.01]


@pytest.mark.parametrize(("options", "said"), [
    ({"mode": "cosine"}, "'cosine'"),
    ({"init_lr": 0.1}, r"\(0, 0.1\).*got 0.1"),
    ({"init_lr": 0.5}, "got 0.5"),
    ({"init_lr": 0.0}, "got 0"),
    ({"init_bias_lr": 0.2}, "groups named 'bias'"),
])
def test_a_warm_up_that_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        WarmUpLR(optimizer_of(0.2, 0.1), 5, **options)


def test_momentum_warm_up_of_an_optimizer_without_momentum_is_refused():
    with pytest.raises(ValueError, match="Adagrad has neither"):
        WarmUpLR(optimizer_of(0.1, kind=torch.optim.Adagrad), 5, init_momentum=0.5)


def test_a_warm_up_built_behind_another_scheduler_still_aims_at_the_own_rate():
    optimizer = optimizer_of(0.1)
    torch_schedulers.LambdaLR(optimizer, lambda step: 0.01)
    WarmUpLR(optimizer, 2, 1e-2)
    assert lrs(optimizer) == [1e-2]


# --- the types ------------------------------------------------------------------------------------------------------


def test_the_four_types_of_2021_have_exactly_their_defaults():
    optimizer = optimizer_of(0.1)
    for kind, mode in (("metric", "max"), ("loss", "min")):
        plateau = build_scheduler(optimizer, kind, {})
        assert type(plateau) is torch_schedulers.ReduceLROnPlateau
        expected = torch_schedulers.ReduceLROnPlateau(optimizer, mode=mode, factor=0.1, patience=5, cooldown=5, min_lr=1e-9)
        assert plateau.state_dict() == expected.state_dict()
    step = build_scheduler(optimizer, "step", {})
    assert type(step) is torch_schedulers.StepLR and (step.step_size, step.gamma) == (15, 0.1)
    annealing = build_scheduler(optimizer, "annealing", {})
    assert type(annealing) is torch_schedulers.CosineAnnealingLR and (annealing.T_max, annealing.eta_min) == (15, 0)


def test_arguments_of_a_type_replace_single_defaults():
    optimizer = optimizer_of(0.1)
    plateau = build_scheduler(optimizer, "metric", {"patience": 2})
    assert (plateau.patience, plateau.cooldown, plateau.mode) == (2, 5, "max")
    assert build_scheduler(optimizer, "metric", {}, key_metric_mode="min").mode == "min"
    assert build_scheduler(optimizer, "step", {"step_size": 3}).step_size == 3
    assert build_scheduler(optimizer, "annealing", {"T_max": 7}).T_max == 7


def test_an_unknown_type_lists_the_types_and_an_unknown_argument_is_named():
    with pytest.raises(ValueError, match="'metric', 'loss', 'step', 'annealing', 'cosine'.*got 'cosinus'"):
        build_scheduler(optimizer_of(0.1), "cosinus", {})
    for kind in ("cosine", "step", "metric"):
        with pytest.raises(TypeError, match="final_rato"):
            build_scheduler(optimizer_of(0.1), kind, {"final_rato": 0.1})
    with pytest.raises(ValueError, match="lr_scheduler_type"):
        tiny_trainer(lr_scheduler_type="cosinus")


@pytest.mark.parametrize(("kind", "args"), [
    ("onecycle", {"pct_start": 1.0}), ("onecycle", {"div_factor": 0}), ("exponential", {"final_ratio": 0.0}),
    ("exponential", {"final_ratio": -0.5}), ("linear", {"final_ratio": -1.0}), ("polynomial", {"power": -1.0}),
    ("cosine", {"final_ratio": math.nan}),
])
def test_arguments_that_would_stop_a_run_or_its_learning_on_the_way_are_refused_at_the_start(kind, args):
    with pytest.raises(ValueError, match="no usable rates"):
        build_scheduler(optimizer_of(0.1), kind, args)


def onecycle(total, pct_start=0.3, **options):
    """torch counts total_steps including the last rate, and its peak one step earlier than the share says."""
    share = (pct_start * total + 1) / (total + 1)
    return lambda optimizer: torch_schedulers.OneCycleLR(optimizer, BASE, total_steps=total + 1, pct_start=share,
                                                         cycle_momentum=False, **options)


NAMED = [
    ("cosine", {}, lambda T: lambda o: torch_schedulers.CosineAnnealingLR(o, T)),
    ("cosine", {"final_ratio": 0.02}, lambda T: lambda o: torch_schedulers.CosineAnnealingLR(o, T, eta_min=0.02 * BASE)),
    ("linear", {}, lambda T: lambda o: torch_schedulers.LinearLR(o, 1.0, 0.0, total_iters=T)),
    ("linear", {"final_ratio": 0.01}, lambda T: lambda o: torch_schedulers.LinearLR(o, 1.0, 0.01, total_iters=T)),
    ("exponential", {}, lambda T: lambda o: torch_schedulers.ExponentialLR(o, 0.01 ** (1 / T))),
    ("exponential", {"final_ratio": 0.3}, lambda T: lambda o: torch_schedulers.ExponentialLR(o, 0.3 ** (1 / T))),
    ("polynomial", {}, lambda T: lambda o: torch_schedulers.PolynomialLR(o, T, power=2.0)),
    ("polynomial", {"power": 0.9}, lambda T: lambda o: torch_schedulers.PolynomialLR(o, T, power=0.9)),
    ("onecycle", {}, onecycle),
    ("onecycle", {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 100.0},
     lambda T: onecycle(T, 0.5, div_factor=10.0, final_div_factor=100.0)),
]
IDS = [f"{kind}-{'-'.join(args) or 'defaults'}" for kind, args, _ in NAMED]


@pytest.mark.parametrize(("kind", "args", "reference"), NAMED, ids=IDS)
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_named_schedules_equal_those_of_torch_at_every_step(kind, args, reference, total):
    optimizer = optimizer_of(BASE, BASE / 2)
    schedule = NamedSchedule(optimizer, kind, total, **args)
    expected = torch_rates(reference(total), total)
    for rate in expected:
        assert lrs(optimizer) == pytest.approx([rate, rate / 2], rel=1e-9, abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("kind", "args", "last"), [
    ("cosine", {"final_ratio": 0.05}, 0.05), ("linear", {"final_ratio": 0.05}, 0.05), ("exponential", {}, 0.01),
    ("polynomial", {"final_ratio": 0.05}, 0.05), ("onecycle", {}, 1 / 25e4),
    ("exponential", {"final_ratio": 0.05, "decay": 0.9**5}, 0.05),
])
def test_named_schedules_end_at_their_final_ratio_and_stay_there(kind, args, last):
    optimizer = optimizer_of(0.2)
    schedule = NamedSchedule(optimizer, kind, 5, **args)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert lrs(optimizer) == pytest.approx([0.2 * last])
    schedule.step()
    assert lrs(optimizer) == pytest.approx([0.2 * last])


# --- whole runs through TemplateModel -------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate_steps", [1, 3, 4])  # 4: the epoch ends with a short group
@pytest.mark.parametrize(("kind", "args", "reference"), NAMED, ids=IDS)
def test_named_schedules_go_update_by_update_over_the_run(kind, args, reference, accumulate_steps):
    updates = 4 * math.ceil(BATCHES / accumulate_steps)
    rates, trainer = recorded(lr_scheduler_type=kind, lr_scheduler_args=args, accumulate_steps=accumulate_steps)
    assert trainer.global_step == updates
    assert rates == pytest.approx(torch_rates(reference(updates), updates), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("kind", "args", "reference"), NAMED, ids=IDS)
def test_named_schedules_go_epoch_by_epoch_when_asked_to(kind, args, reference):
    rates, _ = recorded(lr_scheduler_type=kind, lr_scheduler_args=args, lr_scheduler_interval="epoch")
    expected = np.repeat(torch_rates(reference(4), 4), BATCHES)
    assert rates == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("accumulate_steps", "mode"), [(1, "linear"), (3, "exponential"), (4, "constant"), (4, "linear")])
@pytest.mark.parametrize(("attributes", "warm_updates"), [
    ({"warm_up_epoch": 0.5}, lambda per_epoch: round(0.5 * per_epoch)),
    ({"warm_up_epoch": 2}, lambda per_epoch: 2 * per_epoch),
    ({"warm_up_epoch": 1.5}, lambda per_epoch: round(1.5 * per_epoch)),
    ({"warm_up_updates": 7}, lambda per_epoch: 7),
], ids=["half an epoch", "two epochs", "one and a half", "seven updates"])
def test_a_warm_up_before_a_schedule_per_update(attributes, warm_updates, mode, accumulate_steps):
    per_epoch = math.ceil(BATCHES / accumulate_steps)
    warm, updates = max(1, warm_updates(per_epoch)), 5 * per_epoch
    rates, _ = recorded(5, lr_scheduler_type="cosine", accumulate_steps=accumulate_steps, warm_up_mode=mode, **attributes)
    expected = [warm_up_rate(k, warm, BASE, mode) for k in range(warm)]
    expected += torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, updates - warm), updates - warm)
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rates[0] == INIT and rates[warm] == BASE  # the first update is warmed up, the schedule starts at the own rate


@pytest.mark.parametrize(("attributes", "warm", "first_stepped_epoch"), [
    ({"warm_up_epoch": 0.5}, 3, 1),   # over in the midst of an epoch, which then counts for the schedule
    ({"warm_up_updates": 7}, 7, 2),
    ({"warm_up_updates": 6}, 6, 2),   # over with an epoch: that one was the warm-up's
    ({"warm_up_updates": 12}, 12, 3),
])
def test_a_warm_up_per_update_before_a_schedule_per_epoch(attributes, warm, first_stepped_epoch):
    rates, _ = recorded(6, lr_scheduler_type="step", lr_scheduler_args={"step_size": 1, "gamma": 0.5}, **attributes)
    steps = [max(0, epoch - first_stepped_epoch + 1) for epoch in range(6)]
    expected = [warm_up_rate(k, warm, BASE, "linear") if k < warm else BASE * 0.5 ** steps[k // BATCHES]
                for k in range(6 * BATCHES)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("attributes", [{"warm_up_epoch": 0.5}, {"warm_up_updates": 7}, {"warm_up_updates": 6},
                                        {"warm_up_epoch": 2}])
def test_a_named_schedule_per_epoch_ends_with_the_run_whatever_the_warm_up(attributes):
    _, trainer = recorded(6, lr_scheduler_type="linear", lr_scheduler_interval="epoch",
                          lr_scheduler_args={"final_ratio": 0.5}, **attributes)
    schedule = trainer.lr_scheduler_list[0]
    assert schedule.last_epoch == schedule.total
    assert lrs(trainer.optimizer_list[0]) == pytest.approx([0.5 * BASE])


@pytest.mark.parametrize("mode", ["linear", "exponential", "constant"])
def test_a_warm_up_of_whole_epochs_goes_epoch_by_epoch_as_in_2021(mode):
    rates, _ = recorded(5, warm_up_epoch=2, warm_up_mode=mode, lr_scheduler_type="annealing")
    per_epoch = [warm_up_rate(0, 2, BASE, mode), warm_up_rate(1, 2, BASE, mode)]
    per_epoch += torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, 15), 3)
    assert rates == pytest.approx(np.repeat(per_epoch, BATCHES).tolist(), rel=1e-9)


def test_a_warm_up_alone_ends_at_the_own_rate_and_stays_there():
    rates, _ = recorded(3, warm_up_updates=7, warm_up_init_lr=1e-3)
    assert rates == pytest.approx([warm_up_rate(k, 7, BASE, "linear", 1e-3) for k in range(18)])
    assert rates[7:] == [BASE] * 11


def test_momentum_and_bias_rates_are_warmed_up_in_a_run():
    model = tiny_model()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.Adam([{"params": others}, {"params": biases, "name": "bias"}], 0.01)
    seen, rates = [], Rates()

    class BiasRates(Callback):
        def on_before_step(self, model):
            seen.append(optimizer.param_groups[1]["lr"])

    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], warm_up_updates=8, warm_up_momentum=0.5,
                           warm_up_bias_lr=0.1, callbacks=[rates, BiasRates()])
    trainer.fit(2)
    shares = [min(k / 8, 1) for k in range(12)]
    assert rates.momenta == pytest.approx([0.5 + 0.4 * share for share in shares])
    assert seen == pytest.approx([0.1 - 0.09 * share for share in shares])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("accumulate_steps", [1, 4])
@pytest.mark.parametrize("interval", ["epoch", "update"])
@pytest.mark.parametrize("make", [
    lambda o: torch_schedulers.StepLR(o, 2, 0.3),
    lambda o: torch_schedulers.MultiStepLR(o, [1, 3], 0.1),
    lambda o: torch_schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    lambda o: torch_schedulers.OneCycleLR(o, 0.3, total_steps=100),
    lambda o: torch_schedulers.SequentialLR(o, [torch_schedulers.ConstantLR(o, 0.5, 2),
                                                torch_schedulers.ExponentialLR(o, 0.9)], [2]),
], ids=["StepLR", "MultiStepLR", "LambdaLR", "OneCycleLR", "SequentialLR"])
def test_schedulers_of_the_user_step_at_the_chosen_interval(make, interval, accumulate_steps):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), BASE, momentum=0.9)
    rates, _ = recorded(4, model=model, optimizer_list=[optimizer], lr_scheduler_list=[make(optimizer)],
                        lr_scheduler_interval=interval, accumulate_steps=accumulate_steps)
    per_epoch = math.ceil(BATCHES / accumulate_steps)
    if interval == "update":
        expected = torch_rates(make, 4 * per_epoch)
    else:
        expected = np.repeat(torch_rates(make, 4), per_epoch).tolist()
    assert rates == pytest.approx(expected, rel=1e-12)


def test_several_optimizers_each_follow_their_schedule_from_their_own_rate():
    models = [tiny_model(), nn.Linear(3, 3)]
    optimizers = [torch.optim.SGD(models[0].parameters(), 0.1), torch.optim.Adam(models[1].parameters(), 0.02)]
    seen = []

    class BothRates(Callback):
        def on_before_step(self, model):
            seen.append([lrs(optimizer)[0] for optimizer in optimizers])

    trainer = tiny_trainer(model_list=models, optimizer_list=optimizers, lr_scheduler_type="cosine", warm_up_updates=2,
                           callbacks=[BothRates()])
    trainer.fit(2)
    for index, base in enumerate((0.1, 0.02)):
        expected = [warm_up_rate(k, 2, base, "linear") for k in range(2)]
        expected += torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, 10), 10, lr=base)
        assert [rates[index] for rates in seen] == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- plateau schedules ----------------------------------------------------------------------------------------------


def plateau_run(values, evals_per_epoch=1, **attributes):
    """Rates at each epoch's start while ``metric`` gives ``values[epoch - 1]``, and the eval losses."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), BASE)
    make = attributes.pop("make", None)
    if make is not None:
        attributes["lr_scheduler_list"] = [make(optimizer)]
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer],
                           metric=lambda pred, y: {"score": values[trainer.epoch - 1]}, preflight=False, **attributes)
    rates, losses = [], []
    for _ in trainer.epochs(len(values)):
        rates.append(lrs(optimizer)[0])
        trainer.train_loop()
        for _ in range(evals_per_epoch):
            trainer.eval(save_per_epochs=0)
        losses.append(trainer.eval_result["tol_loss"])
    return rates, losses


def plateau_rates(values, **options):
    optimizer = optimizer_of(BASE)
    plateau = torch_schedulers.ReduceLROnPlateau(optimizer, **options)
    rates = []
    for value in values:
        rates.append(lrs(optimizer)[0])
        plateau.step(value)
    return rates


VALUES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.4, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("evals_per_epoch", [1, 2])
def test_a_plateau_of_the_user_steps_with_the_key_metric_once_per_epoch(evals_per_epoch):
    options = {"mode": "max", "patience": 1, "factor": 0.5}
    rates, _ = plateau_run(VALUES, evals_per_epoch, make=lambda o: torch_schedulers.ReduceLROnPlateau(o, **options))
    expected = plateau_rates(VALUES, **options)
    assert rates == pytest.approx(expected) and len(set(expected)) > 2


def test_a_plateau_of_the_user_with_mode_min_steps_with_the_eval_loss():
    options = {"mode": "min", "patience": 0, "factor": 0.5, "threshold": 0.2}
    rates, losses = plateau_run(VALUES, make=lambda o: torch_schedulers.ReduceLROnPlateau(o, **options))
    expected = plateau_rates(losses, **options)
    assert rates == pytest.approx(expected) and len(set(expected)) > 2


@pytest.mark.parametrize("mode", ["max", "min"])
def test_type_metric_steps_with_the_key_metric_in_its_own_direction(mode):
    args = {"patience": 0, "cooldown": 0, "factor": 0.5}
    values = VALUES if mode == "max" else [-value for value in VALUES]
    rates, _ = plateau_run(values, lr_scheduler_type="metric", lr_scheduler_args=args, key_metric="score",
                           key_metric_mode=mode)
    expected = plateau_rates(values, mode=mode, min_lr=1e-9, **args)
    assert rates == pytest.approx(expected) and len(set(expected)) > 2


def test_type_loss_steps_with_the_eval_loss():
    args = {"patience": 0, "cooldown": 0, "factor": 0.5, "threshold": 0.2}
    rates, losses = plateau_run(VALUES, lr_scheduler_type="loss", lr_scheduler_args=args)
    expected = plateau_rates(losses, mode="min", min_lr=1e-9, **args)
    assert rates == pytest.approx(expected) and len(set(expected)) > 2


def test_a_plateau_waits_for_epochs_that_are_evaluated_and_for_the_warm_up():
    options = {"mode": "max", "patience": 0, "factor": 0.5}
    rates = Rates()
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), BASE)
    trainer = tiny_trainer(model=model, optimizer_list=[optimizer], metric=lambda pred, y: {"score": 1.0}, warm_up_epoch=1,
                           lr_scheduler_list=[torch_schedulers.ReduceLROnPlateau(optimizer, **options)], callbacks=[rates])
    for epoch in trainer.epochs(8):
        trainer.train_loop()
        if epoch % 2 == 0:
            trainer.eval(save_per_epochs=0)
    # the first epoch warms up; the evaluations of epochs 2, 4, 6 are seen, and 4 and 6 are no better than 2
    factors = [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates.rates[BATCHES::BATCHES] == pytest.approx([BASE * factor for factor in factors])


def test_a_plateau_without_a_value_says_what_to_call():
    trainer = tiny_trainer(lr_scheduler_type="metric")
    trainer.epoch = 1
    with pytest.raises(ValueError, match=r"update_lr_scheduler\(key_metric=…\)"):
        trainer.update_lr_scheduler(avg_batch_loss=1.0)


# --- each moment counts once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["step", "annealing", "metric"])
def test_calling_update_lr_scheduler_by_hand_in_the_same_epoch_steps_no_second_time(kind):
    args = {"step": {"step_size": 1}, "annealing": {}, "metric": {"patience": 0, "cooldown": 0, "threshold": 10}}[kind]
    seen = []
    for by_hand in (0, 2):
        rates = Rates()
        trainer = tiny_trainer(lr_scheduler_type=kind, lr_scheduler_args=args, warm_up_epoch=1, callbacks=[rates])
        for _ in range(5):
            trainer.train_loop()
            score = trainer.eval(save_per_epochs=0)
            for _ in range(by_hand):
                trainer.update_lr_scheduler(key_metric=score, avg_batch_loss=1.0)
        seen.append(rates.rates)
    assert seen[0] == seen[1] and len(set(seen[0])) > 3


def test_a_test_or_second_evaluation_steps_nothing():
    trainer = tiny_trainer(lr_scheduler_type="step", lr_scheduler_args={"step_size": 1, "gamma": 0.5})
    trainer.eval()
    trainer.train_loop()
    trainer.eval()
    trainer.eval()
    trainer.test()
    assert lrs(trainer.optimizer_list[0]) == [BASE * 0.5]


@pytest.mark.parametrize("attributes", [
    {"lr_scheduler_type": "cosine", "warm_up_epoch": 0.5}, {"lr_scheduler_type": "step", "warm_up_epoch": 1},
    {"lr_scheduler_type": "metric"}, {"lr_scheduler_type": "onecycle", "accumulate_steps": 4},
    {"lr_scheduler_type": "annealing", "lr_scheduler_interval": "update"},
])
def test_torch_has_nothing_to_say_about_the_order_of_the_steps(attributes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_trainer(**attributes).fit(3)
    assert not [str(warning.message) for warning in caught if "lr_scheduler" in str(warning.message)]


def test_nor_where_fp16_skips_the_first_update_or_a_train_step_leaves_an_optimizer_out():
    def train_step(batch):
        loss = trainer.criterion(trainer.inference(batch[0]), batch[1])
        trainer.backward(loss)
        trainer.update(0)
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = tiny_trainer(amp="fp16", lr_scheduler_type="cosine", criterion=lambda pred, y: pred.float().sum() * 1e6,
                               preflight=False)
        trainer.fit(1)
        assert trainer.stepper.scaler.get_scale() < 65536
        models = [tiny_model(), nn.Linear(3, 3)]
        trainer = tiny_trainer(model_list=models, optimizer_list=[torch.optim.SGD(m.parameters(), 0.1) for m in models],
                               lr_scheduler_type="cosine", train_step=train_step, preflight=False)
        trainer.fit(1)
    assert not [str(warning.message) for warning in caught if "lr_scheduler" in str(warning.message)]


# --- the length of the run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential", "polynomial", "onecycle"])
def test_a_named_schedule_in_a_plain_loop_needs_total_epochs(kind):
    trainer = tiny_trainer(lr_scheduler_type=kind)
    with pytest.raises(ValueError, match=f"lr_scheduler_type='{kind}' needs the length of the run.*total_epochs"):
        trainer.train_loop()
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type=kind, total_epochs=3, callbacks=[rates])
    for _ in range(3):
        trainer.train_loop()
    expected, _ = recorded(3, lr_scheduler_type=kind)
    assert rates.rates == expected


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(torch.randn(20, 6), torch.zeros(20).long()))


def test_without_a_length_of_the_epoch_a_schedule_per_update_is_refused_and_one_per_epoch_works():
    loader = DataLoader(Endless(), 10)
    with pytest.raises(ValueError, match=r"no len\(\).*lr_scheduler_interval='epoch'"):
        tiny_trainer(train_loader=loader, lr_scheduler_type="cosine").fit(2)
    with pytest.raises(ValueError, match=r"no len\(\).*warm_up_updates"):
        tiny_trainer(train_loader=loader, warm_up_epoch=0.5)
    rates, _ = recorded(4, train_loader=loader, lr_scheduler_type="cosine", lr_scheduler_interval="epoch")
    expected = np.repeat(torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, 4), 4), 2)
    assert rates == pytest.approx(expected.tolist())


@pytest.mark.parametrize("attributes", [{"warm_up_epoch": 1}, {"warm_up_epoch": 0.5}, {"warm_up_updates": 3}])
def test_onecycle_with_a_warm_up_is_refused(attributes):
    with pytest.raises(ValueError, match="'onecycle' warms up by itself"):
        tiny_trainer(lr_scheduler_type="onecycle", **attributes)


@pytest.mark.parametrize("interval", ["epoch", "update"])
def test_a_run_that_is_made_longer_follows_the_longer_schedule_from_its_first_update_on(interval):
    rates = Rates()
    trainer = tiny_trainer(lr_scheduler_type="cosine", lr_scheduler_interval=interval, callbacks=[rates])
    trainer.fit(3)
    assert lrs(trainer.optimizer_list[0]) == pytest.approx([0.0])
    trainer.fit(6)
    steps = 6 if interval == "epoch" else 6 * BATCHES
    expected = torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, steps), steps)
    expected = expected if interval == "update" else np.repeat(expected, BATCHES).tolist()
    assert rates.rates[3 * BATCHES:] == pytest.approx(expected[3 * BATCHES:])


@pytest.mark.parametrize("total_epochs, length", [(None, 3), (6, 6)])
def test_a_length_that_is_known_is_not_replaced_by_the_one_of_a_checkpoint(total_epochs, length):
    tiny_trainer(lr_scheduler_type="cosine", ckpt_dir="run").fit(3)
    rates = Rates()
    again = tiny_trainer(lr_scheduler_type="cosine", ckpt_dir="run", callbacks=[rates], total_epochs=total_epochs)
    again.load_state("run/epoch2.pth")
    again.train_loop()
    expected = torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, length * BATCHES), 3 * BATCHES)
    assert rates.rates == pytest.approx(expected[2 * BATCHES:])


# --- state, and rates set by hand -----------------------------------------------------------------------------------

CONFIGURATIONS = {
    "cosine": {"lr_scheduler_type": "cosine"},
    "warm-up and cosine": {"lr_scheduler_type": "cosine", "warm_up_updates": 7, "warm_up_momentum": 0.5},
    "warm-up and cosine per epoch": {"lr_scheduler_type": "cosine", "lr_scheduler_interval": "epoch", "warm_up_updates": 6},
    "onecycle": {"lr_scheduler_type": "onecycle"},
    "2021": {"lr_scheduler_type": "step", "lr_scheduler_args": {"step_size": 1, "gamma": 0.5}, "warm_up_epoch": 2},
    "annealing": {"lr_scheduler_type": "annealing", "warm_up_epoch": 0.5, "warm_up_mode": "exponential"},
    "metric": {"lr_scheduler_type": "metric", "lr_scheduler_args": {"patience": 0, "cooldown": 0}, "warm_up_epoch": 1},
}


class Drive:
    """What the loop does to the schedule, without training: a state can be taken between any two moments."""

    def __init__(self, attributes):
        self.trainer = tiny_trainer(total_epochs=5, preflight=False, **attributes)
        self.optimizer, self.schedule = self.trainer.optimizer_list[0], self.trainer.lr_schedule

    def read(self):
        group = self.optimizer.param_groups[0]
        return group["lr"], group["momentum"]

    def moments(self):
        for epoch in range(1, 6):
            for _ in range(BATCHES):
                yield lambda: (self.optimizer.step(), self.schedule.after_update())
            yield lambda epoch=epoch: self.schedule.after_epoch(epoch)
            yield lambda epoch=epoch: self.schedule.after_epoch(epoch, key_metric=-epoch, loss=epoch)

    def run(self, start=0):
        """Rates before each moment from the ``start``-th on, with the state there."""
        for number, moment in enumerate(self.moments()):
            if number >= start:
                yield self.read(), {"schedule": self.schedule.state_dict(), "optimizer": self.optimizer.state_dict()}
                moment()

    def restore(self, state):
        self.schedule.load_state_dict(state["schedule"])
        self.optimizer.load_state_dict(state["optimizer"])
        return self


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_restored_at_any_moment_the_remaining_rates_are_the_same(name):
    rates, states = zip(*((rate, through_a_file(state)) for rate, state in Drive(CONFIGURATIONS[name]).run()))
    assert len(set(rates)) > 3
    for start in range(0, len(rates), 3):
        restored = Drive(CONFIGURATIONS[name]).restore(states[start])
        assert [rate for rate, _ in restored.run(start)] == list(rates[start:]), f"restored before moment {start}"


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "metric"])
def test_after_change_lr_the_rates_go_on_in_proportion(name):
    usual = [rate for (rate, _), _ in Drive(CONFIGURATIONS[name]).run()]
    drive = Drive(CONFIGURATIONS[name])
    changed = 25  # behind every warm-up
    for number, ((rate, _), _) in enumerate(drive.run()):
        if number < changed:
            assert rate == usual[number]
        elif number == changed:
            drive.trainer.change_lr([0.033])  # the moment follows
            assert drive.read()[0] == 0.033
        else:
            assert rate == pytest.approx(usual[number] * 0.033 / usual[changed], rel=1e-6, abs=1e-15)


def test_after_change_lr_a_plateau_goes_on_from_the_new_rate():
    trainer = tiny_trainer(lr_scheduler_type="metric", lr_scheduler_args={"patience": 0, "cooldown": 0, "factor": 0.5})
    for epoch, metric in enumerate((1.0, 2.0, 1.0, 3.0, 1.0), 1):
        if epoch == 2:
            trainer.change_lr([0.04])
        trainer.lr_schedule.after_epoch(epoch, key_metric=metric)
    assert lrs(trainer.optimizer_list[0]) == pytest.approx([0.01])


@pytest.mark.parametrize("before", [0, 1, 4, 6])
def test_change_lr_during_a_warm_up_sets_its_goal(before):
    attributes = {"lr_scheduler_type": "cosine", "warm_up_updates": 7}
    usual = [warm_up_rate(k, 7, 0.04, "linear") for k in range(7)]
    usual += torch_rates(lambda o: torch_schedulers.CosineAnnealingLR(o, 23), 23, lr=0.04)
    drive = Drive(attributes)
    for k in range(30):
        if k == before:
            drive.trainer.change_lr([0.04])
        if k >= before:
            assert drive.read()[0] == pytest.approx(usual[k], rel=1e-9)
        drive.optimizer.step()
        drive.schedule.after_update()


def test_change_lr_needs_one_rate_per_optimizer():
    with pytest.raises(ValueError, match=r"one rate per optimizer \(1\), got \[0.1, 0.2\]"):
        tiny_trainer().change_lr([0.1, 0.2])


def test_a_file_without_a_schedule_is_caught_up_with():
    for name in ("cosine", "2021", "annealing"):
        usual = [rate for (rate, _), _ in Drive(CONFIGURATIONS[name]).run()]
        drive = Drive(CONFIGURATIONS[name])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drive.schedule.fast_forward(epochs=3, updates=3 * BATCHES)
        start = 3 * (BATCHES + 2)
        assert [rate for (rate, _), _ in drive.run(start)] == pytest.approx(usual[start:])
