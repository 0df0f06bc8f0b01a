"""What is kept and said after an error: one of somebody's code, of another process, or a second Ctrl-C.

    end_after(lifetime, error)           # saves what can be saved, closes, and says what is where; then the error goes on
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..checkpoint.files import CRASHED
from ..checkpoint.saver import SaveError
from ..output.run_lock import RunInUse
from .signals import is_interactive

if TYPE_CHECKING:
    from .lifetime import Lifetime


def end_after(lifetime: Lifetime, error: BaseException) -> None:
    """The error of a session: everything is closed, and the traceback stands in the log.

    Raises:
        SystemExit: another rank failed, which shows its own traceback.
    """
    trainer, stop_request = lifetime.trainer, lifetime.stop_request
    if lifetime.explain is not None:
        lifetime.explain(error)
    trainer.stdout_logger.write_traceback(error)
    lifetime.end.know_error(error)
    trainer.world.fail(error)
    _save_after(lifetime, error)
    lifetime.set_epoch_aside()  # it was saved, or is no state to save
    try:
        lifetime.close()
    except Exception as failure:
        print(f"While closing after that error: {type(failure).__name__}: {failure}")
    if not lifetime.is_nested():
        lifetime.folder.take_away(error)
    if trainer.world.is_lost(error):
        _end_with_the_others(trainer.world, error)
    if stop_request.came_twice and isinstance(error, KeyboardInterrupt):
        _tell_what_is_lost(lifetime)
    if isinstance(error, KeyboardInterrupt) or is_interactive():
        stop_request.drop_interrupt()


def _save_after(lifetime, error):
    """Somebody's code raised, also to end the process: nothing of the training until then is lost. What is not exact is
    written to a file that ``load_state("auto")`` does not take. Among several processes nothing is: the others are
    somewhere else."""
    trainer, checkpoints = lifetime.trainer, lifetime.checkpoints
    is_own = isinstance(error, (FloatingPointError, SaveError, RunInUse)) or lifetime.stop_request.came_twice
    if is_own or lifetime.only_looks or trainer.global_step == checkpoints.saved_step:
        return
    what = _in_words(error)
    if trainer.world.size > 1:
        if not isinstance(error, Exception):
            print(f"Not saved after {what}, because the other processes are somewhere else. The newest save is of "
                  f"update {checkpoints.saved_step}.")
        return
    try:
        if lifetime.is_exact():
            checkpoints.save_last(beside=False)
            if not checkpoints.has_failures():
                print(f"Saved after {what}, at {lifetime.where()}. load_state('auto') continues there.")
        else:
            path = trainer.path_of(CRASHED)
            checkpoints.save_as_it_is(path)
            before = "goes on exactly, from the save before it" if trainer.path_of("last.pth").exists() else (
                "finds nothing, because nothing was saved before it")
            print(f"Saved as {what} left it, behind {lifetime.where()}: {path}. To go on from there load it by name; "
                  f"load_state('auto') {before}.")
    except Exception as failure:  # a GPU that is gone, a full disk: the first error is the one to show
        print(f"The state after {what} could not be saved: {type(failure).__name__}: {failure}")


def _tell_what_is_lost(lifetime):
    """After a Ctrl-C that waited for nothing."""
    trainer, saved_step = lifetime.trainer, lifetime.checkpoints.saved_step
    kept = f"The newest save is of update {saved_step}"
    if not trainer.path_of("last.pth").exists():
        kept = "Nothing was saved yet"
    if trainer.world.size > 1 or lifetime.is_exact():
        kept = "is saved" if trainer.global_step == saved_step else f"was not saved. {kept}"
        lifetime.say(f"Interrupted at once, at {lifetime.where()}, which {kept}. This trainer goes on from here.")
    else:
        lifetime.say(f"Interrupted at once, in the middle of what follows {lifetime.where()}. {kept}. This trainer begins "
                     "that again, but not to the same bits; load_state('auto') goes back to the save.")


def _end_with_the_others(world, error):
    """In one line: the traceback to read is that of the rank that failed."""
    os.write(sys.__stderr__.fileno(), f"rank {world.rank} ends, because {world.reason_of_loss(error)}\n".encode())
    raise SystemExit(1) from None


def _in_words(error):
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)})"
    return "the KeyboardInterrupt" if isinstance(error, KeyboardInterrupt) else "the error"
