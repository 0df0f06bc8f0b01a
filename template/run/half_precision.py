"""Whether half precision works here: which GPUs are known not to, and whether the first forward overflows in it.

    warn_of_gpu("fp16", torch.device("cuda"))        # by check_init
    refuse_overflow(trainer, batches_of_the_update)  # before the first update
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch

from ..data.seeding import capture_rng, restore_rng
from ..output.warn import warn
from .defaults import loss_dict

if TYPE_CHECKING:
    from ..template import TemplateModel

_NO_TENSOR_CORES = re.compile(r"GTX\s*16\d\d|\bT(?:400|500|550|600|1000|1200|2000)\b|\bK40m\b", re.IGNORECASE)
_LARGEST = {"fp16": "65,504", "bf16": "3.4e38"}


def warn_of_gpu(amp: str | None, device: torch.device) -> None:
    """Turing GPUs without tensor cores, and the K40m, are known for losses that become NaN in half precision.

    Source: pytorch issues 58123 and 77955 for the GTX 16 series; the others are those that the check in the training script
    of YOLOv8 (Ultralytics, 2023) names.
    """
    if amp is None or device.type != "cuda":
        return
    name = torch.cuda.get_device_name(device)
    if _NO_TENSOR_CORES.search(name):
        warn(f"amp = {amp!r} on a {name}: GPUs of this kind are known to give NaN in half precision (pytorch issue 58123). "
             "Leave amp at None, or watch the loss.")


def refuse_overflow(trainer: TemplateModel, batches: list[Any]) -> None:
    """Look at the losses of the first update, where ``amp`` is on: of one that is finite without ``amp`` the cause is told.
    Costs one wait for the device, and one forward more where the training would stop anyway.

    Args:
        batches: of the update.

    Raises:
        FloatingPointError: half precision makes a loss of the first update infinite or NaN.
    """
    losses = [entry for entry in trainer.running_losses.fetch()[-len(batches):] if entry[1]]
    if trainer.world.size > 1 or len(losses) != len(batches) or trainer.evaluator.writes_step:
        return  # a forward on this rank alone would wait for the others; a train_step cannot be done again
    for (values, _), batch in zip(losses, batches):
        if not math.isfinite(values["tol_loss"]) and math.isfinite(loss := _loss_without(trainer, batch)):
            raise FloatingPointError(
                f"The loss of the first update must be finite. With amp = {trainer.amp!r} it is {values['tol_loss']}, and "
                f"{loss:.4g} without: a number in the forward pass is larger than half precision can hold "
                f"({_LARGEST[trainer.amp or 'fp16']}), or a small one became 0. Set amp = 'bf16' or None, scale the inputs, "
                "or compute that part in float32, in `with torch.autocast(device_type, enabled=False):`.")


def _loss_without(trainer, batch):
    """NaN where the user's code cannot do without: it may convert to a half type by itself."""
    rng = capture_rng()
    try:
        with torch.no_grad(), torch.autocast(torch.device(trainer.device).type, enabled=False):
            return float(loss_dict(trainer.loss_per_batch(batch))["tol_loss"])
    except RuntimeError:
        return math.nan
    finally:
        restore_rng(rng)
