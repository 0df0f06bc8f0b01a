"""Gives back memory that torch keeps in its cache and does not use, between training and evaluation.

    trainer.callbacks = [EmptyCache()]            # when more than half of the memory is taken

torch keeps what it has allocated, in pieces of the sizes that were asked for. Where an evaluation asks for other sizes, with
larger batches or images, they may not fit beside the pieces that are kept. It costs a wait for the device and allocations
anew, so it acts behind the training of an epoch and behind an evaluation, and nowhere else.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel


class EmptyCache(Callback):
    """Empties torch's cache of GPU memory when this process has taken more than ``share`` of the memory there is.

    Args:
        share: of the device's memory, from 0 (always) to 1 (never).

    Raises:
        ValueError: ``share`` is no number from 0 to 1.
    """

    def __init__(self, share: float = 0.5) -> None:
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ValueError(f"share must be a number from 0 to 1, the part of a GPU's memory; got {share!r}.")
        self.share = share
        self.times = 0  # that it was emptied

    def on_run_start(self, model: TemplateModel) -> None:
        if torch.device(model.device).type not in ("cuda", "mps"):
            print(f"EmptyCache has nothing to do on {model.device}: torch keeps a cache of memory on GPUs alone.")

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self._empty(torch.device(model.device))

    def on_eval_end(self, model: TemplateModel) -> None:
        self._empty(torch.device(model.device))

    def _empty(self, device):
        taken = share_taken(device)
        if taken is not None and taken > self.share:
            gc.collect()  # what is in a circle of references is still allocated
            (torch.cuda if device.type == "cuda" else torch.mps).empty_cache()
            self.times += 1


def share_taken(device: torch.device) -> Any:
    """The part of a GPU's memory that this process has taken, its cache included; None where there is no such thing."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / torch.mps.recommended_max_memory()
    return None
