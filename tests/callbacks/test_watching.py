"""A run with all callbacks that look at it, cut in the middle of an epoch, ends with the bits of one that was never cut."""

import pytest
import torch
from tiny import Tiny, weights

from template import Callback, Interpret, LayerStatistics, Monitor, SampleOutputs


class Leaves(Callback):
    def on_after_step(self, model):
        if model.global_step == 9:  # in the second epoch of 6 updates
            raise InterruptedError("cut")


def build(folder, *more):
    callbacks = [Interpret(k=4, every=2), SampleOutputs(lambda trainer: torch.rand(8, 8), every=2), Monitor(),
                 LayerStatistics(every=2), *more]
    trainer = Tiny(ckpt_dir=folder, callbacks=callbacks, save_per_steps=4, log_per_step=2, keep_checkpoints=1)
    trainer.check_init(use_tb=False)
    return trainer


@pytest.mark.slow
def test_a_run_that_was_cut_in_the_middle_of_an_epoch_goes_on_with_all_of_them():
    whole = build("whole")
    whole.fit(4)
    with pytest.raises(InterruptedError):
        build("parts", Leaves()).fit(4)
    continued = build("parts")
    continued.load_state("auto")
    assert 0 < continued.batches_done
    continued.fit(4)
    assert torch.equal(weights(whole), weights(continued))
    for one, other in zip(whole.hooks.callbacks, continued.hooks.callbacks):
        for name in ("values", "samples", "evaluations"):
            if name in vars(one):
                assert getattr(one, name) == getattr(other, name)
    plain = Tiny(ckpt_dir="plain", log_per_step=2)
    plain.check_init(use_tb=False)
    plain.fit(4)
    assert torch.equal(weights(plain), weights(whole))
