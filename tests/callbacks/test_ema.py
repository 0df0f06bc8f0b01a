"""The exponential moving average of the weights: against torch's ``AveragedModel`` in plain loops, and a closed form."""

import copy
import math
import os

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights, whole_and_continued
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from template import EMA, Callback
from template.tools.throughput import throughput

X, Y = tiny_data()
BATCHES = list(zip(X.split(10), Y.split(10)))  # 6
EVAL_X, EVAL_Y = tiny_data(23, seed=5)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trainer_of(*callbacks, check_init=True, **attributes):
    model = attributes.pop("model", None) or tiny_model(dropout=0.0)
    trainer = Tiny(model=model, callbacks=list(callbacks),
                   **{"train_loader": BATCHES, "eval_loader": [(EVAL_X, EVAL_Y)], **attributes})
    if check_init:
        trainer.check_init(use_tb=False)
    return trainer


def vector(model):
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def plain(epochs, decay=0.9, every=1, warm_up=False, model=None, batches=BATCHES):
    """``(the model, its AveragedModel)`` after a plain loop."""
    model = tiny_model(dropout=0.0) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step = 0

    def rule(averages, weights, num):
        now = min(decay, (1 + int(num)) / (10 + int(num))) if warm_up else decay
        get_ema_multi_avg_fn(now)(averages, weights, num)

    average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    for _ in range(epochs):
        for x, y in batches:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == 1 or step % every == 0:
                average.update_parameters(model)
    return model, average.module


def model_in(path, key="model0"):
    model = tiny_model(dropout=0.0)
    model.load_state_dict(torch.load(path, weights_only=True)[key])
    return vector(model)


def loss_of(model):
    return nn.functional.cross_entropy(model.eval()(EVAL_X), EVAL_Y).item()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"decay": 0.9, "warm_up": False}, {"decay": 0.9}, {"decay": 0.5, "every": 4},
                                       {"decay": 0.9, "every": 5, "warm_up": False}], ids=str)
def test_it_is_what_torch_s_averaged_model_makes_in_a_plain_loop_and_training_is_as_without_it(arguments):
    ema = EMA(**arguments)
    trainer = trainer_of(ema, ckpt_dir="run")
    trainer.fit(3)
    model, average = plain(3, **{"warm_up": True, **arguments})
    assert torch.equal(weights(trainer), vector(model)) and not torch.equal(vector(model), vector(average))
    assert trainer.eval_result["tol_loss"] == loss_of(average)
    assert trainer.test()["tol_loss"] == loss_of(average)
    assert torch.equal(trainer.predict(EVAL_X), average(EVAL_X).detach())
    ema.save("average.pth")
    trainer.save_state("weights.pth", optim=False)
    trainer.save_model("model.pth")
    assert torch.equal(model_in("average.pth"), vector(average)) and torch.equal(model_in("weights.pth"), vector(average))
    assert torch.equal(vector(torch.load("model.pth", weights_only=False)["model0"]), vector(average))
    trainer.save_state("whole.pth")
    for path in ("run/last.pth", "run/epoch3.pth", "whole.pth"):
        assert torch.equal(model_in(path), vector(model)), path
    assert torch.equal(weights(trainer), vector(model))


def test_of_weights_that_move_by_one_each_update_it_is_the_closed_form():
    """Behind update n the weight is n: the average is n - d * (1 - d^(n-1)) / (1 - d)."""
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return self.w.expand(len(x))

    ema = EMA(0.8, warm_up=False)
    trainer = trainer_of(ema, model=Counting(), check_init=False, preflight=False)
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 1.0)]
    trainer.criterion = lambda pred, y: -pred.mean()
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    expected = 12 - 0.8 * (1 - 0.8 ** 11) / (1 - 0.8)
    assert trainer.model_list[0].w.item() == 12.0
    assert trainer.predict(torch.zeros(1, 6)).item() == pytest.approx(expected, rel=1e-12)


