"""Records of Python's logging in the run's log, once, and the console as it was."""

import contextlib
import io
import logging
from pathlib import Path

import pytest
from tiny import tiny_trainer

from template import Callback, LogRecords


@contextlib.contextmanager
def root_with(*handlers):
    """The root logger with these handlers alone: pytest puts its own there when a test begins."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers, root.level = list(handlers), logging.INFO
    try:
        yield root
    finally:
        root.handlers, root.level = before, level


class Says(Callback):
    def on_log(self, model, values):
        logging.getLogger("mine").info("lr is %s", 0.1)
        logging.getLogger("mine").debug("too much")

    def on_eval_result(self, model, result):
        logging.warning("scored")


def log_of(trainer):
    return (Path(trainer.ckpt_dir) / "log.txt").read_text().splitlines()


def test_records_stand_in_the_log_and_handlers_from_before_show_what_they_did():
    console = io.StringIO()
    trainer = tiny_trainer(callbacks=[Says(), LogRecords()], log_per_step=6)
    with root_with(logging.StreamHandler(console)) as root:
        trainer.fit(1)
        logging.warning("after the run")
        assert len(root.handlers) == 1
    lines = log_of(trainer)
    assert lines.count("INFO:mine:lr is 0.1") == 1 and lines.count("WARNING:root:scored") == 1
    assert not any("too much" in line or "after the run" in line for line in lines)
    assert console.getvalue() == "lr is 0.1\nscored\nafter the run\n"


def test_without_it_they_do_not():
    trainer = tiny_trainer(callbacks=[Says()], log_per_step=6)
    with root_with(logging.StreamHandler(io.StringIO())):
        trainer.fit(1)
    assert not any("mine" in line or "scored" in line for line in log_of(trainer))


def test_where_there_is_no_handler_warnings_go_on_to_be_shown(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(stream))
    logging.lastResort.setLevel("WARNING")
    trainer = tiny_trainer(callbacks=[Says(), LogRecords()], log_per_step=6)
    with root_with():
        trainer.fit(1)
    assert stream.getvalue() == "scored\n"
    assert log_of(trainer).count("WARNING:root:scored") == 1


def test_a_handler_that_prints_into_the_log_itself_makes_no_second_line():
    trainer = tiny_trainer(callbacks=[Says(), LogRecords()], log_per_step=6)
    with root_with(logging.StreamHandler(trainer.stdout_logger)):  # made after check_init()
        trainer.fit(1)
    assert sum("lr is 0.1" in line for line in log_of(trainer)) == 1


def test_level_and_format_are_the_users():
    trainer = tiny_trainer(callbacks=[Says(), LogRecords("WARNING", "%(message)s!")], log_per_step=6)
    with root_with():
        trainer.fit(1)
    assert "scored!" in log_of(trainer) and not any("lr is 0.1" in line for line in log_of(trainer))
    with pytest.raises(ValueError, match="LOUD"):
        LogRecords("LOUD")
