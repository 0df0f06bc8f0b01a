"""``KerasModel`` against a plain loop of PyTorch; kill and resume, several processes, steps of one's own."""

import copy
import csv
import re
import sys
from pathlib import Path

import pytest
import torch
import torchmetrics
from keras_job import BATCH, are_equal, fitted, loaders, model_of, plain, right, weights_of
from ranks import ENVIRONMENT
from tiny import run_python, tiny_data, tiny_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import template
from template import EMA, Callback, Confusion, JsonLines, KerasModel, build_optimizer
from template.keras_model import Accelerator, StepRunner
from template.output.history_table import Table
from template.tools import launch as launcher


def plain_loop(epochs):
    """Means over samples, as a person would publish them; the weights of each epoch."""
    net = tiny_model(dropout=0.0)
    optimizer, criterion = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), nn.CrossEntropyLoss()
    train, val = loaders()
    rows, weights = [], []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "lr": 0.1}
        for part, loader in (("train", train), ("val", val)):
            total = {"loss": 0.0, "acc": 0.0, "count": 0}
            for x, y in loader:
                with torch.set_grad_enabled(part == "train"):
                    pred = net(x)
                    loss = criterion(pred, y)
                if part == "train":
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                total["loss"] += loss.item() * len(y)
                total["acc"] += right(pred, y).item() * len(y)
                total["count"] += len(y)
            row |= {f"{part}_{name}": total[name] / total["count"] for name in ("loss", "acc")}
        rows.append(row)
        weights.append(copy.deepcopy(net.state_dict()))
    return rows, weights


def test_its_numbers_and_weights_are_those_of_a_plain_loop():
    rows, weights = plain_loop(4)
    model = model_of()
    fitted(model, 4)
    history = model.history
    assert history["epoch"] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss", "train_acc", "val_acc", "lr"):
        assert history[name] == pytest.approx([row[name] for row in rows], abs=1e-12), name
    best = min(range(4), key=lambda epoch: rows[epoch]["val_loss"])
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, weights[best][name])


# --- the history ------------------------------------------------------------------------------------------------------


def test_it_is_handed_out_as_a_light_table_where_pandas_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = fitted(model_of())
    assert isinstance(table, Table) and len(table) == 2
    assert list(table) == table.columns == ["epoch", "train_loss", "val_loss", "train_acc", "val_acc", "lr"]
    assert table["epoch"] == [1, 2] and "train_loss" in repr(table)
    with pytest.raises(KeyError, match="there are .'epoch', 'train_loss'"):
        table["loss"]
    table.to_csv("table.csv", index=False)
    with open("table.csv", encoding="utf-8") as file:
        assert [float(row["val_loss"]) for row in csv.DictReader(file)] == table["val_loss"]


def test_it_is_a_data_frame_with_pandas():
    pandas = pytest.importorskip("pandas")
    frame = fitted(model_of())
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["epoch", "train_loss", "val_loss", "train_acc", "val_acc", "lr"]
    assert frame["epoch"].tolist() == [1, 2] and frame["epoch"].dtype.kind == "i"


# --- what metrics may be ----------------------------------------------------------------------------------------------


class OldStyle(nn.Module):
    """Counts when it is called, as torchkeras' own metrics do."""

    def __init__(self):
        super().__init__()
        self.right, self.total = (nn.Parameter(torch.zeros(()), requires_grad=False) for _ in range(2))

    def forward(self, pred, y):
        self.right += (pred.argmax(1) == y).sum()
        self.total += len(y)

    def compute(self):
        return self.right / self.total

    def reset(self):
        self.right -= self.right
        self.total -= self.total


def test_metrics_of_all_kinds_agree_in_training_and_in_validation_and_share_nothing():
    confusion = Confusion(3)
    metrics = {"theirs": torchmetrics.Accuracy("multiclass", num_classes=3), "ours": confusion.accuracy(),
               "plain": right, "old": OldStyle(), "f1": confusion.f1("macro")}
    model = model_of(metrics=metrics)
    fitted(model, shuffle=True)
    for part in ("train", "val"):
        for name in ("ours", "plain", "old"):
            assert model.history[f"{part}_{name}"] == pytest.approx(model.history[f"{part}_theirs"], abs=1e-6)
    assert model.history["train_ours"] != model.history["val_ours"]
    assert metrics["theirs"]._update_count == 0 and not metrics["old"].total


