"""Mistakes are found before the hour of training, correct set-ups pass in silence, and checking changes no bit."""

import os
import random
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from template.data.loaders import TensorLoader
from template.hooks import Callback
from template.run.criterion_inputs import check_criterion_inputs
from template.template import TemplateModel


@contextmanager
def silence():
    """Any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def check(**attributes):
    trainer = Tiny(**attributes)
    trainer.check_init(use_tb=False)
    return trainer


# --- attributes: what certainly breaks the run is an error ------------------------------------------------------------

MODEL = tiny_model()
SGD = torch.optim.SGD(MODEL.parameters(), 0.1)


@pytest.mark.parametrize("attributes, kind, rule, received", [
    ({"model_list": MODEL}, TypeError, r"model_list must be a list.*self.model_list = \[it\]", "Sequential"),
    ({"model_list": None}, TypeError, "model_list must be a list of Module", "None"),
    ({"model_list": ["net", MODEL]}, TypeError, "model_list must be a list of Module", "'net'"),
    ({"model_list": []}, ValueError, "model_list must not be empty", ""),
    ({"optimizer_list": SGD}, TypeError, r"optimizer_list must be a list.*self.optimizer_list = \[it\]", "SGD"),
    ({"optimizer_list": None}, TypeError, "optimizer_list must be a list of Optimizer", "None"),
    ({"optimizer_list": [0.1]}, TypeError, "optimizer_list must be a list of Optimizer", "0.1"),
    ({"criterion": "mse"}, TypeError, "criterion must be callable", "'mse'"),
    ({"train_loader": None}, ValueError, "train_loader must be set", ""),
    ({"train_loader": 7}, TypeError, "train_loader must be an iterable", "7"),
    ({"eval_loader": 7.5}, TypeError, "eval_loader must be an iterable", "7.5"),
    ({"train_loader": (batch for batch in [])}, ValueError, "read once only", "generator"),
    ({"train_loader": zip([], [])}, ValueError, "read once only", "zip"),
    ({"eval_loader": {"a": iter([])}}, ValueError, "read once only", "list_iterator"),
    ({"train_loader": []}, ValueError, "train_loader is empty", "0 batches"),
    ({"eval_loader": DataLoader([1, 2], 5, drop_last=True)}, ValueError, "eval_loader is empty.*drop_last", "0 batches"),
    ({"lr_scheduler_type": "cosin"}, ValueError, r"lr_scheduler_type must be one of .*'cosine'", "'cosin'"),
    ({"lr_scheduler_interval": "batch"}, ValueError, "lr_scheduler_interval must be one of .*'update'", "'batch'"),
    ({"warm_up_mode": "quadratic"}, ValueError, "warm_up_mode must be one of .*'exponential'", "'quadratic'"),
    ({"warm_up_type": "quadratic"}, ValueError, "warm_up_mode must be one of .*'exponential'", "'quadratic'"),
    ({"parallel": "dp"}, ValueError, "parallel must be one of", "'dp'"),
    ({"key_metric_mode": "up"}, ValueError, "key_metric_mode must be 'max', 'min'", "'up'"),
    ({"key_metric_mode": {"acc": "big"}}, ValueError, "key_metric_mode must be 'max', 'min'", "'big'"),
    ({"log_per_step": 0}, ValueError, "log_per_step must be a whole number of at least 1", "0"),
    ({"accumulate_steps": 1.5}, ValueError, "accumulate_steps must be a whole number", "1.5"),
    ({"save_per_steps": -3}, ValueError, "save_per_steps must be a whole number", "-3"),
    ({"keep_checkpoints": True}, ValueError, "keep_checkpoints must be a whole number", "True"),
    ({"warm_up_updates": "9"}, ValueError, "warm_up_updates must be a whole number", "'9'"),
    ({"warm_up_epoch": -1}, ValueError, "warm_up_epoch must be a number of epochs, 0 or more", "-1"),
    ({"warm_up_epoch": "2"}, ValueError, "warm_up_epoch must be a number of epochs, 0 or more", "'2'"),
    ({"lr_scheduler_type": "onecycle", "warm_up_epoch": 2}, ValueError, "'onecycle' warms up by itself", ""),
    ({"lr_scheduler_list": SGD}, TypeError, "lr_scheduler_list must be a list of schedulers", "SGD"),
    ({"warm_up_scheduler_list": "x"}, TypeError, "warm_up_scheduler_list must be a list", "'x'"),
    ({"callbacks": Callback()}, TypeError, "callbacks must be a list", "Callback"),
    ({"callbacks": [Callback]}, TypeError, r"callbacks must hold objects.*Write Callback\(\)", "the class Callback"),
    ({"callbacks": [print]}, TypeError, "callbacks must hold objects with methods such as on_train_end", "print"),
    ({"lr_scheduler_type": "CosineAnnealingLR"}, ValueError, r"lr_scheduler_list = .*\.CosineAnnealingLR\(opt", "'Cosine"),
    ({"lr_scheduler_type": "exponentiallr"}, ValueError, r"lr_scheduler_list = .*\.ExponentialLR\(opt", "'exponential"),
    ({"lr_scheduler_type": torch.optim.lr_scheduler.StepLR}, ValueError, r"lr_scheduler_list = .*\.StepLR\(", "StepLR'"),
    ({"optimizer_list": None, "optimizer_lists": [SGD]}, TypeError, "There is a self.optimizer_lists, .*is it me", "None"),
    ({"train_loader": None, "train_loder": [1]}, ValueError, "There is a self.train_loder, .*is it meant", ""),
    *[({"skip_non_finite": value}, ValueError, "skip_non_finite is the number of updates in a row.*0 or more", repr(value))
      for value in (-1, 1.5, True, None, "3")],
    *[({"save_per_seconds": value}, ValueError, "save_per_seconds must be a positive number of seconds or None", repr(value))
      for value in (0, -1, True, "60")],
])
def test_a_wrong_attribute_is_refused_with_the_rule_and_what_was_received(attributes, kind, rule, received):
    with pytest.raises(kind, match=rule) as caught:
        check(**attributes)
    assert received in str(caught.value)
    assert not os.path.exists("check_point")  # found before anything is written


def test_an_environment_that_is_not_torchruns_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=4.*'RANK'.*torchrun, or set parallel = None"):
        Tiny().check_init(use_tb=False)
    Tiny(parallel=None).check_init(use_tb=False)


def test_sync_batchnorm_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match="sync_batchnorm = True needs GPUs"):
        Tiny(sync_batchnorm=True, device="cpu").check_init(use_tb=False)


def test_a_dict_of_train_loaders_needs_lengths():
    class Endless(IterableDataset):
        def __iter__(self):
            yield torch.ones(6), 1

    with pytest.raises(ValueError, match="need a len"):
        check(train_loader={"a": DataLoader(Endless()), "b": [1]})


def test_an_iterator_class_whose_iter_starts_anew_is_a_loader():
    class Restarting:  # written by hand for years: __iter__ resets and returns self
        def __iter__(self):
            self.left = 2
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            return tiny_data(4)

    trainer = check(train_loader=Restarting())
    trainer.train_loop()
    trainer.train_loop()
    assert trainer.global_step == 4


def test_an_optimizer_over_a_replaced_model_is_an_error():
    with pytest.raises(ValueError, match=r"optimizer_list\[0\] holds parameters of no model.*changes? nothing"):
        check(optimizer_list=[torch.optim.SGD(tiny_model().parameters(), 0.1)])


# --- attributes: what may be meant is a warning -----------------------------------------------------------------------


def test_an_attribute_that_hides_a_method_is_an_error():
    with pytest.raises(ValueError, match=r"name of a method, which it hides: \['train_step'\]"):
        check(train_step=30)
    with pytest.warns(UserWarning, match=r"\['epochs'\] hide the methods"):  # a subclass of 2021 may have it
        check(epochs=30)

    class Misnamed(Tiny):
        def callbacks(self):  # TemplateModel has an attribute of that name
            return []

    with pytest.raises(ValueError, match=r"hides: \['callbacks'\]"):
        Misnamed().check_init(use_tb=False)

    class Replaced(Tiny):
        def __init__(self):
            super().__init__()
            self.metric = lambda pred, y: {"acc": 0.5}  # is meant

    with silence():
        trainer = Replaced()
        trainer.check_init(use_tb=False)
    assert trainer.eval() == 0.5


def test_train_and_eval_over_one_dataset_is_warned_about():
    data = TensorDataset(*tiny_data())
    with pytest.warns(UserWarning, match="train_loader and eval_loader read one dataset.*Hold out"):
        check(train_loader=DataLoader(data, 10, shuffle=True), eval_loader=DataLoader(data, 10))
    loader = TensorLoader(*tiny_data(), batch_size=10)
    with pytest.warns(UserWarning, match="read one dataset"):
        check(train_loader=loader, eval_loader=loader)


def test_parameters_outside_model_list_are_named():
    model, other = tiny_model(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
    with pytest.warns(UserWarning, match=r"2 parameters .* of optimizer_list\[0\] belong to no model.*no checkpoint"):
        check(model=model, optimizer_list=[optimizer])


def test_optimized_parameters_outside_of_models_and_criterion_are_named_because_no_checkpoint_holds_them():
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pred, y):
            return super().forward(pred * self.scale, y)

    model, criterion = tiny_model(), Scaled()
    optimizers = [torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(criterion.parameters(), 0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(model=model, criterion=criterion, optimizer_list=optimizers)
    sigma = nn.Parameter(torch.ones(()))
    with pytest.warns(UserWarning, match=r"log_sigma\) of optimizer_list\[1\] .*no checkpoint"):
        check(model=model, optimizer_list=[optimizers[0], torch.optim.SGD([sigma], 0.1)], log_sigma=sigma)


def test_a_parameter_in_two_optimizers_is_named():
    model = tiny_model()
    first, second = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam([model[0].bias])
    with pytest.warns(UserWarning, match=r"1 parameter \(model_list\[0\]\.0\.bias\) are in more than one optimizer"):
        check(model=model, optimizer_list=[first, second])


def test_a_trainable_parameter_in_no_optimizer_is_named_and_a_frozen_one_is_not():
    model = tiny_model()
    head_only = [torch.optim.SGD(model[3].parameters(), 0.1)]
    with pytest.warns(UserWarning, match=r"\(model_list\[0\]\.0\.weight, .*bias\) are trainable but in no opt"):
        check(model=model, optimizer_list=head_only)
    model[0].requires_grad_(False)
    with silence():
        check(model=model, optimizer_list=head_only)


@pytest.mark.parametrize("wrong, right", [
    ("warmup_epoch", "warm_up_epoch"), ("logPerStep", "log_per_step"), ("modellist", "model_list"),
    ("val_loader", "eval_loader"), ("test_loaders", "test_loader"), ("key_metrics", "key_metric"),
    ("lr_scheduler", "lr_scheduler_list or lr_scheduler_type"), ("clip_grads", "clip_grad"),
])
def test_a_misspelled_attribute_is_warned_about_with_the_right_name(wrong, right):
    with pytest.warns(UserWarning, match=rf"self\.{wrong} is no attribute .*Did you mean {right}\?"):
        check(**{wrong: 5})


@pytest.mark.parametrize("real, wrong", [("criterion", "criterian"), ("criterion", "criteria"),
                                         ("eval_loader", "valid_loader")])
def test_where_the_real_one_is_missing_less_likeness_is_enough(real, wrong):
    with pytest.warns(UserWarning, match=rf"self\.{wrong} is no attribute .*Did you mean {real}\?"):
        check(**{real: None, wrong: nn.CrossEntropyLoss() if real == "criterion" else [tiny_data(4)]})
    with silence():
        check(**{wrong: 5})


def test_attributes_of_ones_own_are_not_taken_for_misspelled_ones():
    trainer = Tiny()
    for name in ("net", "args", "train_loader2", "eval_loader_2", "model", "optimizer", "generator", "dataset", "logger",
                 "lr", "batch_size", "loss_fn", "num_classes", "best", "start_epoch", "scheduler", "losses", "_epoch"):
        setattr(trainer, name, 1)
    with silence():
        trainer.check_init(use_tb=False)


# --- correct set-ups pass in silence ----------------------------------------------------------------------------------


class DictBatches(Tiny):
    def __init__(self):
        x, y = tiny_data()
        samples = [{"x": a, "y": b} for a, b in zip(x, y)]
        super().__init__(train_loader=DataLoader(samples, 10), eval_loader=DataLoader(samples[:20], 10))

    def loss_per_batch(self, batch):
        return {"tol_loss": self.criterion(self.inference(batch["x"]), batch["y"])}

    def eval_scores_per_batch(self, batch):
        return self.metric(self.inference(batch["x"]), batch["y"])


class OwnLoss(Tiny):
    """The model returns its loss, as many libraries' models do."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, labels):
            logits = self.layer(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def __init__(self):
        super().__init__(model=self.Net(), criterion=None)

        def collate(samples):
            return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}

        self.train_loader = DataLoader(TensorDataset(*tiny_data()), 10, collate_fn=collate)
        self.eval_loader = DataLoader(TensorDataset(*tiny_data(20, seed=5)), 10, collate_fn=collate)


