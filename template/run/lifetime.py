"""How a run goes on, is left and is closed: signals, errors, the end, and which epoch is over.

    with lifetime.session():             # stdout goes to the log and signals to the loop; after an error all is closed
        …                                # train, evaluate
    lifetime.close()                     # saves what is left, runs the callbacks' clean-up, gives stdout back
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..checkpoint import own_objects
from ..data.seeding import capture_rng, restore_rng
from ..hooks import run_all
from ..metrics.best import note_best, note_training
from ..output import forks
from ..output.warn import warnings_noted
from ..parallel.gradients import explained
from ..update.lr_scheduler import rates_line
from .after_error import end_after
from .ending import End
from .pace import Pace
from .reports import log_window, tell_end, tell_evaluation, tell_training
from .signals import STOP_NOW, Interrupted, Left, StopRequest, ending, is_interactive
from .untrained_folder import UntrainedFolder
from .weights_for_use import WeightsForUse

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
        self.weights = WeightsForUse(trainer)
        self.stop_request = StopRequest()
        self.pace = Pace(trainer, self)
        self.folder = UntrainedFolder(trainer)
        self.end = End(trainer)
        self.open_epoch: Any = None  # number of the epoch that was trained but is not over
        self.trained: dict[str, Any] = {}  # means over the samples of the epoch that was trained last
        self.evaluated_epoch = None  # number of the epoch that was evaluated last
        self.only_looks = False      # the weights were taken for use: evaluations note and write nothing
        self.half_evaluated = False  # best values, schedules and callbacks know an evaluation that is not over
        self._at_next_epoch: dict[str, Any] = {}  # by name
        self.look_at_criterion = None  # function of (criterion, what it is given), on the first batches
        self.explain = None            # function of an error there, which adds to it what helps
        self.will_evaluate = False     # the loop is that of ``fit()``, which calls ``eval()``
        self.will_be_closed = False  # the loop is that of ``epochs()``, which waits for every file at its end
        self._is_closed = True       # on_exit was called since anything ran
        self._is_in_child = False    # of a fork, which is not the run: nothing is saved or cleaned up there
        self._depth = 0              # of sessions: a callback may evaluate in the midst of an epoch
        self._whole = (0, 0)         # global_step and batches_done behind the last update that was finished
        self._cut_epoch: Any = None  # number of the epoch that was trained and then left before its evaluation
        self._began: float | None = None  # when the first epoch since the last end did, on time.perf_counter's clock
        self._is_done = False        # the loop is over: where everything is can be said
        self._left: Any = None       # generators, batches and the place in them, when a signal ended the training
        forks.tell(self)

    def forked(self):
        self._is_in_child = True

    # --- epochs ---------------------------------------------------------------------------------------------------

    def begin_epoch(self):
        """Training begins or goes on: with the weights that are there, and what it makes of them counts. False where it was
        stopped."""
        self._agree("train_loop()")
        self._require_place()
        self._began = self._began or time.perf_counter()
        self.end.forget()
        self._take_up()
        self.pace.pay()
        self.finish_epoch()
        self.leave_when_asked()
        if self.only_looks:
            self.weights.start_afresh()
        self.only_looks, self._cut_epoch = False, None
        self._whole = self.trainer.global_step, self.trainer.batches_done
        while self._at_next_epoch:
            self._at_next_epoch.popitem()[1]()
        if self.trainer.should_stop:
            print("Training was stopped, so train_loop() does nothing. Loop over trainer.epochs(n) to end the loop too.")
            return False
        self.trainer.lr_schedule.begin_epoch(self.trainer)
        return True

    def begin_evaluation(self):
        """Of the epoch that was trained last; one whose evaluation was cut short is over behind this one. False where the
        training was stopped, and nothing is left to evaluate."""
        self._agree("eval()")
        if not self.only_looks:
            self._require_place()
            if self._cut_epoch is not None:
                self._take_up()
                self.open_epoch, self._cut_epoch = self._cut_epoch, None
        return not self._skips_evaluation()

    def _require_place(self):
        """Nobody else writes in the folder: before anything is computed that could not be kept."""
        self.trainer.world.from_main(self.checkpoints.lock.require)

    def end_training(self):
        """All batches of the epoch were trained on. Returns the means over its samples."""
        trainer = self.trainer
        result = self.trained = trainer.running_losses.compute()
        self.open_epoch = trainer.epoch
        for call in trainer.hooks.on_train_end:
            call(trainer, result)
        rates, seconds = rates_line(trainer.optimizer_list), time.perf_counter() - trainer._epoch_started
        tell_training(trainer, result, note_training(trainer, result), rates, seconds)
        trainer.lr_schedule.after_epoch(trainer.epoch)
        return result

    def after_update(self):
        """Between two updates: log, evaluate and save when it is time. Here the training may be left, or paused."""
        if self.trainer.global_step % self.trainer.log_per_step == 0:
            log_window(self.trainer)
        self._whole = self.trainer.global_step, self.trainer.batches_done
        self.pace.evaluate_when_due()
        if self.checkpoints.is_due():
            self.checkpoints.save_last()
        if self.trainer.should_stop and self.pace.wants_stop():
            self.stop_request.ask(STOP_NOW)
        if self.stop_request.signal:  # asked once: four more calls would cost an update 2 us
            if self.stop_request.signal == STOP_NOW:
                self._take_stop()
                raise Paused
            self.leave_when_asked()
        if self.pace.is_at_goal():
            raise Paused

    def _take_stop(self):
        """A callback of some rank set ``should_stop``, and all ranks know it and are at the same place."""
        self.stop_request.take()
        self._agree_to_stop(True)

    def _pause(self):
        """The training ends within an epoch. It goes on from here in the same way, to the same bits: this trainer, or one
        that loads the file."""
        if self.trainer.global_step != self.checkpoints.saved_step:
            self.checkpoints.save_last(beside=False)
        self._note_place()
        if self.trainer.should_stop:
            self.say(f"Stopped at {self.where()}, in the middle of the epoch, and saved in {self.trainer.ckpt_dir}. "
                     "load_state('auto') continues there.")

    def _take_up(self):
        """The same trainer goes on after a signal, an error or an interrupt ended the training."""
        trainer, left, self._left = self.trainer, self._left, None
        if left is not None:  # to the same bits, whatever was drawn meanwhile
            rng, batches, place = left
            restore_rng(rng)
            if batches is trainer.train_batches:
                batches.load_state_dict(place, trainer.batches_done)
        if not trainer.stepper.is_between_updates and trainer.world.size == 1:
            trainer.stepper.forget_group()
            step, batches_done = self._whole
            if step == trainer.global_step:  # else it is the callbacks behind the update that were cut short
                trainer.running_losses.forget(trainer.batches_done - batches_done)
                trainer.batches_done = batches_done

    def has_more(self, call):
        """Whether the loop goes on: the one place where all ranks look at ``should_stop``, wherever it was set."""
        self._agree(call)
        self._is_done = self.pace.is_over or bool(self.trainer.should_stop)
        return not self._is_done

    def _agree(self, call):
        """All ranks begin ``call``, and stop when one of them wants to."""
        self._agree_to_stop(self.trainer.world.begin(call, self.trainer.should_stop))

    def _agree_to_stop(self, stops):
        """``should_stop`` of all ranks, where ``stops`` says whether one of them wants to: "now" is stronger than True."""
        trainer = self.trainer
        is_now = stops and trainer.world.any(trainer.should_stop == "now")
        trainer.should_stop = "now" if is_now else stops

    def _skips_evaluation(self):
        """The training was stopped, and there is nothing new to evaluate, or no time: a loop that goes on after the stop."""
        stop = self.trainer.should_stop
        is_done = self.evaluated_epoch == self.trainer.epoch or self.pace.evaluated_step == self.trainer.global_step
        has_no_time = stop == "now" and self.will_be_closed and self.is_mid_epoch
        return stop and not self.pace.is_evaluating and (is_done or has_no_time)

    def at_next_epoch(self, name, change):
        """Call ``change()`` before the next epoch, or now where none is under way. A later one by the same name counts."""
        if self.trainer.batches_done:
            self._at_next_epoch[name] = change
        else:
            change()

    def finish_epoch(self, beside=True):
        """The epoch that was trained is over without an evaluation: the next one begins, or the loop ends."""
        if self.open_epoch is None:
            return
        with nullcontext() if self._is_closed else self.session():
            try:
                self.count_epoch()
            finally:
                if self.open_epoch is None:  # also when a callback failed behind it
                    self.checkpoints.save_last(beside=beside)

    def count_epoch(self, evaluated=None):
        """The epoch that was trained is over.

        Args:
            evaluated: losses and metrics of the evaluation at its end; None: there was none.
        """
        trainer = self.trainer
        trainer.lr_schedule.finish_epoch(self.open_epoch)
        trainer.epochs_done, trainer.batches_done, self.open_epoch = self.open_epoch, 0, None
        trainer.running_losses.reset()
        results = {f"train/{name}": value for name, value in self.trained.items()}
        results |= {f"eval/{name}": value for name, value in (evaluated or {}).items()}
        for call in trainer.hooks.on_epoch_end:
            call(trainer, results)
        self._agree_to_stop(trainer.world.any(trainer.should_stop))

    @property
    def is_mid_epoch(self):
        """Something of the present epoch is left to train."""
        return self.open_epoch is None and self.trainer.epoch > self.trainer.epochs_done

    def note_evaluation(self, result):
        """The weights of the training were evaluated: their values are told, and noted where they are the best. Returns what
        ``key_metric`` is, as ``note_best`` does."""
        self.half_evaluated = True
        improved = note_best(self.trainer, result)
        tell_evaluation(self.trainer, result, improved)
        return improved

    def finish_evaluation(self, score, save_per_epochs):
        """The epoch was evaluated and noted: it is over, and saved. One that is under way goes on, and is saved as soon as
        the running update is done."""
        trainer, schedule = self.trainer, self.trainer.lr_schedule
        losses = [value for name, value in trainer.eval_result.items()
                  if name in trainer.eval_loss_names and name.endswith("tol_loss")]
        tell = schedule.after_epoch
        if self.is_mid_epoch:
            tell = schedule.after_evaluation if self.pace.is_evaluating or self.pace.is_owed else schedule.note_result
        tell(trainer.epoch, score, losses[0] if losses else None)
        self.pace.note_evaluation()
        self.half_evaluated = False
        if self.is_mid_epoch and self._depth > 1:
            self.checkpoints.save_soon()
        elif self.is_mid_epoch and self.trainer.batches_done:  # nothing trains meanwhile
            self.evaluated_epoch = self.trainer.epoch
            self.checkpoints.save_last()
        else:
            self.evaluated_epoch = self.trainer.epoch
            try:
                if self.open_epoch is not None:
                    self.count_epoch(self.trainer.eval_result)
            finally:
                if self.open_epoch is None:  # also when a callback failed behind it
                    self.checkpoints.save_epoch(save_per_epochs)
        if not self.will_be_closed:
            self.checkpoints.wait()  # a plain loop, behind which nobody waits

    def went_back(self, only_looks):
        """A checkpoint was loaded: no epoch is open, and what it holds is on the disk.

        Args:
            only_looks: it held the weights alone, which are no state to continue from until training goes on with them.
        """
        self.folder.keep()
        self.open_epoch = self.evaluated_epoch = self._cut_epoch = self._left = None
        self.only_looks = only_looks
        self.half_evaluated = False
        self.checkpoints.continue_from_here()

    # --- leaving --------------------------------------------------------------------------------------------------

    def leave_when_asked(self):
        """After SIGTERM or Ctrl-C: save where training stands, and end the process, or in an interactive session the cell.

        Raises:
            SystemExit: with 143 or 130.
            KeyboardInterrupt: in an interactive session.
        """
        if self.stop_request.signal == STOP_NOW:
            self._take_stop()
        elif self.stop_request.signal:
            self._leave()

    def _leave(self):
        """What was asked for is done then: the trainer may be used on."""
        if self._has_more_than_the_disk():
            self.checkpoints.save_last(beside=False)
        self.set_epoch_aside()
        self._note_place()
        self.end.know("stopped", signal.Signals(self.stop_request.signal).name)
        self.close()
        number = self.stop_request.take()
        saved = "not saved" if self.checkpoints.has_failures() else "saved"
        saved = f"{saved} at {self.where()} in {self.trainer.ckpt_dir}."
        if is_interactive() and number == signal.SIGINT:
            again = "" if self._cut_epoch is None else f" The evaluation of epoch {self._cut_epoch} will be done again."
            self.say(f"Interrupted; {saved}{again} This trainer can be used at once, and goes on from there.")
        else:
            self.say(f"Stopped by a signal; {saved} load_state('auto') continues.")
        raise ending(number) from None

    def _has_more_than_the_disk(self):
        """Whether anything happened since the newest save that continuing needs."""
        is_newer = self.trainer.global_step != self.checkpoints.saved_step or self.open_epoch is not None
        return not self.only_looks and (is_newer or not self.trainer.path_of("last.pth").exists())

    def set_epoch_aside(self):
        """The epoch that was trained is not evaluated for now."""
        if self.open_epoch is not None:
            self._cut_epoch, self.open_epoch = self.open_epoch, None

    def _note_place(self):
        """Between two updates: from here the same trainer goes on, in this process, to the same bits."""
        trainer = self.trainer
        trainer.stepper.is_between_updates = True
        if self._left is None:  # else nothing was trained since
            place = trainer.train_batches.state_dict() if trainer.train_batches.is_at(trainer.batches_done) else None
            self._left = capture_rng(), trainer.train_batches, place

    def until_asked_to_leave(self, batches):
        """The batches of an evaluation; a signal ends it between two of them, see ``undone_when_cut_short``. One within an
        epoch is finished, and so is that of several processes, which may have different numbers of batches."""
        for batch in batches:
            yield batch
            if self.stop_request.signal and self.trainer.world.size == 1 and self._depth == 1:
                raise _AskedToLeave

    @contextmanager
    def undone_when_cut_short(self):
        """An evaluation that a signal or an error ended before its result was noted did not happen: it is done again when
        the run goes on."""
        rng, counter, put_own_back = capture_rng(), self.trainer.global_step_eval, own_objects.way_back(self.trainer)
        try:
            yield
        except BaseException as error:
            if not self.half_evaluated:
                restore_rng(rng)
                put_own_back()
                self.trainer.global_step_eval = counter
            if isinstance(error, _AskedToLeave):
                self._leave()
            raise

    # --- a session: the time in which stdout goes to the log and signals to the loop --------------------------------

    @contextmanager
    def session(self, call=None):
        """Around whatever trains or evaluates. After an error everything is closed, and the traceback stands in the log.

        Args:
            call: name of what every rank has to call now, where that was not looked at before.
        """
        trainer, lock = self.trainer, self.checkpoints.lock
        self.folder.put_back()
        self._is_closed = False
        self._depth += 1
        with trainer.stdout_logger.session():
            self.stop_request.install()
            lock.is_busy = True
            try:
                if call is not None:
                    trainer.world.begin(call)
                with warnings_noted(trainer.stdout_logger.note), explained(trainer.stepper.parallel):
                    yield
                self.folder.keep()
                if self._depth == 1 and is_interactive():
                    self.leave_when_asked()  # not in another cell, later
            except (Left, Interrupted):
                self.close()
                raise
            except Paused:  # train_loop() returns
                self._pause()
            except BaseException as error:
                was_left = isinstance(error, SystemExit) and self._is_closed  # in a session within this one
                if not self._is_in_child and not was_left:
                    end_after(self, error)
                raise
            finally:
                self._depth -= 1
                lock.is_busy = self._depth > 0
                if self._depth == 0 and is_interactive():
                    self.stop_request.restore()  # between two cells Ctrl-C is no request to this trainer

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self):
        """Save an epoch that was not evaluated, try once more what could not be saved, run the callbacks' clean-up, give
        stdout back. Safe to call twice; a later session opens everything again."""
        trainer, in_loop, self.will_be_closed = self.trainer, self.will_be_closed, False
        if self._is_closed or self._is_in_child:
            if trainer.stdout_logger is not None:
                trainer.stdout_logger.restore()
            self.checkpoints.lock.release()
            return
        self._is_closed = True
        self.end.conclude(self._is_done or not in_loop)
        if trainer.world.is_broken:
            self.open_epoch = None  # to count and save it would take all ranks
        try:
            self._save_what_is_left()
            trainer.world.end_of_training()
        except Exception as error:  # Python drops what is raised at its exit, and in a generator nobody goes on with
            self.checkpoints.note_failure(error)
            self.end.know_error(error)
            raise
        finally:
            try:
                run_all(trainer.hooks.on_exit, trainer)
            finally:
                self.end.note()
                self.stop_request.restore()
                trainer.stdout_logger.restore()
                self.checkpoints.lock.release()
        if self._is_done and self._began is not None:
            tell_end(trainer, time.perf_counter() - self._began)
            self._began = None

    def _save_what_is_left(self):
        if self.open_epoch is not None and self.trainer.eval_loader is not None:
            self.checkpoints.save_last(beside=False)  # all its batches are done: continuing goes on with its evaluation
            self.set_epoch_aside()
            if not self.checkpoints.has_failures():
                print(f"Saved at {self.where()}, which was not evaluated. load_state('auto') continues with its evaluation.")
        self.finish_epoch(beside=False)
        self.checkpoints.close()
        if self.checkpoints.last_failed() and self.is_exact() and self.trainer.world.size == 1:
            self.checkpoints.save_again()

    def is_exact(self):
        """Between two updates, while data is read or an evaluation runs. Within an update random numbers were drawn and
        statistics moved; a noted evaluation moved best values, schedules and callbacks."""
        is_read = self.trainer.train_batches.is_at(self.trainer.batches_done)
        return self.trainer.stepper.is_between_updates and is_read and not self.half_evaluated

    def close_at_exit(self):
        """At the interpreter's exit, for loops that never called ``close()``."""
        error = getattr(sys, "last_value", None)
        if self.trainer.world.size > 1 and error is not None:
            self.open_epoch = None  # an error ends this rank, and the others wait elsewhere
        self._is_done = error is None
        if error is not None and not self._is_closed:
            self.end.know_error(error)
        self.close()
        self.end.settle(error)
        self.folder.take_away(error)  # load_state found no file, for instance

    def is_nested(self):
        """Whether a session within another one runs: an evaluation in the midst of an epoch."""
        return self._depth > 1

    # --- words ----------------------------------------------------------------------------------------------------

    def where(self):
        """How far training is, in words."""
        return f"epoch {self.trainer.epoch}, update {self.trainer.global_step}"

    def say(self, *lines):
        """Print into the log too, also when training has given stdout back."""
        if self.trainer.stdout_logger is None:
            print("\n".join(lines))
            return
        with self.trainer.stdout_logger.lines():
            print("\n".join(lines))


class Paused(Exception):
    """From between two updates to ``session``: the training ends here, and the process goes on."""


class _AskedToLeave(Exception):
    """From between two batches of an evaluation to the method that a person called."""
