"""The sweep against problems whose largest stable rate is known."""

import math

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import TemplateModel
from template.tools import find_lr as tool
from template.tools.find_lr import find_lr


class Quadratic(TemplateModel):
    """The loss is half of curvature times w squared: gradient descent is stable below a rate of 2 / curvature."""

    def __init__(self, curvature, ckpt_dir="quadratic", offset=0.0, **attributes):
        super().__init__()
        self.net, self.curvature, self.offset = nn.Linear(4, 1, bias=False), curvature, offset
        nn.init.ones_(self.net.weight)
        self.model_list = [self.net]
        self.optimizer_list = [torch.optim.SGD(self.net.parameters(), 1e-3)]
        self.train_loader = DataLoader(TensorDataset(torch.zeros(8, 1)), 4)
        self.ckpt_dir, self.seed, self.preflight = ckpt_dir, 0, False
        for name, value in attributes.items():
            setattr(self, name, value)

    def loss_per_batch(self, batch):
        return {"tol_loss": self.curvature / 2 * self.net.weight.square().sum() + self.offset}


def quadratic(*args, **attributes):
    trainer = Quadratic(*args, **attributes)
    trainer.check_init(use_tb=False)
    return trainer


@pytest.mark.parametrize("curvature", [0.3, 10.0, 400.0])
def test_on_a_quadratic_the_suggestion_is_stable_and_not_far_below_the_limit(curvature, capsys):
    found = find_lr(quadratic(curvature))
    limit = 2 / curvature
    assert limit / 100 < found.suggestion < limit and limit / 100 < found.steepest < limit
    assert "diverge" in found.ended or "not finite" in found.ended or curvature == 0.3
    assert "suggestion" in capsys.readouterr().out


def test_a_loss_below_zero_is_swept_like_the_same_loss_above_it():
    above, below = (find_lr(quadratic(10.0, ckpt_dir=f"{offset}", offset=offset)) for offset in (0.0, -100.0))
    assert below.suggestion == pytest.approx(above.suggestion, rel=0.5)


def test_each_loss_is_that_behind_the_update_with_its_rate():
    found = find_lr(quadratic(1.0), lowest=0.1, highest=1.0, num_updates=20)
    weight, expected = 1.0, []
    for rate in found.rates:
        weight -= rate * weight
        expected.append(2 * weight**2)
    assert found.losses == pytest.approx(expected, rel=1e-4, abs=1e-12) and len(found.rates) == 20


def test_rates_of_groups_and_of_optimizers_keep_their_proportions(monkeypatch):
    seen = []

    class Two(Quadratic):
        def __init__(self):
            super().__init__(1.0)
            self.other = nn.Linear(2, 2)
            self.model_list = [self.net, self.other]
            groups = [{"params": [self.other.weight], "lr": 1e-2}, {"params": [self.other.bias], "lr": 1e-1}]
            self.optimizer_list = [torch.optim.SGD(self.net.parameters(), 1e-3), torch.optim.SGD(groups)]

        def loss_per_batch(self, batch):
            seen.append([group["lr"] for optimizer in self.optimizer_list for group in optimizer.param_groups])
            return super().loss_per_batch(batch)["tol_loss"] + self.other.weight.square().sum() + self.other.bias.sum() ** 2

    trainer = Two()
    trainer.check_init(use_tb=False)
    find_lr(trainer, num_updates=20, highest=1e-3)
    assert seen[0] == pytest.approx([1e-7, 1e-6, 1e-5]) and seen[19] == pytest.approx([1e-3, 1e-2, 1e-1])
    seen.clear()
    found = find_lr(trainer, num_updates=20, highest=1e-3, optimizer=1)
    assert seen[0] == pytest.approx([1e-3, 1e-7, 1e-6]) and seen[19] == pytest.approx([1e-3, 1e-3, 1e-2])
    assert found.optimizer == 1


def test_a_warm_up_and_a_schedule_do_not_step_and_their_rates_are_the_base():
    trainer = tiny_trainer(warm_up_updates=10, lr_scheduler_type="cosine", total_epochs=3)
    seen = []
    train_step = trainer.train_step
    trainer.train_step = lambda batch: (seen.append(trainer.optimizer_list[0].param_groups[0]["lr"]), train_step(batch))[1]
    find_lr(trainer, lowest=1e-6, highest=1e-2, num_updates=20)
    assert seen[:20] == pytest.approx([10 ** (-6 + 4 * i / 19) for i in range(20)])