def test_without_metrics_the_accuracy_is_there_where_the_loss_says_what_is_right():
    fitted(model := KerasModel(tiny_model(), nn.CrossEntropyLoss()))
    assert {"train_acc", "val_acc"} <= set(model.history) and model.optimizer.param_groups[0]["lr"] == 3e-4
    x, _ = tiny_data()
    loader = DataLoader(TensorDataset(x, x[:, :3]), BATCH)
    model = KerasModel(tiny_model(), nn.MSELoss())
    model.fit(loader, epochs=1, **plain())
    assert list(model.history) == ["epoch", "train_loss", "lr"]


@pytest.mark.parametrize(("metrics", "message"), [
    ({"loss": right}, "must not hold the name 'loss'"),
    ({"acc": torchmetrics.Accuracy}, "Write it with"),
    (["acc"], "must be a dict of metrics by name"),
    ({"acc": 0.5}, "object of torchmetrics or of this folder, or a function"),
    ({"acc": lambda pred, y: pred}, "must be a single number; 'acc' is"),
])
def test_what_is_no_metric_is_refused(metrics, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fitted(model_of(metrics=metrics), 1)


# --- batches ----------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Inputs by name; with labels it returns its loss too, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_model(dropout=0.0)

    def forward(self, x, scale=None, labels=None):
        logits = self.inner(x if scale is None else x * scale)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


class WholeDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_model(dropout=0.0)

    def forward(self, batch):
        return self.inner(batch["x"])


def dicts(of=loaders):
    return [[{"x": x, "labels": y} for x, y in loader] for loader in of()]


def test_dict_batches_and_networks_that_return_their_loss_train_as_tuples_do():
    fitted(tuples := model_of())
    train, val = dicts()
    for net, loss_fn in ((WholeDict(), nn.CrossEntropyLoss()), (Named(), None)):
        model = KerasModel(net, loss_fn, {"acc": right}, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))
        model.fit(train, val, epochs=2, **plain())
        for name in tuples.history:
            assert model.history[name] == pytest.approx(tuples.history[name], abs=1e-6), name
        predicted = model.predict(val)
        logits = predicted["logits"] if loss_fn is None else predicted
        assert torch.allclose(logits, tuples.predict(loaders()[1]), atol=1e-6)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_fitting_twice_is_fitting_once_with_the_sum():
    once, twice = model_of(tiny_model(dropout=0.2)), model_of(tiny_model(dropout=0.2))
    fitted(once, 5, shuffle=True, ckpt_path="once")
    fitted(twice, 3, shuffle=True, ckpt_path="twice")
    twice.evaluate(loaders()[1], quiet=True)
    twice.predict(tiny_data()[0])
    fitted(twice, 2, shuffle=True, ckpt_path="twice")
    assert twice.history == once.history and are_equal(weights_of(once), weights_of(twice))
    assert are_equal(list(torch.load("once").values()), weights_of(once))


def test_what_was_said_may_be_said_again_and_what_cannot_change_is_refused():
    model = model_of()
    for _ in range(2):
        fitted(model, 1, seed=123456, ckpt_path="one.pt", cpu=True)
    model.load_ckpt()
    best = torch.load("one_run/last.pth")["best_metric"]
    assert model.evaluate(loaders()[1], quiet=True)["val_loss"] == best["tol_loss"]
    assert model.ckpt_path == "one.pt"
    fitted(model, 1, seed=123456)
    with pytest.raises(AttributeError, match="seed cannot change after"):
        fitted(model, 1, seed=123457)


def test_between_two_fits_a_learning_rate_of_the_user_and_weights_of_the_user_stay(capsys):
    model = model_of()
    fitted(model, 1)
    model.optimizer.param_groups[0]["lr"] = 0.02
    fitted(model, 1)
    assert model.history["lr"] == [0.1, 0.02]
    with torch.no_grad():
        for p in model.net.parameters():
            p.zero_()
    train, val = loaders()
    model.fit([next(iter(train))], val, epochs=1, **plain())
    assert model.history["train_loss"][-1] == pytest.approx(torch.tensor(3.0).log().item())  # all classes are equal
    assert "goes on with the weights that are in the network" in capsys.readouterr().out