def test_best_pth_holds_the_average_of_the_epoch_that_scored_best():
    trainer = trainer_of(EMA(0.9), ckpt_dir="run", key_metric="tol_loss")
    trainer.fit(4)
    losses = [loss_of(plain(epoch, warm_up=True)[1]) for epoch in range(1, 5)]
    best = min(range(4), key=lambda epoch: (losses[epoch], -epoch)) + 1
    assert trainer.best_metric["tol_loss"] == min(losses)
    assert torch.equal(model_in("run/best.pth"), vector(plain(best, warm_up=True)[1]))


class Normed(nn.Module):
    """With statistics, a counter of whole numbers, a mask of minus infinities and something that no state holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, -math.inf]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu())


def test_statistics_of_batchnorm_are_averaged_and_buffers_that_cannot_be_are_left_alone():
    trainer = trainer_of(EMA(0.9, warm_up=False), model=Normed(), ckpt_dir="run", preflight=False)
    trainer.fit(2)
    model, average = plain(2, model=Normed())
    saved = torch.load("run/best.pth", weights_only=True)["model0"]
    if trainer.best_epoch[trainer.key_metric] == 2:
        for name in ("norm.running_mean", "norm.running_var", "a.weight"):
            assert torch.equal(saved[name], average.state_dict()[name]), name
    assert saved["norm.num_batches_tracked"] in (6, 12) and saved["mask"].tolist() == [0.0, -math.inf, -math.inf]
    assert average.norm.num_batches_tracked < 12  # torch rounds a mean of whole numbers down
    assert torch.equal(weights(trainer), vector(model))


def test_averages_of_half_precision_weights_are_kept_in_float32():
    """In bfloat16 one thousandth of a small step is nothing."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.zeros_(model.weight)
    ema = EMA(0.999, warm_up=False)
    trainer = trainer_of(ema, model=model, check_init=False, preflight=False, eval_loader=None,
                         train_loader=[(torch.zeros(1, 1), torch.zeros(1))] * 40)
    trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 1.0)]
    trainer.criterion = lambda pred, y: 0 * pred.sum() + 0 * model.weight.sum() - model.weight.sum()
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    value = torch.load(trainer.path_of("last.pth"), weights_only=True) if trainer.path_of("last.pth").exists() else None
    expected = 40 - 0.999 * (1 - 0.999 ** 39) / (1 - 0.999)
    (average,) = ema.state_dict()["average"]["values"].values()
    assert value is None and average.dtype == torch.float32 and average.item() == pytest.approx(expected, rel=1e-5)


# --- which updates count ----------------------------------------------------------------------------------------------


def test_an_update_that_is_skipped_because_of_its_loss_does_not_count(capsys):
    spoiled = list(BATCHES)
    spoiled[0] = (torch.full_like(X[:10], math.nan), Y[:10])
    spoiled[3] = (torch.full_like(X[:10], math.inf), Y[:10])
    ema = EMA(0.9)
    trainer = trainer_of(ema, train_loader=spoiled, skip_non_finite=2, preflight=False)
    trainer.fit(2)
    model, average = plain(2, warm_up=True, batches=[BATCHES[i] for i in (1, 2, 4, 5)])
    assert trainer.skipped_updates == 4 and ema.updates == 8
    assert torch.equal(weights(trainer), vector(model))
    assert torch.equal(trainer.predict(EVAL_X), average(EVAL_X).detach())


@pytest.mark.parametrize("fused", [False, True], ids=["the host decides", "the device decides"])
def test_an_update_that_the_loss_scaler_skips_does_not_count(fused):
    """Against a loop with a scaler of its own. Its first scales overflow, so the first updates are skipped."""
    def make(model):
        return torch.optim.AdamW(model.parameters(), 0.01, fused=fused)

    trainer = trainer_of(EMA(0.9, warm_up=False), check_init=False, amp="fp16", preflight=False)
    trainer.optimizer_list = [make(trainer.model_list[0])]
    trainer.check_init(use_tb=False)
    trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 20, growth_interval=5)
    model = tiny_model(dropout=0.0)
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu", init_scale=2.0 ** 20, growth_interval=5)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    skipped = 0
    trainer.fit(3)
    for _ in range(3):
        for x, y in BATCHES:
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scaler.get_scale() < before:
                skipped += 1
            else:
                average.update_parameters(model)
    assert 18 > skipped > 1
    torch.testing.assert_close(weights(trainer), vector(model), rtol=1e-6, atol=1e-7)
    with trainer.lifetime.weights.for_use():
        torch.testing.assert_close(weights(trainer), vector(average.module), rtol=1e-6, atol=1e-7)


