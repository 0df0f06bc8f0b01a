"""Accuracy, size and latency of the digits CNN of train.py in 8 bits: PTQ by every method, QAT, and onnxruntime's own.

    python -m benchmarks.quantize                  # three seeds; about five minutes on two idle CPU cores
    python -m benchmarks.quantize --rounds 1 --epochs 5

Each seed trains a network of its own; all of its quantized forms come from the same weights, those of its best epoch, and
are scored on the 359 digits that it never saw. Calibration reads 32 batches of the training data.
"""

import argparse
import os
import statistics
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch

from template import seed_everything
from template.output.text_table import text_table
from template.tools.quantize import ptq, qat
from train import Digits, Options

FORMS = {
    "PTQ max": {"method": "max"},
    "PTQ percentile": {"method": "percentile"},
    "PTQ mse": {"method": "mse"},
    "PTQ entropy": {"method": "entropy"},
    "onnxruntime max": {"method": "max", "backend": "onnxruntime"},
    "onnxruntime percentile": {"method": "percentile", "backend": "onnxruntime"},
    "onnxruntime entropy": {"method": "entropy", "backend": "onnxruntime"},
}


def quantized(seed, epochs, qat_epochs, folder):
    """``{form: Quantized}`` of one seed."""
    seed_everything(seed)
    trainer = Digits(Options(epochs=epochs, seed=seed))
    trainer.callbacks, trainer.ckpt_dir = None, str(Path(folder, f"seed{seed}"))
    trainer.check_init(use_tb=False)
    trainer.fit(epochs)
    found = {name: ptq(trainer, weights="best", **arguments) for name, arguments in FORMS.items()}
    return found | {"QAT": qat(trainer, qat_epochs, weights="best")}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=30, help="of the training in float32")
    parser.add_argument("--qat-epochs", type=int, default=3, help="of the training on with rounding")
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, open(os.devnull, "w") as nowhere:
        with redirect_stdout(nowhere):
            runs = [quantized(seed, options.epochs, options.qat_epochs, folder) for seed in range(options.rounds)]
    plain = [run["PTQ max"] for run in runs]
    rows = [{"form": "float32", "accuracy": over([one.before["acc"] for one in plain]), "in onnxruntime": "",
             "largest difference": "", "kB": f"{statistics.mean(one.bytes_before for one in plain) / 1000:.0f}",
             "ms": over([one.latency_before[1] for one in plain], 3)}]
    for name in runs[0]:
        own = [run[name] for run in runs]
        gaps = [abs(one.after[key] - one.onnx[key]) for one in own for key in one.after]
        rows.append({"form": name, "accuracy": over([one.after["acc"] for one in own]) if own[0].after else "",
                     "in onnxruntime": over([one.onnx["acc"] for one in own]),
                     "largest difference": f"{max(gaps):.1e}" if gaps else "",
                     "kB": f"{statistics.mean(one.bytes_after for one in own) / 1000:.0f}",
                     "ms": over([one.latency_after[1] for one in own], 3)})
    print(f"{options.rounds} seeds, {options.epochs} epochs, QAT {options.qat_epochs} more; torch {torch.__version__}, "
          "mean (smallest to largest); ms: one image, 1 thread, onnxruntime, the fastest of 15 rounds")
    print(text_table(rows))


def over(values, digits=4):
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