def test_early_stopping_ends_it_and_the_best_weights_are_in_the_network_and_in_the_file():
    model, history = model_of(metrics={"score": lambda pred, y: 2 - abs(model.trainer.epoch - 2)}), {}

    class Note(Callback):
        def on_eval_result(self, trainer, result):
            history[trainer.epoch] = weights_of(model)

    fitted(model, 20, callbacks=[Note()], patience=3, monitor="val_score", mode="max", ckpt_path="best.pt")
    assert model.history["epoch"] == [1, 2, 3, 4, 5] and model.history["val_score"] == [1, 2, 1, 0, -1]
    assert are_equal(weights_of(model), history[2]) and are_equal(list(torch.load("best.pt").values()), history[2])
    fitted(model, 2, monitor="val_score", mode="max", patience=2)  # it counts anew
    assert model.history["epoch"][-1] == 7


class Killed(Exception):
    """In the place of a signal."""


class KillAt(Callback):
    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            raise Killed


def test_a_run_that_was_cut_short_resumes_to_the_same_bits_and_the_same_rows():
    whole = model_of(tiny_model(dropout=0.2))
    fitted(whole, 4, shuffle=True, ckpt_path="whole")
    with pytest.raises(Killed):
        fitted(model_of(tiny_model(dropout=0.2)), 4, shuffle=True, ckpt_path="cut", callbacks=[KillAt(15)])
    resumed = model_of(tiny_model(seed=9, dropout=0.2))
    fitted(resumed, 4, shuffle=True, ckpt_path="cut", resume="auto")
    assert resumed.history == whole.history and are_equal(weights_of(resumed), weights_of(whole))
    again = model_of(tiny_model(seed=9, dropout=0.2))
    fitted(again, 4, ckpt_path="cut", resume="auto")
    assert again.history == whole.history and are_equal(weights_of(again), weights_of(whole))  # nothing was left to train


def points(path):
    """What a tracker wrote: each point once."""
    return [re.sub(r'"(time|crc)": [^,}]+', "", line) for line in Path(path).read_text().splitlines()]


def test_averages_trackers_and_a_nominal_batch_go_on_by_fit_and_by_resume():
    def fit(ckpt_path, epochs, callbacks=(), **settings):
        fitted(models[ckpt_path], epochs, shuffle=True, ckpt_path=ckpt_path, nominal_batch_size=30, warm_up_updates=3,
               log_per_step=1, callbacks=[EMA(decay=0.9), JsonLines(), *callbacks], **settings)

    models = {name: model_of(tiny_model(dropout=0.2)) for name in ("once", "twice", "cut")}
    fit("once", 4)
    fit("twice", 2)
    fit("twice", 2)
    with pytest.raises(Killed):
        fit("cut", 4, [KillAt(9)], save_per_steps=1)
    models["cut"] = model_of(tiny_model(seed=9, dropout=0.2))
    fit("cut", 4, resume="auto")
    assert models["once"].trainer.accumulate_steps == 3
    for name in ("twice", "cut"):
        assert models[name].history == models["once"].history, name
        assert are_equal(weights_of(models[name]), weights_of(models["once"])), name
        assert points(f"{name}_run/numbers.jsonl") == points("once_run/numbers.jsonl"), name


def test_behind_load_ckpt_epoch_0_says_how_good_the_weights_are_and_counts_as_best():
    first = model_of()
    fitted(first, 3, ckpt_path="first.pt")
    loaded = model_of(tiny_model(seed=9, dropout=0.0), optimizer=None)
    loaded.optimizer.param_groups[0]["lr"] = 1e3  # it can only become worse
    loaded.load_ckpt("first.pt")
    fitted(loaded, 2, ckpt_path="second.pt")
    expected = first.evaluate(loaders()[1], quiet=True)
    assert loaded.history["epoch"] == [0, 1, 2]
    assert {name: loaded.history[name][0] for name in expected} == pytest.approx(expected)
    assert {name: loaded.history["train" + name[3:]][0] for name in expected} == pytest.approx(
        {name: value for name, value in first.evaluate(loaders()[0], quiet=True).items()})
    assert are_equal(weights_of(loaded), weights_of(first))
    with pytest.raises(FileNotFoundError):
        loaded.load_ckpt("no_such.pt")
    loaded.load_ckpt("second_run")
    assert are_equal(weights_of(loaded), weights_of(first))
    fitted(loaded, 1, ckpt_path="second.pt")
    assert loaded.history["epoch"] == [0, 1] and loaded.trainer.ckpt_dir == "second_run_2"


