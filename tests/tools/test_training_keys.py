"""The flat keys of an experiment file: what each sets, schedules against their closed forms, and run folders."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import Tiny, tiny_data
from torch import nn
from torch.utils.data import TensorDataset

from template import EarlyStopping
from template.tools.configure import configure
from template.tools.training_keys import TrainingKeys

FILE = """\
save_dir: runs_eeg  # 结果的目录
device: 0           # 第一块 GPU
batch: 32
nbs: 64
num_workers: 4
patience: 100
epochs: 200
exist_ok: True
amp: False
ptq: False
num_batches: None   # None 或整数
method: entropy
qat: False
trt_quant: False

optimizer: Adam
scheduler: Cosine
lr0: 0.01
lrf: 0.01
gamma: 0.9
power: 2.0
momentum: 0.937
weight_decay: 0.0005

warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
"""


class Keyed(Tiny):
    def __init__(self, keys: TrainingKeys):
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)))
        self.seed = self.writer = None
        datasets = TensorDataset(*tiny_data(96)), TensorDataset(*tiny_data(23, seed=5))
        self.train_loader, self.eval_loader = keys.loaders(*datasets)
        keys.apply(self)


def keyed(*argv):
    Path("cls.yml").write_text(FILE, encoding="utf-8")
    return configure(Keyed, ["--config", "cls.yml", *argv])


def started(*argv):
    trainer = keyed("--device", "cpu", "--num_workers", "0", *argv)
    trainer.check_init(use_tb=False)
    return trainer


def test_every_key_of_the_file_reaches_the_trainer():
    trainer = keyed("--device", "cpu")
    assert (trainer.ckpt_dir, trainer.overwrite, trainer.device) == ("runs_eeg", True, "cpu")
    assert (trainer.train_loader.batch_size, trainer.train_loader.num_workers, trainer.nominal_batch_size) == (32, 4, 64)
    assert (trainer.total_epochs, trainer.amp, trainer.clip_grad) == (200, None, 10.0)
    assert (trainer.lr_scheduler_type, trainer.lr_scheduler_args) == ("cosine", {"final_ratio": 0.01})
    assert (trainer.warm_up_epoch, trainer.warm_up_momentum, trainer.warm_up_bias_lr) == (3.0, 0.8, 0.1)
    stopping = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    assert [callback.patience for callback in stopping] == [100]
    (optimizer,) = trainer.optimizer_list
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert type(optimizer) is torch.optim.Adam and set(groups) == {"weight", "bias", "norm"}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {"weight": 0.0005, "bias": 0.0, "norm": 0.0}
    assert all(group["lr"] == 0.01 and group["betas"] == (0.937, 0.999) for group in groups.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU with the number 0")
def test_a_gpu_that_is_not_there_is_an_error_in_words():
    with pytest.raises((ValueError, RuntimeError), match="device"):
        keyed("--num_workers", "0").check_init(use_tb=False)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp"])
def test_each_optimizer_of_the_file_trains_with_warm_up_of_rate_momentum_and_bias_rate(name):
    trainer = started("--optimizer", name, "--epochs", "2", "--warmup_epochs", "1.0", "--lr0", "1e-3")
    assert trainer.optimizer_list[0].defaults.get("nesterov", True)
    trainer.fit(trainer.total_epochs)
    (optimizer,) = trainer.optimizer_list
    momenta = {group["momentum"] if "momentum" in group else group["betas"][0] for group in optimizer.param_groups}
    assert momenta == {0.937}
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5] * 3)


FORMS = {  # with x epochs of T done, as a share of lr0
    "Cosine": lambda x, T, lrf: lrf + (1 - lrf) * (1 + math.cos(math.pi * x / T)) / 2,
    "Linear": lambda x, T, lrf: lrf + (1 - lrf) * (1 - x / T),
    "Exponential": lambda x, T, lrf: lrf + (1 - lrf) * (0.5**x - 0.5**T) / (1 - 0.5**T),
    "Polynomial": lambda x, T, lrf: lrf + (1 - lrf) * (1 - x / T) ** 3,
}


@pytest.mark.parametrize("scheduler", FORMS)
def test_each_schedule_goes_from_lr0_to_lrf_of_it_along_its_curve(scheduler):
    trainer = started("--scheduler", scheduler, "--epochs", "4", "--lrf", "0.2", "--gamma", "0.5", "--power", "3",
                      "--warmup_epochs", "0")
    rates = [trainer.optimizer_list[0].param_groups[0]["lr"]]
    for _ in trainer.epochs(4):
        trainer.train_loop()
        rates.append(trainer.optimizer_list[0].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01 * FORMS[scheduler](x, 4, 0.2) for x in range(5)])
    assert rates[-1] == pytest.approx(0.01 * 0.2)


def test_in_a_long_run_the_exponential_schedule_falls_by_gamma_in_each_epoch_behind_the_warm_up():
    keys = TrainingKeys(scheduler="Exponential", epochs=103, warmup_epochs=3.0, lrf=0.01)
    decay = keys._scheduler_args()["decay"]
    assert decay == pytest.approx(0.9**100)


def test_mixed_precision_is_a_switch_or_a_name():
    assert keyed("--device", "cpu", "--amp").amp == "bf16"
    assert keyed("--device", "cpu", "--amp", "fp16").amp == "fp16"


def test_patience_0_never_stops_early():
    assert not any(isinstance(callback, EarlyStopping) for callback in keyed("--device", "cpu", "--patience", "0").callbacks)


@pytest.mark.parametrize("words, said", [
    (["--epochs", "0"], "epochs must be 1 or more, got 0"), (["--gamma", "1"], "gamma must lie between 0 and 1"),
    (["--scheduler", "cosine"], "Did you mean Cosine?"), (["--method", "minmax"], "one of entropy, max, percentile, mse"),
    (["--warmup_epoch", "1"], "Did you mean --warmup_epochs?"), (["--amp", "half"], "true or false or one of bf16, fp16"),
])
def test_what_does_not_fit_is_told(words, said, capsys):
    with pytest.raises(SystemExit):
        keyed("--device", "cpu", *words)
    assert said in capsys.readouterr().err


def test_an_occupied_save_dir_is_replaced_numbered_or_continued():
    first = started("--epochs", "1")
    first.fit(1)
    kept = started("--epochs", "1", "--exist_ok", "no")
    assert Path(kept.ckpt_dir) == Path("runs_eeg_2")
    kept.fit(2)
    assert Path(kept.ckpt_dir) == Path("runs_eeg_2")  # once per run, and not once per epoch
    third = started("--exist_ok", "no")
    third.load_state("auto")
    assert Path(third.ckpt_dir) == Path("runs_eeg_2") and third.epochs_done == 2  # the newest run goes on in its own folder
    assert not Path("runs_eeg_3").exists()
    first.close()
    again = started("--epochs", "1")
    assert Path(again.ckpt_dir) == Path("runs_eeg") and again.epochs_done == 0


@pytest.mark.parametrize("epochs, asked", [(30, 3), (4, 1)])
def test_qat_takes_a_tenth_of_the_epochs_from_the_best_weights(epochs, asked, monkeypatch):
    calls = []
    monkeypatch.setattr("template.tools.quantize.qat", lambda trainer, **arguments: calls.append(arguments))
    trainer = SimpleNamespace(world=SimpleNamespace(size=1), path_of=Path("run").joinpath)
    TrainingKeys(qat=True, epochs=epochs).after_training(trainer)
    assert calls == [{"epochs": asked, "lr_factor": 0.1, "path": Path("run/best.onnx"), "weights": "best"}]


def test_several_processes_are_told_that_one_quantizes():
    trainer = SimpleNamespace(world=SimpleNamespace(size=2), is_main=True)
    with pytest.warns(UserWarning, match="Start the script again without torchrun"):
        TrainingKeys(ptq=True).after_training(trainer)


def test_a_package_that_quantizing_needs_is_told_before_the_training(own_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer", None)
    with pytest.raises(ImportError, match="ptq.. needs torchao: pip install torchao"):
        keyed("--ptq", "true", "--device", "cpu")