class TwoOptimizers(Tiny):
    def __init__(self):
        body, head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)
        super().__init__(model_list=[body, head], optimizer_list=[torch.optim.SGD(body.parameters(), 0.1),
                                                                  torch.optim.Adam(head.parameters())])


class Gan(TemplateModel):
    """Generator 0, discriminator 1; ``index`` off makes the generator's loss leak into the discriminator."""

    index = True

    def __init__(self):
        super().__init__()
        self.model_list = [nn.Linear(4, 6), nn.Linear(6, 1)]
        self.optimizer_list = [torch.optim.Adam(model.parameters()) for model in self.model_list]
        self.train_loader = DataLoader(TensorDataset(tiny_data()[0]), 10)

    def train_step(self, batch):
        (real,) = batch
        generator, discriminator = self.model_list
        fake = generator(torch.randn(len(real), 4))
        d_loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
        self.backward(d_loss, 1)
        self.update(1)
        g_loss = F.softplus(-discriminator(fake)).mean()
        self.backward(g_loss, *([0] if self.index else []))
        self.update(0)
        return {"tol_loss": g_loss, "d": d_loss}


class Regression(Tiny):
    def __init__(self):
        x, _ = tiny_data()
        data = TensorDataset(x, x.sum(1, keepdim=True))
        super().__init__(model=nn.Linear(6, 1), criterion=nn.MSELoss(), train_loader=DataLoader(data, 10),
                         eval_loader=DataLoader(TensorDataset(x[:9], x[:9].sum(1, keepdim=True)), 4))