def test_evaluating_before_and_between_changes_nothing_and_gives_the_numbers_of_the_history(tmp_path):
    model = model_of(tiny_model(dropout=0.2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = model.evaluate(loaders()[1], quiet=True)
    assert torch.equal(torch.rand(3), expected) and not list(tmp_path.glob("*_run"))
    with torch.no_grad():
        x, y = tiny_data(23, seed=5)
        assert before == pytest.approx({"val_loss": F.cross_entropy(model.net.eval()(x), y).item(),
                                        "val_acc": right(model.net(x), y).item()})
    assert torch.equal(model.predict(x), model.net(x))
    fitted(model, 2)
    best = min(model.history["val_loss"])
    assert model.evaluate(loaders()[1], quiet=True)["val_loss"] == best


# --- schedulers, settings, callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "rates"), [("update", [0.1 * 0.9 ** 6, 0.1 * 0.9 ** 12]), ("epoch", [0.1, 0.09])])
def test_the_scheduler_steps_per_update_or_per_epoch(interval, rates):
    net = tiny_model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    model = model_of(net, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    fitted(model, 2, lr_scheduler_interval=interval)
    assert model.history["lr"] == pytest.approx(rates)


def test_a_scheduler_of_another_optimizer_is_told_of():
    net = tiny_model()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), 0.1), 5)
    with pytest.warns(UserWarning, match="made with another optimizer"):
        fitted(model_of(net, lr_scheduler=scheduler), 1)


def test_accumulation_is_one_update_of_a_larger_batch():
    train, val = loaders()
    large = model_of()
    large.fit(DataLoader(train.dataset, 3 * BATCH), val, epochs=2, **plain(ckpt_path="large"))
    small = model_of()
    fitted(small, 2, gradient_accumulation_steps=3, ckpt_path="small")
    assert small.trainer.global_step == large.trainer.global_step == 4
    for mine, theirs in zip(weights_of(small), weights_of(large)):
        assert torch.allclose(mine, theirs, atol=1e-6)


class Theirs:
    """With the events that callbacks of torchkeras have."""

    def __init__(self):
        self.heard = []

    def on_fit_start(self, model):
        self.heard.append(("start", model.monitor))

    def on_train_epoch_end(self, model):
        self.heard.append("trained")

    def on_validation_epoch_end(self, model):
        self.heard.append(model.history["val_loss"][-1])

    def on_fit_end(self, model):
        self.heard.append("end")


