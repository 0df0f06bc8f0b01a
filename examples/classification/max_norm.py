"""Layers whose weights stay within a norm, as EEGNet has them: a regularizer for small and noisy data.

    layer = max_norm(nn.Conv2d(8, 16, 3), 1.0)            # the weights of each output channel have a norm of at most 1
    layer = max_norm(nn.Linear(64, 4), 0.25)
    spatial = depthwise_conv2d(8, 2, (22, 1), limit=1.0)  # two filters for each of 8 channels
    mix = SeparableConv2d(16, 16, (1, 16), padding="same", limit=1.0)

After Srebro, Rennie and Jaakkola, "Maximum-Margin Matrix Factorization" (2004), and Lawhern et al., "EEGNet" (2018),
arXiv:1611.08024. The optimizer trains the weights freely; what the layer computes with is their projection into the ball.
``parametrize.remove_parametrizations(layer, "weight")`` makes a plain layer of it, with the projected weights.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize


class MaxNorm(nn.Module):
    """Scales the weights of each output unit down to ``limit``, where their L2 norm is above it."""

    def __init__(self, limit: float):
        super().__init__()
        if not limit > 0:
            raise ValueError(f"The limit of a norm must be above 0, got {limit!r}.")
        self.limit = float(limit)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
        return weight * (torch.full_like(norms, self.limit) / norms.clamp(min=self.limit))  # exactly 1 within the ball

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What is assigned, as after ``load_state_dict`` of a plain layer, is taken as it is."""
        return weight


def max_norm(layer: nn.Module, limit: float) -> nn.Module:
    """The same ``Linear`` or convolution, with the norm of each output unit's weights held at ``limit``."""
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"max_norm takes a Linear or a convolution, got a {type(layer).__name__}.")
    parametrize.register_parametrization(layer, "weight", MaxNorm(limit))
    return layer


def depthwise_conv2d(channels: int, multiplier: int, kernel_size, limit: float | None = None, **options) -> nn.Module:
    """``multiplier`` filters for each channel by itself: [B, C, H, W] -> [B, C * multiplier, H', W']."""
    layer = nn.Conv2d(channels, channels * multiplier, kernel_size, groups=channels, **options)
    return layer if limit is None else max_norm(layer, limit)


class SeparableConv2d(nn.Sequential):
    """Each channel by itself, then a mixture of the channels at each place: [B, C, H, W] -> [B, channels_out, H', W']."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size, limit: float | None = None, **options):
        mixture = nn.Conv2d(channels_in, channels_out, 1)
        super().__init__(depthwise_conv2d(channels_in, 1, kernel_size, limit, bias=False, **options),
                         mixture if limit is None else max_norm(mixture, limit))
