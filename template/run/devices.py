"""What a person may call a device.

    named_device("1")            # "cuda:1"
    named_device("")             # "cuda" where there is a GPU, else "cpu"
    named_device("0,1")          # under torchrun with two processes on this machine: the GPU of this one

Whether it is there is looked at by ``check_device`` in ``prepare.py``: a missing device is an error, and never the CPU.
"""

from __future__ import annotations

import os
from typing import Any

from ..parallel.ranks import default_device, is_asked_for


def named_device(device: Any) -> Any:
    """Numbers of GPUs as torch calls them, "" and None as the default; anything else, and what is refused, as it is."""
    if device is None or device == "":
        return default_device()
    if not isinstance(device, (int, str)) or isinstance(device, bool):
        return device
    numbers = numbers_of(device)
    if not numbers or str(device) == f"cuda:{numbers[0]}":
        return device
    if len(numbers) != num_local_processes():
        return str(device)
    return f"cuda:{numbers[int(os.environ.get('LOCAL_RANK', 0)) if len(numbers) > 1 else 0]}"


def numbers_of(device: Any) -> list[str]:
    """["0", "1"] of "0,1" or "cuda:0,1"; [] where these are no numbers of GPUs."""
    numbers = str(device).replace(" ", "").removeprefix("cuda:").split(",")
    return numbers if all(number.isdecimal() for number in numbers) else []


def num_local_processes() -> int:
    """That train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))) if is_asked_for() else 1
