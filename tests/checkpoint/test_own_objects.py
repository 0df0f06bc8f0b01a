"""Schedulers and random generators in attributes of the trainer: a run that goes on has them where they were."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from tiny import Tiny, weights
from torch.optim import lr_scheduler as torch_schedulers

from template.checkpoint import own_objects
from template.hooks import Callback

EPOCHS, UPDATES = 2, 6


class Leave(Callback):
    """After so many updates of the run."""

    def __init__(self, at):
        self.at = at

    def on_after_step(self, model):
        if model.global_step == self.at:
            model.should_stop = "now"


class StepsItself(Tiny):
    """The rate falls by a scheduler that only this class knows of."""

    def __init__(self, make, **attributes):
        super().__init__(**attributes)
        self.scheduler = make(self.optimizer_list[0])

    def train_step(self, batch):
        loss = super().train_step(batch)
        self.update()
        if isinstance(self.scheduler, torch_schedulers.ReduceLROnPlateau):
            self.scheduler.step(float(loss["tol_loss"].detach()))
        else:
            self.scheduler.step()
        return loss


class Noisy(Tiny):
    """Noise on the inputs, in training and evaluation, from generators of its own."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.noise = torch.Generator().manual_seed(7)
        self.of_numpy = {"pcg": np.random.default_rng(1), "philox": np.random.Generator(np.random.Philox(2)),
                         "sfc": np.random.Generator(np.random.SFC64(3)), "old": np.random.RandomState(4)}
        self.others = [random.Random(5), random.SystemRandom()]

    def loss_per_batch(self, batch):
        x, y = batch
        x = x + 0.1 * torch.randn(x.shape, generator=self.noise) + 0.1 * self.others[0].gauss(0, 1)
        for generator in self.of_numpy.values():
            x = x + 0.1 * float(generator.normal())
        return self.criterion(self.inference(x), y)


def ends_of_whole_and_continued(build, cut):
    """The trainer of a run, and that of one that was left after ``cut`` updates and continued by new objects."""
    whole = build(ckpt_dir="whole")
    whole.check_init(use_tb=False)
    whole.fit(EPOCHS)
    part = build(ckpt_dir="part", callbacks=[Leave(cut)])
    part.check_init(use_tb=False)
    part.fit(EPOCHS)
    assert part.global_step == cut
    continued = build(ckpt_dir="part")
    continued.check_init(use_tb=False)
    continued.load_state("auto")
    continued.fit(EPOCHS)
    return whole, continued


@pytest.mark.parametrize("make", [
    lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, EPOCHS * UPDATES),
    lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 0.8 ** step),
    lambda optimizer: torch_schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2),
], ids=["cosine", "lambda", "plateau"])
def test_a_scheduler_of_the_trainers_own_goes_on_where_it_was(make):
    whole, continued = ends_of_whole_and_continued(partial(StepsItself, make), cut=8)
    assert torch.equal(weights(continued), weights(whole))
    assert continued.optimizer_list[0].param_groups[0]["lr"] == whole.optimizer_list[0].param_groups[0]["lr"]


def test_generators_of_the_trainers_own_go_on_where_they_were():
    whole, continued = ends_of_whole_and_continued(Noisy, cut=8)
    assert torch.equal(weights(continued), weights(whole))
    assert continued.eval_result == whole.eval_result


def test_each_scheduler_is_found_once_and_none_that_the_trainer_knows():
    trainer = StepsItself(lambda optimizer: torch_schedulers.StepLR(optimizer, 2))
    trainer.lr_scheduler_list = [torch_schedulers.StepLR(trainer.optimizer_list[0], 3)]
    trainer.mine = trainer.lr_scheduler_list[0]
    trainer.same = trainer.scheduler
    assert list(own_objects.collect(trainer)) == ["scheduler"]


def test_what_starts_afresh_is_told(capsys):
    trainer = StepsItself(lambda optimizer: torch_schedulers.StepLR(optimizer, 2), ckpt_dir="run")
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    continued = StepsItself(lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.9), ckpt_dir="run")
    continued.noise = random.Random(1)
    continued.check_init(use_tb=False)
    capsys.readouterr()
    continued.load_state("auto")
    told = capsys.readouterr().out
    assert "trainer.scheduler (ExponentialLR) starts afresh: the file holds the state of a StepLR" in told
    assert "trainer.noise (Random) starts afresh: the file holds no state of it" in told
    continued.close()
    continued = Tiny(ckpt_dir="run")
    continued.check_init(use_tb=False)
    continued.load_state("auto")
    told = capsys.readouterr().out
    assert "the state of trainer.scheduler (StepLR) is not used: there is no such attribute now" in told


class Factor:
    """Of a rate; the state of a ``LambdaLR`` holds what it holds."""

    def __init__(self):
        self.table = {1, 2}

    def __call__(self, step):
        return 0.5


def test_a_state_that_cannot_be_saved_is_told_at_the_start_and_stops_nothing(capsys):
    trainer = StepsItself(lambda optimizer: torch_schedulers.LambdaLR(optimizer, Factor()))
    trainer.check_init(use_tb=False)
    assert "resume: trainer.scheduler (LambdaLR) begins anew in a resumed run. A checkpoint holds" in capsys.readouterr().out
    trainer.fit(1)
    assert own_objects.collect(trainer) == {}
