"""Ending when the schedule has brought the learning rate down."""

import pytest
import torch
from tiny import Tiny

from template import LearningRateFloor


def epochs_of(rates, floor, **attributes):
    """How many epochs are trained where epoch n has the rate ``rates[n - 1]``."""
    trainer = Tiny(callbacks=[LearningRateFloor(floor)], preflight=False, **attributes)
    trainer.optimizer_list[0].param_groups[0]["lr"] = 1.0
    trainer.lr_scheduler_list = [torch.optim.lr_scheduler.LambdaLR(trainer.optimizer_list[0], lambda epoch: rates[epoch])]
    trainer.check_init(use_tb=False)
    trainer.fit(len(rates) - 1)
    return trainer.epochs_done


@pytest.mark.parametrize("rates, expected", [
    ([0.1, 0.01, 0.001, 0.0001, 0.0001, 0.0], 3),     # at the floor
    ([0.1, 0.1, 0.0005, 0.0001, 0.0001, 0.0], 3),     # below it
    ([0.0001, 0.001, 0.1, 0.01, 0.0001, 0.0001, 0.1], 5),  # it began below it
    ([0.0001, 0.0001, 0.0001, 0.1], 3),               # it never was above it
    ([0.1, 0.1, 0.1, 0.1], 3),
])
def test_it_ends_behind_the_first_epoch_at_the_floor(rates, expected):
    assert epochs_of(rates, 0.001) == expected


def test_the_highest_rate_of_all_groups_counts_and_a_resumed_run_remembers():
    def build():
        trainer = Tiny(callbacks=[LearningRateFloor(0.01)], ckpt_dir="run", eval_loader=None)
        weights, *others = trainer.model_list[0].parameters()
        trainer.optimizer_list = [torch.optim.SGD([{"params": [weights], "lr": 0.0}, {"params": others, "lr": 0.1}])]
        trainer.check_init(use_tb=False)
        return trainer

    trainer = build()
    trainer.fit(2)
    assert trainer.epochs_done == 2
    again = build()
    again.load_state("auto")
    again.change_lr([0.001])
    again.fit(5)
    assert again.epochs_done == 3


@pytest.mark.parametrize("floor", [0, -1, "1e-6", True])
def test_a_bad_floor_is_refused(floor):
    with pytest.raises(ValueError, match="floor must be a learning rate above 0, got"):
        LearningRateFloor(floor)
