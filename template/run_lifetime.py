"""How a run is kept, left and closed: what stands around the training of a ``TemplateModel``.

Base class of ``TemplateModel``. A *session* is the time in which stdout goes to the log and signals to the loop; every
public method that trains or evaluates opens one, ``close`` ends it.
"""

from contextlib import contextmanager
from pathlib import Path

from . import checkpoint, state
from .hooks import run_all
from .run_tools import RunTools
from .seeding import capture_rng, restore_rng


class RunLifetime(RunTools):
    """Checkpoints at their moments, SIGTERM and Ctrl-C, errors, and the end."""

    def _save_last(self, source=None):
        """Make the present state, or the file that already holds it, the newest checkpoint."""
        if source is None:
            self.fetch_losses()  # what is not finite is never saved
        checkpoint.write_last(None if source else state.collect(self), self.ckpt_dir, source)

    def _save_epoch(self, save_per_epochs):
        """The epoch is over: write ``epoch<N>.pth`` if it is its turn, and ``last.pth``."""
        if self._open_epoch is not None:
            self._count_epoch()
        folder, path = Path(self.ckpt_dir), None
        if save_per_epochs and self.epoch % save_per_epochs == 0:
            path = folder / f"epoch{self.epoch}.pth"
            checkpoint.write(state.collect(self), path)
        self._save_last(path)
        checkpoint.keep_newest(folder, self.keep_checkpoints)

    def _leave(self):
        """SIGTERM or Ctrl-C: save where training stands and end the process."""
        self._save_last()
        self._open_epoch = None
        self.close()
        where = f"epoch {self.epoch}, update {self.global_step}"
        self._say(f"Stopped by a signal; saved at {where} in {self.ckpt_dir}. load_state('auto') continues.")
        raise SystemExit(self._stop_request.exit_code)

    def _until_asked_to_leave(self, batches):
        """The batches of an evaluation; a signal ends it between two of them, see ``_undone_when_asked_to_leave``."""
        for batch in batches:
            yield batch
            if self._stop_request.signal:
                raise _AskedToLeave

    @contextmanager
    def _undone_when_asked_to_leave(self):
        """An evaluation that a signal cut short did not happen: it is done again when the run goes on."""
        rng, counter = capture_rng(), self.global_step_eval
        try:
            yield
        except _AskedToLeave:
            restore_rng(rng)
            self.global_step_eval = counter
            self._leave()

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
            self._open_epoch = None  # what an interrupted evaluation left is no state to save
            self.close()
            raise

    def close(self):
        """End of training: save an epoch that was not evaluated, run the callbacks' clean-up, give stdout back.

        Safe to call twice; a later ``train_loop`` opens everything again.
        """
        if self._is_closed:
            self.stdout_logger.restore()
            return
        self._is_closed = True
        try:
            if self._open_epoch is not None and self.eval_loader is not None:
                self._save_last()  # all its batches are done: continuing goes on with its evaluation
                self._open_epoch = None
            self._finish_epoch()
        finally:
            try:
                run_all(self.hooks.on_exit, self)
            finally:
                self._stop_request.restore()
                self.stdout_logger.restore()


class _AskedToLeave(Exception):
    """From between two batches of an evaluation to the method that a person called."""


def close_if_alive(reference):
    """At the interpreter's exit, for loops that never called close()."""
    model = reference()
    if model is not None:
        model.close()
