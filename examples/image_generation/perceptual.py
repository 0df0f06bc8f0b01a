"""How different two images look, by LPIPS, where that can be had.

    distance = perceptual_distance()          # None, after a sentence that says why, where it cannot
    loss = distance(images, reconstructions)  # [B, C, H, W] in [0, 1], with C of 1 or 3; a scalar

After Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), arXiv:1801.03924.
"""

import torch
from torch import nn


class PerceptualDistance(nn.Module):
    """Mean LPIPS of a batch. The network is frozen, and belongs to no optimizer."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self.network(*(self._as_the_network_takes_them(part) for part in (images, others))).mean()

    def _as_the_network_takes_them(self, images):
        return images.expand(-1, 3, -1, -1) * 2 - 1  # three channels in [-1, 1]


def perceptual_distance() -> PerceptualDistance | None:
    """LPIPS with VGG's features. The package ``lpips`` loads them by torchvision, from the internet the first time."""
    try:
        import lpips
    except ImportError as error:
        print(f"The perceptual loss is left out: {error}. To have it: pip install lpips")
        return None
    try:
        return PerceptualDistance(lpips.LPIPS(net="vgg", verbose=False))
    except OSError as error:  # also what urllib raises without a network
        print(f"The perceptual loss is left out: the weights of VGG could not be loaded. {type(error).__name__}: {error}")
        return None
