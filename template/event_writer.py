"""TensorBoard's writer of events, begun anew when a full disk or a lost folder ended it.

    writer = make_writer("runs/my_run")          # a SummaryWriter; None without the tensorboard package

TensorBoard writes in a thread that dies of the first error and hands it to the next call: without this, training would end
of it. What is written between the error and the new beginning is missing in the curves; ``history.csv`` has the epochs.
"""

import os
import time
from pathlib import Path

_TRY_AGAIN_SECONDS = 30.0


def make_writer(folder):
    """The ``SummaryWriter`` of a folder, or None, having said so, where the tensorboard package is missing."""
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from torch.utils.tensorboard import FileWriter, SummaryWriter  # heavy: only when something is written
    except ImportError:
        print("TensorBoard events are not written: the package is missing. pip install tensorboard")
        return None

    class LastingFileWriter(FileWriter):
        def __init__(self, log_dir, max_queue=10, flush_secs=120, filename_suffix=""):
            self.event_writer = LastingEventWriter(
                str(log_dir), lambda: EventFileWriter(str(log_dir), max_queue, flush_secs, filename_suffix))

    class LastingSummaryWriter(SummaryWriter):
        def _get_file_writer(self):
            if self.file_writer is None:
                self.file_writer = LastingFileWriter(self.log_dir, self.max_queue, self.flush_secs, self.filename_suffix)
                self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
            return self.file_writer

    return LastingSummaryWriter(str(folder))


class LastingEventWriter:
    """In the place of an ``EventFileWriter``: the same methods, none of which raises an OSError.

    Args:
        folder: where the events go.
        begin: makes an ``EventFileWriter`` for it.
    """

    def __init__(self, folder, begin):
        self.folder = folder
        self._begin = begin
        self._writer = None      # None since an error
        self._failed_at = None   # seconds, on time.monotonic's clock
        self._try(self._begin_anew)

    def get_logdir(self):
        return self.folder

    def add_event(self, event):
        if self._writer is None and time.monotonic() - self._failed_at > _TRY_AGAIN_SECONDS:
            self._try(self._begin_anew)
        if self._writer is not None:
            self._try(lambda: self._writer.add_event(event))

    def flush(self):
        if self._writer is not None:
            self._try(self._writer.flush)

    def close(self):
        if self._writer is not None:
            self._try(self._writer.close)

    def _begin_anew(self):
        os.makedirs(self.folder, exist_ok=True)
        probe = Path(self.folder) / f".probe.{os.getpid()}.tmp"  # TensorBoard's thread would print a traceback each time
        try:
            probe.write_bytes(bytes(1 << 16))
        finally:
            probe.unlink(missing_ok=True)
        self._writer = self._begin()
        if self._failed_at is not None:
            print(f"TensorBoard events are written again, to a new file in {self.folder}.")

    def _try(self, action):
        try:
            action()
        except OSError as error:
            if self._writer is not None or self._failed_at is None:
                print(f"!!! TensorBoard events cannot be written to {self.folder}: {error.strerror or error}. The curves "
                      "will have a gap; history.csv has the epochs.")
            self._writer, self._failed_at = None, time.monotonic()
