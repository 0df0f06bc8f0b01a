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
import ctypes
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .exchange import Exchange
from .watch import RanksDiffer, Watch, named, say

TIMEOUT = timedelta(minutes=10)  # for what every rank has to take part in
_PATIENCE = timedelta(days=1)  # of gloo; whether a wait is in vain is known to watch.py
_TELLS_SECONDS = 5.0
_GRACE_SECONDS = 10.0
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Socket", "Broken pipe")


class Alone:
    """One process: everybody agrees."""

    rank, size, is_main = 0, 1, True
    wish: int | None = None  # number of the signal that asked this process to stop, or of a wish in run/signals.py
    is_broken = False        # the ranks have lost each other: nothing can be exchanged any more

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

    def begin(self, call: str, flag: Any = False) -> bool:
        """Every rank begins ``call`` now, or all of them raise. Returns whether ``flag`` is true on some rank.

        Raises:
            RanksDiffer: another rank is in another call; the message says which one is where.
        """
        return bool(flag)

    def begin_update(self) -> None:
        """What follows exchanges gradients."""

    def tell_place(self, place: Any) -> None:
        """A weak reference to a function that says how far the training is, for messages."""

    def end_of_training(self) -> None:
        """From here on this process may do what it likes, until it calls something again that every rank has to call."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether ``error`` only says that another rank is gone."""
        return False

    def fail(self, error: BaseException) -> None:
        """Tell the others what this rank ends with."""


ALONE = Alone()


class Ranks(Alone):
    """One of several processes. Every rank has to call the same methods in the same order; ``watch.py`` says who does not.

    Any exchange also passes on who was asked to stop by a signal, so that all see it at the same place.

    Args:
        exchange: what they tell each other goes through it.
        store: torch's, where a rank says why it ends.
    """

    signal = None

    def __init__(self, exchange: Exchange, store: Any):
        self.rank, self.size = exchange.rank, exchange.size
        self.is_main = self.rank == 0
        self.watch = exchange.watch
        self.wish = None
        self._exchange = exchange
        self._store = store

    @property
    def is_broken(self):
        return self._exchange.is_broken

    @property
    def hosts(self):
        """The group of the exchange, for what torch exchanges itself."""
        return self._exchange.group

    def forget_signal(self) -> None:
        self.wish = self.signal = None

    def gather(self, value: Any) -> list[Any]:
        return [pickle.loads(part) for part in self._tell(self._exchange.all, pickle.dumps(value))]

    def share(self, value: Any = None) -> Any:
        part = self._tell(self._exchange.of_main, pickle.dumps(value) if self.is_main else b"")
        return value if self.is_main else pickle.loads(part)

    def _tell(self, exchange, message):
        self._exchange.wish = self.wish
        if self._exchange.is_broken:
            raise OtherRankFailed("the ranks have lost each other before, and can exchange nothing any more")
        try:
            found = exchange(message)
        except RanksDiffer as error:
            self._exchange.is_broken = True
            self.fail(error)
            raise
        except RuntimeError as error:
            self._exchange.is_broken = True
            raise OtherRankFailed(self.reason_of_loss(error)) from error
        if self.signal is None and self._exchange.wishes:
            self.signal = max(self._exchange.wishes)  # a signal counts more than a callback's wish
        return found

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

    def begin(self, call: str, flag: Any = False) -> bool:
        self.watch.call = call
        return self.any(flag)

    def begin_update(self) -> None:
        self.watch.updates += 1

    def tell_place(self, place: Any) -> None:
        self.watch.place = place

    def end_of_training(self) -> None:
        self.watch.is_over = True

    def is_lost(self, error: BaseException) -> bool:
        if isinstance(error, (OtherRankFailed, RanksDiffer)):
            return isinstance(error, OtherRankFailed)
        return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)

    def fail(self, error: BaseException) -> None:
        if not self.is_lost(error):
            with suppress(RuntimeError):  # the store's host is gone too
                self._store.set("failure", f"rank {self.rank}: {type(error).__name__}: {error}")
                self.watch.know()

    def reason_of_loss(self, error: BaseException) -> str:
        """What another rank ended with; it may need a moment to say so. One that was killed says nothing."""
        if isinstance(error, OtherRankFailed):
            return str(error)
        if self.watch.verdict is not None:
            return self.watch.verdict
        here = self.watch.here()
        for _ in range(10):
            try:
                if self._store.check(["failure"]):
                    self.watch.know()
                    return self._store.get("failure").decode()
                left = [rank for rank in range(self.size) if self._store.check([f"left/{rank}"])]
                if left:
                    return f"the program of {named(left)} has ended; this rank is at {here}, which needs every rank"
            except RuntimeError:  # the store's host is gone too
                break
            time.sleep(0.1)
        return (f"another rank is gone: it was killed, or its program has ended. This rank is at {here}, which needs every "
                f"rank ({str(error).splitlines()[0][:200]})")


class OtherRankFailed(RuntimeError):
    """Why this rank cannot go on: what another one ended with."""


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
    if not _MET or not dist.is_initialized():
        _MET[:] = _meet(device)
        _HAS_MET.append(_MET[0].size)
        atexit.register(_leave, os.getpid())
    return Ranks(*_MET)


