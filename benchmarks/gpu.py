"""Everything that is to be known of a GPU, in one command and in as many minutes as there are.

    python -m benchmarks.gpu --minutes 6                     # without a CUDA device: one line that says so
    python -m benchmarks.gpu --minutes 20 --json mine.json --only steps checkpoints
    python -m benchmarks.gpu --device cpu --minutes 1        # that everything runs, on tiny sizes, and not how fast

What it measures, in this order:

- steps: an update of a residual network and of a small transformer, in float32, bf16, channels_last and compiled, by hand
  and in the template, with the number of waits for the device;
- data: batches of a ``TensorLoader`` whose ``transform`` crops and flips, against a loader in the manner of airbench:
  everything on the device, one random crop and flip of all images and one permutation per epoch, then slices;
- cifar10: images per second of ``demo_cifar10`` on random images;
- checkpoints: how long the loop stands still for a save of 200 MB and of 2 GB, against ``torch.save``;
- tests: ``tests/**/*_gpu.py``, where pytest is installed.

Each part has a share of the minutes. What did not fit is named, a part that fails is named with its error and the others go
on, and the JSON file is written after each figure. It needs torch and nothing else, and no network.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from . import gpu_parts
from .budget import Part, Report, run_parts
from .measuring import cpu_name

PARTS = {  # name: (share of the time, function, seconds below which it is not begun)
    "steps": (45, gpu_parts.steps, 10),
    "data": (5, gpu_parts.data_path, 5),
    "cifar10": (15, gpu_parts.cifar10, 10),
    "checkpoints": (15, gpu_parts.checkpoints, 10),
    "tests": (20, gpu_parts.tests, 10),
}


def conditions(device, minutes):
    """What the figures depend on."""
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"), "minutes": minutes, "device": device, "torch": torch.__version__,
        "python": platform.python_version(), "system": platform.platform(),
        "cpu": f"{cpu_name()} with {os.cpu_count()} CPUs",
        "commit": output_of("git", "-C", str(gpu_parts.ROOT), "rev-parse", "--short", "HEAD") or "unknown",
    }
    if not device.startswith("cuda"):
        return found
    card = torch.cuda.get_device_properties(device)
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found | {
        "card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}, "
                f"{card.multi_processor_count} multiprocessors",
        "driver": driver.splitlines()[0] if driver else "unknown", "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def output_of(*command):
    """What a program printed; "" where it is not there or failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts, in this order")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=9, help="of a figure, at most")
    parser.add_argument("--device", default="cuda", help="on a CPU all sizes are tiny")
    parser.add_argument("--folder", default=".", help="where runs write, and the JSON file unless --json says where")
    parser.add_argument("--json", help="path of the file; else gpu_<date>.json in the folder")
    options = parser.parse_args(arguments)
    is_gpu = options.device.startswith("cuda")
    if is_gpu and not torch.cuda.is_available():
        print("The GPU figures are unmeasured here: there is no CUDA device.")
        return 0
    path = options.json or Path(options.folder, time.strftime("gpu_%Y-%m-%d_%H-%M-%S.json"))
    report = Report(path, conditions(options.device, options.minutes))
    folder = Path(tempfile.mkdtemp(prefix="benchmark_", dir=options.folder)).resolve()
    setting = gpu_parts.Setting(options.device, folder, not is_gpu, options.rounds, tuple(options.modes))
    try:
        parts = [Part(name, share, partial(measure, setting), 0.0 if setting.is_tiny else least)
                 for name, (share, measure, least) in PARTS.items() if name in options.only]
        run_parts(parts, options.minutes, report)
    finally:  # also after Ctrl-C
        shutil.rmtree(folder, ignore_errors=True)
        report.print_table()
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
