"""``train_metrics``: metrics of the predictions that the losses of the training are computed of."""

import copy
import functools

import pytest
import torch
from ranks import history
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Confusion, EarlyStopping, Mean, Stored

X, Y = tiny_data()


class Predictions:
    """What a criterion was given in the training, which is an independent record of it."""

    def __init__(self):
        self.epochs = [[]]

    def __call__(self, pred, y):
        if torch.is_grad_enabled():
            self.epochs[-1].append((pred.detach().clone(), y.clone()))
        return nn.functional.cross_entropy(pred, y)

    def accuracies(self):
        return [sum((pred.argmax(1) == y).sum().item() for pred, y in epoch) / sum(len(y) for _, y in epoch)
                for epoch in self.epochs]


class OwnLoss(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        return {"tol_loss": self.criterion(self.model_list[0](x), y)}


class CallsSuper(Tiny):
    def loss_per_batch(self, batch):
        losses = super().loss_per_batch(batch)
        return {"tol_loss": losses["tol_loss"] + 1e-3 * sum(p.square().sum() for p in self.model_list[0].parameters())}


class OwnScores(Tiny):
    def eval_scores_per_batch(self, batch):
        x, y = batch
        return {"acc": (self.inference(x).argmax(1) == y).float().mean()}


class OwnStep(Tiny):
    def train_step(self, batch):
        losses = self.loss_per_batch(batch)
        self.backward(losses["tol_loss"])
        return losses


class Notes(Tiny):
    def train_step(self, batch):
        x, y = batch
        pred = self.inference(x)
        self.note_predictions(pred, y)
        loss = self.criterion(pred, y)
        self.backward(loss)
        return loss


def run(kind, epochs=2, **attributes):
    record = Predictions()
    trainer = kind(criterion=record, train_metrics=True, **attributes)
    trainer.check_init(use_tb=False)
    record.epochs = []
    for _ in trainer.epochs(epochs):
        record.epochs.append([])
        trainer.train_loop()
        if trainer.eval_loader is not None:
            trainer.eval()
    return trainer, record


@pytest.mark.parametrize("kind", [Tiny, OwnLoss, CallsSuper, OwnScores, OwnStep, Notes])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_accuracy_is_that_of_the_predictions_that_were_trained_on_with_no_second_forward(kind, steps, tmp_path):
    model, forwards = tiny_model(), []
    for part in (model, model[0]):
        part.register_forward_hook(lambda part, inputs, output: forwards.append(part.training))
    trainer, record = run(kind, model=model, accumulate_steps=steps, preflight=False)
    assert [row["train/acc"] for row in history(trainer.ckpt_dir)] == pytest.approx(record.accuracies(), abs=1e-7)
    assert forwards.count(True) == 2 * 6 * 2


def test_nothing_of_the_training_changes(tmp_path):
    plain, with_metrics = (Tiny(train_metrics=value) for value in (False, True))
    for trainer in (plain, with_metrics):
        trainer.check_init(use_tb=False)
        trainer.fit(2)
    assert torch.equal(weights(plain), weights(with_metrics))
    assert plain.best_metric == with_metrics.best_metric


def share_right(pred, y):
    return (pred.argmax(1) == y).double().mean()


def accumulators():
    confusion = Confusion(3)
    return {"right": confusion.accuracy(), "f1": confusion.f1(), "all": Stored(share_right)}


def test_an_optimizer_with_closures_counts_the_first_predictions_of_a_batch():
    record, model = Predictions(), tiny_model(dropout=0.0)
    trainer = Tiny(model=model, criterion=record, train_metrics=True, eval_loader=None, preflight=False)
    trainer.optimizer_list = [torch.optim.LBFGS(model.parameters(), max_iter=3)]
    trainer.check_init(use_tb=False)
    order = []
    trainer.callbacks = [type("Notes", (), {"on_batch": lambda self, model, batch: order.append(len(record.epochs[0]))})()]
    result = trainer.train_loop()
    first = [record.epochs[0][place] for place in order]
    assert len(record.epochs[0]) > 6 == len(first)
    assert result["acc"] == pytest.approx(sum((pred.argmax(1) == y).sum().item() for pred, y in first) / 53)


class Joint(Tiny):
    """Two loaders at once, in one forward."""

    notes = True

    def loss_per_batch(self, batch):
        x, y = (torch.cat(parts) for parts in zip(batch["a"], batch["b"]))
        pred = self.inference(x)
        if self.notes:
            self.note_predictions(pred, y)
        return self.criterion(pred, y)


@pytest.mark.parametrize("notes", [True, False])
def test_batches_of_several_loaders_need_to_say_their_predictions(notes):
    record = Predictions()
    loaders = {name: DataLoader(TensorDataset(X, Y), 10, shuffle=True) for name in "ab"}
    trainer = Joint(criterion=record, train_loader=loaders, train_metrics=True, eval_loader=None)
    trainer.notes = notes
    trainer.check_init(use_tb=False)
    if notes:
        assert trainer.train_loop()["acc"] == pytest.approx(record.accuracies()[0])
    else:
        with pytest.raises(ValueError, match="because the batch is not .*note_predictions"):
            trainer.train_loop()


@pytest.mark.parametrize("kind", [Tiny, OwnLoss, OwnStep, Notes])
def test_a_dict_of_accumulators_belongs_to_the_training_alone(kind):
    record, own = Predictions(), accumulators()
    trainer = kind(criterion=record, train_metrics=own)
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    row = history(trainer.ckpt_dir)[-1]
    assert row["train/right"] == row["train/all"] == pytest.approx(record.accuracies()[0])
    assert "eval/right" not in row and "train/acc" not in row


def test_true_takes_copies_of_eval_metrics_which_an_evaluation_in_the_middle_of_an_epoch_finds_empty():
    class Looks:
        def on_after_step(self, model):
            model.evaluator.score()

    record = Predictions()
    trainer = Tiny(criterion=record, train_metrics=True, eval_metrics=accumulators(), callbacks=[Looks()])
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    row = history(trainer.ckpt_dir)[-1]
    assert row["train/right"] == row["train/all"] == pytest.approx(record.accuracies()[0])
    pred, y = trainer.predict(trainer.eval_loader, labels=True)
    assert row["eval/right"] == row["eval/all"] == pytest.approx((pred.argmax(1) == y).double().mean().item())


class Shared(Tiny):
    """``metric()`` updates accumulators that were made once, as it is written for evaluations."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.confusion, self.kept = Confusion(3), Stored(share_right)

    def metric(self, pred, y):
        self.confusion.update(pred, y)
        return {"right": self.confusion.accuracy(), "f1": self.confusion.f1("micro"), "kept": self.kept.update(pred, y),
                "anew": Confusion(3).update(pred, y).accuracy(), "mean": Mean().update(share_right(pred, y), len(y)),
                "plain": share_right(pred, y), "matrix": self.confusion}


class LooksAtEachUpdate:
    def on_after_step(self, model):
        self.seen = model.evaluator.score()


def test_accumulators_that_metric_made_once_serve_training_and_evaluation_without_mixing_them():
    record = Predictions()
    trainer = Shared(criterion=record, train_metrics=True, callbacks=[LooksAtEachUpdate()], key_metric="anew",
                     key_metric_mode="max")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    row = history(trainer.ckpt_dir)[-1]
    names = ("right", "f1", "kept", "anew", "mean", "plain")
    assert [row[f"train/{name}"] for name in names] == pytest.approx([record.accuracies()[0]] * 6, abs=1e-6)
    pred, y = trainer.predict(trainer.eval_loader, labels=True)
    right = (pred.argmax(1) == y).double().mean().item()
    assert [row[f"eval/{name}"] for name in names] == pytest.approx([right] * 6, abs=1e-6)
    assert trainer.running_losses.result["matrix"].sum() == 53


class Ends:
    """Ends the run in an update, of which the one before it was saved, or behind the last one of the first epoch."""

    def __init__(self, update):
        self.update = update

    def on_after_step(self, model):
        if model.global_step == self.update:
            raise KeyError("the end")

    def on_train_end(self, model, result):
        if self.update == "end":
            raise KeyError("the end")


@pytest.mark.parametrize("kind", [Tiny, OwnLoss, Shared])
@pytest.mark.parametrize("cut", [2, "end", 8])
@pytest.mark.parametrize("own", [False, True])
def test_a_run_that_was_cut_goes_on_to_the_same_values(kind, cut, own, tmp_path):
    """Also behind the last batch of an epoch, where only the numbers of the metrics are left."""
    def build(folder, **attributes):
        trainer = kind(train_metrics=accumulators() if own else True, ckpt_dir=str(tmp_path / folder), save_per_steps=1,
                       log_per_step=4, eval_loader=None, **attributes)
        trainer.check_init(use_tb=False)
        return trainer

    build("whole").fit(2)
    with pytest.raises(KeyError, match="the end"):
        build("parts", callbacks=[Ends(cut)]).fit(2)
    continued = build("parts")
    continued.load_state("auto")
    continued.fit(2)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert [name for name in history(tmp_path / "whole")[0] if name in ("train/acc", "train/right")]


def test_a_file_of_a_run_without_them_and_a_run_without_them_continue():
    first = tiny_trainer(train_metrics=True, eval_loader=None)
    first.fit(1)
    second = tiny_trainer(eval_loader=None)
    second.load_state(first.path_of("last.pth"))
    second.fit(2)
    third = tiny_trainer(train_metrics=True, eval_loader=None)
    third.load_state(second.path_of("last.pth"))
    third.fit(3)
    assert ["train/acc" in row for row in history(third.ckpt_dir)] == [True, False, True]


class Twice(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        first, second = self.model_list[0](x), self.model_list[0](x + 0.1)
        return self.criterion(first, y) + self.criterion(second, y)


class TwoViews(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(self.model_list[0](torch.cat([x, x + 0.1])), torch.cat([y, y]))


class WithoutForward(Tiny):
    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(functools.reduce(lambda value, part: part(value), self.model_list[0], x), y)


class StepAlone(OwnLoss):
    def train_step(self, batch):
        x, y = batch
        loss = self.criterion(self.inference(x), y)
        self.backward(loss)
        return loss


@pytest.mark.parametrize("kind, reason", [
    (Twice, "loss_per_batch called the model Sequential 2 times"), (TwoViews, "gave the model Sequential"),
    (WithoutForward, "called the model Sequential 0 times"), (StepAlone, "train_step gave none"),
])
def test_predictions_that_cannot_be_known_are_asked_for(kind, reason):
    trainer = kind(train_metrics=True)
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match=rf"{reason}.*self\.note_predictions\(pred, y\)"):
        trainer.fit(1)


def test_predictions_for_mixed_inputs_are_told_of_once():
    class Mixed(Tiny):
        def loss_per_batch(self, batch):
            x, y = batch
            return self.criterion(self.model_list[0](x.flip(0) * 0.5 + x * 0.5), y)

    trainer = Mixed(train_metrics=True)
    trainer.check_init(use_tb=False)
    with pytest.warns(UserWarning, match="other inputs than those of the batch") as told:
        trainer.fit(2)
    assert len(told) == 1


def test_a_loss_and_a_metric_of_the_training_may_not_share_a_name():
    class Logs(Tiny):
        def loss_per_batch(self, batch):
            return {**super().loss_per_batch(batch), "acc": torch.tensor(1.0)}

    trainer = Logs(train_metrics=True, preflight=False)
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match=r"both the losses of the training and its metrics have \['acc'\]"):
        trainer.fit(1)


@pytest.mark.parametrize("value, reason", [
    ("acc", "must be True, False or a dict of accumulators, got 'acc'"), ({"acc": 0.5}, "its entry 'acc' is a float"),
])
def test_what_is_no_metric_is_refused_before_the_training_and_later(value, reason):
    kind = TypeError
    with pytest.raises(kind, match=reason):
        tiny_trainer(train_metrics=value)
    trainer = tiny_trainer()
    with pytest.raises(kind, match=reason):
        trainer.train_metrics = value


def test_an_object_of_the_evaluation_cannot_be_that_of_the_training():
    own = Confusion(3)
    with pytest.raises(ValueError, match="share the object 'matrix'"):
        tiny_trainer(train_metrics={"matrix": own}, eval_metrics={"all": own})


def test_it_may_be_turned_on_and_off_between_epochs():
    trainer = tiny_trainer(eval_loader=None)
    trainer.fit(1)
    trainer.train_metrics = True
    trainer.fit(2)
    trainer.train_metrics = False
    trainer.fit(3)
    assert ["train/acc" in row for row in history(trainer.ckpt_dir)] == [False, True, False]


def test_a_batch_whose_update_was_skipped_counts_in_no_mean():
    x, y = X.clone(), Y
    x[20:30] = float("nan")
    trainer = tiny_trainer(train_loader=DataLoader(TensorDataset(x, y), 10), train_metrics=True, skip_non_finite=3,
                           eval_loader=None, preflight=False)
    trainer.train_loop()
    counted = trainer.running_losses.metrics.totals.totals["acc"].counted
    assert counted == 43


def test_torchmetrics_objects_count_in_the_training_and_go_on_after_a_cut(tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics")

    def build(folder, **attributes):
        trainer = Tiny(train_metrics={"acc": torchmetrics.Accuracy("multiclass", num_classes=3, average="micro"),
                                      "cat": torchmetrics.AUROC("multiclass", num_classes=3)},
                       ckpt_dir=str(tmp_path / folder), save_per_steps=1, eval_loader=None, **attributes)
        trainer.check_init(use_tb=False)
        return trainer

    record = Predictions()
    build("whole", criterion=record).fit(1)
    with pytest.raises(KeyError):
        build("parts", callbacks=[Ends(4)]).fit(1)
    continued = build("parts")
    continued.load_state("auto")
    continued.fit(1)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert history(tmp_path / "whole")[0]["train/acc"] == pytest.approx(record.accuracies()[0])


def test_a_torchmetrics_object_that_metric_updates_is_refused_in_words():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Own(Tiny):
        def metric(self, pred, y):
            self.score = getattr(self, "score", None) or torchmetrics.Accuracy("multiclass", num_classes=3)
            self.score.update(pred, y)
            return {"acc": self.score}

    trainer = Own(train_metrics=True)
    trainer.check_init(use_tb=False)
    with pytest.raises(TypeError, match=r"self\.train_metrics = \{'acc': …\}"):
        trainer.fit(1)


def test_models_can_be_copied_while_a_loss_is_recorded_and_nothing_stays_before_them():
    copies = []

    class Copies(OwnLoss):
        def loss_per_batch(self, batch):
            losses = super().loss_per_batch(batch)
            return losses

    class Copier:
        def on_after_step(self, model):
            copies.append(copy.deepcopy(model.model_list[0]))

    trainer = Copies(train_metrics=True, callbacks=[Copier()])
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    assert all("forward" not in vars(model) for model in (*copies, trainer.model_list[0]))


class Output(dict):
    """As of Hugging Face: a mapping whose entries are attributes too."""

    __getattr__ = dict.__getitem__


class Head(nn.Module):
    """Takes the entries of a dict, and returns its own loss."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_model(dropout=0.5)

    def forward(self, x, labels):
        logits = self.inner(x)
        return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def test_a_model_with_a_loss_of_its_own_and_batches_that_are_dicts():
    seen = []

    class Dicts(Tiny):
        def eval_scores_per_batch(self, batch):
            out = self.inference(batch)
            if self.model_list[0].training:
                seen.append((out["logits"].clone(), batch["labels"], out["logits"].requires_grad))
            return {"acc": (out["logits"].argmax(1) == batch["labels"]).float().mean()}

    batches = [{"x": X[i:i + 10], "labels": Y[i:i + 10]} for i in range(0, 53, 10)]
    trainer = Dicts(model=Head(), criterion=None, train_loader=batches, eval_loader=None, train_metrics=True)
    trainer.preflight = False
    trainer.check_init(use_tb=False)
    result = trainer.train_loop()
    right = sum((logits.argmax(1) == y).sum().item() for logits, y, _ in seen)
    assert result["acc"] == pytest.approx(right / 53) and not any(needs_grad for _, _, needs_grad in seen)


# --- what is best, without an evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("key, name", [("train/tol_loss", "train/tol_loss"), ("train_loss", "train/tol_loss"),
                                       ("train/acc", "train/acc"), ("train_acc", "train/acc")])
