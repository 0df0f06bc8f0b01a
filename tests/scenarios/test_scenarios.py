"""Subclasses as people write them: the two ways of 2021, several models, a GAN, dict batches, models with their own loss.

Each scenario is compared with a plain PyTorch loop that does the same by hand.
"""

import sys

import pytest
import torch
from tiny import tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.metrics.best import better_when
from template.template import TemplateModel


class Listed:
    """Batches in a fixed order: what a plain loop can follow without knowing our order."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def fixed_batches(num_samples=53, size=10, seed=0):
    x, y = tiny_data(num_samples, seed=seed)
    return Listed(list(zip(x.split(size), y.split(size))))


class From2021(TemplateModel):
    """As the first README of 2021 writes it: ``test_loader``, ``epoch`` from 0, everything set again in ``__init__``."""

    def __init__(self):
        super(From2021, self).__init__()  # noqa: UP008
        model = tiny_model(dropout=0.0)
        self.model_list = [model]
        self.optimizer_list = [torch.optim.SGD(model.parameters(), lr=0.1)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = fixed_batches()
        self.test_loader = fixed_batches(23, seed=5)
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter()
        self.global_step = 0
        self.epoch = 0
        self.best_metric = {}
        self.key_metric = None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ckpt_dir = "./check_point"
        self.log_per_step = 5
        self.warm_up_epoch = 1
        self.warm_up_type = "linear"
        self.lr_scheduler_type = "step"


def by_hand(epochs, rates):
    """The same training in plain PyTorch: returns the model, each epoch's mean training loss, and eval accuracies."""
    model = tiny_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x_eval, y_eval = tiny_data(23, seed=5)
    losses, accuracies = [], []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rates[epoch]
        total = count = 0
        for x, y in fixed_batches():
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(x), count + len(x)
        losses.append(total / count)
        with torch.no_grad():
            accuracies.append((model.eval()(x_eval).argmax(1) == y_eval).double().mean().item())
            model.train()
    return model, losses, accuracies


def test_the_usage_of_june_2021_runs_unchanged_and_equals_a_plain_loop(tmp_path):
    trainer = From2021()
    trainer.check_init()
    trainer.get_model_info(fake_inp=torch.randn(1, 6))
    losses, scores = [], []
    for _ in range(3):
        losses.append(trainer.train_loop()["tol_loss"])
        scores.append(trainer.eval(save_per_epochs=2))
    trainer.close()  # TensorBoard's own writer has a thread, which must not go on in the folder of the next test
    model, expected_losses, expected_scores = by_hand(3, rates=[1e-6, 0.1, 0.1])
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert scores == pytest.approx(expected_scores)
    assert trainer.epoch == 3
    assert sorted(path.name for path in (tmp_path / "check_point").glob("*.pth")) == [
        "best.pth", "epoch2.pth", "last.pth", "previous.pth"]
    assert list((tmp_path / "runs").rglob("events*"))  # where `tensorboard --logdir runs` looks


