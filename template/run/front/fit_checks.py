"""What people who come from Keras write, and what to write for ``KerasModel``.

    check_parts(net, metrics_dict, optimizer)     # before anything is built
    check_batches("train_data", train_data)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

OF_KERAS = {"validation_data": "the batches to validate on are val_data",
            "validation_split": "split the dataset by torch.utils.data.random_split, for train_data and val_data",
            "x": "it takes batches, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)",
            "y": "it takes batches, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)",
            "batch_size": "it is that of your DataLoader",
            "shuffle": "say it to your DataLoader",
            "verbose": "quiet=True shows no progress bar",
            "steps_per_epoch": "say limit_train_batches",
            "validation_steps": "say limit_eval_batches",
            "initial_epoch": "resume='auto' goes on where a run stopped, and a second fit() where the first one ended",
            "lr": "it is that of the optimizer, torch.optim.Adam(net.parameters(), lr=1e-3)",
            "learning_rate": "it is that of the optimizer, torch.optim.Adam(net.parameters(), lr=1e-3)",
            "optimizer": "give it to KerasModel(net, loss_fn, optimizer=…)"}


def check_parts(net: Any, metrics: Any, optimizer: Any) -> None:
    """Raises: TypeError, with what to write."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be an nn.Module, got {type(net).__name__}.")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError("metrics_dict must be a dict of metrics by name, as {'f1': Confusion(10).f1('macro')}, got "
                        f"{metrics!r}.")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        got = f"a list of {len(optimizer)}" if isinstance(optimizer, (list, tuple)) else repr(optimizer)
        raise TypeError("optimizer must be one optimizer of the network's parameters, as torch.optim.Adam(net.parameters(), "
                        f"lr=1e-3) or build_optimizer('Adam', net, lr=1e-3), got {got}. Several optimizers are for a step "
                        "of your own, which gets each by its name, or for a subclass of TemplateModel.")


def check_batches(name: str, data: Any) -> None:
    """Samples that are no batches yet would be read one by one."""
    kind = type(data)
    if isinstance(data, torch.Tensor) or kind.__module__ == "numpy" or kind.__name__ == "DataFrame":
        how = "DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)"
    elif isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        how = "DataLoader(dataset, batch_size=32, shuffle=True)"
    else:
        return
    raise TypeError(f"{name} must give batches (x, y), as {how} does, got a {kind.__name__}.")