def test_a_run_without_evaluations_keeps_its_best(key, name, capsys):
    kept = {}

    class Keeps:
        def on_train_end(self, model, result):
            kept[model.epoch] = weights(model), result[name.removeprefix("train/")]

    trainer = tiny_trainer(key_metric=key, train_metrics=True, eval_loader=None, callbacks=[Keeps()])
    trainer.optimizer_list[0].param_groups[0]["lr"] = 2.0  # some epochs are worse
    trainer.fit(6)
    values = [value for _, value in kept.values()]
    best = (min if "loss" in name else max)(values)
    epoch = max(number for number, (_, value) in kept.items() if value == best)
    assert trainer.best_metric == {name: best} and trainer.best_epoch == {name: epoch}
    trainer.use_best()
    assert torch.equal(weights(trainer), kept[epoch][0])
    out = capsys.readouterr().out
    assert f"best = {'lowest' if 'loss' in name else 'highest'} {name}" in out and "key_metric is not used" not in out


def test_with_evaluations_it_is_still_the_training_that_decides():
    trainer = tiny_trainer(key_metric="train/tol_loss")
    assert trainer.eval() != trainer.eval()  # NaN: nothing was trained yet
    trainer.optimizer_list[0].param_groups[0]["lr"] = 2.0
    results = []
    for _ in trainer.epochs(5):
        results.append(trainer.train_loop()["tol_loss"])
        assert trainer.eval() == results[-1]
    assert trainer.best_metric["train/tol_loss"] == min(results)
    assert trainer.best_epoch["train/tol_loss"] == results.index(min(results)) + 1
    saved = torch.load(trainer.path_of("best.pth"), weights_only=True)
    assert saved["epoch"] == results.index(min(results)) + 1


