"""How ``KerasModel.fit_ddp`` gets a model into other processes, and what comes back."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import torch


def pickled(package: Any) -> bytes:
    """As bytes: tensors that are sent as they are would be shared by all processes, and trained by all at once."""
    file = io.BytesIO()
    try:
        torch.save(package, file)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise TypeError("fit_ddp() and evaluate_ddp() send the model and the data to new processes, and a part of them "
                        f"cannot be sent: {error}. Define functions and classes at the top of a module, without lambda, or "
                        "start the script with torchrun, where fit() itself trains in all processes.") from error
    return file.getvalue()


def call_in_process(package: Any) -> Any:
    """One of several processes: ``fit`` or ``evaluate`` there; what the first one returns counts."""
    if isinstance(package, bytes):
        package = torch.load(io.BytesIO(package), map_location="cpu", weights_only=False)
    model, call, args, kwargs, run = package
    warnings.filterwarnings("ignore", "Seems like `optimizer.step", UserWarning)  # what a scheduler notes there is not sent
    for name, value in run.items():
        setattr(model, name, value)
    if call == "evaluate":
        return model.evaluate(*args, **kwargs)
    model.fit(*args, **kwargs)
    if not model.trainer.is_main:
        return None
    folder = model.trainer.path_of(".").absolute()
    return model._rows(), model._goal, str(folder), (model.ckpt_path, model.monitor, model.mode)