def test_an_accumulated_update_counts_once():
    ema = EMA(0.9)
    trainer_of(ema, accumulate_steps=4).fit(2)
    assert ema.updates == 4


def test_a_train_step_that_steps_by_itself_counts_and_one_that_does_not_step_does_not():
    class Own(Tiny):
        def train_step(self, batch):
            loss = self.loss_per_batch(batch)["tol_loss"]
            if self.batches_done % 2 == 0:
                loss.backward()
                self.optimizer_list[0].step()
            self.update(step=False)
            return {"tol_loss": loss}

    ema = EMA(0.9)
    trainer = Own(model=tiny_model(dropout=0.0), train_loader=BATCHES, callbacks=[ema], preflight=False, eval_loader=None)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.global_step == 6 and ema.updates == 3


def test_an_optimizer_that_has_no_hooks_is_taken_to_be_stepped_in_each_update():
    class Wrapper:
        """As people write a Lookahead."""

        def __init__(self, inner):
            self.inner = inner
            self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            return getattr(self.inner, name)

    ema = EMA(0.9)
    trainer = trainer_of(ema, check_init=False)
    ema._steps.watch([Wrapper(trainer.optimizer_list[0])])
    assert ema._steps.take() == (True, None) and ema._steps.take() == (True, None)


# --- models -----------------------------------------------------------------------------------------------------------


def test_frozen_parameters_cost_nothing_and_take_part_from_their_first_update_on():
    class Unfreezes(Callback):
        def on_after_step(self, model):
            if model.global_step == 7:
                model.model_list[0][0].requires_grad_(True)

    ema = EMA(0.9, warm_up=False)
    net = tiny_model(dropout=0.0)
    net[0].requires_grad_(False)
    frozen = net[0].weight.detach().clone()
    trainer = trainer_of(ema, Unfreezes(), model=net, preflight=False)
    trainer.fit(1)
    assert set(ema.state_dict()["average"]["values"]) == {"model0.3.weight", "model0.3.bias"}
    trainer.fit(2)
    values = ema.state_dict()["average"]["values"]
    assert set(values) == {f"model0.{name}" for name in ("0.weight", "0.bias", "3.weight", "3.bias")}
    now = net[0].weight
    assert not torch.equal(now, frozen) and not torch.equal(values["model0.0.weight"], now)
    assert (values["model0.0.weight"] - frozen).abs().max() < (now - frozen).abs().max() * 1.5


def test_looking_behind_a_resume_begins_no_average_of_what_is_trained_from_then_on():
    def continued(*looks):
        ema, net = EMA(0.9, warm_up=False), tiny_model(dropout=0.0)
        trainer = trainer_of(ema, model=net, ckpt_dir="run", preflight=False)
        trainer.load_state("run/epoch1.pth")
        net[0].requires_grad_(True)
        for look in looks:
            look(trainer)
        trainer.fit(2)
        return ema.state_dict()["average"]["values"]

    net = tiny_model(dropout=0.0)
    net[0].requires_grad_(False)
    trainer_of(EMA(0.9, warm_up=False), model=net, ckpt_dir="run", preflight=False).fit(1)
    plain_one, looked = continued(), continued(lambda trainer: trainer.predict(EVAL_X), lambda trainer: trainer.test())
    assert plain_one.keys() == looked.keys() and len(looked) == 4
    assert all(torch.equal(plain_one[name], value) for name, value in looked.items())