@pytest.mark.parametrize("options", [{"accumulate_steps": 3}, {"amp": "bf16"}, {"amp": "fp16"}, {"skip_non_finite": 1},
                                     {"clip_grad": 0.1}], ids=str)
def test_it_sweeps_under_every_kind_of_update(options):
    trainer = tiny_trainer(model=tiny_model(dropout=0.0), **options)
    found = find_lr(trainer, num_updates=40)
    assert found.suggestion is None or 1e-4 < found.suggestion < 10
    assert len(found.rates) == len(found.losses) == len(found.smoothed) and all(map(math.isfinite, found.losses))


def test_a_loader_of_two_batches_goes_round():
    trainer = tiny_trainer(train_loader=DataLoader(TensorDataset(*tiny_data(20)), 10))
    assert len(find_lr(trainer, num_updates=30, highest=0.1).rates) == 30


def test_weights_that_become_nan_within_the_users_own_check_end_the_sweep():
    class Careful(Quadratic):
        def loss_per_batch(self, batch):
            if not torch.isfinite(self.net.weight).all():
                raise ValueError("weights are broken")
            return self.net.weight.pow(4).sum()

    trainer = Careful(1.0)
    trainer.check_init(use_tb=False)
    found = find_lr(trainer, lowest=1.0, highest=1e6, num_updates=30)
    assert "not finite" in found.ended and found.losses


def test_an_error_that_has_nothing_to_do_with_rates_comes_through():
    class Failing(Quadratic):
        def loss_per_batch(self, batch):
            raise ValueError("mine")

    trainer = Failing(1.0)
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match="mine"):
        find_lr(trainer)


def test_a_loss_that_never_falls_gives_no_suggestion(capsys):
    class Constant(Quadratic):
        def loss_per_batch(self, batch):
            return 3.0 + 0 * self.net.weight.sum()

    trainer = Constant(1.0)
    trainer.check_init(use_tb=False)
    found = find_lr(trainer, num_updates=30)
    assert found.suggestion is None and found.steepest is None and "did not fall" in capsys.readouterr().out


def test_a_train_step_with_losses_of_other_names_and_two_optimizers_is_swept():
    class Alternating(Tiny):
        def __init__(self):
            super().__init__()
            self.critic = nn.Linear(3, 1)
            self.model_list = [self.model_list[0], self.critic]
            self.optimizer_list = [*self.optimizer_list, torch.optim.Adam(self.critic.parameters(), 1e-3)]

        def train_step(self, batch):
            x, y = batch
            pred = self.model_list[0](x)
            first = nn.functional.cross_entropy(pred, y)
            self.backward(first, 0)
            self.update(0)
            second = self.critic(pred.detach()).square().mean()
            self.backward(second, 1)
            self.update(1)
            return {"loss_g": first, "loss_d": second}

    trainer = Alternating()
    trainer.check_init(use_tb=False)
    assert len(find_lr(trainer, num_updates=20, highest=1e-2, optimizer=1).losses) == 20


@pytest.mark.slow
def test_the_picture_is_drawn_and_its_table_marks_the_suggestion(own_folder):
    pytest.importorskip("matplotlib")
    found = find_lr(quadratic(10.0), num_updates=40)
    found.plot("rates.png")
    assert (own_folder / "rates.png").read_bytes().startswith(b"\x89PNG")
    marked = [line for line in found.table().splitlines() if "suggestion" in line]
    assert len(marked) == 1 and float(marked[0].split()[0]) == pytest.approx(found.suggestion, rel=0.5)


@pytest.mark.parametrize("arguments, message", [
    ({"num_updates": 5}, "num_updates must be at least 20.*got 5"),
    ({"num_updates": 2.5}, "num_updates must be a whole number"),
    ({"lowest": 0}, "lowest and highest must be rates above 0"),
    ({"lowest": 1.0, "highest": 0.1}, "the lowest first; got 1.0 and 0.1"),
    ({"optimizer": 3}, "optimizer must be an index of optimizer_list, 0 to 0"),
])
def test_arguments_that_do_not_fit_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_lr(tiny_trainer(), **arguments)


def test_smoothing_has_no_lag():
    line = torch.arange(20, dtype=torch.float64).numpy()
    assert tool._smooth(line)[5:15] == pytest.approx(line[5:15], abs=1e-2)