def test_callbacks_of_torchkeras_hear_their_events():
    model, theirs = model_of(), Theirs()
    fitted(model, 2, callbacks=[theirs])
    first, second = model.history["val_loss"]
    assert theirs.heard == [("start", "val_loss"), "trained", first, "trained", second, "end"]


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"mode": "best"}, "mode must be 'min' or 'max'"),
    ({"monitor": "acc"}, "monitor must be 'val_loss'"),
    ({"mixed_precision": "fp8"}, "must be one of .'no', 'bf16', 'fp16'"),
    ({"clip_gard": 1.0}, "Did you mean .'clip_grad'"),
    ({"callbacks": [3]}, "callbacks must hold callbacks of this folder"),
    ({"ckpt_path": "."}, "is a folder"),
])
def test_bad_arguments_are_refused_with_what_to_do(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fitted(model_of(), 1, **kwargs)


def test_what_people_write_for_keras_is_refused_with_what_to_write_here():
    model, (x, y) = model_of(), tiny_data()
    data = TensorDataset(x, y)
    for call, message in (
            (lambda: model.fit(x, y), r"train_data must give batches \(x, y\), as DataLoader\(TensorDataset\(x, y\)"),
            (lambda: model.fit(x.numpy(), y.numpy()), "train_data must give batches"),
            (lambda: model.fit(DataLoader(data, 10), data), r"val_data must give batches.*DataLoader\(dataset, "),
            (lambda: model.evaluate(x), "val_data must give batches"),
            (lambda: fitted(model, 1, batch_size=8), "takes no batch_size: it is that of your DataLoader"),
            (lambda: fitted(model, 1, validation_data=data), "takes no validation_data: .*val_data"),
            (lambda: model.compile(optimizer="adam", loss="mse"), r"takes \['optimizer', 'loss'\] when it is made"),
            (lambda: KerasModel(nn.Linear(6, 3), F.cross_entropy, optimizer="adam"), "build_optimizer.'Adam', net"),
            (lambda: KerasModel(nn.Linear(6, 3), optimizer=[0, 1]), "got a list of 2. Several optimizers are for a step"),
            (lambda: KerasModel("net", F.cross_entropy), "net must be an nn.Module")):
        with pytest.raises(TypeError, match=message):
            call()
    assert model.trainer is None
    assert len(model.predict(x)) == len(x) == len(model.predict(data))
    (optimizer,) = build_optimizer("SGD", model.net)
    assert KerasModel(model.net, optimizer=[optimizer]).optimizer is optimizer


@pytest.mark.filterwarnings("ignore:The first eval batch gave")
def test_a_monitor_that_nothing_gives_is_refused_before_the_first_update():
    model = model_of()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"gives, which is \['val_loss', 'val_acc'\].* got 'val_f1'"):
        fitted(model, 1, monitor="val_f1", mode="max")
    assert are_equal(weights_of(model), before)


def test_a_mode_against_the_name_of_the_metric_is_told_of():
    with pytest.warns(UserWarning, match="Say mode='max'"):
        fitted(model_of(), 1, monitor="val_acc")


def test_without_validation_data_the_training_is_monitored():
    model = model_of()
    model.fit(loaders()[0], epochs=3, **plain())
    assert list(model.history) == ["epoch", "train_loss", "train_acc", "lr"]
    assert model.trainer.best_metric == {"train/tol_loss": min(model.history["train_loss"])}


def test_wandb_is_the_tracker_of_that_name(monkeypatch):
    class Wandb(Callback):
        def __init__(self, project=None):
            made.append(project)

    made = []
    monkeypatch.setattr(template, "Wandb", Wandb)
    fitted(model := model_of(), 1, wandb="digits")
    assert made == ["digits"] and any(isinstance(one, Wandb) for one in model.trainer.callbacks)


def test_a_copy_begins_a_run_of_its_own():
    model = model_of()
    fitted(model, 1)
    other = copy.deepcopy(model)
    fitted(other, 1)
    assert other.history["epoch"] == [1] and other.optimizer.param_groups[0]["params"][0] is next(other.net.parameters())
    assert len(list(model.parameters())) == len(list(model.net.parameters()))


# --- steps of one's own -----------------------------------------------------------------------------------------------


class Torchkeras:
    """As people write it for torchkeras: no base class, the usual arguments, what accelerate's object has."""

    def __init__(self, net, loss_fn, accelerator=None, stage="train", metrics_dict=None, optimizer=None, lr_scheduler=None):
        self.net, self.loss_fn, self.stage, self.metrics_dict = net, loss_fn, stage, metrics_dict
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.accelerator = accelerator if accelerator is not None else Accelerator()
        self.net.train() if stage == "train" else self.net.eval()

    def __call__(self, batch):
        features, labels = batch
        preds = self.net(features)
        loss = self.loss_fn(preds, labels)
        if self.optimizer is not None and self.stage == "train":
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.net.parameters(), 0.5)
            self.optimizer.step()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
            self.optimizer.zero_grad()
        losses = {self.stage + "_loss": self.accelerator.gather(loss).sum().item()}
        metrics = {self.stage + "_" + name: metric(self.accelerator.gather(preds), self.accelerator.gather(labels)).item()
                   for name, metric in self.metrics_dict.items()}
        if self.stage == "train":
            metrics["lr"] = self.optimizer.state_dict()["param_groups"][0]["lr"]
        return losses, metrics