def test_a_loader_called_train_is_evaluated_as_before():
    loader = Tiny().eval_loader
    trainer = tiny_trainer(eval_loader={"train": loader, "far": loader}, key_metric="train/acc")
    trainer.fit(1)
    assert trainer.best_metric["train/acc"] == trainer.eval_result["train/acc"] == trainer.eval_result["far/acc"]


@pytest.mark.parametrize("key", ["train/acc", "train/tol_loss"])
def test_plateau_schedules_and_early_stopping_follow_it(key):
    trainer = tiny_trainer(key_metric=key, train_metrics=True, eval_loader=None, lr_scheduler_type="metric",
                           lr_scheduler_args={"patience": 0, "cooldown": 0, "factor": 0.5},
                           callbacks=[EarlyStopping(patience=3)])
    trainer.optimizer_list[0].param_groups[0]["lr"] = 0.0
    trainer.train_loader = DataLoader(TensorDataset(X, Y), 10)
    trainer.model_list[0][1].p = 0.0
    trainer.fit(20)
    assert trainer.epochs_done == 4  # the first result, and three that are no better
    assert trainer.lr_schedule.schedulers[0].num_bad_epochs == 0 and trainer.should_stop
    scheduler = trainer.lr_schedule.schedulers[0]
    assert scheduler.mode == ("max" if key.endswith("acc") else "min") and scheduler.last_epoch == 4


def test_early_stopping_takes_a_metric_of_the_training_up():
    stopping = EarlyStopping("train/acc", patience=2)
    trainer = tiny_trainer(train_metrics=True, eval_loader=None, callbacks=[stopping])
    result = [trainer.train_loop()["acc"] for _ in range(2)]
    assert stopping.best == max(result)


def test_a_name_that_the_training_does_not_give_is_told_of_on_the_first_batch_and_refused_behind_the_epoch():
    trainer = tiny_trainer(key_metric="train/acc", eval_loader=None)
    with (pytest.warns(UserWarning, match=r"the first batch of the training gave \['train/tol_loss'\]"),
          pytest.raises(ValueError, match="'train/acc' is no loss or metric of the training.*train_metrics = True")):
        trainer.fit(1)