def test_several_models_and_weights_that_two_of_them_share():
    class Two(Tiny):
        def __init__(self, **attributes):
            first = tiny_model(dropout=0.0)
            super().__init__(model=first, **attributes)
            second = nn.Linear(3, 3)
            second.weight = nn.Parameter(torch.eye(3))
            third = nn.Linear(3, 3)
            third.weight = second.weight
            self.model_list = [first, second, third]
            self.optimizer_list = [torch.optim.SGD({p for m in self.model_list for p in m.parameters()}, 0.1)]

    ema = EMA(0.5, warm_up=False)
    torch.manual_seed(0)
    trainer = Two(callbacks=[ema], train_loader=BATCHES, eval_loader=[(EVAL_X, EVAL_Y)], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    saved = torch.load("run/best.pth", weights_only=True)
    values = ema.state_dict()["average"]["values"]
    assert torch.equal(saved["model1"]["weight"], values["model1.weight"])
    assert torch.equal(saved["model2"]["weight"], values["model1.weight"]) and "model2.weight" not in values
    assert not torch.equal(values["model1.weight"], trainer.model_list[1].weight)
    assert set(values) >= {"model0.0.weight", "model2.bias"}


def test_weights_of_a_criterion_are_averaged_with_the_models():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pred, y):
            return nn.functional.cross_entropy(pred * self.scale, y)

    ema = EMA(0.5)
    criterion = Scaled()
    trainer = trainer_of(ema, check_init=False, criterion=criterion, ckpt_dir="run")
    trainer.optimizer_list = [torch.optim.SGD([*trainer.model_list[0].parameters(), criterion.scale], 0.1)]
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    average = ema.state_dict()["average"]["values"]["criterion.scale"]
    assert torch.load("run/best.pth", weights_only=True)["criterion"]["scale"] == average != criterion.scale


@pytest.mark.slow
def test_a_compiled_model_is_averaged_under_the_names_of_the_plain_one():
    ema = EMA(0.9)
    trainer = trainer_of(ema, compile=True, ckpt_dir="run")
    trainer.fit(2)
    ema.save("average.pth")
    _, average = plain(2, warm_up=True)
    torch.testing.assert_close(model_in("average.pth"), vector(average), rtol=1e-5, atol=1e-6)
    assert not any("_orig_mod" in name for name in ema.state_dict()["average"]["values"])


# --- looking, errors --------------------------------------------------------------------------------------------------


def test_looking_in_the_middle_of_an_epoch_changes_no_bit_of_training_or_average():
    class Looks(Callback):
        def on_after_step(self, model):
            if model.global_step % 2:
                model.eval()
                model.test()
                model.predict(EVAL_X)
                model.save_state("anything.pth", optim=False)

    trainer = trainer_of(EMA(0.9), Looks(), save_per_steps=3)
    trainer.fit(3)
    model, average = plain(3, warm_up=True)
    assert torch.equal(weights(trainer), vector(model))
    assert torch.equal(trainer.predict(EVAL_X), average(EVAL_X).detach())


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_weights_are_back_behind_an_evaluation_that_failed_or_was_interrupted(error):
    def fails(pred, y):
        raise error

    trainer = trainer_of(EMA(0.9), ckpt_dir="run")
    trainer.fit(1)
    metric, trainer.metric = trainer.metric, fails
    for look in (trainer.eval, trainer.test):
        with pytest.raises(error):
            look()
        assert torch.equal(weights(trainer), vector(plain(1)[0]))
    trainer.metric = metric
    trainer.fit(3)
    model, average = plain(3, warm_up=True)
    assert torch.equal(weights(trainer), vector(model)) and torch.equal(model_in("run/last.pth"), vector(model))
    assert torch.equal(trainer.predict(EVAL_X), average(EVAL_X).detach())