def stepping(step=Torchkeras, net=None, **kwargs):
    net = tiny_model(dropout=0.2) if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    metrics = {"acc": torchmetrics.Accuracy("multiclass", num_classes=3), "mine": right}
    return KerasModel(net, nn.CrossEntropyLoss(), metrics, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 9),
                      step_runner=step, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"},
                                    {"mixed_precision": "fp16"}])
def test_a_step_written_for_torchkeras_gives_what_the_trainer_gives(kwargs):
    own, default = stepping(), stepping(step=None)
    fitted(own, 3, shuffle=True, ckpt_path="own", **kwargs)
    fitted(default, 3, shuffle=True, ckpt_path="default", clip_grad=0.5, **kwargs)
    assert own.trainer.global_step == default.trainer.global_step
    tolerance = 1e-12 if not kwargs else 1e-5
    for name in default.history:
        assert own.history[name] == pytest.approx(default.history[name], abs=tolerance), name
    assert all(torch.allclose(mine, theirs, atol=tolerance) for mine, theirs in zip(weights_of(own), weights_of(default)))


def test_a_run_with_such_a_step_resumes_to_the_same_bits_with_its_scheduler():
    whole = stepping()
    fitted(whole, 4, shuffle=True, ckpt_path="whole")
    with pytest.raises(Killed):
        fitted(stepping(), 4, shuffle=True, ckpt_path="cut", save_per_steps=4, callbacks=[KillAt(16)])
    resumed = stepping(net=tiny_model(seed=9, dropout=0.2))
    fitted(resumed, 4, shuffle=True, ckpt_path="cut", resume="auto")
    assert resumed.history == whole.history and are_equal(weights_of(resumed), weights_of(whole))


def test_a_step_may_be_set_for_the_class_and_an_epoch_runner_is_refused(monkeypatch):
    monkeypatch.setattr(KerasModel, "StepRunner", Torchkeras)
    fitted(model := stepping(step=None), 1)
    assert type(model.trainer).__name__ == "_BySteps"
    monkeypatch.setattr(KerasModel, "EpochRunner", object, raising=False)
    with pytest.raises(AttributeError, match="KerasModel has no EpochRunner to replace"):
        fitted(model_of(), 1)


class Crnn(nn.Module):
    """Columns of a small picture as a sequence of characters."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.columns = nn.Conv1d(4, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.head(self.columns(images.squeeze(1)).relu().permute(2, 0, 1))


def reads(line, target):
    """Whether a line of classes, without repetitions and blanks, is the target."""
    line = torch.unique_consecutive(line)
    return line[line > 0].tolist() == target.tolist()


class CtcStep(Torchkeras):
    def __call__(self, batch):
        images, targets, input_lengths, target_lengths = batch
        preds = self.net(images)
        loss = F.ctc_loss(F.log_softmax(preds, dim=-1), targets, input_lengths, target_lengths)
        acc = sum(map(reads, preds.detach().argmax(-1).T, targets)) / len(targets)
        if self.optimizer is not None and self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        losses = {self.stage + "_loss": self.accelerator.gather(loss).sum().item(), self.stage + "_acc": acc}
        return losses, ({"lr": 0.0} if self.stage == "train" else {})


def captchas(count, seed):
    """Pictures [N, 1, 4, 8] of two characters of three each; characters are rows that are lit."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, 4, (count, 2), generator=generator)
    images = torch.zeros(count, 1, 4, 8)
    for number, pair in enumerate(targets):
        for place, character in enumerate(pair):
            images[number, 0, character, 4 * place:4 * place + 2] = 1
    return TensorDataset(images, targets, torch.full((count,), 8), torch.full((count,), 2))


