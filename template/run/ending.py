"""How a run ended: finished, stopped or crashed. Callbacks read it in ``on_exit``, and ``config.json`` keeps it.

    trainer.lifetime.end.how             # "finished", "stopped", "crashed"; "" while it trains
    trainer.lifetime.end.why             # "SIGTERM", "ValueError: …"; "" where nothing is to be said

A run is *finished* when its loop came to the end, also early by ``should_stop = True``; *stopped* when it is to go on later:
by a signal, by ``should_stop = "now"``, or out of the body of its loop; *crashed* when an error ended it. One that was
killed can say nothing: its lock is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..metrics.best import better_when
from ..output import run_folder
from .signals import is_interactive

if TYPE_CHECKING:
    from ..template import TemplateModel


class End:
    """The end of a run, for one ``TemplateModel``."""

    def __init__(self, trainer: TemplateModel) -> None:
        self.trainer = trainer
        self.how = self.why = ""
        self.has_trained = False  # in this process
        self._is_open = False     # its loop was left: by a break, or by an error of which nobody can know yet
        self._waiting: list[Callable[[], object]] = []

    def forget(self) -> None:
        """The training begins, or goes on."""
        self.how, self.why, self.has_trained, self._is_open = "", "", True, False
        self._waiting.clear()

    def know(self, how: str, why: str = "") -> None:
        self.how, self.why = how, why

    def know_error(self, error: BaseException) -> None:
        """An error ended it, or a KeyboardInterrupt or ``sys.exit()``, which stop it."""
        text = str(error).strip().partition("\n")[0]
        why = type(error).__name__ + (f": {text}" if text else "")
        self.know("crashed" if isinstance(error, Exception) else "stopped", why)

    def conclude(self, is_over: bool) -> None:
        """The run is closed; what nobody has named until now is named.

        Args:
            is_over: its loop came to the end.
        """
        if not self.how:
            stop = self.trainer.should_stop
            self.know("stopped" if stop == "now" or not is_over else "finished", "should_stop" if stop else "")
            self._is_open = not is_over and not stop and not is_interactive()

    def when_known(self, tell: Callable[[], object]) -> None:
        """Call ``tell()`` as soon as it is certain how the run ended: now, or at the exit of the process. An error in the
        body of the loop leaves the loop as a ``break`` does."""
        if self._is_open:
            self._waiting.append(tell)
        else:
            tell()

    def settle(self, error: BaseException | None) -> None:
        """At the exit of the process, which ``error`` ended, if any."""
        if not self._is_open:
            return
        self._is_open = False
        if error is not None:
            self.know_error(error)
            self.note()
        while self._waiting:
            self._waiting.pop(0)()

    def note(self) -> None:
        """Write it to ``config.json``."""
        trainer = self.trainer
        if self.has_trained and trainer.is_main and trainer.path_of("config.json").exists():
            run_folder.note_end(trainer.path_of("."), self.as_data())

    def as_data(self) -> dict[str, Any]:
        """As plain data, with how far the training came and what was best."""
        trainer, key = self.trainer, self.trainer.key_metric
        best = {"key_metric": key, "mode": better_when(trainer, key), "best": trainer.best_metric[key],
                "best_epoch": trainer.best_epoch.get(key)} if key in trainer.best_metric else {}
        return {"how": self.how, "why": self.why, "at": time.strftime("%Y-%m-%d %H:%M:%S"), "epochs": trainer.epochs_done,
                "of": trainer.total_epochs, "updates": trainer.global_step, **best}
