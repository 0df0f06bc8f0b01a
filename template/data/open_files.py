"""Files that are open in this process when workers are started: forked workers would all use the one.

    tell_of_open_files(loader)          # just before a DataLoader starts its workers

Processes that are forked share the position of an open file. Each worker moves it for the others, so they read each other's
bytes, and nobody is told. This file only tells: it opens nothing, closes nothing and asks the dataset for nothing.
"""

from __future__ import annotations

import io
import multiprocessing
import warnings
from typing import Any

from .seeding import parts_of


def tell_of_open_files(loader: Any) -> None:
    """Warn if the dataset of a ``DataLoader`` with workers holds an open file; 0.1 ms for a hundred objects."""
    context = loader.multiprocessing_context or multiprocessing
    if context.get_start_method() != "fork":
        return  # what is pickled for a worker holds no open file
    found = [part for part in parts_of([loader.dataset, loader.collate_fn]) if _is_open(part)]
    if found:
        name = getattr(found[0], "filename", None) or getattr(found[0], "name", "")
        warnings.warn(
            "Workers must not share an open file: each one moves its position for the others, and they read wrong data. "
            f"{type(loader.dataset).__name__} holds an open one in the main process ({type(found[0]).__name__} {name}), and "
            f"{loader.num_workers} worker{'s' * (loader.num_workers > 1)} of its DataLoader start now. Open the file when a "
            "worker reads its first sample, not in __init__. If you do so already, a loader with num_workers=0 has read the "
            "same dataset in the main process: give that loader workers too.", UserWarning, stacklevel=2)


def _is_open(part):
    kind = type(part)
    if kind.__module__.startswith("h5py."):
        return bool(part)
    if not issubclass(kind, io.IOBase):
        return False
    try:
        part.fileno()  # in memory there is none, and a closed file refuses
        return part.readable() and part.seekable()
    except (OSError, ValueError):
        return False