class Segmentation(Tiny):
    """Labels [B, H, W], of which 255 does not count."""

    def __init__(self):
        x = torch.randn(12, 2, 4, 4)
        y = torch.randint(0, 3, (12, 4, 4))
        y[:, 0] = 255
        super().__init__(model=nn.Conv2d(2, 3, 1), criterion=nn.CrossEntropyLoss(ignore_index=255),
                         train_loader=DataLoader(TensorDataset(x, y), 4),
                         eval_loader=DataLoader(TensorDataset(x[:4], y[:4]), 4))


@pytest.mark.parametrize("trainer_class", [Tiny, TwoOptimizers, DictBatches, OwnLoss, Gan, Regression, Segmentation])
def test_a_correct_set_up_passes_in_silence(trainer_class, capfd):
    with silence():
        trainer = trainer_class()
        trainer.check_init(use_tb=False)
        trainer.fit(1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("criterion", [
    F.cross_entropy,
    lambda pred, y: F.cross_entropy(pred, y, label_smoothing=0.1),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
])
def test_every_kind_of_criterion_passes_in_silence(criterion):
    with silence():
        check(criterion=criterion).fit(1)


def test_labels_that_ignore_index_leaves_out_may_be_out_of_range():
    x, y = tiny_data()
    data = DataLoader(TensorDataset(x, torch.where(torch.arange(53) % 7 == 0, 255, y)), 10)

    class Ignoring(Tiny):
        def loss_per_batch(self, batch):
            return self.criterion(self.inference(batch[0]), batch[1], ignore_index=255)

    with silence():
        check(train_loader=data, criterion=nn.CrossEntropyLoss(ignore_index=255)).train_loop()
        trainer = Ignoring(train_loader=data, eval_loader=None, criterion=F.cross_entropy)
        trainer.check_init(use_tb=False)
        trainer.train_loop()
    with pytest.raises(ValueError, match="labels from 0 to 255"):
        check(train_loader=data).train_loop()


# --- on the first batch -----------------------------------------------------------------------------------------------


def labelled(y, num_features=6):
    y = torch.as_tensor(y)
    return DataLoader(TensorDataset(torch.randn(len(y), num_features), y), 10)


def test_labels_out_of_range_are_told_with_their_range():
    loader = labelled([1, 2, 3] * 10)
    with pytest.raises(ValueError, match=r"labels from 1 to 3, but pred has 3 classes.*\[0, 3\).*from 0"):
        check(train_loader=loader).train_loop()
    with pytest.raises(ValueError, match="cross_entropy got labels from 1 to 3"):
        check(train_loader=loader, criterion=F.cross_entropy).train_loop()
    with pytest.raises(ValueError, match="labels from -1 to -1"):
        check(train_loader=labelled([-1] * 20)).train_loop()
    with pytest.raises(ValueError, match="labels from 1 to 3"):
        check(eval_loader=loader).fit(1)  # seen before the first update, too


def tokens(length, num_classes, count=20):
    x, y = (torch.randint(num_classes, (count, length)) for _ in range(2))
    return DataLoader(TensorDataset(x, y), 10)


@pytest.mark.parametrize("eval_too", [False, True])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy, nn.NLLLoss()])
def test_scores_with_the_classes_last_are_told_where_they_belong(criterion, eval_too):
    loader = tokens(7, 9)
    trainer = check(model=nn.Embedding(9, 9), criterion=criterion, train_loader=loader,
                    eval_loader=list(loader) if eval_too else None)
    with pytest.raises(ValueError) as caught:
        trainer.fit(1)
    message = str(caught.value)
    for said in ("classes in dimension 1", "(10, 7, 9)", "(10, 7)", "pred.flatten(0, 1), y.flatten(0, 1)",
                 "pred.transpose(1, 2)", "preflight = False"):
        assert said in message
    assert "widen" not in message and trainer.global_step == 0