class Later2021(TemplateModel):
    """As the November version is used: ``eval_loader``, own ``epoch += 1``, overridden ``eval_scores_per_batch``."""

    def __init__(self):
        super().__init__()
        self.model = tiny_model(dropout=0.0)
        self.model_list = [self.model]
        self.optimizer_list = [torch.optim.SGD(self.model.parameters(), lr=0.1)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = fixed_batches()
        self.eval_loader = fixed_batches(23, seed=5)
        self.epoch = 1
        self.lr_scheduler_type = "metric"
        self.forwards = 0
        self.model.register_forward_hook(self.count_forward)

    def count_forward(self, *_):
        self.forwards += 1

    def loss_per_batch(self, batch):
        x = batch[0].to(self.device, dtype=torch.float)
        y = batch[1].to(self.device, dtype=torch.long)
        loss = self.criterion(self.inference(x), y)
        return {"tol_loss": loss, "doubled": 2 * loss}

    def eval_scores_per_batch(self, batch):
        x = batch[0].to(self.device, dtype=torch.float)
        y = batch[1].to(self.device, dtype=torch.long)
        return self.metric(self.inference(x), y)

    def metric(self, pred, y):
        self.key_metric = "acc"
        return {"acc": (pred.argmax(1) == y).float().mean().item(), "err": (pred.argmax(1) != y).float().mean().item()}


def test_the_later_usage_with_its_own_epoch_counter_runs_unchanged():
    trainer = Later2021()
    trainer.check_init()
    seen = []
    for _ in range(3):
        trainer.train_loop()
        score = trainer.eval_loop(save_per_epochs=1)
        trainer.update_lr_scheduler(key_metric=score)
        seen.append((trainer.epoch, score))
        trainer.epoch += 1
    model, _, expected = by_hand(3, rates=[0.1] * 3)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert [score for _, score in seen] == pytest.approx(expected)
    assert torch.equal(weights(trainer), torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    assert trainer.lr_scheduler_list[0].last_epoch == 3  # one step per epoch, though eval and the user both asked
    assert trainer.best_metric["acc"] == pytest.approx(max(expected))


def test_a_method_named_as_in_the_first_version_is_used():
    class First(From2021):
        def train_loss_per_batch(self, batch):
            self.was_called = True
            x, y = batch
            return self.criterion(self.inference(x), y.long())

    trainer = First()
    trainer.check_init()
    trainer.train_loop()
    trainer.close()
    assert trainer.was_called


def test_two_models_with_two_optimizers_equal_a_plain_loop():
    def parts():
        torch.manual_seed(2)
        return nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3))

    class Two(TemplateModel):
        def __init__(self):
            super().__init__()
            body, head = parts()
            self.model_list = [body, head]
            self.optimizer_list = [torch.optim.SGD(body.parameters(), 0.05), torch.optim.Adam(head.parameters(), 0.01)]
            self.criterion = nn.CrossEntropyLoss()
            self.train_loader = fixed_batches()
            self.eval_loader = fixed_batches(23, seed=5)

    trainer = Two()
    trainer.check_init()
    for _ in range(2):
        trainer.train_loop(clip_grad=0.3)
        trainer.eval()

    body, head = parts()
    optimizers = [torch.optim.SGD(body.parameters(), 0.05), torch.optim.Adam(head.parameters(), 0.01)]
    for _ in range(2):
        for x, y in fixed_batches():
            nn.functional.cross_entropy(head(body(x)), y).backward()
            nn.utils.clip_grad_norm_([*head.parameters(), *body.parameters()], 0.3)  # one norm over both
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    expected = torch.cat([p.detach().double().flatten() for part in (body, head) for p in part.parameters()])
    torch.testing.assert_close(weights(trainer), expected, rtol=1e-6, atol=1e-8)  # the norm is summed in another order


def gan_parts():
    torch.manual_seed(4)
    return nn.Linear(2, 6), nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


class Gan(TemplateModel):
    """One discriminator and one generator update per batch."""

    def __init__(self, **attributes):
        super().__init__()
        generator, discriminator = gan_parts()
        self.model_list = [generator, discriminator]
        self.optimizer_list = [torch.optim.Adam(generator.parameters(), 1e-2),
                               torch.optim.Adam(discriminator.parameters(), 1e-2)]
        self.train_loader = fixed_batches()
        self.seed = 11
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_step(self, batch):
        generator, discriminator = self.model_list
        real = batch[0]
        fake = generator(torch.randn(len(real), 2))
        loss_d = nn.functional.softplus(discriminator(fake.detach())).mean() + nn.functional.softplus(
            -discriminator(real)).mean()
        self.backward(loss_d, 1)
        self.update(1)
        loss_g = nn.functional.softplus(-discriminator(fake)).mean()
        self.backward(loss_g, 0)
        self.update(0)
        return {"tol_loss": loss_d + loss_g, "g": loss_g, "d": loss_d}