def test_a_save_in_the_midst_of_an_evaluation_holds_the_weights_of_the_training():
    class Saves(Callback):
        def on_eval_batch(self, model, batch):
            model.save_state("within.pth")
            model.checkpoints.save_last()
            model.wait_for_saves()
            self.seen = weights(model)

    saves = Saves()
    trainer = trainer_of(EMA(0.9), saves, ckpt_dir="run")
    trainer.train_loop()
    trainer.test()
    model, average = plain(1, warm_up=True)
    assert torch.equal(model_in("within.pth"), vector(model)) and torch.equal(model_in("run/last.pth"), vector(model))
    assert torch.equal(saves.seen, vector(average)) and torch.equal(weights(trainer), vector(model))


def test_what_a_tool_steps_on_trial_does_not_count():
    ema = EMA(0.9)
    trainer = trainer_of(ema)
    trainer.fit(1)
    throughput(trainer)
    trainer.skip_non_finite = 1
    trainer.train_loader = [(torch.full_like(X[:10], math.nan), Y[:10]), *BATCHES[1:]]
    trainer.fit(2)
    assert ema.updates == 11 and trainer.skipped_updates == 1


def test_before_the_first_update_there_is_no_average_to_use_or_to_save():
    ema = EMA()
    with pytest.raises(RuntimeError, match="there is none yet: it begins with the first update"):
        ema.save("x.pth")
    trainer = trainer_of(ema)
    assert torch.equal(trainer.predict(EVAL_X), tiny_model(dropout=0.0)(EVAL_X).detach())
    trainer.eval()
    with pytest.raises(RuntimeError, match="there is none yet"):
        ema.save("x.pth")
    assert not os.path.exists("x.pth")


