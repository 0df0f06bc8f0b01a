"""What ranks tell each other, in one message where it is short, and checked: all of them are in the same call.

    exchange = Exchange(group, watch)
    exchange.all(b"mine")                # [rank 0's bytes, rank 1's, …], on every rank
    exchange.of_main(b"rank 0's")        # rank 0's bytes, on every rank

The waiting is looked after by ``watch.py``, and can be interrupted.
"""

from __future__ import annotations

import struct
import zlib
from datetime import timedelta

import torch
import torch.distributed as dist

from .watch import RanksDiffer, Watch, difference

_HEAD = struct.Struct("<QqQ")  # checksum of call and kind, number of a signal or 0, length of the message
_ROOM = 2048                   # bytes of the first message: head, and what fits behind it, as 50 losses of a log point do
_A_WHILE = timedelta(seconds=1)


class Exchange:
    """Over a gloo group that nothing else uses.

    The tensors that are exchanged stay alive until the next exchange. gloo's threads let go of them some time after an
    exchange is done; if that were the last reference they would need Python's lock for it, and where the interpreter ends
    meanwhile the process dies of "terminate called without an active exception" (seen with torch 2.13 and Python 3.11, in 11
    of 60 runs of a plain script).
    """

    def __init__(self, group: dist.ProcessGroup, watch: Watch):
        self.group, self.watch = group, watch
        self.rank, self.size = watch.rank, watch.size
        self.wish: int | None = None     # number of the signal that asked this process to stop
        self.wishes: list[int] = []      # of all ranks, as of the last exchange
        self.is_broken = False           # the ranks have lost each other
        self.is_in_vain = False          # gloo still waits in an exchange that was given up
        self._mine, self._all = bytearray(_ROOM), [bytearray(_ROOM) for _ in range(self.size)]
        self._first = [torch.frombuffer(part, dtype=torch.uint8) for part in (self._mine, *self._all)]
        self._kept: list[torch.Tensor] = []

    def all(self, message: bytes) -> list[bytes]:
        """The messages of all ranks, by rank."""
        lengths = self._heads("all", message)
        if max(lengths) <= _ROOM - _HEAD.size:
            return self._short(lengths)
        mine, *parts = self._kept = [_empty(max(lengths)) for _ in range(self.size + 1)]
        mine[:len(message)] = _as_tensor(message)
        self._wait(dist.all_gather(parts, mine, group=self.group, async_op=True))
        return [part.numpy()[:length].tobytes() for part, length in zip(parts, lengths)]

    def of_main(self, message: bytes) -> bytes:
        """Rank 0's message."""
        length, *_ = lengths = self._heads("of rank 0", message if self.rank == 0 else b"")
        if length <= _ROOM - _HEAD.size:
            return self._short(lengths)[0]
        whole, = self._kept = [_as_tensor(message) if self.rank == 0 else _empty(length)]
        self._wait(dist.broadcast(whole, 0, group=self.group, async_op=True))
        return message if self.rank == 0 else whole.numpy().tobytes()

    def _heads(self, kind, message):
        """The lengths of all messages; the short ones are there as well."""
        call = zlib.crc32(f"{kind} {self.watch.call}".encode())
        self._send_first(_HEAD.pack(call, self.wish or 0, len(message)), message)
        calls, wishes, lengths = zip(*(_HEAD.unpack_from(part) for part in self._all))
        if len(set(calls)) > 1:
            self._refuse()
        self.wishes = [wish for wish in wishes if wish]
        return lengths

    def _refuse(self):
        """The ranks met in different calls: each of them learns of all."""
        here = self.watch.here().encode()[:_ROOM - _HEAD.size]
        self._send_first(_HEAD.pack(0, 0, len(here)), here)
        lengths = [_HEAD.unpack_from(part)[2] for part in self._all]
        error = RanksDiffer(difference(dict(enumerate(part.decode(errors="replace") for part in self._short(lengths)))))
        error.is_on_all = True
        raise error

    def _send_first(self, head, message):
        self._mine[:_HEAD.size] = head
        if len(message) <= _ROOM - _HEAD.size:
            self._mine[_HEAD.size:_HEAD.size + len(message)] = message
        mine, *parts = self._first
        self.watch.begin_exchange()
        self._wait(dist.all_gather(parts, mine, group=self.group, async_op=True))

    def _short(self, lengths):
        return [bytes(part[_HEAD.size:_HEAD.size + length]) for part, length in zip(self._all, lengths)]

    def _wait(self, work):
        """For the others, until they are there or it is known that they will not come.

        Raises:
            RanksDiffer: they will not come.
            RuntimeError: gloo's, when one of them is gone.
        """
        self.watch.is_waiting = True
        try:
            while True:
                try:
                    work.wait(_A_WHILE)
                    return
                except RuntimeError:
                    if work.is_completed():
                        raise
                if self.watch.verdict is not None:
                    raise RanksDiffer(self.watch.verdict)
        finally:
            self.watch.is_waiting = False
            self.is_in_vain |= not work.is_completed()


def _empty(length):
    return torch.empty(length, dtype=torch.uint8, device="cpu")


def _as_tensor(message):
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)
