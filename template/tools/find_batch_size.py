"""The largest batch that fits in memory, and the one from which on a larger one is hardly faster.

    trainer.check_init()
    found = find_batch_size(trainer)     # prints a table of sizes with samples per second
    found.largest, found.suggestion      # 1024, 256

Whole updates are tried, with forward, backward and the optimizer's step, on the first batches of the data: where samples
differ in length, leave room for longer ones. Evaluation is not tried; it needs less. The trainer is as before when it
returns. A larger batch wants a rate of its own: ``find_lr`` again.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch

from ..data.resized import batch_size_of, num_samples_of, with_batch_size
from ..output.text_table import text_table
from ..run.as_found import as_found, as_in_training, batches_again_and_again, nothing_written, updates
from ..run.checks import check_count, require_init

if TYPE_CHECKING:
    from ..template import TemplateModel

_SECONDS_EACH = 3.0    # at most, for the timing of a size
_PAYS = 0.9            # of the best throughput: the smallest size that reaches it is suggested
_GAINS = 1.05          # a doubling that brings less does not pay
_FINE = 8              # the search ends when it knows the largest size to an eighth


@dataclass
class Tried:
    """One batch size."""

    batch_size: int
    fits: bool
    seconds: float | None = None
    """Of an update."""
    samples_per_second: float | None = None
    gigabytes: float | None = None
    """The most that tensors took on the GPU; None on other devices."""


@dataclass
class FoundBatchSize:
    """What was tried."""

    largest: int
    """The largest size that was seen to fit."""
    suggestion: int
    """The smallest size with nine tenths of the best throughput."""
    ended: str
    """Why no larger one was tried, in words."""
    seconds: float
    rows: list[Tried] = field(default_factory=list)

    def table(self) -> str:
        marks = {self.suggestion: "larger hardly pays", self.largest: "largest"}
        if self.suggestion == self.largest:
            marks = {self.largest: "largest, and fastest"}
        return text_table([{"batch size": row.batch_size,
                            "ms/update": None if row.seconds is None else 1000 * row.seconds,
                            "samples/s": None if row.samples_per_second is None else round(row.samples_per_second),
                            **({} if row.gigabytes is None else {"GB": row.gigabytes}),
                            "": marks.get(row.batch_size, "") if row.fits else "out of memory"} for row in self.rows])


def find_batch_size(trainer: TemplateModel, smallest: int | None = None, highest: int | None = None,
                    num_updates: int = 5) -> FoundBatchSize:
    """Double the batch size until memory is exhausted, then halve the steps.

    On a GPU it ends at the largest size that fits. On a CPU, where the system would end the process for using all memory,
    it ends where two doublings in a row brought nothing. It never goes beyond the data set.

    Args:
        smallest: where to begin; None: the batch size of ``train_loader``. It is halved where it does not fit.
        highest: no larger size is tried.
        num_updates: that are timed for each size, behind two that are not, for three seconds at most.

    Raises:
        RuntimeError: ``check_init`` was not called, or even a batch of one sample does not fit.
        ValueError: an argument or ``train_loader`` does not fit, or there are several processes.
    """
    require_init(trainer)
    for name, value in (("smallest", smallest), ("highest", highest)):
        if value is not None:
            check_count(name, value)
    check_count("num_updates", num_updates)
    if trainer.world.size > 1:
        raise ValueError(f"find_batch_size() runs in one process, and there are {trainer.world.size}: a rank that is out of "
                         "memory would leave the others waiting. Start the script without torchrun for it; every rank takes "
                         "what one process takes, and some room for the exchange of gradients.")
    present, count = batch_size_of(trainer.train_loader), num_samples_of(trainer.train_loader)
    size = smallest or present
    limit = min((value for value in (highest, count) if value is not None), default=None)
    started = time.perf_counter()
    with as_found(trainer, "find_batch_size()"):
        search = _Search(trainer, num_updates, limit, "highest" if limit == highest else "the data set")
        search.run(size if limit is None else min(size, limit))
    found = search.found(time.perf_counter() - started)
    with nothing_written(trainer):
        print(found.table())
        print(f"Up to {found.largest} samples fit; {found.ended}. {found.suggestion} samples have {_PAYS:.0%} of the best "
              f"throughput or more. ({found.seconds:.1f} s; nothing was changed.)")
    return found


class _Search:
    def __init__(self, trainer, num_updates, limit, limited_by):
        self.trainer, self.num_updates, self.limit, self.limited_by = trainer, num_updates, limit, limited_by
        self.device = torch.device(trainer.device)
        self.tried: dict[int, Tried] = {}
        self.ended = ""

    def run(self, size):
        while not self._fits(size):
            if size == 1:
                raise RuntimeError("Not even a batch of one sample fits in memory. Use a smaller model, amp = 'bf16', "
                                   "activation checkpointing (torch.utils.checkpoint), or parallel = 'fsdp'.")
            size //= 2
        too_large = min((other for other, row in self.tried.items() if not row.fits), default=None)
        useless = 0
        while too_large is None:
            if size == self.limit:
                self.ended = f"{self.limited_by} ends there"
                return
            larger = min(2 * size, self.limit or 2 * size)
            if not self._fits(larger):
                too_large = larger
                break
            useless = 0 if self._gained(size, larger) else useless + 1
            size = larger
            if useless == 2 and self.device.type == "cpu":
                self.ended = "two doublings in a row brought nothing, so no larger one was tried"
                return
        self._halve(size, too_large)
        self.ended = f"{min(other for other, row in self.tried.items() if not row.fits)} are too many"

    def _gained(self, size, larger):
        return self.tried[larger].samples_per_second > _GAINS * self.tried[size].samples_per_second

    def _halve(self, fits, too_large):
        while too_large - fits > max(1, fits // _FINE):
            middle = (fits + too_large) // 2
            if middle > 8:
                middle -= middle % 8  # kernels like such sizes
            if middle <= fits:
                return
            if self._fits(middle):
                fits = middle
            else:
                too_large = middle

    def _fits(self, size):
        """Try a size; what it allocated is free again afterwards."""
        row = self.tried[size] = Tried(size, False)
        try:
            self._measure(row)
            row.fits = True
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        self.trainer.stepper.forget_group()
        if not row.fits:
            gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return row.fits

    def _measure(self, row):
        trainer = self.trainer
        as_in_training(trainer)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        loader = with_batch_size(trainer.train_loader, row.batch_size, drop_last=True)
        steps, times = updates(trainer, batches_again_and_again(trainer, loader)), []
        for _ in islice(steps, 2):
            pass
        while len(times) < self.num_updates and sum(times) < _SECONDS_EACH:
            before = time.perf_counter()
            next(steps)  # which waits for the device
            times.append(time.perf_counter() - before)
        row.seconds = statistics.median(times)
        row.samples_per_second = row.batch_size * trainer.accumulate_steps / row.seconds
        if self.device.type == "cuda":
            row.gigabytes = torch.cuda.max_memory_allocated(self.device) / 1e9

    def found(self, seconds):
        rows = [row for _, row in sorted(self.tried.items())]
        fitting = [row for row in rows if row.fits]
        best = max(row.samples_per_second or 0.0 for row in fitting)
        suggestion = next(row.batch_size for row in fitting if (row.samples_per_second or 0.0) >= _PAYS * best)
        return FoundBatchSize(fitting[-1].batch_size, suggestion, self.ended, seconds, rows)


def _is_out_of_memory(error):
    """Every library says it in its own way."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed"))
