"""Several processes as one training: what torchrun started, and what its processes tell each other.

    world = join(torch.device("cuda"))       # by torchrun's environment; without it Alone(), which answers for itself
    world.gather(3)                          # [rank 0's, rank 1's, …], on every rank
    world.share(path)                        # rank 0's
    world.from_main(lambda: find(path))      # computed by rank 0, its result or its error on every rank

A *rank* is a process and its number, 0 … size - 1; rank 0 prints, logs and writes. What is passed here is small and goes
through the hosts (gloo): gradients take the way of ``gradients.py``.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)  # for what every rank has to take part in
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Socket", "Broken pipe")


class Alone:
    """One process: everybody agrees."""

    rank, size, is_main = 0, 1, True
    wish: int | None = None  # number of the signal that asked this process to stop

    @property
    def signal(self) -> int | None:
        """The signal that all ranks have agreed to stop for, None as long as there is none."""
        return self.wish

    def forget_signal(self) -> None:
        """What was asked for is done."""
        self.wish = None

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        return [value]

    def share(self, value: Any = None) -> Any:
        """Rank 0's value."""
        return value

    def from_main(self, function: Callable[[], Any]) -> Any:
        """What ``function()`` returns on rank 0, where alone it is called. Its error is raised on every rank."""
        return function()

    def any(self, flag: Any) -> bool:
        """Whether it is true on some rank."""
        return bool(flag)

    def is_lost(self, error: BaseException) -> bool:
        """Whether ``error`` only says that another rank is gone."""
        return False

    def fail(self, error: BaseException) -> None:
        """Tell the others what this rank ends with."""


ALONE = Alone()


class Ranks(Alone):
    """One of several processes. Every rank has to call the same methods in the same order.

    Any exchange also passes on who was asked to stop by a signal, so that all see it at the same place.
    """

    signal = None

    def __init__(self, store):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self.wish = None
        self._store = store
        self.hosts = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)

    def forget_signal(self) -> None:
        self.wish = self.signal = None

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (value, self.wish), group=self.hosts)
        self.signal = self.signal or next((wish for _, wish in found if wish is not None), None)
        return [value for value, _ in found]

    def share(self, value: Any = None) -> Any:
        found = [value]
        dist.broadcast_object_list(found, group=self.hosts, src=0)
        return found[0]

    def from_main(self, function):
        value = failure = None
        if self.is_main:
            try:
                value = function()
            except Exception as error:
                failure = error
        value, reason = self.share((value, failure and f"{type(failure).__name__}: {failure}"))
        if reason is not None:
            raise failure if self.is_main else OtherRankFailed(f"rank 0: {reason}")
        return value

    def any(self, flag: Any) -> bool:
        return any(self.gather(bool(flag)))

    def is_lost(self, error: BaseException) -> bool:
        is_own = isinstance(error, OtherRankFailed)
        return is_own or isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)

    def fail(self, error: BaseException) -> None:
        if self._store is not None and not self.is_lost(error):
            self._store.set("failure", f"rank {self.rank}: {type(error).__name__}: {error}")

    def reason_of_loss(self, error: BaseException) -> str:
        """What another rank ended with; it may need a moment to say so. One that was killed says nothing."""
        if isinstance(error, OtherRankFailed):
            return str(error)
        for _ in range(10):
            try:
                if self._store is not None and self._store.check(["failure"]):
                    return self._store.get("failure").decode()
            except RuntimeError:  # the store's host is gone too
                break
            time.sleep(0.1)
        return f"another rank is gone ({str(error).splitlines()[0][:200]})"


class OtherRankFailed(RuntimeError):
    """An error of rank 0, on the others."""


def is_asked_for() -> bool:
    """Whether this process is one of several that torchrun, or something that sets the same variables, started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def default_device() -> str:
    """The GPU of this process; "cpu" where there is none."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if is_asked_for() else "cuda"


def own_device(device):
    """Which of the GPUs "cuda" is among several processes of one machine: each has its own."""
    if device.type == "cuda" and device.index is None and is_asked_for():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def join(device):
    """Meet the other processes, once a process.

    Args:
        device: ``torch.device`` of this rank; NCCL carries its gradients when it is a GPU, gloo on the CPU.

    Raises:
        ValueError: there are more processes on this machine than GPUs, or the environment is not torchrun's.
        RuntimeError: the others do not come within ``TIMEOUT``.
    """
    if not is_asked_for():
        return Alone()
    if device.type == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"Each process needs a GPU of its own; this is number {local} on a machine with {count}. Lower "
                             "--nproc-per-node, or set device = 'cpu'.")
        torch.cuda.set_device(device)
    store = None
    if not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but {missing} are not set. "
                             "Start them with torchrun, or set parallel = None to train each process on its own.")
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = _of_this_start(store, rank, size)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.PrefixStore("group", store),
                                rank=rank, world_size=size, timeout=TIMEOUT)
        atexit.register(_leave, os.getpid())
        _prepare_output(rank)
    world = Ranks(store or _STORES.get("first"))
    _STORES.setdefault("first", store)
    return world


def _of_this_start(store, rank, size):
    """A part of ``store`` that nobody has written to. torchrun's outlives a restart, and with it the addresses of the
    processes before, to which some rank would then connect (pytorch issue 167288; seen with torch 2.13).

    Rank 0 names it. What a rank says to it carries a number of its own, so that no answer is one to a process before.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", own)
        name = store.get(f"name/{own}").decode()  # waits
        store.set(f"known/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    others, until = set(range(1, size)), time.monotonic() + TIMEOUT.total_seconds()
    while others:
        for other in [other for other in others if store.check([f"here/{other}"])]:
            store.set(f"name/{store.get(f'here/{other}').decode()}", own)
        others -= {other for other in others if store.check([f"known/{own}/{other}"])}
        if time.monotonic() > until:
            raise RuntimeError(f"Ranks {sorted(others)[:5]} of {size} did not come within {TIMEOUT}.")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


_STORES: dict[str, Any] = {}  # the first trainer of a process makes it, later ones use it


def _prepare_output(rank):
    """What all ranks would say alike is said by rank 0; tracebacks, on stderr, come from each."""
    if rank:
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore", UserWarning)
        show = sys.excepthook

        def in_one_line(kind, error, trace):
            if isinstance(error, FloatingPointError):  # which all ranks raise at the same place
                sys.stderr.write(f"rank {rank} ends with the FloatingPointError of rank 0\n")
            else:
                show(kind, error, trace)

        sys.excepthook = in_one_line


def _leave(process):
    if dist.is_initialized() and os.getpid() == process:  # a child of a fork would take the connections from its parent
        dist.destroy_process_group()
