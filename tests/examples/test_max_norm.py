"""Layers with a limit on the norm of their weights, from ``examples/classification/max_norm.py``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from examples.classification.max_norm import SeparableConv2d, depthwise_conv2d, max_norm


def norms_of(layer):
    return layer.weight.flatten(1).norm(dim=1)


@settings(max_examples=30, deadline=None)
@given(limit=st.floats(0.01, 10), scale=st.floats(0, 100), seed=st.integers(0, 1000))
def test_no_output_unit_is_above_the_limit_and_those_below_it_are_untouched(limit, scale, seed):
    torch.manual_seed(seed)
    plain = nn.Linear(5, 4)
    with torch.no_grad():
        plain.weight.mul_(scale)
    before = plain.weight.detach().clone()
    layer = max_norm(plain, limit)
    assert (norms_of(layer) <= limit * (1 + 1e-5)).all()
    inside = before.norm(dim=1) <= limit * (1 - 1e-6)  # as float32, a norm at the limit may be just above it
    assert torch.equal(layer.weight[inside], before[inside])
    outside = layer.weight[~inside]  # only their length changes
    torch.testing.assert_close(outside / outside.norm(dim=1, keepdim=True),
                               before[~inside] / before[~inside].norm(dim=1, keepdim=True))


def test_a_layer_at_its_limit_trains_along_the_ball_and_stays_within():
    torch.manual_seed(0)
    layer = max_norm(nn.Conv2d(2, 3, 3), 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    before = layer.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(4, 2, 8, 8)) - 5).square().mean().backward()
        optimizer.step()
    assert (norms_of(layer) <= 0.5 + 1e-6).all()
    assert not torch.equal(layer.weight, before)


def test_without_its_parametrization_it_is_a_plain_layer_that_computes_the_same():
    torch.manual_seed(0)
    layer, x = max_norm(nn.Linear(6, 3), 0.1), torch.randn(2, 6)
    expected = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer(x), expected) and type(layer) is nn.Linear and set(layer.state_dict()) == {"weight", "bias"}


def test_depthwise_and_separable_convolutions_equal_those_written_out():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    layer = depthwise_conv2d(3, 2, 3, limit=1e6)
    by_hand = torch.cat([nn.functional.conv2d(x[:, [i]], layer.weight[2 * i:2 * i + 2], layer.bias[2 * i:2 * i + 2])
                         for i in range(3)], 1)
    torch.testing.assert_close(layer(x), by_hand)
    separable = SeparableConv2d(3, 5, 3, limit=0.2, padding="same")
    assert separable(x).shape == (2, 5, 8, 8)
    assert all((norms_of(part) <= 0.2 + 1e-6).all() for part in separable)
    assert not any(map(parametrize.is_parametrized, SeparableConv2d(3, 5, 3)))


@pytest.mark.parametrize("make, said", [
    (lambda: max_norm(nn.Linear(2, 2), 0), "must be above 0, got 0"),
    (lambda: max_norm(nn.ReLU(), 1.0), "a Linear or a convolution, got a ReLU"),
], ids=["no limit", "no layer"])
def test_what_cannot_be_limited_is_refused(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()