def test_images_with_the_classes_last_are_told_too():
    with pytest.raises(ValueError, match=r"pred.flatten\(0, 2\), y.flatten\(0, 2\), or pred.movedim\(-1, 1\)"):
        check_criterion_inputs(nn.CrossEntropyLoss(), (torch.randn(2, 4, 5, 3), torch.zeros(2, 4, 5).long()))


class Scores(nn.Module):
    """[B, 8, 8] of tokens [B, 8]: as many classes as tokens."""

    def __init__(self, ending, classes=8):
        super().__init__()
        self.embedding, self.linear, self.conv = nn.Embedding(8, 6), nn.Linear(6, classes), nn.Conv1d(6, 8, 1)
        self.ending = ending

    def forward(self, x):
        return self.ending(self, self.embedding(x))


CLASSES_LAST = {
    "linear": lambda m, h: m.linear(h), "not contiguous": lambda m, h: m.linear(h.mT.contiguous().mT),
    "product": lambda m, h: h @ m.linear.weight.T, "soft cap": lambda m, h: 30 * torch.tanh(m.linear(h) / 30),
    "log_softmax": lambda m, h: m.linear(h).log_softmax(-1), "of dimension 2": lambda m, h: m.linear(h).log_softmax(2),
    "float": lambda m, h: m.linear(h).double().float(), "bfloat16": lambda m, h: m.linear(h).bfloat16(),
}
CLASSES_IN_1 = {
    "turned": lambda m, h: m.linear(h).transpose(1, 2), "permuted": lambda m, h: m.linear(h).permute(0, 2, 1).contiguous(),
    "conv": lambda m, h: m.conv(h.transpose(1, 2)), "conv, softmax": lambda m, h: m.conv(h.transpose(1, 2)).log_softmax(1),
    "turned, softmax": lambda m, h: m.linear(h).transpose(1, 2).log_softmax(1),
}


