"""A VQ-VAE: an image becomes a grid of codes from a codebook, and an image again.

    model = VQVAE(channels=1, num_codes=64)
    image, commitment, codes = model(torch.rand(8, 1, 32, 32))    # [8, 1, 32, 32], a scalar, [8, 8, 8] of integers

After van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017), arXiv:1711.00937.
Shape legend: B batch, C channels, H and W of the image, D dimension of a code, K codes, N positions of all grids of a batch.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class Reconstruction(NamedTuple):
    image: torch.Tensor       # [B, C, H, W]
    commitment: torch.Tensor  # scalar: mean squared distance of the encoder's outputs to their codes
    codes: torch.Tensor       # [B, H / 4, W / 4], integers below K


class Codebook(nn.Module):
    """The nearest code for each position; gradients go past it, straight through.

    Codes are moving averages of the encoder outputs that chose them (appendix A.1 of the paper above), so they need no
    gradient and no optimizer. A code that hardly anything chooses is put onto an output of the present batch, as in
    Dhariwal et al., "Jukebox" (2020), section 3.1, arXiv:2005.00341: that also fills the codebook in the first batch.
    With several processes all of them count what all have chosen, so that their codebooks stay equal.

    Args:
        num_codes: K.
        dim: D.
        decay: of the moving averages.
        restart_below: a code starts anew where fewer positions per batch chose it, in the moving average.
    """

    def __init__(self, num_codes: int, dim: int, decay: float = 0.99, restart_below: float = 1.0):
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("codes_KD", torch.randn(num_codes, dim) / dim**0.5)
        self.register_buffer("counts_K", torch.zeros(num_codes))
        self.register_buffer("sums_KD", torch.zeros(num_codes, dim))

    def forward(self, z: torch.Tensor):
        """Args: z [B, D, H, W]. Returns: the codes in its place [B, D, H, W], their indices [B, H, W]."""
        flat_ND = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        nearest_N = torch.cdist(flat_ND, self.codes_KD).argmin(1)
        codes = self.codes_KD[nearest_N].reshape(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        if self.training:
            self._follow(flat_ND, nearest_N)
        return codes.to(z.dtype), nearest_N.reshape(z.shape[0], *z.shape[2:])

    @torch.no_grad()
    def _follow(self, flat_ND, nearest_N):
        chosen_NK = F.one_hot(nearest_N, len(self.codes_KD)).to(flat_ND.dtype)
        counts_K, sums_KD = chosen_NK.sum(0), chosen_NK.T @ flat_ND
        fresh_KD = flat_ND[torch.randint(len(flat_ND), (len(self.codes_KD),), device=flat_ND.device)]
        if dist.is_initialized():
            dist.all_reduce(counts_K)
            dist.all_reduce(sums_KD)
            dist.broadcast(fresh_KD, 0)
        self.counts_K.lerp_(counts_K, 1 - self.decay)
        self.sums_KD.lerp_(sums_KD, 1 - self.decay)
        is_dead_K1 = (self.counts_K < self.restart_below)[:, None]
        self.counts_K.copy_(torch.where(is_dead_K1[:, 0], torch.ones_like(self.counts_K), self.counts_K))
        self.sums_KD.copy_(torch.where(is_dead_K1, fresh_KD, self.sums_KD))
        self.codes_KD.copy_(self.sums_KD / self.counts_K[:, None])


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x):
        return x + self.layers(x)


class VQVAE(nn.Module):
    """Images [B, C, H, W] in [0, 1], with H and W multiples of 4, through a codebook and back.

    Args:
        channels: C.
        width: channels inside.
        num_codes, dim: of the codebook.
    """

    def __init__(self, channels: int = 1, width: int = 32, num_codes: int = 64, dim: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
                                     nn.Conv2d(width, width, 4, stride=2, padding=1), Residual(width),
                                     nn.ReLU(), nn.Conv2d(width, dim, 1))
        self.codebook = Codebook(num_codes, dim)
        self.decoder = nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), Residual(width), nn.ReLU(),
                                     nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU(),
                                     nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1))

    def forward(self, images: torch.Tensor) -> Reconstruction:
        z = self.encoder(images)
        codes, indices = self.codebook(z)
        through = z + (codes - z).detach()
        return Reconstruction(self.decoder(through), F.mse_loss(z, codes), indices)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        """The images [B, C, H, W] of codes [B, H / 4, W / 4]."""
        return self.decoder(self.codebook.codes_KD[indices].permute(0, 3, 1, 2))
