"""What only a GPU can show of the tools: a memory that is really full, and copies that come back to the device."""

import pytest
import torch
from test_left_as_found import state_of
from tiny import Tiny, tiny_data, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template.tools.find_batch_size import find_batch_size
from template.tools.find_lr import find_lr
from template.tools.overfit import overfit
from template.tools.summary import summary

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Large(nn.Module):
    """256 MiB for each sample."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        taken = torch.empty(len(x), 1 << 28, dtype=torch.uint8, device=x.device)
        return self.inner(x) + 0 * taken[:, :3]


def test_a_full_memory_is_caught_and_the_largest_size_is_just_below_it():
    loader = DataLoader(TensorDataset(*tiny_data(4000)), 8)
    trainer = tiny_trainer(model=Large(), train_loader=loader, device="cuda")
    free, _ = torch.cuda.mem_get_info()
    found = find_batch_size(trainer, num_updates=1)
    assert 0.8 * free < found.largest << 28 <= free and any(not row.fits for row in found.rows)
    assert torch.cuda.memory_allocated() < 1 << 28 and found.rows[0].gigabytes > 0
    trainer.fit(1)


@pytest.mark.parametrize("options", [{}, {"amp": "fp16"}, {"amp": "bf16", "accumulate_steps": 2}], ids=str)
def test_training_on_a_gpu_ends_with_the_same_bits(options):
    ends = []
    for looks in (False, True):
        trainer = Tiny(ckpt_dir=f"{looks}", device="cuda", deterministic=True, total_epochs=3, **options)
        trainer.optimizer_list = [torch.optim.AdamW(trainer.model_list[0].parameters(), 1e-2, fused=True)]
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        trainer.eval()
        if looks:
            find_lr(trainer, num_updates=20)
            overfit(trainer, updates=5)
        trainer.fit(3)
        ends.append(state_of(trainer))
    assert ends[0] == ends[1]


def test_recurrent_layers_are_counted_where_cudnn_runs_them():
    found = summary(nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True).cuda(), torch.randn(2, 5, 8))
    assert found.flops == 2 * 2 * 5 * 2 * 4 * 16 * ((8 + 16) + (32 + 16))
