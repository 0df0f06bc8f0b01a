"""TensorBoard events that are in the file when the call returns, and that a full disk delays but does not lose.

    writer = make_writer("runs/my_run")          # a SummaryWriter; None without the tensorboard package

TensorBoard's own writer hands events to a thread, which dies of the first error and ends the training with it; after a
kill, what the thread had not come to is missing. Writing at once costs less than the handing over.
"""

import os
import socket
import time
from pathlib import Path

from .patient_file import PatientFile


def make_writer(folder):
    """The ``SummaryWriter`` of a folder, or None, having said so, where the tensorboard package is missing."""
    try:  # heavy: only when something is written
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import FileWriter, SummaryWriter
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
            """``add_scalar`` for a whole dict, as one event: half the time of two."""
            entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._get_file_writer().add_summary(Summary(value=entries), step)

    return RunWriter(str(folder))


class EventFile:
    """In the place of TensorBoard's ``EventFileWriter``: the same methods on a ``PatientFile``."""

    _number = 0  # of those made by this process: two that are made in one second must not share a file

    def __init__(self, folder):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{EventFile._number:06d}"
        EventFile._number += 1
        self.folder = str(folder)
        self._file = PatientFile(Path(folder) / name)
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def get_logdir(self):
        return self.folder

    def add_event(self, event):
        self._records.write(event.SerializeToString())

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.flush()
        self._file.close()