def test_a_gan_equals_its_hand_written_loop_bit_for_bit():
    trainer = Gan()
    trainer.check_init(use_tb=False)
    results = [trainer.train_loop() for _ in range(2)]

    torch.manual_seed(11)  # what check_init seeded with; the models were drawn under their own seed
    noise_state = torch.get_rng_state()
    generator, discriminator = gan_parts()
    torch.set_rng_state(noise_state)
    optimizers = [torch.optim.Adam(generator.parameters(), 1e-2), torch.optim.Adam(discriminator.parameters(), 1e-2)]
    softplus = nn.functional.softplus
    for _ in range(2):
        for real, _ in fixed_batches():
            fake = generator(torch.randn(len(real), 2))
            optimizers[1].zero_grad()
            (softplus(discriminator(fake.detach())).mean() + softplus(-discriminator(real)).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            softplus(-discriminator(fake)).mean().backward()
            optimizers[0].step()
    expected = torch.cat([p.detach().double().flatten() for part in (generator, discriminator) for p in part.parameters()])
    assert torch.equal(weights(trainer), expected)
    assert set(results[0]) == {"tol_loss", "g", "d"}
    assert trainer.epochs_done == 1 and trainer.epoch == 2  # the second epoch is over when something follows it


def test_a_gan_can_be_scored_without_a_loss():
    class Scored(Gan):
        def eval_scores_per_batch(self, batch):
            return {"real_score": self.model_list[1](batch[0]).mean()}

    trainer = Scored(eval_loader=fixed_batches(23, seed=5))
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    assert set(trainer.eval_result) == {"real_score"}


def test_dict_batches_through_overridden_methods():
    x, y = tiny_data()
    items = [{"features": x[i], "label": y[i], "id": f"sample {i}"} for i in range(len(x))]

    class Dicts(TemplateModel):
        def __init__(self):
            super().__init__()
            model = tiny_model()
            self.model_list = [model]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
            self.criterion = nn.CrossEntropyLoss()
            self.train_loader = DataLoader(items, 10, shuffle=True)
            self.eval_loader = DataLoader(items[:23], 10)

        def loss_per_batch(self, batch):
            return self.criterion(self.inference(batch["features"]), batch["label"])

        def eval_scores_per_batch(self, batch):
            return self.metric(self.inference(batch["features"]), batch["label"])

    trainer = Dicts()
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    with torch.no_grad():
        pred = trainer.model_list[0].eval()(x[:23])
    assert trainer.eval_result["acc"] == pytest.approx((pred.argmax(1) == y[:23]).double().mean().item())
    assert trainer.eval_result["tol_loss"] == pytest.approx(nn.functional.cross_entropy(pred, y[:23]).item(), rel=1e-6)


class OwnLoss(nn.Module):
    """Like a language model of a hub: keyword inputs, a dict with "loss" and "logits" out."""

    def __init__(self):
        super().__init__()
        self.body = tiny_model()

    def forward(self, features, labels=None):
        logits = self.body(features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_model_that_returns_its_own_loss_needs_no_override():
    x, y = tiny_data()
    items = [{"features": x[i], "labels": y[i]} for i in range(len(x))]

    class Hub(TemplateModel):
        def __init__(self):
            super().__init__()
            model = OwnLoss()
            self.model_list = [model]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
            self.train_loader = DataLoader(items, 10, shuffle=True)
            self.eval_loader = DataLoader(items[:23], 10)

    trainer = Hub()
    trainer.check_init(use_tb=False)
    best = trainer.fit(3)
    expected = trainer.model_list[0].eval()(x[:23], y[:23])["loss"].item()
    assert trainer.eval_result == {"tol_loss": pytest.approx(expected, rel=1e-6)}
    assert trainer.key_metric == "tol_loss" and best["tol_loss"] <= trainer.eval_result["tol_loss"]


def test_several_inputs_and_nested_batches():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, a, b):
            return self.left(a) + self.right(b)

    x, y = tiny_data()
    model = Pair()
    trainer = TemplateModel()
    trainer.model_list, trainer.criterion = [model], nn.CrossEntropyLoss()
    trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
    trainer.train_loader = DataLoader(TensorDataset(x, x.flip(1), y), 10)
    trainer.eval_loader = DataLoader(TensorDataset(x[:9], x[:9].flip(1), y[:9]), 4)
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    pred = model.eval()(x[:9], x[:9].flip(1))
    assert trainer.eval_result["acc"] == pytest.approx((pred.argmax(1) == y[:9]).double().mean().item())
    assert torch.equal(trainer.predict(trainer.eval_loader), torch.cat([model(a, b) for a, b in zip(
        x[:9].split(4), x[:9].flip(1).split(4))]).detach())


def test_regression_with_integer_labels_is_judged_by_its_loss():
    x, _ = tiny_data()
    model = nn.Linear(6, 1)
    trainer = TemplateModel()
    trainer.model_list, trainer.criterion = [model], nn.MSELoss()
    trainer.optimizer_list = [torch.optim.SGD(model.parameters(), 0.01)]
    y = (x[:, :1] * 3).long()
    trainer.train_loader = DataLoader(TensorDataset(x.double(), y), 10)
    trainer.eval_loader = DataLoader(TensorDataset(x[:23].double(), y[:23]), 10)
    trainer.check_init(use_tb=False)
    trainer.fit(3)
    assert trainer.key_metric == "tol_loss" and better_when(trainer, "tol_loss") == "min"
    expected = nn.functional.mse_loss(model(x[:23]), y[:23].float()).item()
    assert trainer.eval_result["tol_loss"] == pytest.approx(expected, rel=1e-5)


def test_dicts_of_loaders_train_jointly_and_are_scored_apart():
    class Joint(TemplateModel):
        def __init__(self):
            super().__init__()
            model = tiny_model(dropout=0.0)
            self.model_list = [model]
            self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
            self.criterion = nn.CrossEntropyLoss()
            self.train_loader = {"labelled": fixed_batches(), "extra": fixed_batches(20, seed=9)}
            self.eval_loader = {"near": fixed_batches(23, seed=5), "far": fixed_batches(31, seed=6)}
            self.key_metric = "acc"
            self.seen = 0

        def loss_per_batch(self, batch):
            if isinstance(batch, dict):
                self.seen += 1
                return sum(super(Joint, self).loss_per_batch(part)["tol_loss"] for part in batch.values())
            return super().loss_per_batch(batch)

    trainer = Joint()
    trainer.check_init(use_tb=False)
    with pytest.warns(UserWarning, match="It is not certain how many samples are in a batch"):  # of 3 and of 10
        trainer.fit(1)
    assert trainer.seen == 6  # the longer loader ends the epoch
    model = trainer.model_list[0].eval()
    for name, (size, seed) in {"near": (23, 5), "far": (31, 6)}.items():
        x, y = tiny_data(size, seed=seed)
        assert trainer.eval_result[f"{name}/acc"] == pytest.approx((model(x).argmax(1) == y).double().mean().item())
    assert trainer.key_metric == "near/acc"


def test_without_an_eval_loader_it_trains_saves_and_can_stop_on_the_training_loss(tmp_path):
    from template import EarlyStopping

    trainer = From2021()
    trainer.test_loader, trainer.writer, trainer.ckpt_dir = None, None, "run"
    trainer.callbacks = [EarlyStopping("train/tol_loss", patience=2, min_delta=10.0)]
    trainer.check_init()
    trainer.fit(9)
    assert trainer.epochs_done == 3 and trainer.should_stop
    assert (tmp_path / "run" / "last.pth").exists()
    with pytest.raises(ValueError, match="eval_loader"):
        trainer.eval()


def test_stdout_is_given_back_after_the_loop_and_later_reports_still_reach_the_log(tmp_path):
    stdout = sys.stdout
    trainer = From2021()
    trainer.writer = None
    trainer.check_init()
    trainer.fit(1)
    assert sys.stdout is stdout
    trainer.print_best_metrics()
    trainer.print_final_lr()
    trainer.num_parameters()
    trainer.print_all_member()
    assert sys.stdout is stdout
    log = (tmp_path / "check_point" / "log.txt").read_text()
    assert "Best metrics" in log and "Final learning rate" in log and "Trainable parameters: 163" in log
    assert "warm_up_epoch: 1" in log and "_loader:" not in log and "\r" not in log
