"""Ending before a cluster does: in the middle of an epoch, saved, and continued to the same bits."""

import pytest
import torch
from tiny import Tiny, weights

from template import StopAfter
from template.callbacks import stop_after


class Clock:
    """Each look takes a minute."""

    def __init__(self):
        self.minutes = 0

    def monotonic(self):
        self.minutes += 1
        return 60.0 * self.minutes


def trainer_of(*callbacks):
    trainer = Tiny(callbacks=list(callbacks), ckpt_dir="run", log_per_step=1)
    trainer.check_init(use_tb=False)
    return trainer


def test_it_ends_behind_the_update_that_passed_the_time_and_the_next_start_goes_on_to_the_same_bits(monkeypatch, capsys):
    whole = Tiny()
    whole.check_init(use_tb=False)
    whole.fit(2)
    monkeypatch.setattr(stop_after, "time", Clock())
    trainer = trainer_of(StopAfter(minutes=4))
    trainer.fit(2)
    assert trainer.global_step == 4
    assert "StopAfter: 4 minutes are over at epoch 1, update 4" in capsys.readouterr().out
    again = trainer_of(StopAfter(hours=1))
    again.load_state("auto")
    assert again.global_step == 4 and not again.should_stop
    again.fit(2)
    assert again.epochs_done == 2 and torch.equal(weights(again), weights(whole))


def test_before_its_time_nothing_happens():
    trainer = trainer_of(StopAfter(hours=5))
    trainer.fit(2)
    assert trainer.epochs_done == 2 and not trainer.should_stop


def test_each_object_counts_its_own_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stop_after, "time", clock)
    clock.minutes = 1000
    assert StopAfter(hours=0.5, minutes=30).seconds == 3600
    trainer = trainer_of(StopAfter(hours=1))
    trainer.fit(2)
    assert trainer.epochs_done == 2


@pytest.mark.parametrize("arguments, rule", [
    ({}, "StopAfter needs a time"), ({"hours": -1}, "hours must be a number of at least 0, got -1"),
    ({"minutes": "5"}, "minutes must be a number of at least 0, got '5'"), ({"hours": float("nan")}, "got nan"),
])
def test_bad_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        StopAfter(**arguments)
