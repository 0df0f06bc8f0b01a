"""``EMA.weights_of``: what a target network computes with, against an average by hand."""

import torch
from tiny import Tiny, tiny_data
from torch import nn
from torch.func import functional_call

from template import EMA, Callback


class ByHand(Callback):
    def __init__(self, net):
        self.net, self.average = net, None

    def on_after_step(self, model):
        now = [p.detach().clone() for p in self.net.parameters()]
        self.average = now if self.average is None else [0.9 * a + 0.1 * w for a, w in zip(self.average, now)]


def test_it_gives_the_average_by_name_and_a_batchnorm_in_training_mode_leaves_it_alone():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    ema, by_hand, x = EMA(0.9, warm_up=False), ByHand(net), tiny_data()[0]
    trainer = Tiny(net, callbacks=[ema, by_hand])
    trainer.check_init(use_tb=False)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in ema.weights_of(net).items())
    trainer.fit(2)
    weights = ema.weights_of(net)
    torch.testing.assert_close([weights[name] for name, _ in net.named_parameters()], by_hand.average)
    assert weights.keys() == net.state_dict().keys() and not any(value.requires_grad for value in weights.values())
    net.train()
    functional_call(net, weights, (x,))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in net.state_dict().items())
    again = ema.weights_of(net)
    assert not torch.equal(weights["1.running_mean"], again["1.running_mean"]), "the copy was to change"
    assert ema.weights_of(net[0]).keys() == {"weight", "bias"}
    assert torch.equal(ema.weights_of(net[0])["weight"], again["0.weight"])
