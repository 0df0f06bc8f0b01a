"""Settings in the class body and in properties count as those in ``__init__``."""

import functools

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from template.template import TemplateModel


def loader(num_samples=53, seed=0, shuffle=True):
    return DataLoader(TensorDataset(*tiny_data(num_samples, seed=seed)), 10, shuffle=shuffle)


def parts(trainer):
    """The models and optimizers of ``Tiny``."""
    trainer.model_list = [tiny_model()]
    trainer.optimizer_list = [torch.optim.SGD(trainer.model_list[0].parameters(), 0.1, momentum=0.9)]


class InBody(TemplateModel):
    criterion = nn.CrossEntropyLoss()
    train_loader, eval_loader = loader(), loader(23, 5, False)
    seed = 3

    def __init__(self):
        super().__init__()
        parts(self)


class InBodies(InBody):  # a base class between, and the nearest one wins
    seed = 4


class OfThree(InBodies):
    seed = 3


class WithoutInit(TemplateModel):
    """Everything is in the class body; what is costly is made when it is asked for."""

    seed, criterion = 3, F.cross_entropy  # a plain function, which must not be given the trainer
    eval_loader = loader(23, 5, False)

    @functools.cached_property
    def model_list(self):
        return [tiny_model()]

    @functools.cached_property
    def optimizer_list(self):
        return [torch.optim.SGD(self.model_list[0].parameters(), 0.1, momentum=0.9)]

    @functools.cached_property
    def train_loader(self):
        return loader()


class WithProperties(TemplateModel):
    seed = 3

    def __init__(self):
        super().__init__()
        self.net = tiny_model()
        self.optimizer_list = [torch.optim.SGD(self.net.parameters(), 0.1, momentum=0.9)]

    @property
    def model_list(self):
        return [self.net]

    @property
    def train_loader(self):
        return loader()

    @property
    def eval_loader(self):
        return loader(23, 5, False)

    def criterion(self, pred, y):  # a method
        return F.cross_entropy(pred, y)


class Static(InBody):
    criterion = staticmethod(F.cross_entropy)


class Partial(InBody):
    criterion = functools.partial(F.cross_entropy, label_smoothing=0.0)


@pytest.mark.parametrize("kind", [InBody, OfThree, WithoutInit, WithProperties, Static, Partial])
def test_a_run_ends_in_the_same_bits_wherever_its_settings_stand(kind):
    expected = Tiny()
    expected.check_init(use_tb=False)
    best = expected.fit(3)

    def build():
        trainer = kind()
        trainer.ckpt_dir = "one"
        trainer.check_init(use_tb=False)
        return trainer

    build().fit(2)
    continued = build()
    continued.load_state("auto")
    assert continued.fit(3) == best
    assert torch.equal(weights(expected), weights(continued))


def test_a_class_body_counts_also_in_a_subclass_that_wraps_check_init():
    class Wrapping(InBody):
        log_per_step = 3

        def check_init(self, *args, **options):
            super().check_init(*args, **options)

    trainer = Wrapping()
    assert trainer.log_per_step == 3 and trainer.seed == InBody.seed and "log_per_step" not in vars(TemplateModel)
    with pytest.warns(UserWarning, match="self.warmup_epoch is no attribute .* Did you mean warm_up_epoch"):
        trainer.warmup_epoch = 5
        trainer.check_init(use_tb=False)


def test_what_is_assigned_in_init_wins_over_the_class_body():
    class Sub(InBody):
        log_per_step = 2
        warm_up_type = "constant"  # the other name

        def __init__(self):
            super().__init__()
            self.seed = 8

    trainer = Sub()
    assert (trainer.seed, trainer.log_per_step, trainer.warm_up_mode) == (8, 2, "constant")
    trainer.log_per_step = 7
    assert trainer.log_per_step == 7 and Sub.log_per_step == 2


def test_a_class_body_is_checked_like_all_else():
    class Sub(Tiny):
        lr_scheduler_type = "cosin"

    with pytest.raises(ValueError, match="lr_scheduler_type must be one of .*'cosin'"):
        Sub().check_init(use_tb=False)


def test_a_property_may_change_during_the_run():
    class Sub(Tiny):
        @property
        def clip_grad(self):
            return 1e-9 if self.epoch < 2 else None

    trainer = Sub()
    trainer.check_init(use_tb=False)
    before = weights(trainer)
    trainer.train_loop()
    trainer.eval()
    assert (weights(trainer) - before).abs().max() < 1e-8
    trainer.epoch += 1
    trainer.train_loop()
    assert (weights(trainer) - before).abs().max() > 1e-3


def test_a_property_without_a_setter_is_named_when_something_is_assigned_to_it():
    class Sub(Tiny):
        @property
        def clip_grad(self):
            return 1.0

    trainer = Sub()
    trainer.clip_grad = 1.0  # what it is
    with pytest.raises(AttributeError, match="clip_grad is a property of Sub without a setter.*become 0.5.*cached_property"):
        trainer.clip_grad = 0.5
    with pytest.raises(AttributeError, match="is_main is a property"):
        trainer.is_main = None


def test_an_error_in_a_setter_of_ones_own_is_shown_as_it_is():
    class Sub(Tiny):
        @property
        def amp(self):
            return None

        @amp.setter
        def amp(self, value):
            raise AttributeError("mine")

    with pytest.raises(AttributeError, match="mine"):
        Sub()


@pytest.mark.parametrize("name, value", [
    ("optimizer_list", lambda self: [torch.optim.SGD(self.model_list[0].parameters(), 1)]),
    ("criterion", lambda self: nn.CrossEntropyLoss()),
])
def test_a_property_that_makes_new_objects_each_time_is_refused(name, value):
    class Sub(TemplateModel):
        train_loader = loader()

        def __init__(self):
            super().__init__()
            self.model_list = [tiny_model()]

    setattr(Sub, name, property(value))
    with pytest.raises(ValueError, match=f"{name} is a property that makes new objects.*cached_property"):
        Sub().check_init(use_tb=False)


def test_a_property_for_what_the_run_sets_itself_is_refused_and_a_cached_one_is_not():
    class Sub(Tiny):
        @property
        def ckpt_dir(self):
            return "exp/a"

    with pytest.raises(ValueError, match="ckpt_dir is a property without a setter.*cached_property"):
        Sub().check_init(use_tb=False)

    class Cached(Tiny):
        @functools.cached_property
        def ckpt_dir(self):
            return "exp/a"

    for _ in range(2):
        trainer = Cached()
        trainer.check_init(use_tb=False)
        trainer.fit(1)
    assert trainer.ckpt_dir.endswith("a_2")


def test_an_instance_does_not_write_into_its_class():
    trainer = InBody()
    trainer.check_init(use_tb=False)
    trainer.eval_loader = None
    assert InBody.eval_loader is not None and "eval_loader" in trainer.attribute_names


def test_a_subclass_that_forgot_super_init_is_told():
    class Sub(TemplateModel):
        def __init__(self):
            self.model_list = [tiny_model()]

    for use in (lambda: Sub().check_init(), lambda: Sub().fit(1), lambda: Sub().train_loop()):
        with pytest.raises(RuntimeError, match=r"Sub.__init__ must begin with super\(\).__init__\(\)"):
            use()
