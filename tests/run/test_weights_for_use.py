"""Which weights are evaluated and handed out: one source at most, and any callback may be it."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights

from template import EMA, Callback

EVAL_X, EVAL_Y = tiny_data(23, seed=5)


class Zeros(Callback):
    """Whatever was trained, zeros are used."""

    def __init__(self):
        self.attached, self.afresh = None, 0

    def attach(self, model):
        self.attached = model

    def start_afresh(self):
        self.afresh += 1

    def weights_for_use(self, model):
        return [(p, torch.zeros_like(p)) for p in model.model_list[0].parameters()]


def test_a_callback_of_one_s_own_may_give_the_weights_for_use():
    zeros = Zeros()
    trainer = Tiny(model=tiny_model(dropout=0.0), callbacks=[zeros], ckpt_dir="run")
    trainer.check_init(use_tb=False)
    assert zeros.attached is trainer
    trainer.fit(1)
    assert not trainer.predict(EVAL_X).any() and weights(trainer).any()
    assert not torch.load("run/best.pth", weights_only=True)["model0"]["0.weight"].any()
    assert torch.load("run/last.pth", weights_only=True)["model0"]["0.weight"].any()
    assert zeros.afresh == 0
    trainer.use_best()
    assert zeros.afresh == 0 and not weights(trainer).any()
    trainer.train_loop()
    assert zeros.afresh == 1


def test_within_another_use_what_is_in_the_models_stays():
    trainer = Tiny(model=tiny_model(dropout=0.0), callbacks=[Zeros()])
    trainer.check_init(use_tb=False)
    before = weights(trainer)
    with trainer.lifetime.weights.for_use():
        with torch.no_grad():
            trainer.model_list[0][0].weight.fill_(2.0)  # as a callback may, in on_eval_start
        inside = weights(trainer)
        with trainer.lifetime.weights.for_use():
            assert torch.equal(weights(trainer), inside)
        with trainer.lifetime.weights.of_training():
            assert torch.equal(weights(trainer), before)
        assert torch.equal(weights(trainer), inside)
    assert torch.equal(weights(trainer), before)


def test_two_sources_are_refused_by_name_before_and_after_check_init():
    trainer = Tiny(callbacks=[EMA(), Zeros()])
    with pytest.raises(ValueError, match="there are 2: EMA, Zeros. Leave all but one of them out"):
        trainer.check_init(use_tb=False)
    trainer = Tiny(callbacks=[EMA()])
    trainer.check_init(use_tb=False)
    with pytest.raises(ValueError, match="there are 2: EMA, Zeros"):
        trainer.callbacks = [EMA(), Zeros()]
    trainer.callbacks = [Zeros()]
    assert not trainer.predict(EVAL_X).any()


def test_an_ema_that_is_put_in_during_the_run_begins_there():
    trainer = Tiny(model=tiny_model(dropout=0.0))
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    ema = EMA(0.5)
    trainer.callbacks = [ema]
    trainer.fit(2)
    assert ema.updates == 6 and not torch.equal(trainer.predict(EVAL_X), trainer.model_list[0].eval()(EVAL_X).detach())


def test_one_does_not_go_with_an_optimizer_that_averages_or_with_divided_weights():
    class TwoPoints(torch.optim.SGD):
        def train(self):
            pass

        def eval(self):
            pass

    model = tiny_model()
    trainer = Tiny(model=model, callbacks=[EMA()])
    trainer.optimizer_list = [TwoPoints(model.parameters(), 0.1)]
    with pytest.raises(ValueError, match="there are 2: EMA, TwoPoints"):
        trainer.check_init(use_tb=False)


def test_an_output_that_is_a_view_of_a_weight_is_that_of_the_weights_for_use():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = torch.nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return self.rows[:len(x)]

    trainer = Tiny(model=Table(), callbacks=[Zeros()], preflight=False)
    trainer.check_init(use_tb=False)
    assert not trainer.predict(torch.zeros(4, 6)).any()
