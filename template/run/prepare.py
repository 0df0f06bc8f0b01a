"""Models as the training runs them: on the device, in their memory format, compiled.

    prepare(model_list, torch.device("cuda"), channels_last=True, compile="max-autotune")

``torch.compile`` compiles when it is called first, so the first update is slow and later ones may be: ``TellCompiling`` says
so. It touches no weight and no name: checkpoints are those of the plain model.
"""

import time
from typing import Any

import torch

from ..hooks import Callback
from .devices import num_local_processes, numbers_of

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
STEP = "step"  # forward, loss, backward and optimizer in one graph, see update/compiled_step.py
MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision

_OR_UNSET = "Leave device unset to train on the GPU where there is one, else on the CPU."


def check_device(device):
    """Raises a ValueError where ``device`` is no name of a device, or of one that is not here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        gpus, processes = len(numbers_of(device)), num_local_processes()
        why = _OR_UNSET if not gpus else (
            f"One process trains on one GPU, and on this machine there {'is' if processes == 1 else 'are'} {processes} for "
            f"{gpus}. torchrun --nproc-per-node {gpus} starts one for each, see docs/cluster.md; with device unset each "
            "takes its own.")
        raise ValueError(f"device must be the name of one device: 'cuda', 'cuda:1' or '1', 'mps', 'cpu', or '' for the "
                         f"default; got {device!r}. {why}") from None
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            seen = f"sees {count} here" if count else "sees none here: torch.cuda.is_available() is False"
            raise ValueError(f"device = {str(device)!r} must be a GPU that torch can use, and torch {seen}. {_OR_UNSET}")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device = {str(device)!r} needs a Mac whose GPU torch can use. {_OR_UNSET}")


def prepare(models, device, channels_last=False, sync_batchnorm=False, compile=False):
    """Move, lay out and compile in place.

    Args:
        channels_last: weights of convolutions as [N, H, W, C] in memory, which inputs and activations follow; bf16 and fp16
            convolutions on a GPU are faster so.
        sync_batchnorm: statistics of BatchNorm over the batches of all ranks; parameters stay the same objects.
        compile: True, one of ``COMPILE_MODES``, or ``STEP``, which compiles the models as True does.
    """
    for model in models:
        model.to(device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if sync_batchnorm:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if compile:
            model._compiled_call_impl = _compiled(model, None if compile in (True, STEP) else compile)


def _compiled(model, mode):
    """What ``model.compile()`` sets. That one compiles nothing, in silence, where the model's class is torch's own
    (``nn.Sequential``): torch skips its own frames, but follows calls from others (seen with 2.13)."""
    def call(*args, **kwargs):
        return model._call_impl(*args, **kwargs)

    return torch.compile(call, mode=mode)


class TellCompiling(Callback):
    """Says how long the first update took, and after each epoch how many graphs were compiled in it."""

    def __init__(self) -> None:
        self._started: Any = None  # seconds, on time.perf_counter's clock; None before and after the first update
        self._graphs: Any = None   # compiled until the last look

    def on_train_start(self, model):
        if self._graphs is None:
            print("torch.compile: the first update compiles, which takes a while.")
            self._started, self._graphs = time.perf_counter(), _count_graphs()

    def on_after_step(self, model):
        if self._started is not None:
            self._graphs, before = _count_graphs(), self._graphs
            print(f"torch.compile: the first update took {time.perf_counter() - self._started:.1f} s, with "
                  f"{self._graphs - before} graph{'s' * (self._graphs - before != 1)} compiled.")
            self._started = None

    def on_train_end(self, model, result):
        self._tell(model.epoch)

    def on_eval_result(self, model, result):
        self._tell(model.epoch)

    def _tell(self, epoch):
        new = _count_graphs() - self._graphs
        if new:
            print(f"torch.compile: {new} more graph{'s' * (new > 1)} compiled in epoch {epoch}. Evaluation and a short last "
                  "batch need one each; where it goes on, inputs change their shape: pad them, or set drop_last.")
            self._graphs += new


def _count_graphs():
    """By this process until now; torch has no public name for it."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