@pytest.mark.filterwarnings("ignore:.*got no gradient:UserWarning")
@pytest.mark.parametrize("name", CLASSES_LAST)
def test_a_softmax_over_time_is_warned_about_where_the_sizes_do_not_show_it(name):
    with pytest.warns(UserWarning, match=r"\(10, 8, 8\) with y \(10, 8\) they seem to be in the last one"):
        check(model=Scores(CLASSES_LAST[name]), train_loader=tokens(8, 8), eval_loader=tokens(8, 8)).train_loop()


def test_a_table_of_next_tokens_is_warned_about_under_autocast_too():
    with pytest.warns(UserWarning, match=r"pred \(10, 8, 8\) with y \(10, 8\) they seem to be in the last one"):
        check(model=nn.Embedding(8, 8), train_loader=tokens(8, 8), amp="bf16", eval_loader=None).train_loop()


@pytest.mark.parametrize("name", CLASSES_IN_1)
def test_classes_in_dimension_1_pass_in_silence_where_the_sizes_are_equal(name):
    model = Scores(CLASSES_IN_1[name])
    for unused in {"conv": (model.linear,)}.get(name.split(",")[0], (model.conv,)):
        unused.requires_grad_(False)
    with silence():
        check(model=model, train_loader=tokens(8, 8), eval_loader=tokens(8, 8)).train_loop()


def test_one_linear_layer_for_all_classes_and_places_passes_in_silence():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 9)

        def forward(self, x):
            return self.layer(x).view(-1, 3, 3)  # [B, C, T]

    x, _ = tiny_data()
    with silence():
        check(model=Heads(), train_loader=DataLoader(TensorDataset(x, torch.randint(3, (53, 3))), 10),
              eval_loader=None).train_loop()


def test_byte_labels_are_counted_as_what_they_are():
    loader = labelled(torch.tensor([0, 1, 156] * 10, dtype=torch.uint8))  # -100 as a byte would be 156
    with pytest.raises(ValueError, match="labels from 0 to 156, but pred has 3 classes"):
        check(train_loader=loader, eval_loader=None).train_loop()


def test_one_logit_is_no_class():
    with pytest.raises(ValueError, match=r"labels from 0 to 1, but pred has 1 class, .*BCEWithLogitsLoss"):
        check(model=nn.Linear(6, 1), train_loader=labelled([0, 1] * 10), eval_loader=None).train_loop()
    with pytest.warns(UserWarning, match="with one class the loss is always 0"):
        check(model=nn.Linear(6, 1), train_loader=labelled([0, 0] * 10), eval_loader=None).train_loop()


def test_labels_of_0_and_1_for_a_loss_that_takes_lists_of_classes_are_warned_about():
    criterion = nn.MultiLabelMarginLoss()
    with pytest.warns(UserWarning, match=r"MultiLabelMarginLoss takes the numbers of the classes.*MultiLabelSoftMarginLoss"):
        check(criterion=criterion, train_loader=labelled([[0, 1, 1], [1, 0, 0]] * 10), eval_loader=None).train_loop()
    with silence():
        check(criterion=criterion, train_loader=labelled([[1, 2, -1], [0, -1, 0]] * 10), eval_loader=None).train_loop()


@pytest.mark.parametrize("criterion, pred, y", [
    (nn.CrossEntropyLoss(), torch.randn(4, 3), torch.zeros(4)),
    (nn.CrossEntropyLoss(), torch.randn(4, 3), torch.full((4,), 3)),
    (nn.CrossEntropyLoss(), torch.randn(4, 5, 3), torch.zeros(4, 5).long()),
    (nn.L1Loss(), torch.randn(4, 1), torch.randn(4)), (F.l1_loss, torch.randn(4, 1), torch.randn(4)),
    (nn.SmoothL1Loss(), torch.randn(4, 1), torch.ones(4).long()), (nn.HuberLoss(), torch.randn(4), torch.randn(4, 1)),
    (nn.BCEWithLogitsLoss(), torch.randn(4), torch.full((4,), 2)),
])
def test_every_refusal_says_how_to_go_on_without_it(criterion, pred, y):
    with pytest.raises(ValueError, match="preflight = False"):
        check_criterion_inputs(criterion, (pred, y))


