"""When a run is saved: ``last.pth`` and ``epoch<N>.pth`` at the end of an epoch, ``best.pth``, and saves in its middle.

    checkpoints = Checkpoints(trainer)
    checkpoints.save_last()              # returns when the state is copied; a thread writes it
    checkpoints.wait()

``checkpoint/state.py`` says what a file holds, ``checkpoint/files.py`` and ``checkpoint/saver.py`` how it is written.
"""

from __future__ import annotations

import shutil
import time
import weakref
from typing import TYPE_CHECKING

from ..checkpoint import files, sharded, state
from ..checkpoint.digests import Digests, with_digest
from ..checkpoint.plain_data import bytes_of
from ..checkpoint.saver import BEHIND, IN_PLACE, Saver
from ..output import run_folder
from ..output.run_lock import RunLock
from ..parallel.equality import require_equal_weights
from ..update.guard import fetch_losses

if TYPE_CHECKING:
    from ..template import TemplateModel


_MUCH = 1e9  # bytes


class Checkpoints:
    """The checkpoints of one run.

    Args:
        trainer: the ``TemplateModel`` whose state is kept, in its ``ckpt_dir``.
    """

    def __init__(self, trainer: TemplateModel):
        self.trainer = trainer
        self.saver = Saver()
        self.lock = RunLock()   # of the run's folder; rank 0's
        self.saved_step = 0     # global_step of the newest save or load
        self._saved_at = 0.0    # seconds, on time.monotonic's clock
        self._epoch_file = None  # path that the newest save was to have as well
        self._replaces_run = False  # the first save deletes what a run before left in the folder
        self._told_size = False  # what the files of all epochs will come to
        self._is_tidy = False  # what earlier processes left in the folder and nothing names is deleted
        self._is_wanted = False  # an evaluation in the middle of an epoch is to be kept
        self._digests = Digests()
        for release in (self.saver.release, self.lock.release):
            weakref.finalize(trainer, release).atexit = False

    def begin(self, replaces_run):
        """The run begins; ``save_per_seconds`` counts from now on.

        Args:
            replaces_run: the first save deletes what a run before left in the folder, unless that is continued.
        """
        self._saved_at, self._replaces_run = time.monotonic(), replaces_run

    def continue_from_here(self):
        """The present state came from a file: it is saved, and what else is in the folder belongs to it."""
        self.saved_step, self._replaces_run = self.trainer.global_step, False

    def save_last(self, epoch_file=None, beside=True):
        """Make the present state the newest checkpoint, and ``epoch_file`` as well.

        Args:
            beside: False when no training goes on meanwhile: written here and now.
        """
        trainer = self.trainer
        self._require_place()
        fetch_losses(trainer)  # what is not finite is never saved
        require_equal_weights(trainer)
        for callback in trainer.hooks.callbacks:
            if hasattr(callback, "flush"):
                callback.flush()
        folder, count = trainer.path_of("."), trainer.keep_checkpoints

        def write(saved):
            saved = with_digest(saved, folder)
            self._digests.note(folder, saved)
            files.write_last(saved, folder, epoch_file)
            if count is not None or trainer.is_sharded or not self._is_tidy:  # thousands of files take a while
                files.keep_newest(folder, count)
            self._is_tidy = True

        with trainer.lifetime.weights.of_training():
            saved = state.collect(trainer, divided=trainer.is_sharded)
            if trainer.is_sharded and not self._write_parts(saved, folder):
                return
            self._save(trainer.path_of("last.pth"), saved, write, beside, BEHIND if epoch_file is None else None)
        self.saved_step, self._epoch_file, self._is_wanted = trainer.global_step, epoch_file, False
        self._saved_at = time.monotonic()

    def save_epoch(self, save_per_epochs):
        """The epoch is over: write ``last.pth``, and ``epoch<N>.pth`` if it is its turn."""
        epoch = self.trainer.epoch
        is_due = save_per_epochs and epoch % save_per_epochs == 0
        if is_due and self.trainer.keep_checkpoints is None and not self._told_size:
            self._tell_size(save_per_epochs)
        self.save_last(self.trainer.path_of(f"epoch{epoch}.pth") if is_due else None)

    def save_best(self, name="best.pth", family=None, then=lambda: None):
        """Write the present weights for use, which were just scored, to a file of the run.

        Args:
            family: one name for several files, of which the newest is tried again when it cannot be written.
            then: called when the file is on the disk and was read back.
        """
        self._require_place()
        path = self.trainer.path_of(name)

        def write(saved):
            files.write(saved, path)
            then()

        with self.trainer.lifetime.weights.for_use():
            self._save(self.trainer.path_of(family or name), state.collect(self.trainer, optim=False), write,
                       replaced=IN_PLACE if family is None else None)

    def save_as_it_is(self, path):
        """Write a state that is not exact, here and now, to a file that ``load_state("auto")`` does not take."""
        self._require_place()
        with self.trainer.lifetime.weights.of_training():
            files.write(state.collect(self.trainer), path)

    def save_again(self):
        """Once more what the newest save should have written."""
        is_of_epoch = self.trainer.global_step == self.saved_step
        self.save_last(self._epoch_file if is_of_epoch else None, beside=False)

    def save_soon(self):
        """Write ``last.pth`` when the running update is done: in its midst the state is not exact."""
        self._is_wanted = True

    def is_due(self):
        """Whether it is time in the middle of an epoch: after ``save_per_steps`` updates or ``save_per_seconds``, or after
        an evaluation there."""
        trainer = self.trainer
        if self._is_wanted or trainer.save_per_steps and trainer.global_step % trainer.save_per_steps == 0:
            return True
        if trainer.save_per_seconds is None or trainer.world.size > 1 and trainer.global_step % trainer.log_per_step:
            return False
        return trainer.world.share(time.monotonic() - self._saved_at >= trainer.save_per_seconds)

    def wait(self):
        """Until everything that was begun is on the disk, or has failed."""
        self.saver.wait()

    def close(self):
        """Wait, and try what failed once more, unless somebody else writes in the folder now."""
        if self.lock.is_refused:
            self.saver.wait()
            self.saver.forget()
        self.saver.close()

    def last_failed(self):
        """Whether ``last.pth`` is not what it should be."""
        return self.trainer.path_of("last.pth") in self.saver.failed

    def note_failure(self, error):
        """The end of the run could not be saved: the process ends with exit code 1."""
        self.saver.failed[self.trainer.path_of("last.pth")] = error

    def has_failures(self):
        return bool(self.saver.failed)

    def _require_place(self):
        if self.trainer.is_main:
            self.lock.require()

    def _write_parts(self, saved, folder):
        """Each rank its part of the weights, which ``saved`` then names; False when that failed, which was told."""
        self.saver.wait(self.trainer.path_of("last.pth"))  # it names the parts before, and deletes what is not named
        parts = sharded.write(self.trainer, folder, saved["callbacks"])
        if isinstance(parts, OSError):
            if self.trainer.is_main:
                self.saver.tell(self.trainer.path_of("last.pth"), self.trainer.lifetime.where(), parts)
            return False
        saved["shards"], saved["callbacks"] = parts
        return True

    def _tell_size(self, save_per_epochs):
        """Say once what the files of all epochs will take, where that is much."""
        trainer, self._told_size = self.trainer, True
        size = bytes_of([model.state_dict() for model in trainer.model_list])
        size += bytes_of([optimizer.state_dict() for optimizer in trainer.optimizer_list])
        epochs = trainer.total_epochs or 100
        free, total = shutil.disk_usage(trainer.path_of(".")).free, size * (epochs // save_per_epochs)
        if trainer.is_main and total > min(_MUCH, free / 10) and total > 3 * size:
            print(f"Every epoch<N>.pth is kept, {size / 1e9:.2g} GB each: {epochs} epochs come to {total / 1e9:.3g} GB, and "
                  f"{free / 1e9:.3g} GB are free. With keep_checkpoints = 3 it would be {3 * size / 1e9:.2g} GB.")

    def _save(self, path, saved, write, beside=True, replaced=None):
        """On rank 0, which decides by itself what waits for the disk: the others only helped to collect the state."""
        trainer = self.trainer
        if not trainer.is_main:
            return
        if self._replaces_run:
            run_folder.remove_run(trainer.path_of("."))
        self._replaces_run = False
        names = state.parameter_names(trainer)

        def checked_write(saved):
            state.require_finite(saved, names)
            path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
            write(saved)

        self.saver.save(path, saved, checked_write, trainer.lifetime.where(), beside and not trainer.stop_when_save_fails,
                        keep=trainer.world.size > 1, replaced=replaced)  # kept: it is tried again without the others
        if trainer.stop_when_save_fails:
            self.saver.raise_failure()
