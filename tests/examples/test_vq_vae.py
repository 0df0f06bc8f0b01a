"""The codebook and the network of ``examples/image_generation/``."""

import numpy as np
import pytest
import torch

from examples.image_generation.vq_vae import VQVAE, Codebook


def by_hand(codebook, z, fresh, decay, restart_below):
    """One step of the codebook in numpy, position by position."""
    buffers = codebook.codes_KD, codebook.counts_K, codebook.sums_KD
    codes, counts, sums = (part.numpy().astype(np.float64) for part in buffers)
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).numpy().astype(np.float64)
    chosen = [int(((codes - position) ** 2).sum(1).argmin()) for position in flat]
    counts, sums = decay * counts, decay * sums
    for position, code in zip(flat, chosen):
        counts[code] += (1 - decay)
        sums[code] += (1 - decay) * position
    for code in range(len(codes)):
        if counts[code] < restart_below:
            counts[code], sums[code] = 1, fresh[code]
    return chosen, counts, sums, sums / counts[:, None]


def test_the_codebook_follows_the_moving_averages_of_the_paper(monkeypatch):
    torch.manual_seed(0)
    codebook = Codebook(6, 3, decay=0.9, restart_below=0.5)
    codebook.counts_K.copy_(torch.tensor([5.0, 0.1, 2, 3, 0, 9]))
    codebook.sums_KD.copy_(codebook.codes_KD * codebook.counts_K[:, None])
    z = torch.randn(2, 3, 4, 5)
    drawn = torch.randint(40, (6,))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: drawn)
    fresh = z.permute(0, 2, 3, 1).reshape(-1, 3)[drawn].numpy()
    chosen, counts, sums, codes = by_hand(codebook, z, fresh, 0.9, 0.5)
    before = codebook.codes_KD.clone()
    found, indices = codebook(z)
    assert indices.flatten().tolist() == chosen
    assert torch.equal(found, before[indices].permute(0, 3, 1, 2))  # the batch is read with the codes as they were
    for buffer, expected in ((codebook.counts_K, counts), (codebook.sums_KD, sums), (codebook.codes_KD, codes)):
        np.testing.assert_allclose(buffer.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_codebook_in_eval_mode_does_not_move():
    torch.manual_seed(0)
    codebook = Codebook(6, 3).eval()
    before = {name: part.clone() for name, part in codebook.state_dict().items()}
    codebook(torch.randn(2, 3, 4, 4))
    assert all(torch.equal(part, before[name]) for name, part in codebook.state_dict().items())


def test_gradients_go_straight_through_to_the_encoder_and_none_to_the_codebook():
    torch.manual_seed(0)
    model = VQVAE(channels=3, width=8, num_codes=5, dim=4)
    image, commitment, codes = model(torch.rand(2, 3, 16, 8))
    assert image.shape == (2, 3, 16, 8) and codes.shape == (2, 4, 2) and commitment.shape == ()
    image.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(name.startswith("codebook") for name, _ in model.named_parameters())


def test_codes_decode_to_the_image_that_the_network_gave():
    torch.manual_seed(0)
    model = VQVAE(width=8, num_codes=5, dim=4).eval()
    with torch.no_grad():
        image, _, codes = model(torch.rand(2, 1, 16, 16))
        torch.testing.assert_close(model.decode(codes), image, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_the_codebook_in_float32(dtype):
    torch.manual_seed(0)
    codebook = Codebook(6, 3)
    found, _ = codebook(torch.randn(2, 3, 4, 4).to(dtype))
    assert found.dtype is dtype and codebook.codes_KD.dtype is torch.float32
