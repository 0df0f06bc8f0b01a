"""``train_metrics`` on a GPU: no update waits for the device, and a run goes on from a file, which is on the CPU."""

import pytest
import torch
from metrics_job import metrics
from tiny import Tiny, tiny_data
from torch.utils.data import DataLoader, TensorDataset

from template import Callback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class All(Tiny):
    def metric(self, pred, y):
        found = metrics(pred, y)
        return {name: value for name, value in found.items() if name != "of"}  # slices wait for their groups


class OwnLoss(All):
    def loss_per_batch(self, batch):
        x, y = batch
        return self.criterion(self.model_list[0](x), y)


class NoWaits(Callback):
    """Any wait for the device between the first batch and the last update is an error."""

    def on_train_start(self, model):
        torch.cuda.set_sync_debug_mode("error")

    def on_after_step(self, model):
        if model.global_step % 6 == 0:
            torch.cuda.set_sync_debug_mode("default")

    def on_exit(self, model):
        torch.cuda.set_sync_debug_mode("default")


class Ends(Callback):
    def on_after_step(self, model):
        if model.global_step == 4:
            raise KeyError("the end")


def build(kind, folder, **attributes):
    x, y = tiny_data()
    loader = DataLoader(TensorDataset(x.cuda(), y.cuda()), 10, shuffle=True)
    trainer = kind(train_metrics=True, device="cuda", train_loader=loader, eval_loader=None, preflight=False,
                   ckpt_dir=str(folder), **attributes)
    trainer.check_init(use_tb=False)
    return trainer


@pytest.mark.parametrize("kind", [All, OwnLoss])
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_no_update_waits_for_the_device(kind, amp, tmp_path):
    trainer = build(kind, tmp_path, callbacks=[NoWaits()] if amp != "fp16" else [], log_per_step=1000, amp=amp)
    result = trainer.train_loop()
    assert result["top2"] >= result["acc"] > 0


@pytest.mark.parametrize("kind", [All, OwnLoss])
def test_a_run_that_was_cut_goes_on_to_the_same_values(kind, tmp_path):
    whole = build(kind, tmp_path / "whole").train_loop()
    with pytest.raises(KeyError):
        build(kind, tmp_path / "parts", save_per_steps=1, callbacks=[Ends()]).train_loop()
    continued = build(kind, tmp_path / "parts")
    continued.load_state("auto")
    assert continued.train_loop() == whole
