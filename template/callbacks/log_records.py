"""Records of Python's ``logging`` in the run's log too.

    trainer.callbacks = [LogRecords()]              # or LogRecords(level="WARNING")

What is printed stands in ``log.txt`` anyway. Records do not where their handlers were made before ``check_init()``: these
hold the stdout of that time, or stderr.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..hooks import Callback

if TYPE_CHECKING:
    from ..template import TemplateModel


class LogRecords(Callback):
    """Takes in what reaches the root logger, from the first epoch or evaluation until the run is closed.

    The console shows what it showed before. Which records there are is decided by the loggers' own levels:
    ``logging.getLogger().setLevel("INFO")``.

    Args:
        level: the lowest level that is taken in, a name or a number.
        format: of one record, as in ``logging.Formatter``; None: as Python's default, "INFO:name:message".

    Raises:
        ValueError: the level is none.
    """

    def __init__(self, level: int | str = "INFO", format: str | None = None) -> None:
        self._handler = _IntoLog(level)
        self._handler.setFormatter(logging.Formatter(format or logging.BASIC_FORMAT))

    def on_train_start(self, model: TemplateModel) -> None:
        self._handler.log = model.stdout_logger
        logging.getLogger().addHandler(self._handler)  # once, however often

    def on_eval_start(self, model: TemplateModel) -> None:
        self.on_train_start(model)

    def on_exit(self, model: TemplateModel) -> None:
        logging.getLogger().removeHandler(self._handler)


class _IntoLog(logging.Handler):
    """Into the file alone: the console is the other handlers' matter."""

    log: Any = None

    def emit(self, record):
        others = [handler for handler in logging.getLogger().handlers if handler is not self]
        if not others and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)  # where nobody made a handler, Python shows warnings by this one
        if not any(getattr(handler, "stream", None) is self.log for handler in others):  # else it stands there already
            self.log.note(self.format(record))
