"""LPIPS where its package and its weights are there, else a sentence."""

import sys
import types

import pytest
import torch
from torch import nn

from examples.image_generation.perceptual import PerceptualDistance, perceptual_distance


class Features(nn.Module):
    """Stands for LPIPS: distances [B, 1, 1, 1] of images with three channels in [-1, 1]."""

    def __init__(self, net="vgg", verbose=True):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, one, other):
        assert one.shape[1] == other.shape[1] == 3 and -1 <= float(one.detach().min()) and float(one.detach().max()) <= 1
        return (self.layer(one) - self.layer(other)).square().mean((1, 2, 3), keepdim=True)


def package(make):
    module = types.ModuleType("lpips")
    module.LPIPS = make
    return module


def test_with_the_package_it_is_a_frozen_distance_that_gives_gradients_to_the_images(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", package(Features))
    distance = perceptual_distance()
    images, others = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8, requires_grad=True)
    loss = distance(images, others)
    loss.backward()
    assert loss.shape == () and others.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters()) and not distance.network.training
    assert distance(images, images).item() == 0 and capsys.readouterr().out == ""


def test_without_package_or_weights_it_is_left_out_with_a_word(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert perceptual_distance() is None
    assert "left out" in (said := capsys.readouterr().out) and "pip install lpips" in said

    def offline(**options):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", package(offline))
    assert perceptual_distance() is None
    assert "weights of VGG could not be loaded. OSError: no network" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 3])
def test_one_and_three_channels_are_taken(channels):
    distance = PerceptualDistance(Features())
    assert distance(torch.rand(2, channels, 8, 8), torch.rand(2, channels, 8, 8)) > 0