@pytest.mark.parametrize("criterion, pred, y", [
    (lambda pred, y: 0, torch.randn(10, 3), torch.randn(10, 1)),                     # quantiles of one label each
    (lambda pred, y: 0, torch.randn(10, 10), torch.randint(10, (10,))),              # classes
    (nn.CTCLoss(), torch.randn(6, 10, 4).log_softmax(2), torch.randint(1, 4, (10, 1))),
    (nn.CTCLoss(), torch.randn(6, 10, 4).log_softmax(2), torch.randint(1, 4, (4,))),
    (nn.CrossEntropyLoss(), torch.randn(10, 3), torch.randn(10, 3).softmax(1)),
    (nn.BCEWithLogitsLoss(), torch.randn(0, 1), torch.randn(0, 1)), (nn.MultiLabelMarginLoss(), torch.randn(0, 3),
                                                                     torch.zeros(0, 3).long()),
])
def test_what_is_right_or_explained_by_torch_is_let_through(criterion, pred, y):
    with silence():
        check_criterion_inputs(criterion, (pred, y))


def test_float_class_labels_are_told_with_the_cure():
    with pytest.raises(ValueError, match=r"CrossEntropyLoss needs class indices as integers.*torch.float32.*y\.long\(\)"):
        check(train_loader=labelled([0.0, 1.0, 2.0] * 10)).train_loop()


def test_class_probabilities_as_labels_are_fine():
    with silence():
        check(train_loader=labelled(torch.full((30, 3), 1 / 3)), eval_loader=None).train_loop()


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.SmoothL1Loss(), F.l1_loss, nn.BCEWithLogitsLoss()])
def test_shapes_that_would_broadcast_are_refused(criterion):
    with pytest.raises(ValueError, match=r"would broadcast pred \(10, 1\) against y \(10,\).*unsqueeze\(1\)"):
        check(model=nn.Linear(6, 1), criterion=criterion, train_loader=labelled(torch.rand(30)),
              eval_loader=None).train_loop()


def pinball(pred, y):
    """Three quantiles of one label: pred [B, 3], y [B, 1]; or of all members of an ensemble: pred [M, B, 3]."""
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(quantiles * (y - pred), (quantiles - 1) * (y - pred)).mean()


ONE, ALL = torch.randn(16, 1), torch.randn(16)


@pytest.mark.parametrize("criterion", [pinball, nn.MSELoss(), F.l1_loss])
@pytest.mark.parametrize("pred, y, crosses", [
    (torch.randn(16, 3), ONE, False), (torch.randn(16, 7, 3), torch.randn(16, 7, 1), False),   # quantiles
    (torch.randn(5, 16), ALL, False), (torch.randn(5, 16, 1), ONE, False),                     # an ensemble's members
    (torch.randn(16, 3), torch.randn(3), False), (ONE, torch.randn(16, 3), False), (ALL, torch.tensor(0.5), False),
    (torch.randn(1, 1), torch.randn(1), False),                                                # one sample
    (ONE, ALL, True), (ALL, ONE, True), (ONE, ONE.T, True), (torch.randn(16, 1, 7), torch.randn(16, 7), True),
    (torch.randn(5, 16, 1), ALL, True), (torch.randn(16, 16), ALL, True), (torch.randn(16, 16, 1), ONE, True),
])
def test_only_what_crosses_the_batch_is_told(criterion, pred, y, crosses):
    if not crosses:
        with silence():
            return check_criterion_inputs(criterion, (pred, y))
    if criterion is pinball:  # which may turn them itself
        with pytest.warns(UserWarning, match=r"If it combines them as they are, .*If pinball does so itself, all is well"):
            return check_criterion_inputs(criterion, (pred, y))
    with pytest.raises(ValueError, match="would broadcast pred.*preflight = False"):
        check_criterion_inputs(criterion, (pred, y))


def test_quantiles_of_one_label_are_trained_as_in_a_plain_loop():
    torch.manual_seed(0)
    x, model, plain = tiny_data()[0], nn.Linear(6, 3), nn.Linear(6, 3)
    plain.load_state_dict(model.state_dict())
    y = x.sum(1, keepdim=True)
    loader = DataLoader(TensorDataset(x, y), 10)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for inputs, labels in loader:
        optimizer.zero_grad()
        pinball(plain(inputs), labels).backward()
        optimizer.step()
    with silence():
        trainer = check(model=model, criterion=pinball, train_loader=loader, eval_loader=None)
        trainer.train_loop()
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in plain.parameters()]))


def test_a_criterion_that_takes_the_dimension_off_itself_is_not_stopped():
    model, loader = nn.Linear(6, 1), labelled(torch.rand(30))
    with pytest.warns(UserWarning, match="If <lambda> does so itself, all is well"):
        check(model=model, criterion=lambda pred, y: F.mse_loss(pred.squeeze(1), y), train_loader=loader,
              eval_loader=None).fit(1)


