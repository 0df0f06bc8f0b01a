"""An optimizer that another one holds, as SAM does: a run that goes on has its momentum and its rate."""

import pytest
import torch
from test_own_objects import EPOCHS, UPDATES, ends_of_whole_and_continued
from tiny import Tiny, tiny_trainer, weights
from torch.optim.lr_scheduler import CosineAnnealingLR

from template.checkpoint import inner_optimizers
from template.hooks import Callback


class Sam(torch.optim.Optimizer):
    """As it is often written: the state of ``base_optimizer`` is not in ``state_dict()``."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.steps = {}

    def first_step(self):
        self.steps = {p: p.grad * 0.05 for group in self.param_groups for p in group["params"]}
        with torch.no_grad():
            for p, step in self.steps.items():
                p.add_(step)

    def second_step(self):
        with torch.no_grad():
            for p, step in self.steps.items():
                p.sub_(step)
        self.base_optimizer.step()

    def step(self, closure):
        closure()
        self.first_step()
        closure()
        self.second_step()


class LinkedSam(Sam):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base_optimizer.param_groups = self.param_groups


class Around(torch.optim.Optimizer):
    """Its state is that of the optimizer in it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.defaults = {}

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def state_dict(self):
        return self.optimizer.state_dict()


def sam_trainer(kind=Sam, momentum=0.9, **attributes):
    trainer = Tiny(**attributes)
    trainer.optimizer_list = [kind(trainer.model_list[0].parameters(), lr=0.1, momentum=momentum)]
    trainer.lr_scheduler_list = [CosineAnnealingLR(trainer.optimizer_list[0], EPOCHS * UPDATES)]
    trainer.lr_scheduler_interval = "update"
    return trainer


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("kind", [Sam, LinkedSam])
def test_the_optimizer_within_goes_on_where_it_was(kind, momentum):
    whole, continued = ends_of_whole_and_continued(lambda **given: sam_trainer(kind, momentum, **given), cut=8)
    assert torch.equal(weights(continued), weights(whole))
    outer = continued.optimizer_list[0]
    assert outer.base_optimizer.param_groups is outer.param_groups


def test_what_the_outer_one_saves_is_not_saved_twice():
    trainer = tiny_trainer()
    trainer.fit(1)
    assert trainer.optimizer_list[0].state
    assert inner_optimizers.collect([Around(trainer.optimizer_list[0]), *trainer.optimizer_list]) == {}


def test_after_a_load_that_failed_it_is_as_it_was():
    class Refuses(Callback):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise ValueError("no")

    trainer = sam_trainer(ckpt_dir="run", callbacks=[Refuses()])
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    other = sam_trainer(ckpt_dir="other", callbacks=[Refuses()])
    other.check_init(use_tb=False)
    with pytest.raises(ValueError, match="no"):
        other.load_state("run/last.pth")
    base = other.optimizer_list[0].base_optimizer
    assert not base.state
    assert base.param_groups is other.optimizer_list[0].param_groups
    assert base.param_groups[0]["lr"] == 0.1
