"""How a run goes on, is left and is closed: signals, errors, the end, and which epoch is over.

    with lifetime.session():             # stdout goes to the log and signals to the loop; after an error all is closed
        …                                # train, evaluate
    lifetime.close()                     # saves what is left, runs the callbacks' clean-up, gives stdout back
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..checkpoint.saver import SaveError
from ..data.seeding import capture_rng, restore_rng
from ..hooks import run_all
from .signals import StopRequest

if TYPE_CHECKING:
    from ..template import TemplateModel
    from .checkpoints import Checkpoints


class Lifetime:
    """From the first update of a run to its end, for one ``TemplateModel``.

    Args:
        trainer: whose hooks, log and counters these are.
        checkpoints: what is saved when the run is left or fails.
    """

    def __init__(self, trainer: TemplateModel, checkpoints: Checkpoints):
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.stop_request = StopRequest()
        self.open_epoch = None       # number of the epoch that was trained but is not over
        self.evaluated_epoch = None  # number of the epoch that was evaluated last
        self.half_evaluated = False  # best values, schedules and callbacks know an evaluation that is not over
        self._is_closed = True       # on_exit was called since anything ran

    # --- epochs ---------------------------------------------------------------------------------------------------

    def finish_epoch(self, beside=True):
        """The epoch that was trained is over without an evaluation: the next one begins, or the loop ends."""
        if self.open_epoch is not None:
            self.count_epoch()
            self.checkpoints.save_last(beside=beside)

    def count_epoch(self):
        """The epoch that was trained is over."""
        trainer = self.trainer
        trainer.should_stop = trainer.world.any(trainer.should_stop)
        trainer.epochs_done, trainer.batches_done, self.open_epoch = self.open_epoch, 0, None
        trainer.running_losses.reset()

    def finish_evaluation(self, save_per_epochs):
        """The epoch was evaluated and noted: it is over, and saved."""
        self.evaluated_epoch, self.half_evaluated = self.trainer.epoch, False
        if self.open_epoch is not None:
            self.count_epoch()
        self.checkpoints.save_epoch(save_per_epochs)

    def went_back(self):
        """A checkpoint was loaded: no epoch is open, and what it holds is on the disk."""
        self.open_epoch = self.evaluated_epoch = None
        self.half_evaluated, self.checkpoints.saved_step = False, self.trainer.global_step

    # --- leaving --------------------------------------------------------------------------------------------------

    def leave_when_asked(self):
        """After SIGTERM or Ctrl-C: save where training stands and end the process.

        Raises:
            SystemExit: with 143 or 130.
        """
        if self.stop_request.signal:
            self._leave()

    def _leave(self):
        self.checkpoints.save_last(beside=False)
        self.open_epoch = None
        self.close()
        saved = "not saved" if self.checkpoints.has_failures() else "saved"
        self.say(f"Stopped by a signal; {saved} at {self.where()} in {self.trainer.ckpt_dir}. load_state('auto') continues.")
        raise SystemExit(self.stop_request.exit_code)

    def until_asked_to_leave(self, batches):
        """The batches of an evaluation; a signal ends it between two of them, see ``undone_when_cut_short``. Several
        processes, which may have different numbers of batches, finish it."""
        for batch in batches:
            yield batch
            if self.stop_request.signal and self.trainer.world.size == 1:
                raise _AskedToLeave

    @contextmanager
    def undone_when_cut_short(self):
        """An evaluation that a signal or an error ended before its result was noted did not happen: it is done again when
        the run goes on."""
        rng, counter = capture_rng(), self.trainer.global_step_eval
        try:
            yield
        except Exception as error:
            if not self.half_evaluated:
                restore_rng(rng)
                self.trainer.global_step_eval = counter
            if isinstance(error, _AskedToLeave):
                self._leave()
            raise

    # --- a session: the time in which stdout goes to the log and signals to the loop --------------------------------

    @contextmanager
    def session(self):
        """Around whatever trains or evaluates. After an error everything is closed, and the traceback stands in the log."""
        trainer = self.trainer
        trainer.stdout_logger.install()
        self.stop_request.install()
        self._is_closed = False
        try:
            yield
        except SystemExit:
            self.close()
            raise
        except BaseException as error:
            trainer.stdout_logger.write_traceback(error)
            trainer.world.fail(error)
            self._save_after(error)
            self.open_epoch = None  # it was saved, or is no state to save
            try:
                self.close()
            except Exception as failure:
                print(f"While closing after that error: {type(failure).__name__}: {failure}")
            if trainer.world.is_lost(error):
                self._end_with_the_others(error)
            raise

    def _save_after(self, error):
        """Somebody's code raised: nothing of the training until then is lost. What is not exact is written to a file that
        ``load_state("auto")`` does not take. Among several processes nothing is: the others are somewhere else."""
        trainer = self.trainer
        is_own = isinstance(error, (FloatingPointError, SaveError)) or not isinstance(error, Exception)
        if is_own or trainer.global_step == self.checkpoints.saved_step or trainer.world.size > 1:
            return
        try:
            if self._is_exact():
                self.checkpoints.save_last(beside=False)
                if not self.checkpoints.has_failures():
                    print(f"Saved after the error, at {self.where()}. load_state('auto') continues there.")
            else:
                path = trainer.path_of("crashed.pth")
                self.checkpoints.save_as_it_is(path)
                print(f"Saved as the error left it, behind {self.where()}: {path}. To go on from there load it by name; "
                      "load_state('auto') goes on exactly, from the save before it.")
        except Exception as failure:  # a GPU that is gone, a full disk: the first error is the one to show
            print(f"The state after the error could not be saved: {type(failure).__name__}: {failure}")

    def _is_exact(self):
        """Between two updates, while data is read or an evaluation runs. Within an update random numbers were drawn and
        statistics moved; a noted evaluation moved best values, schedules and callbacks."""
        is_read = self.trainer.train_batches.is_at(self.trainer.batches_done)
        return self.trainer.stepper.is_between_updates and is_read and not self.half_evaluated

    def _end_with_the_others(self, error):
        """In one line: the traceback to read is that of the rank that failed."""
        world = self.trainer.world
        os.write(sys.__stderr__.fileno(), f"rank {world.rank} ends, because {world.reason_of_loss(error)}\n".encode())
        raise SystemExit(1) from None

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self):
        """Save an epoch that was not evaluated, try once more what could not be saved, run the callbacks' clean-up, give
        stdout back. Safe to call twice; a later session opens everything again."""
        trainer = self.trainer
        if self._is_closed:
            if trainer.stdout_logger is not None:
                trainer.stdout_logger.restore()
            return
        self._is_closed = True
        try:
            self._save_what_is_left()
        except Exception as error:  # Python drops what is raised at its exit, and in a generator nobody goes on with
            self.checkpoints.note_failure(error)
            raise
        finally:
            try:
                run_all(trainer.hooks.on_exit, trainer)
            finally:
                self.stop_request.restore()
                trainer.stdout_logger.restore()

    def _save_what_is_left(self):
        if self.open_epoch is not None and self.trainer.eval_loader is not None:
            self.checkpoints.save_last(beside=False)  # all its batches are done: continuing goes on with its evaluation
            self.open_epoch = None
        self.finish_epoch(beside=False)
        self.checkpoints.close()
        if self.checkpoints.last_failed() and self._is_exact() and self.trainer.world.size == 1:
            self.checkpoints.save_again()

    def close_at_exit(self):
        """At the interpreter's exit, for loops that never called ``close()``."""
        if self.trainer.world.size > 1 and hasattr(sys, "last_value"):
            self.open_epoch = None  # an error ends this rank, and the others wait elsewhere
        self.close()

    # --- words ----------------------------------------------------------------------------------------------------

    def where(self):
        """How far training is, in words."""
        return f"epoch {self.trainer.epoch}, update {self.trainer.global_step}"

    def say(self, *lines):
        """Print into the log too, also when training has given stdout back."""
        if self.trainer.stdout_logger is None:
            print("\n".join(lines))
            return
        with self.trainer.stdout_logger:
            print("\n".join(lines))


class _AskedToLeave(Exception):
    """From between two batches of an evaluation to the method that a person called."""
