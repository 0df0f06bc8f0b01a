"""How a run is kept, left and closed: what stands around the training of a ``TemplateModel``.

Base class of ``TemplateModel``. A *session* is the time in which stdout goes to the log and signals to the loop; every
public method that trains or evaluates opens one, ``close`` ends it.
"""

import os
import sys
import time
from contextlib import contextmanager

import torch

from ..checkpoint import files, sharded, state
from ..checkpoint.saver import SaveError
from ..data.seeding import capture_rng, restore_rng
from ..hooks import run_all
from ..parallel import ranks
from .requests import RunTools


class RunLifetime(RunTools):
    """Checkpoints at their moments, SIGTERM and Ctrl-C, errors, and the end."""

    # --- other processes ------------------------------------------------------------------------------------------

    def _meet(self):
        """Join the other processes, if there are any; returns the ``torch.device`` of this one."""
        device = ranks.own_device(torch.device(self.device))
        if self.parallel is not None:
            self.world = self._stop_request.world = self.running_losses.world = ranks.join(device)
        return device

    # --- saving ---------------------------------------------------------------------------------------------------

    def _save_last(self, epoch_file=None, beside=True):
        """Make the present state the newest checkpoint, and ``epoch_file`` as well.

        Args:
            beside: False when no training goes on meanwhile: written here and now.
        """
        self.fetch_losses()  # what is not finite is never saved
        for callback in self.hooks.callbacks:
            if hasattr(callback, "flush"):
                callback.flush()
        folder, count = self.path_of("."), self.keep_checkpoints

        def write(saved):
            files.write_last(saved, folder, epoch_file)
            files.keep_newest(folder, count)

        saved = state.collect(self, divided=self.is_sharded)
        if self.is_sharded and not self._write_parts(saved, folder):
            return
        self._save(self.path_of("last.pth"), saved, write, beside)
        self._saved_step, self._saved_at, self._epoch_file = self.global_step, time.monotonic(), epoch_file

    def _write_parts(self, saved, folder):
        """Each rank its part of the weights, which ``saved`` then names; False when that failed, which was told."""
        self._saver.wait()  # the file that names the parts before
        parts = sharded.write(self, folder)
        if isinstance(parts, OSError):
            if self.world.is_main:
                self._saver.tell(self.path_of("last.pth"), self._where(), parts)
            return False
        saved["shards"] = parts
        return True

    def _save_best(self):
        """The weights that were just scored."""
        path = self.path_of("best.pth")
        self._save(path, state.collect(self, optim=False), lambda saved: files.write(saved, path))

    def _save(self, path, saved, write, beside=True):
        """On rank 0."""
        if not self.world.is_main:
            return
        names = state.parameter_names(self)

        def checked_write(saved):
            state.require_finite(saved, names)
            path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
            write(saved)

        self._saver.save(path, saved, checked_write, self._where(), beside and not self.stop_when_save_fails,
                         keep=self.world.size > 1)  # it has to be tried again without the others
        if self.stop_when_save_fails:
            self._saver.raise_failure()

    def _where(self):
        return f"epoch {self.epoch}, update {self.global_step}"

    def _is_exact(self):
        """Between two updates, while data is read or an evaluation runs. Within an update random numbers were drawn and
        statistics moved; a noted evaluation moved best values, schedules and callbacks."""
        is_read = self.train_batches.is_at(self.batches_done)
        return self.stepper.is_between_updates and is_read and not self._half_evaluated

    def wait_for_saves(self):
        """Until every checkpoint that was begun is on the disk; the end of the loop, ``close`` and ``load_state`` do it."""
        self._saver.wait()

    def _save_is_due(self):
        """In the middle of an epoch, after ``save_per_steps`` updates or ``save_per_seconds``."""
        if self.save_per_steps and self.global_step % self.save_per_steps == 0:
            return True
        if self.save_per_seconds is None or self.world.size > 1 and self.global_step % self.log_per_step:
            return False
        return self.world.share(time.monotonic() - self._saved_at >= self.save_per_seconds)

    def _save_epoch(self, save_per_epochs):
        """The epoch is over and evaluated: write ``last.pth``, and ``epoch<N>.pth`` if it is its turn."""
        self._half_evaluated = False
        if self._open_epoch is not None:
            self._count_epoch()
        is_due = save_per_epochs and self.epoch % save_per_epochs == 0
        self._save_last(self.path_of(f"epoch{self.epoch}.pth") if is_due else None)

    # --- leaving --------------------------------------------------------------------------------------------------

    def _leave(self):
        """SIGTERM or Ctrl-C: save where training stands and end the process."""
        self._save_last(beside=False)
        self._open_epoch = None
        self.close()
        saved = "not saved" if self._saver.failed else "saved"
        self._say(f"Stopped by a signal; {saved} at {self._where()} in {self.ckpt_dir}. load_state('auto') continues.")
        raise SystemExit(self._stop_request.exit_code)

    def _until_asked_to_leave(self, batches):
        """The batches of an evaluation; a signal ends it between two of them, see ``_undone_when_cut_short``. Several
        processes, which may have different numbers of batches, finish it."""
        for batch in batches:
            yield batch
            if self._stop_request.signal and self.world.size == 1:
                raise _AskedToLeave

    @contextmanager
    def _undone_when_cut_short(self):
        """An evaluation that a signal or an error ended before its result was noted did not happen: it is done again when
        the run goes on."""
        rng, counter = capture_rng(), self.global_step_eval
        try:
            yield
        except Exception as error:
            if not self._half_evaluated:
                restore_rng(rng)
                self.global_step_eval = counter
            if isinstance(error, _AskedToLeave):
                self._leave()
            raise

    def _save_after(self, error):
        """Somebody's code raised: nothing of the training until then is lost. What is not exact is written to a file that
        ``load_state("auto")`` does not take. Among several processes nothing is: the others are somewhere else."""
        is_own = isinstance(error, (FloatingPointError, SaveError)) or not isinstance(error, Exception)
        if is_own or self.global_step == self._saved_step or self.world.size > 1:
            return
        try:
            if self._is_exact():
                self._save_last(beside=False)
                if not self._saver.failed:
                    print(f"Saved after the error, at {self._where()}. load_state('auto') continues there.")
            else:
                path = self.path_of("crashed.pth")
                files.write(state.collect(self), path)
                print(f"Saved as the error left it, behind {self._where()}: {path}. To go on from there load it by name; "
                      "load_state('auto') goes on exactly, from the save before it.")
        except Exception as failure:  # a GPU that is gone, a full disk: the first error is the one to show
            print(f"The state after the error could not be saved: {type(failure).__name__}: {failure}")

    @contextmanager
    def _session(self):
        """stdout goes to the log and signals to the loop; after an error everything is closed, and the traceback stands in
        the log."""
        self.stdout_logger.install()
        self._stop_request.install()
        self._is_closed = False
        try:
            yield
        except SystemExit:
            self.close()
            raise
        except BaseException as error:
            self.stdout_logger.write_traceback(error)
            self.world.fail(error)
            self._save_after(error)
            self._open_epoch = None  # it was saved, or is no state to save
            try:
                self.close()
            except Exception as failure:
                print(f"While closing after that error: {type(failure).__name__}: {failure}")
            if self.world.is_lost(error):
                self._end_with_the_others(error)
            raise

    def _end_with_the_others(self, error):
        """In one line: the traceback to read is that of the rank that failed."""
        reason = self.world.reason_of_loss(error)
        os.write(sys.__stderr__.fileno(), f"rank {self.world.rank} ends, because {reason}\n".encode())
        raise SystemExit(1) from None

    def close(self):
        """End of training: save an epoch that was not evaluated, try once more what could not be saved, run the callbacks'
        clean-up, give stdout back.

        Safe to call twice; a later ``train_loop`` opens everything again.
        """
        if self._is_closed:
            self.stdout_logger.restore()
            return
        self._is_closed = True
        try:
            self._save_what_is_left()
        except Exception as error:  # Python drops what is raised at its exit, and in a generator nobody goes on with
            self._saver.failed[self.path_of("last.pth")] = error
            raise
        finally:
            try:
                run_all(self.hooks.on_exit, self)
            finally:
                self._stop_request.restore()
                self.stdout_logger.restore()

    def _save_what_is_left(self):
        if self._open_epoch is not None and self.eval_loader is not None:
            self._save_last(beside=False)  # all its batches are done: continuing goes on with its evaluation
            self._open_epoch = None
        self._finish_epoch(beside=False)
        self._saver.close()
        if self.path_of("last.pth") in self._saver.failed and self._is_exact() and self.world.size == 1:
            self._save_last(self._epoch_file if self.global_step == self._saved_step else None, beside=False)


class _AskedToLeave(Exception):
    """From between two batches of an evaluation to the method that a person called."""


def close_if_alive(reference):
    """At the interpreter's exit, for loops that never called close()."""
    model = reference()
    if model is not None:
        if model.world.size > 1 and hasattr(sys, "last_value"):  # an error ends this rank, and the others wait elsewhere
            model._open_epoch = None
        model.close()