def test_labels_of_a_binary_loss_lie_between_0_and_1():
    with pytest.raises(ValueError, match=r"BCEWithLogitsLoss needs labels in \[0, 1\], got values from -1 to 1"):
        check(model=nn.Linear(6, 1), criterion=nn.BCEWithLogitsLoss(), eval_loader=None,
              train_loader=labelled(torch.tensor([[-1.0], [1.0]] * 10))).train_loop()


def test_softmax_before_cross_entropy_is_warned_about():
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))
    with pytest.warns(UserWarning, match="CrossEntropyLoss look like probabilities.*Remove the model's softmax"):
        check(model=model, eval_loader=None).train_loop()
    with silence():  # where it belongs
        check(model=nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)), criterion=nn.NLLLoss(), eval_loader=None).train_loop()


@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_a_sigmoid_before_a_loss_that_applies_one_is_warned_about(criterion):
    model, loader = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()), labelled(torch.ones(20, 1))
    with pytest.warns(UserWarning, match="come out of a sigmoid.*Remove the model's sigmoid"):
        check(model=model, criterion=criterion, train_loader=loader, eval_loader=None).train_loop()
    with silence():  # where they belong
        check(model=model, criterion=nn.BCELoss(), train_loader=loader, eval_loader=None).train_loop()
        check(model=nn.Linear(6, 1), criterion=criterion, train_loader=loader, eval_loader=None).train_loop()


def test_scores_that_are_no_log_probabilities_are_warned_about():
    model = tiny_model()
    nn.init.constant_(model[3].bias, 5.0)
    with pytest.warns(UserWarning, match="NLLLoss takes log-probabilities, .*CrossEntropyLoss"):
        check(model=model, criterion=nn.NLLLoss(), eval_loader=None).train_loop()


def test_a_parameter_without_gradient_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.forgotten = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.warns(UserWarning, match=r"2 parameters \(model_list\[0\]\.forgotten\.weight, .*got no gradient"):
        check(model=Unused()).train_loop()


class CriticFirst(Gan):
    """The generator has its turn in every third update, or never."""

    every = 3

    def train_step(self, batch):
        (real,) = batch
        generator, critic = self.model_list
        fake = generator(torch.randn(len(real), 4))
        if not self.every or (self.global_step + 1) % self.every:
            loss = critic(fake.detach()).mean() - critic(real).mean()
            self.backward(loss, 1)
            self.update(1)
        else:
            loss = -critic(fake).mean()
            self.backward(loss, 0)
            self.update(0)
        return {"tol_loss": loss}


def test_an_optimizer_whose_turn_comes_later_is_waited_for_in_silence_and_named_after_an_epoch_without():
    with silence():
        trainer = CriticFirst()
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        trainer.train_loop()
    never = CriticFirst()
    never.every = 0
    never.check_init(use_tb=False)
    with pytest.warns(UserWarning, match=r"\(model_list\[0\]\.weight, .* no gradient in the first epoch") as told:
        never.train_loop()
        never.train_loop()
    assert len([one for one in told if "no gradient" in str(one.message)]) == 1


def test_a_gan_whose_step_forgot_the_index_is_told_about_the_leak():
    class Leaking(Gan):
        index = False

    trainer = Leaking()
    trainer.check_init(use_tb=False)
    with pytest.warns(UserWarning, match=r"model_list\[1\]\.weight.*still hold gradients.*backward\(loss, i\)"):
        trainer.train_loop()


def test_a_gan_whose_step_drops_such_gradients_first_is_told_nothing():
    class Dropping(Gan):
        index = False

        def train_step(self, batch):
            for optimizer in self.optimizer_list:
                optimizer.zero_grad()
            return super().train_step(batch)

    trainer = Dropping()
    trainer.check_init(use_tb=False)
    with silence():
        trainer.train_loop()
    assert "backward" not in vars(trainer.stepper)


def test_a_loss_that_needs_no_gradient_is_told():
    class Detached(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch)["tol_loss"].detach()

    trainer = Detached()
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match="depends on a trainable parameter, got a tensor .*requires_grad=False"):
        trainer.train_loop()


def test_a_loss_that_is_not_finite_stops_at_the_first_update():
    class Exploding(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch)["tol_loss"] * float("nan")

    trainer = Exploding(log_per_step=1000, eval_loader=None)
    trainer.check_init(use_tb=False)
    with pytest.raises(FloatingPointError, match="it is nan in epoch 1, batch 1 "):
        trainer.train_loop()
    assert trainer.global_step == 1


def test_a_plateau_schedule_that_waits_for_the_wrong_direction_is_told_before_the_first_update():
    class NoMetric(Tiny):
        def metric(self, pred, y):
            return {}  # so the eval loss is the key, and less of it is better

    trainer = NoMetric(lr_scheduler_type="metric")
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match="built to wait for a maximum, and of 'tol_loss' the minimum is best"):
        trainer.train_loop()
    assert trainer.global_step == 0


def test_a_metric_with_the_name_of_a_loss_is_told():
    class Twice(Tiny):
        def metric(self, pred, y):
            return {"tol_loss": 1.0}

    trainer = Twice()
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match=r"must not share a name.*\['tol_loss'\]"):
        trainer.fit(1)
    assert trainer.global_step == 0


