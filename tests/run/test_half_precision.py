"""Mixed precision that cannot work is told before the first update: by the GPU's name, and by the loss with and without."""

import pytest
import torch
from tiny import Tiny, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.run.half_precision import warn_of_gpu


@pytest.mark.parametrize("name, is_bad", [
    ("NVIDIA GeForce GTX 1650", True), ("GeForce GTX1660 Ti", True), ("NVIDIA T400 4GB", True),
    ("Quadro T2000 with Max-Q Design", True), ("NVIDIA T1200 Laptop GPU", True), ("Tesla K40m", True),
    ("NVIDIA GeForce GTX 1080 Ti", False), ("NVIDIA GeForce RTX 2060", False), ("Tesla T4", False), ("NVIDIA H100", False),
    ("NVIDIA RTX A2000", False), ("Tesla V100-SXM2-16GB", False), ("NVIDIA RTX 2000 Ada Generation", False)])
def test_a_gpu_that_is_known_to_compute_wrongly_is_named(monkeypatch, recwarn, name, is_bad):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    for amp in ("fp16", "bf16"):
        if is_bad:
            with pytest.warns(UserWarning, match=f"amp = '{amp}' on a {name}: GPUs of this kind are known to give NaN"):
                warn_of_gpu(amp, torch.device("cuda"))
        else:
            warn_of_gpu(amp, torch.device("cuda"))
    warn_of_gpu(None, torch.device("cuda"))
    assert not recwarn.list


class Large(nn.Module):
    """Its activations are above 65,504 where ``factor`` is large."""

    def __init__(self, factor):
        super().__init__()
        self.inner, self.factor = tiny_model(dropout=0.0), factor

    def forward(self, x):
        hidden = self.inner[0](x * self.factor)
        return self.inner[3](hidden / self.factor)


def test_a_forward_that_overflows_in_fp16_is_told_before_the_first_update_with_the_loss_that_it_has_without():
    model = Large(1e6)
    trainer = Tiny(model, amp="fp16", accumulate_steps=2)
    trainer.check_init(use_tb=False)
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match=r"With amp = 'fp16' it is nan, and 1\.\d+ without: .* \(65,504\)"):
        trainer.fit(1)
    assert torch.equal(weights(trainer), before)


def test_what_is_not_finite_without_amp_either_has_another_cause():
    x = torch.full((40, 6), float("nan"))
    loader = DataLoader(TensorDataset(x, torch.zeros(40, dtype=torch.long)), 10)
    with pytest.raises(FloatingPointError, match="The loss must stay finite"):
        tiny_trainer(amp="bf16", train_loader=loader, eval_loader=None).fit(1)


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_the_look_changes_no_bit_of_a_training_in_half_precision(amp):
    found = []
    for preflight in (True, False):
        trainer = tiny_trainer(amp=amp, preflight=preflight)
        trainer.fit(1)
        found.append(weights(trainer))
    assert torch.equal(*found)


def test_bf16_holds_what_fp16_cannot_and_skipped_updates_are_left_to_the_guard():
    assert tiny_trainer(model=Large(1e6), amp="bf16").fit(1)
    trainer = tiny_trainer(model=Large(1e6), amp="fp16", skip_non_finite=2)
    with pytest.raises(FloatingPointError, match="skip_non_finite is 2"):
        trainer.fit(1)
