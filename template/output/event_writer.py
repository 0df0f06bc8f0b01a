"""TensorBoard events without a thread, which a full disk delays but does not lose.

    writer = make_writer("runs/my_run")                  # a SummaryWriter; None without the tensorboard package
    writer.add_values({"update/tol_loss": 0.3}, step)    # scalars of a fast loop: in the file after flush(), or in a second

TensorBoard's own writer hands events to a thread, which dies of the first error and ends the training with it; after a
kill, what the thread had not come to is missing. Here every other event is in the file when the call returns.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .patient_file import PatientFile

_WRITTEN_EVERY_SECONDS = 1.0


def make_writer(folder):
    """The ``SummaryWriter`` of a folder, or None, having said so, where the tensorboard package is missing."""
    try:
        from torch.utils.tensorboard import FileWriter, SummaryWriter  # heavy: only when something is written
    except ImportError:
        print("TensorBoard events are not written: the package is missing. pip install tensorboard")
        return None

    class EventWriter(FileWriter):
        def __init__(self, log_dir):
            self.event_writer = EventFile(log_dir)

    class RunWriter(SummaryWriter):
        def _get_file_writer(self):
            if self.file_writer is None:  # at first, and after close()
                self.file_writer = EventWriter(self.log_dir)
                self.all_writers = {self.log_dir: self.file_writer}
            return self.file_writer

        def add_values(self, values, step):
            """``add_scalar`` for a dict ``{tag: float}``."""
            self._get_file_writer().event_writer.add_values(values, step)

    return RunWriter(str(folder))


class EarlyWriter:
    """A ``SummaryWriter`` for before ``check_init()``, when the run has no folder yet: it keeps what is written, hands it on
    to the run's own writer, and from then on is that writer by another name."""

    def __init__(self):
        self._waiting = []  # (method, args, kwargs)
        self._writer = None

    def __getattr__(self, name):
        if self._writer is not None:
            return getattr(self._writer, name)
        if name.startswith("__"):
            raise AttributeError(name)

        def later(*args, **kwargs):
            self._waiting.append((name, args, kwargs))

        return later

    def hand_on(self, writer):
        """Everything that waits, and what comes, goes to ``writer``; to None: nowhere."""
        self._writer = writer if writer is not None else NoWriter()
        waiting, self._waiting = self._waiting, []
        for name, args, kwargs in waiting:
            getattr(self._writer, name)(*args, **kwargs)


class WriterOfRun:
    """What ``trainer.writer`` is: an ``EarlyWriter`` at first, and then the run's own, made when it is asked for."""

    def __init__(self):
        self.own = "auto"  # or a SummaryWriter, or None: TensorBoard is off
        self._early = EarlyWriter()

    def get(self, folder):
        """The writer of ``folder``; None where the run has no folder yet."""
        if self.own == "auto":
            if folder is None:
                return self._early
            self.set(make_writer(folder))
        return self.own

    def set(self, writer):
        self.own = writer
        self._early.hand_on(writer)


class NoWriter:
    """TensorBoard is off, and what is written goes nowhere."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class EventFile:
    """In the place of TensorBoard's ``EventFileWriter``: the same methods on a ``PatientFile``, and ``add_values``.

    Scalars of a loop with thousands of updates a second are made into events once a second: one by one, between steps that
    need the caches for other things, each costs ten times as much.
    """

    _number = 0  # of those made by this process: two that are made in one second must not share a file

    def __init__(self, folder):
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore  # optional, without types
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore  # optional, without types
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore  # optional, without types

        now = f"{time.time():017.6f}"  # TensorBoard reads files in the order of their names, also those of one second
        name = f"events.out.tfevents.{now}.{socket.gethostname()}.{os.getpid()}.{EventFile._number:06d}"
        EventFile._number += 1
        self.folder = str(folder)
        self._file = PatientFile(Path(folder) / name)
        self._kinds = Event, Summary, RecordWriter
        self._waiting = []   # (seconds since 1970, step, {tag: float})
        self._written = 0.0  # seconds, on time.monotonic's clock
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self):
        return self.folder

    def add_event(self, event):
        self._write([event])

    def add_values(self, values, step):
        self._waiting.append((time.time(), step, values))
        if time.monotonic() - self._written > _WRITTEN_EVERY_SECONDS:
            self._write()

    def _write(self, events=()):
        """Everything that waits, then ``events``, at once."""
        Event, Summary, RecordWriter = self._kinds
        waiting, self._waiting = self._waiting, []
        values = [Event(wall_time=seconds, step=step, summary=Summary(value=[
            Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()
        ])) for seconds, step, points in waiting]
        data = io.BytesIO()
        records = RecordWriter(data)
        for event in (*values, *events):
            records.write(event.SerializeToString())
        self._file.write(data.getvalue())
        self._written = time.monotonic()

    def flush(self):
        if self._waiting:
            self._write()
        self._file.flush()

    def close(self):
        self.flush()
        self._file.close()


def add_scalars(writer: Any, points: Mapping[str, float], step: int) -> None:
    """``{tag: value}``; the user's own writer may know ``add_scalar`` alone."""
    if hasattr(writer, "add_values"):
        writer.add_values(points, step)
        return
    for tag, value in points.items():
        writer.add_scalar(tag, value, step)
