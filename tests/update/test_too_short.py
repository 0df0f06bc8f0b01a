"""A warm-up or schedule that is longer than the run is told of once, and one that fits is not."""

import pytest
from tiny import Tiny
from torch.optim.lr_scheduler import MultiStepLR, StepLR


def told(capsys, epochs, build=None, **attributes):
    """What the run says of it."""
    trainer = Tiny(**attributes)
    if build is not None:
        trainer.lr_scheduler_list = [build(trainer.optimizer_list[0])]
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    rates = {row["lr"] for row in trainer.hooks.callbacks[2].rows}
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "the run has" in line], rates


@pytest.mark.parametrize("attributes, epochs, text", [
    ({"warm_up_epoch": 5}, 3, "The warm-up takes 5 epochs, and the run has 3: the learning rate that you set is never"),
    ({"warm_up_updates": 100}, 3, "The warm-up takes 100 updates, and the run has 18: the learning rate"),
    ({"warm_up_epoch": 2, "lr_scheduler_type": "cosine"}, 2, "so the schedule after it never begins"),
    ({"warm_up_updates": 12, "lr_scheduler_type": "cosine"}, 2, "takes 12 updates, and the run has 12, so the schedule"),
    ({"lr_scheduler_type": "step"}, 3, "StepLR first lowers the learning rate after 15 epochs, and the run has 3"),
    ({"lr_scheduler_type": "loss"}, 3, "ReduceLROnPlateau first lowers the learning rate after 7 epochs, and the run"),
    ({"build": lambda optimizer: MultiStepLR(optimizer, [3, 5])}, 3, "MultiStepLR first lowers the learning rate after 3"),
    ({"build": lambda optimizer: StepLR(optimizer, 3), "warm_up_epoch": 1}, 3, "after 3 epochs, and the run has 2 for it"),
])
def test_what_never_comes_is_told_once(attributes, epochs, text, capsys):
    lines, rates = told(capsys, epochs, **attributes)
    assert len(lines) == 1 and text in lines[0]
    assert 0.1 not in rates if "warm_up_epoch" in attributes and "is never" in text else True
    if "first lowers" in text and "warm_up_epoch" not in attributes:
        assert rates == {0.1}  # as it says


@pytest.mark.parametrize("attributes, epochs", [
    ({"warm_up_epoch": 2}, 2), ({"warm_up_epoch": 1, "lr_scheduler_type": "cosine"}, 3),
    ({"lr_scheduler_type": "cosine"}, 2),
    ({"build": lambda optimizer: StepLR(optimizer, 2)}, 3),
    ({"build": lambda optimizer: MultiStepLR(optimizer, [2, 90])}, 3),
    ({"lr_scheduler_type": "loss", "lr_scheduler_args": {"patience": 0}}, 3),
    ({"build": lambda optimizer: StepLR(optimizer, 10), "lr_scheduler_interval": "update"}, 2), ({}, 2),
])
def test_what_fits_is_not_mentioned(attributes, epochs, capsys):
    assert told(capsys, epochs, **attributes)[0] == []
