"""What the optimizers were built with, so that a run that goes on can say what its script has changed since.

    built = settings_of(optimizers)                      # at set-up: [[{"lr": 0.1, "weight_decay": 0.0}, …], …]
    lines = differences(built, built_of_the_file)

A checkpoint has the settings of its optimizers, and they hold when a run goes on: the rate may have come a long way since.
A new value in the script is then without effect, which has to be said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

_HOW_IT_COMPUTES = ("foreach", "fused", "capturable", "differentiable")


def settings_of(optimizers: Iterable[Optimizer]) -> list[list[dict[str, Any]]]:
    """For each optimizer the settings of its parameter groups, as plain data. The rate is the one a schedule begins at."""
    return [[_of_group(group, optimizer.defaults) for group in optimizer.param_groups] for optimizer in optimizers]


def _of_group(group, defaults):
    found = {name: _plain(group[name]) for name in defaults if name in group and name not in _HOW_IT_COMPUTES}
    if "lr" in found:
        found["lr"] = _plain(group.get("initial_lr", group["lr"]))
    return {name: value for name, value in found.items() if value is not _OTHER}


def _plain(value):
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else _OTHER
    if isinstance(value, (tuple, list)):
        parts = [_plain(part) for part in value]
        return _OTHER if _OTHER in parts else parts
    return value if value is None or isinstance(value, (bool, int, float, str)) else _OTHER


_OTHER = object()  # no plain data, and not compared


def differences(built: Sequence[Any], before: Sequence[Any], left_out: Sequence[str] = ()) -> list[str]:
    """Messages, one for each parameter group whose settings differ.

    Args:
        built, before: what ``settings_of`` gave now, and when the file was written.
        left_out: settings that are set in another way.
    """
    lines = []
    for i, (groups, earlier) in enumerate(zip(built, before)):
        for j, (now, then) in enumerate(zip(groups, earlier) if len(groups) == len(earlier) else ()):
            changed = [name for name in now if name in then and now[name] != then[name] and name not in left_out]
            if changed:
                where = f"optimizer_list[{i}].param_groups[{j}]"
                lines.append(
                    f"{where} goes on with the settings of the file, which began with {_told(then, changed)}; the script "
                    f"has {_told(now, changed)} now. {_how(changed, where, now)}")
    return lines


def _told(settings, names):
    return ", ".join(f"{name}={settings[name]!r}" for name in names)


def _how(changed, where, now):
    ways = ["load_state(…, lr_list=[…])"] if "lr" in changed else []
    ways += [f"trainer.{where}[{name!r}] = {now[name]!r} after load_state()" for name in changed if name != "lr"]
    return f"If that is to count, write {' and '.join(ways)}."