@pytest.mark.slow
def test_a_crnn_with_ctc_learns_by_a_step_of_its_own():
    torch.manual_seed(0)
    net = Crnn()
    model = KerasModel(net, loss_fn=None, optimizer=torch.optim.Adam(net.parameters(), lr=2e-2), step_runner=CtcStep)
    train, val = DataLoader(captchas(100, 1), 16, shuffle=True), DataLoader(captchas(30, 2), 16)
    model.fit(train, val, epochs=12, **plain(monitor="val_acc", mode="max"))
    assert list(model.history) == ["epoch", "train_loss", "val_loss", "train_acc", "val_acc", "lr"]
    assert model.history["train_loss"][-1] < 0.5 * model.history["train_loss"][0]
    assert model.evaluate(val, quiet=True)["val_acc"] == max(model.history["val_acc"]) > 0.5
    assert model.trainer.global_step == 12 * 7 and model.predict([next(iter(val))]).shape == (8, 16, 4)


class Detector(nn.Module):
    """Gives losses in training mode alone."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_model(dropout=0.0)

    def forward(self, x, y=None):
        pred = self.inner(x)
        return {"ce": F.cross_entropy(pred, y), "size": pred.pow(2).mean()} if self.training else pred


class DetectorStep(StepRunner):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.net.train()  # also in validation, for its losses

    def __call__(self, batch):
        losses = self.net(*batch)
        loss = sum(losses.values())
        if self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
        return {f"{self.stage}_loss": loss} | {f"{self.stage}_{name}": value for name, value in losses.items()}, {}


def test_a_step_may_validate_in_training_mode_and_name_further_losses():
    net = Detector()
    model = KerasModel(net, None, optimizer=torch.optim.Adam(net.parameters()), step_runner=DetectorStep)
    fitted(model, 2, monitor="val_ce")
    assert {"val_loss", "val_ce", "val_size", "train_ce"} <= set(model.history)


class Distill(StepRunner):
    def __call__(self, batch):
        x, y = batch
        assert not self.kwargs["teacher"].training
        loss = F.mse_loss(self.net(x), self.kwargs["teacher"](x)) * self.kwargs["weight"]
        if self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
        return {f"{self.stage}_loss": loss}, {}


def test_further_arguments_reach_the_step_and_are_refused_without_one():
    teacher = tiny_model(seed=7, dropout=0.0).eval()
    net = tiny_model()
    model = KerasModel(net, None, optimizer=torch.optim.Adam(net.parameters(), 1e-2), step_runner=Distill, teacher=teacher,
                       weight=2.0)
    before = [value.clone() for value in teacher.state_dict().values()]
    fitted(model, 3)
    assert model.history["val_loss"][-1] < model.history["val_loss"][0]
    assert are_equal(before, list(teacher.state_dict().values()))
    with pytest.raises(TypeError, match="a StepRunner of your own, and there is none"):
        fitted(KerasModel(tiny_model(), nn.CrossEntropyLoss(), teacher=teacher))


class TwoOptimizers(StepRunner):
    """A discriminator beside the net, as in a GAN: gradients of one loss that reach both are dropped by hand."""

    def __call__(self, batch):
        x, _ = batch
        other, optimizer = self.kwargs["other"], self.kwargs["other_optimizer"]
        loss = other(self.net(x)).mean()
        if self.stage == "train":
            self.accelerator.backward(loss)
            self.optimizer.step()
            optimizer.zero_grad()
            second = -other(self.net(x).detach()).mean() + other.weight.pow(2).sum()
            self.accelerator.backward(second)
            optimizer.step()
        return {f"{self.stage}_loss": loss}, {}


def test_a_second_network_with_an_optimizer_is_trained_and_saved():
    torch.manual_seed(0)
    nets = [(tiny_model(dropout=0.0), nn.Linear(3, 1)) for _ in range(2)]
    nets[1][1].load_state_dict(nets[0][1].state_dict())
    (net, other), (plain_net, plain_other) = nets
    model = KerasModel(net, None, optimizer=torch.optim.SGD(net.parameters(), 0.1), step_runner=TwoOptimizers, other=other,
                       other_optimizer=torch.optim.SGD(other.parameters(), 0.1))
    model.fit(loaders()[0], epochs=1, **plain(monitor="train_loss"))
    first, second = (torch.optim.SGD(part.parameters(), 0.1) for part in (plain_net, plain_other))
    for x, _ in loaders()[0]:
        plain_other(plain_net(x)).mean().backward()
        first.step()
        first.zero_grad()
        second.zero_grad()
        (-plain_other(plain_net(x).detach()).mean() + plain_other.weight.pow(2).sum()).backward()
        second.step()
        second.zero_grad()
    assert are_equal(weights_of(model), list(plain_net.state_dict().values()))
    assert are_equal(list(other.state_dict().values()), list(plain_other.state_dict().values()))
    saved = torch.load(model.trainer.path_of("last.pth"))
    assert {"model1", "optimizer_list1"} <= saved.keys()


def test_ways_to_save_of_a_users_own_are_called_when_the_weights_are_the_best(tmp_path, monkeypatch):
    def save_ckpt(self, ckpt_path="checkpoint", accelerator=None):
        (tmp_path / ckpt_path).mkdir(exist_ok=True)
        torch.save(accelerator.unwrap_model(self.net).state_dict(), tmp_path / ckpt_path / "net.bin")

    def load_ckpt(self, ckpt_path="checkpoint"):
        self.net.load_state_dict(torch.load(tmp_path / ckpt_path / "net.bin"))
        self.from_scratch = False

    monkeypatch.setattr(KerasModel, "save_ckpt", save_ckpt)
    monkeypatch.setattr(KerasModel, "load_ckpt", load_ckpt)
    model = stepping()
    fitted(model, 2, ckpt_path="adapter")
    assert are_equal(list(torch.load(tmp_path / "adapter" / "net.bin").values()), weights_of(model))
    model.load_ckpt("adapter")
    fitted(model, 1, ckpt_path="adapter")
    assert model.history["epoch"] == [0, 1]


def test_a_step_can_be_tried_on_a_batch_without_any_training():
    net = tiny_model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = [p.detach().clone() for p in net.parameters()]
    step = Torchkeras(net, nn.CrossEntropyLoss(), metrics_dict={}, optimizer=optimizer)
    losses, metrics = step(next(iter(loaders()[0])))
    assert losses["train_loss"] > 0 and metrics == {"lr": 0.1} and not are_equal(before, list(net.parameters()))


def test_what_a_step_returns_in_another_form_is_refused():
    class Bare(StepRunner):
        def __call__(self, batch):
            return torch.zeros(())

    with pytest.raises(TypeError, match="must return two dicts"):
        fitted(stepping(Bare), 1)


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torch's launcher needs gloo and fork")
def test_two_processes_give_the_numbers_and_the_weights_of_one(tmp_path):
    run_python("-m", "keras_job", cwd=tmp_path, env=ENVIRONMENT)
    found = torch.load(tmp_path / "results.pth")
    alone = model_of()
    fitted(alone, 2, gradient_accumulation_steps=2, ckpt_path="alone")
    for name in alone.history:
        assert found["history"][name] == pytest.approx(alone.history[name], abs=1e-6), name
    assert all(torch.allclose(mine, theirs, atol=1e-6) for mine, theirs in zip(found["weights"], weights_of(alone)))


@pytest.mark.slow
def test_training_goes_on_from_what_other_processes_did_and_back(monkeypatch):
    monkeypatch.setattr(launcher, "launch", lambda function, num_processes, package: {0: function(package)})  # in this one
    once, model = stepping(), stepping()
    fitted(once, 4, shuffle=True, ckpt_path="once")
    model.fit_ddp(1, *loaders(shuffle=True), epochs=1, **plain(ckpt_path="parts"))
    assert model.trainer is None and model.history["epoch"] == [1]
    fitted(model, 1, shuffle=True, ckpt_path="parts")
    model.fit_ddp(1, *loaders(shuffle=True), epochs=2, **plain(ckpt_path="parts"))
    assert model.history == once.history and are_equal(weights_of(model), weights_of(once))
    assert model.evaluate_ddp(1, loaders()[1], quiet=True) == once.evaluate(loaders()[1])


def test_what_cannot_be_sent_to_another_process_is_told(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "my_train.py", raising=False)  # in a script, nothing is forked
    with pytest.raises(TypeError, match="cannot be sent"):
        model_of(metrics={"acc": lambda pred, y: 0.0}).fit_ddp(2, *loaders(), epochs=1)