def test_preflight_off_lets_everything_through():
    with silence():
        trainer = check(preflight=False, key_metric="f1", train_loader=labelled(torch.rand(30)),
                        model=nn.Linear(6, 1), criterion=F.l1_loss, eval_loader=[tiny_data(4)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a target size")  # torch's own remark
            trainer.train_loop()
    assert trainer.global_step == 3


# --- checking changes nothing -----------------------------------------------------------------------------------------


class Augmented(Dataset):
    """Noise from all three generators; notes in a file which worker read."""

    def __init__(self, x, y, note):
        self.x, self.y, self.note = x, y, note

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if get_worker_info() is not None:
            Path(f"{self.note}-{os.getpid()}").touch()
        noise = torch.rand(()) + np.random.rand() + random.random()
        return self.x[index] + 0.1 * noise.float(), self.y[index]


def train_augmented(preflight, num_workers, criterion, note):
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
    model.load_state_dict(INITIAL)
    trainer = Tiny(model=model, preflight=preflight, criterion=criterion, train_loader=DataLoader(
        Augmented(*tiny_data(), f"train-{note}"), 10, shuffle=True, num_workers=num_workers))
    trainer.eval_loader = DataLoader(Augmented(*tiny_data(23, seed=5), f"eval-{note}"), 10, num_workers=num_workers)
    trainer.check_init(use_tb=False)
    losses = [trainer.train_loop()]
    trained_without_eval = list(Path().glob(f"eval-{note}-*"))
    scores = [trainer.eval()]
    losses.append(trainer.train_loop())
    scores.append(trainer.eval())
    rng = (torch.rand(2).tolist(), np.random.rand(), random.random())
    return weights(trainer), losses, scores, trainer.global_step_eval, rng, trained_without_eval


torch.manual_seed(0)
INITIAL = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3)).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_training_ends_in_the_same_bits_with_and_without_preflight(num_workers, criterion):
    with_it = train_augmented(True, num_workers, criterion, "with")
    without = train_augmented(False, num_workers, criterion, "without")
    assert torch.equal(with_it[0], without[0])
    assert with_it[1:-1] == without[1:-1]
    assert len(with_it[-1]) == (num_workers > 0) and without[-1] == []  # one worker read the batch that was looked at
    assert len(list(Path().glob("train-with-*"))) == 2 * num_workers  # two epochs: no start of the workers beside these


def test_the_criterion_is_given_back_after_the_first_update():
    trainer = check(criterion=F.cross_entropy)
    trainer.train_loop()
    assert trainer.criterion is F.cross_entropy
    module = nn.CrossEntropyLoss()
    trainer = check(criterion=module)
    trainer.train_loop()
    assert len(module._forward_pre_hooks) == 0
    names = [type(callback).__name__ for callback in trainer.hooks.callbacks]
    assert names == ["ProgressBar", "TensorBoard", "History", "Unfrozen"]


def test_the_criterion_is_given_back_after_an_error_too():
    def criterion(pred, y):
        raise OSError("broken")

    trainer = check(criterion=criterion, eval_loader=None)
    with pytest.raises(OSError, match="broken"):
        trainer.train_loop()
    assert trainer.criterion is criterion


def test_metrics_that_accumulate_start_from_zero_after_the_check():
    from template.metrics.accumulators import Confusion

    class Kept(Tiny):
        def __init__(self):
            super().__init__()
            self.confusion = Confusion(3)

        def metric(self, pred, y):
            self.confusion.update(pred, y)
            return {"acc": self.confusion.accuracy(), "table": self.confusion}

    trainer = Kept()
    trainer.key_metric = "acc"
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    assert trainer.confusion.counts_CC.sum() == 0
    trainer.eval()
    assert trainer.eval_result["table"].sum() == 23


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [
    lambda trainer: trainer.train_loop(), lambda trainer: trainer.eval(), lambda trainer: trainer.test(),
    lambda trainer: trainer.save_state("x.pth"), lambda trainer: trainer.load_state("x.pth"),
    lambda trainer: next(trainer.epochs(3)), lambda trainer: trainer.fit(3),
])
def test_everything_asks_for_check_init_first(use):
    with pytest.raises(RuntimeError, match=r"Call check_init\(\) once"):
        use(Tiny())


def test_evaluating_without_a_loader_is_told():
    trainer = check(eval_loader=None)
    for use in (trainer.eval, trainer.test):
        with pytest.raises(ValueError, match="eval_loader .or test_loader. is not set"):
            use()


def test_checking_takes_no_time_to_speak_of():
    trainer = Tiny(model=nn.Sequential(*[nn.Linear(6, 6) for _ in range(500)], nn.Linear(6, 3)))
    from template.run.checks import check_attributes

    started = time.perf_counter()
    check_attributes(trainer, trainer._overrides)
    assert time.perf_counter() - started < 0.5  # it takes about 5 ms; quadratic work would take seconds
