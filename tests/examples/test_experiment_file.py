"""One file of flat keys, written for another trainer, runs both examples, and what follows the training."""

import os
import sys
from pathlib import Path

import pytest
import torch
from ranks import history
from tiny import ROOT

FILE = """\
save_dir: runs_eeg  # (str) 用于保存实验结果的目录
device: 0           # (int) 使用的设备编号，例如 0、1 或 2，表示使用哪块 GPU
batch: 32           # (int) 批量大小
nbs: 64             # (int) 标准批量大小（用于归一化学习率）
num_workers: 4      # (int) 用于并行加载数据的子进程数量
patience: 100       # (int) 在没有提升的情况下，最多等待多少个 epoch 后停止训练
epochs: 200         # (int) 总训练轮数
exist_ok: True      # (bool) 是否允许覆盖已存在的实验目录
amp: False          # (bool) 是否使用自动混合精度训练（AMP）
ptq: False          # (bool) 是否使用 NVIDIA 的 pytorch_quantization 进行训练后量化（PTQ）
num_batches: None   # (None 或 int) 在 PTQ 中，用于收集统计信息的批次数量
method: entropy     # (str) 在 PTQ 中用于决定最大绝对值的方法，可选值=[entropy, max, percentile, mse]
qat: False          # (bool) 是否使用 NVIDIA 的 pytorch_quantization 进行量化感知训练（QAT）
trt_quant: False    # (bool) 是否使用 TensorRT 的 int8 量化

optimizer: Adam     # (str) 使用的优化器，可选值=[SGD, Adam, Adamax, AdamW, NAdam, RAdam, RMSProp]
scheduler: Cosine   # (str) 学习率调度器类型，可选值=[Cosine, Linear, Exponential, Polynomial]
lr0: 0.01           # (float) 初始学习率（如 SGD=1E-2，Adam=1E-3）
lrf: 0.01           # (float) 最终学习率为初始学习率乘以该值
gamma: 0.9          # (float) < 1.0 时用于指数衰减的因子（每轮学习率乘以 gamma）
power: 2.0          # (float) 用于多项式调度的曲线形状控制因子
momentum: 0.937     # (float) SGD 的动量/Adam 的 beta1 参数
weight_decay: 0.0005 # (float) 优化器的权重衰减参数，典型值为 5e-4

warmup_epochs: 3.0       # (float) 预热训练的 epoch 数（支持小数）
warmup_momentum: 0.8     # (float) 预热阶段的初始动量
warmup_bias_lr: 0.1      # (float) 预热阶段偏置项的初始学习率
"""
OF_IMAGES = """\
recon_weight: 10.0
lpips_weight: 1.0
vq_weight: 0.5
"""
SMALL = ["--device", "cpu", "--num_workers", "0", "--seed", "0", "--set.limit_eval_batches", "3"]
TRTEXEC = f"""#!{sys.executable}
import sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v101300]")
for flag in sys.argv[1:]:
    if flag.startswith("--saveEngine="):
        open(flag.partition("=")[2], "w").write(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def script(monkeypatch, own_folder):
    """``run(name, text, *words)``: the example with the file of this text."""
    def run(name, text, *words):
        folder = {"train_cls": "classification", "train_imgen": "image_generation"}[name]
        monkeypatch.syspath_prepend(str(ROOT / "examples" / folder))
        Path("trainer_cfg.yml").write_text(text, encoding="utf-8")
        return __import__(name).main(["--config", "trainer_cfg.yml", *SMALL, *words])

    return run


@pytest.mark.slow
def test_the_file_trains_a_classifier_to_its_last_epoch(script):
    trainer = script("train_cls", FILE, "--epochs", "4", "--warmup_epochs", "0.5", "--width", "8",
                     "--set.limit_train_batches", "20")
    rows = history("runs_eeg")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and rows[-1]["eval/acc"] > 0.6
    assert type(trainer.optimizer_list[0]) is torch.optim.Adam and trainer.accumulate_steps == 2
    weight, bias, norm = trainer.optimizer_list[0].param_groups
    assert weight["betas"][0] == pytest.approx(0.937) and (weight["weight_decay"], bias["weight_decay"]) == (0.0005, 0.0)
    assert weight["lr"] == pytest.approx(0.01 * 0.01, rel=0.05), "the last rate is lr0 * lrf"


def test_the_keys_of_the_images_are_none_of_the_classifier(script, capsys):
    with pytest.raises(SystemExit) as left:
        script("train_cls", FILE + OF_IMAGES)
    said = capsys.readouterr().err
    assert left.value.code == 2 and not Path("runs_eeg").exists()
    assert "trainer_cfg.yml, line 28: recon_weight is no setting of Classifier. Its arguments are: save_dir" in said


@pytest.mark.slow
def test_with_its_own_keys_the_file_trains_images_with_these_weights(script):
    trainer = script("train_imgen", FILE + OF_IMAGES, "--epochs", "2", "--set.limit_train_batches", "5")
    assert [row["epoch"] for row in history("runs_eeg")] == [1, 2]
    found = trainer.eval_result
    weights = {"recon": 10.0, "vq": 0.5, "lpips": 1.0}
    total = sum(weight * found[name] for name, weight in weights.items() if name in found)
    assert found["tol_loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
def test_ptq_and_an_engine_follow_the_training_where_the_keys_ask_for_them(script, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("torchao")
    Path("trtexec").write_text(TRTEXEC)
    Path("trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", os.getcwd(), prepend=os.pathsep)
    words = ["--epochs", "1", "--width", "2", "--ptq", "true", "--num_batches", "8", "--trt_quant", "true",
             "--set.limit_train_batches", "4"]
    script("train_cls", FILE, *words)
    said = capsys.readouterr().out
    assert "PTQ, entropy, 8 batches of train_loader" in said and "weights: runs_eeg/best.pth, epoch 1" in said
    session = onnxruntime.InferenceSession("runs_eeg/best.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    flags = Path("runs_eeg/best.engine").read_text().split()
    assert {"--int8", "--minShapes=input:1x1x8x8", "--optShapes=input:32x1x8x8", "--maxShapes=input:128x1x8x8"} <= set(flags)


def test_an_engine_without_trtexec_is_refused_before_the_training(script, monkeypatch):
    monkeypatch.setenv("PATH", os.getcwd())
    with pytest.raises(FileNotFoundError, match="to_tensorrt.. needs trtexec"):
        script("train_cls", FILE, "--trt_quant", "true")
    assert not Path("runs_eeg").exists()