def _meet(device):
    """``[exchange, store]``."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ["WORLD_SIZE"])
    others = set(range(1, size)) if rank == 0 else {0}
    with _told_when_it_takes_long(rank, others):
        if dist.is_initialized():  # by somebody else
            store = dist.distributed_c10d._get_default_store()
        else:
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise ValueError(f"WORLD_SIZE={size} asks for several processes, but {missing} are not set. Start them with "
                                 "torchrun, or set parallel = None to train each process on its own.")
            store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
            store = _of_this_start(store, rank, size, others)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.PrefixStore("group", store),
                                    rank=rank, world_size=size, timeout=TIMEOUT)
            _prepare_output(rank)
        hosts = dist.new_group(backend="gloo", timeout=_PATIENCE)
        exchange = Exchange(hosts, Watch(dist.get_rank(), dist.get_world_size()))
        store = dist.PrefixStore(exchange.of_main(uuid.uuid4().hex.encode()).decode(), store)
        exchange.watch.start(store)
    return exchange, store


@contextmanager
def _told_when_it_takes_long(rank, others):
    """Waiting for ``others``, of which those are taken away that came."""
    def tell():
        say(f"rank {rank} has waited {_TELLS_SECONDS:.0f} s in check_init() for {named(sorted(others))}, and waits "
            f"{TIMEOUT.total_seconds() / 60:.0f} minutes at most. Every rank has to call check_init(). If a program has "
            "ended, or does not come to it, look for `if rank == 0:`, return or sys.exit() before it.")

    timer = threading.Timer(_TELLS_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _of_this_start(store, rank, size, others=None):
    """A part of ``store`` that nobody has written to. torchrun's outlives a restart, and with it the addresses of the
    processes before, to which some rank would then connect (pytorch issue 167288; seen with torch 2.13).

    Rank 0 names it. What a rank says to it carries a number of its own, so that no answer is one to a process before.

    Args:
        others: a set of the ranks that this one waits for, from which those are taken away that came.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", own)
        name = _awaited(store, f"name/{own}")
        store.set(f"known/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    others, until = set(range(1, size)) if others is None else others, time.monotonic() + TIMEOUT.total_seconds()
    left = {}
    while others:
        for other in [other for other in others if store.check([f"here/{other}"])]:
            store.set(f"name/{store.get(f'here/{other}').decode()}", own)
        others -= {other for other in others if store.check([f"known/{own}/{other}"])}
        _refuse_left(store, others, left)
        if time.monotonic() > until:
            raise RuntimeError(f"Ranks {sorted(others)[:5]} of {size} did not come within {TIMEOUT}.")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


_MET: list[Any] = []  # exchange and store of this process: the first trainer makes them, later ones use them
_HAS_MET: list[int] = []  # sizes


def _awaited(store, key):
    """What rank 0 writes there."""
    left, until = {}, time.monotonic() + TIMEOUT.total_seconds()
    while True:
        try:
            store.wait([key], timedelta(seconds=2))
            return store.get(key).decode()
        except RuntimeError:
            if time.monotonic() > until:
                raise
        _refuse_left(store, {0}, left)


def _refuse_left(store, others, since):
    """Raise when one of ``others`` ended some time ago, and not one that merely has its environment: that one will come.

    Args:
        since: ``{rank: when it was seen first that it ended}``, which is kept up here.
    """
    for rank in others:
        if store.check([_left(rank)]) and time.monotonic() - since.setdefault(rank, time.monotonic()) > _GRACE_SECONDS:
            raise RuntimeError(f"The program of rank {rank} ended before it called check_init(), which every rank has to "
                               "call. Look for `if rank == 0:`, return or sys.exit() before it, or start fewer processes.")


def _left(rank):
    """The key of a rank that ended before it met the others. The store may have seen starts before."""
    return f"left/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}"


def _has_lasting_store():
    """Whether torchrun keeps the store. Else rank 0 does, and it is gone when that one has ended."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _tell_that_it_left():
    """At the exit of a process that was started as a rank and never met the others: they wait for it in vain."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if _HAS_MET or os.environ["RANK"] == "0" and not _has_lasting_store():
        return
    with suppress(RuntimeError, OSError):
        socket.create_connection(address, timeout=2).close()  # torch would try for long
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=5))
        store.set(_left(os.environ["RANK"]), "")


def _is_rank_itself():
    """Not a process that a rank has started, which has its environment."""
    if not is_asked_for() or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    own = str(os.getpid())
    return multiprocessing.parent_process() is None and os.environ.setdefault("PID_OF_RANK", own) == own


if _is_rank_itself():
    atexit.register(_tell_that_it_left)


def _prepare_output(rank):
    """What all ranks would say alike is said by rank 0; tracebacks, on stderr, come from the rank that failed."""
    if rank:
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore", UserWarning)
    show = sys.excepthook

    def in_one_line(kind, error, trace):
        if rank and (isinstance(error, FloatingPointError) or getattr(error, "is_on_all", False)):
            say(f"rank {rank} ends with the {kind.__name__} of rank 0")  # all ranks raise it at the same place
        elif rank and isinstance(error, RanksDiffer):
            say(f"rank {rank} ends: {error}")
        elif isinstance(error, OtherRankFailed):
            say(f"rank {rank} ends, because {error}")
        else:
            show(kind, error, trace)

    sys.excepthook = in_one_line


def _leave(process):
    """At the interpreter's exit, in an order in which no thread needs Python any more when it ends: the watch stops, and the
    destructor of the group, which nobody holds then, waits for its threads."""
    if not _MET or os.getpid() != process:  # a child of a fork would take the connections from its parent
        return
    exchange, store = _MET
    _MET.clear()
    exchange.watch.end()
    if _has_lasting_store():
        with suppress(RuntimeError):
            store.set(f"left/{exchange.rank}", "")
    if exchange.is_in_vain:  # a thread waits for ranks that may never come: nobody shall wait for it
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(exchange.group))
    exchange.group = None
    if dist.is_initialized():
        dist.destroy_process_group()
    if exchange.rank == 0 and not _has_lasting_store() and store.check(["failure"]):
        exchange.watch.wait_until_all_know(_GRACE_SECONDS)
