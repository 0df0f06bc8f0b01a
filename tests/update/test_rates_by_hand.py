"""``change_lr`` under schedules whose present rate is far from the one that they are about."""

import pytest
from tiny import Rates, Tiny
from torch.optim import lr_scheduler as of_torch

from template.hooks import Callback


class Change(Callback):
    """Calls ``change_lr`` before an update, counted from 0; with a factor, or a rate."""

    def __init__(self, update, rate=None, factor=None):
        self.update, self.rate, self.factor = update, rate, factor

    def on_batch(self, model, batch):
        if model.global_step == self.update:
            model.change_lr([self.rate or self.factor * model.optimizer_list[0].param_groups[0]["lr"]])


def rates_of(lr, build=None, change=None, before=None, **attributes):
    """The rate of each of 30 updates."""
    noted = Rates()
    trainer = Tiny(callbacks=[noted] if change is None else [change, noted], preflight=False, eval_loader=None, **attributes)
    trainer.optimizer_list[0].param_groups[0]["lr"] = lr
    if build is not None:
        trainer.lr_scheduler_list = [build(trainer.optimizer_list[0])]
    trainer.check_init(use_tb=False)
    if before is not None:
        trainer.change_lr([before])
    trainer.fit(5)
    return [rate for rate, in noted.rates]


def one_cycle(own, peak, **more):
    if not own:
        return rates_of(peak, lr_scheduler_type="onecycle", **more)
    return rates_of(peak, lambda optimizer: of_torch.OneCycleLR(optimizer, peak, total_steps=30), **more)


@pytest.mark.parametrize("own", [False, True], ids=["by its name", "torch's"])
def test_a_rate_that_is_set_before_the_training_is_the_peak_of_a_one_cycle(own):
    """As when ``find_lr`` has found it: it was taken as the present rate, so the peak was 25 times as high."""
    found = one_cycle(own, 0.1, before=0.04)
    assert found == pytest.approx(one_cycle(own, 0.04), rel=1e-9)
    assert max(found) == pytest.approx(0.04, rel=0.02)


@pytest.mark.parametrize("own", [False, True], ids=["by its name", "torch's"])
def test_so_is_one_that_is_set_while_it_rises(own):
    before, after = one_cycle(own, 0.1), one_cycle(own, 0.04)
    assert one_cycle(own, 0.1, change=Change(4, 0.04)) == pytest.approx(before[:4] + after[4:], rel=1e-9)


@pytest.mark.parametrize("own", [False, True], ids=["by its name", "torch's"])
def test_when_it_falls_later_rates_keep_the_proportion(own):
    usual = one_cycle(own, 0.1)
    found = one_cycle(own, 0.1, change=Change(20, factor=2))
    assert found == pytest.approx(usual[:20] + [2 * rate for rate in usual[20:]], rel=1e-9)


@pytest.mark.parametrize("build", [
    lambda o: of_torch.SequentialLR(o, [of_torch.LambdaLR(o, lambda k: 0.9**k),
                                        of_torch.CosineAnnealingWarmRestarts(o, 9)], [8]),
    lambda o: of_torch.ChainedScheduler([of_torch.LambdaLR(o, lambda k: 0.9**k)]),
    lambda o: of_torch.CyclicLR(o, 0.02, 0.1, step_size_up=3, cycle_momentum=False),
], ids=["a sequence", "a chain", "cyclic"])
def test_schedulers_of_torch_keep_it_too(build):
    usual = rates_of(0.1, build, lr_scheduler_interval="update")
    found = rates_of(0.1, build, Change(5, factor=2), lr_scheduler_interval="update")
    assert len(set(usual)) > 5 and found == pytest.approx(usual[:5] + [2 * rate for rate in usual[5:]], rel=1e-6)
