"""Several processes from a notebook, or from a program that torchrun did not start.

    def train(epochs):
        trainer = Trainer()
        trainer.check_init()
        return trainer.fit(epochs)

    launch(train, num_processes=2, epochs=10)[0]["acc"]

It is torchrun's own launcher in this process. In a terminal use torchrun itself.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def launch(function: Callable[..., T], num_processes: int, *args: Any, max_restarts: int = 0, **kwargs: Any) -> dict[int, T]:
    """Run ``function(*args, **kwargs)`` in new processes of this machine, which train together.

    Args:
        function: builds the trainer itself; from a notebook it may be one of its cells', else it stands in a module.
        num_processes: on GPUs one for each.
        max_restarts: how often all are started again after one failed; then ``function`` should call
            ``load_state("auto")``.

    Returns:
        ``{rank: what function returned}``.

    Raises:
        RuntimeError: a GPU is in use already in this notebook: it cannot be shared with forked processes.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed; its traceback is above.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    in_notebook = not hasattr(sys.modules["__main__"], "__file__")  # others cannot import its functions, but inherit them
    if in_notebook and torch.cuda.is_initialized():
        raise RuntimeError("launch() must come before the first use of a GPU in a notebook: new processes cannot share it. "
                           "Restart the kernel, and create models and tensors inside of the function.")
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=num_processes, max_restarts=max_restarts,
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="launch",
                          start_method="fork" if in_notebook else "spawn")
    return dict(sorted(elastic_launch(config, _Call(function, kwargs))(*args).items()))  # not by who was ready first


class _Call:
    """A function with its keyword arguments, which torch's launcher does not pass on."""

    def __init__(self, function, kwargs):
        self.function = function
        self.kwargs = kwargs
        self.__qualname__ = self.__name__ = getattr(function, "__qualname__", "function")

    def __call__(self, *args):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked one has the launcher's handler, deaf while it waits
        return self.function(*args, **self.kwargs)