# --- resume -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("update", [6, 9, 12])  # at the end of an epoch, in its middle
@pytest.mark.parametrize("every", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(update, every):
    class Kill(Callback):
        def on_log(self, model, values):
            if model.global_step == update + 1:
                raise Killed

    with pytest.raises(Killed):
        trainer_of(EMA(0.9, every), Kill(), ckpt_dir="run", save_per_steps=3, log_per_step=1, model=Normed(),
                   preflight=False).fit(3)
    os.unlink("run/crashed.pth")
    ema = EMA(0.9, every)
    again = trainer_of(ema, ckpt_dir="run", model=Normed(), preflight=False)
    again.load_state("auto")
    assert again.global_step == update
    with torch.no_grad():
        assert torch.equal(again.predict(EVAL_X), again.predict(EVAL_X))
    again.fit(3)
    whole = EMA(0.9, every)
    trainer_of(whole, model=Normed(), preflight=False).fit(3)
    for name, value in whole.state_dict()["average"]["values"].items():
        assert torch.equal(ema.state_dict()["average"]["values"][name], value), name
    assert torch.equal(weights(again), vector(plain(3, model=Normed())[0]))


def test_new_objects_that_continue_with_dropout_and_fp16_end_with_the_same_bits():
    def build(ckpt_dir):
        trainer = Tiny(callbacks=[EMA(0.9)], ckpt_dir=ckpt_dir, amp="fp16", accumulate_steps=2)
        trainer.check_init(use_tb=False)
        return trainer

    whole, continued = whole_and_continued(build, 3, 1)
    assert torch.equal(weights(whole), weights(continued))
    assert torch.equal(whole.predict(EVAL_X), continued.predict(EVAL_X)) and whole.eval_result == continued.eval_result


def test_a_checkpoint_from_before_the_ema_begins_a_new_average(capsys):
    trainer_of(ckpt_dir="run").fit(2)
    ema = EMA(0.9)
    trainer = trainer_of(ema, ckpt_dir="run")
    trainer.fit(1)  # an average of other weights
    trainer.load_state("run/epoch2.pth")
    assert "callback EMA starts afresh: the file holds no state of it" in capsys.readouterr().out
    model, _ = plain(2)
    assert torch.equal(trainer.predict(EVAL_X), model(EVAL_X).detach()) and ema.updates == 0
    trainer.fit(3)
    continued = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    assert ema.updates == 6 and continued.n_averaged == 0
    assert not torch.equal(trainer.predict(EVAL_X), plain(3)[0](EVAL_X).detach())


def test_a_run_goes_on_without_the_ema_too(capsys):
    trainer_of(EMA(0.9), ckpt_dir="run").fit(2)
    trainer = trainer_of(ckpt_dir="run")
    trainer.load_state("auto")
    assert "the state of callback EMA is not used: there is no such callback now" in capsys.readouterr().out
    trainer.fit(3)
    assert torch.equal(weights(trainer), vector(plain(3)[0]))


def test_a_key_metric_of_the_training_keeps_the_average_of_its_best_epoch():
    ema = EMA(0.9)
    trainer = trainer_of(ema, key_metric="train/tol_loss", eval_loader=None, ckpt_dir="run")
    trainer.fit(3)
    assert trainer.best_epoch == {"train/tol_loss": 3}
    ema.save("average.pth")
    best, average, last = (torch.load(name, weights_only=True)["model0"] for name in
                           ("run/best.pth", "average.pth", "run/last.pth"))
    assert all(torch.equal(best[name], average[name]) for name in best)
    assert not all(torch.equal(best[name], last[name]) for name in best)


def test_use_best_takes_the_average_as_it_is_and_training_behind_it_begins_a_new_one():
    ema = EMA(0.9)
    trainer = trainer_of(ema, ckpt_dir="run")
    trainer.fit(2)
    best = model_in("run/best.pth")
    ema.save("newest.pth")
    trainer.use_best()
    assert torch.equal(weights(trainer), best)
    expected = copy.deepcopy(trainer.model_list[0]).eval()(EVAL_X).detach()
    assert torch.equal(trainer.predict(EVAL_X), expected) and torch.equal(trainer.predict(EVAL_X), expected)
    assert trainer.test()["tol_loss"] == loss_of(trainer.model_list[0])
    ema.save("again.pth")  # the average of the training is still there
    assert torch.equal(model_in("again.pth"), model_in("newest.pth")) and torch.equal(weights(trainer), best)
    trainer.train_loop()
    assert ema.updates == 6
    trainer.load_state("run/last.pth")
    assert torch.equal(weights(trainer), vector(plain(2)[0])) and ema.updates == 12
    assert torch.equal(trainer.predict(EVAL_X), plain(2, warm_up=True)[1](EVAL_X).detach())


def test_a_state_that_does_not_fit_leaves_the_average():
    ema = EMA(0.9)
    trainer = trainer_of(ema)
    trainer.fit(1)
    torch.save({"model0": {"0.weight": torch.zeros(1)}, "optimizer_list0": {}}, "other.pth")
    for optim in (True, False):
        with pytest.raises(ValueError, match="do not fit"):
            trainer.load_state("other.pth", optim=optim)
    assert torch.equal(trainer.predict(EVAL_X), plain(1, warm_up=True)[1](EVAL_X).detach())


def test_a_file_of_save_is_read_by_a_trainer_without_an_ema():
    ema = EMA(0.9)
    trainer_of(ema).fit(2)
    ema.save("average.pth")
    other = trainer_of(check_init=False)
    other.load_state("average.pth", optim=False)
    assert torch.equal(other.predict(EVAL_X), plain(2, warm_up=True)[1](EVAL_X).detach())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, rule", [
    ({"decay": 1.0}, "decay must be a number of at least 0 and less than 1, got 1.0"),
    ({"decay": "0.9"}, "decay must be a number of at least 0 and less than 1, got '0.9'"),
    ({"every": 0}, "every must be a whole number of updates of at least 1, got 0"),
    ({"every": 1.5}, "every must be a whole number of updates of at least 1, got 1.5"),
])
def test_bad_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        EMA(**arguments)


def test_a_copy_of_a_trainer_with_an_ema_predicts():
    trainer = trainer_of(EMA(0.9))
    trainer.fit(1)
    other = copy.deepcopy(trainer)
    assert torch.equal(weights(other), weights(trainer))
    assert other.predict(EVAL_X).shape == (23, 3)
