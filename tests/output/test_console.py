"""A line on the console is no longer than it can be read, and says how much it leaves out."""

import re

import pytest
from tiny import tiny_trainer

from template.output import console
from template.output.console import fitting, values_line


@pytest.fixture
def columns(monkeypatch):
    """Sets the width of the terminal."""
    return lambda number: monkeypatch.setenv("COLUMNS", str(number))


def test_a_few_values_stand_in_their_order_with_four_decimals():
    assert values_line({"tol_loss": 0.25, "acc": 1.0, "confusion": [[1]]}) == "tol_loss 0.2500  acc 1.0000"


@pytest.mark.parametrize("terminal", [20, 80, 200])
def test_many_values_are_cut_with_their_number_and_where_the_others_are(columns, terminal):
    columns(terminal)
    values = {f"part_{number}": 0.5 for number in range(80)} | {"acc": 0.75, "tol_loss": 0.25}
    line = values_line(values, ["acc"])
    assert line.startswith("tol_loss 0.2500  acc 0.7500  ")
    shown, left_out = line.count("0.5") + 2, int(re.search(r"  and (\d+) more in history.csv$", line)[1])
    assert shown + left_out == 82
    assert len(line) <= max(terminal, 120) - 45


def test_the_important_ones_are_shown_however_long_their_names_are():
    shown, left_out = fitting({"a" * 100: "1", "tol_loss": "2", "b": "3", "acc" * 30: "4"}, ["acc" * 30, None])
    assert (shown, left_out) == ({"tol_loss": "2", "acc" * 30: "4"}, 2)


def test_nothing_to_show_is_an_empty_line():
    assert values_line({}) == "" and fitting({}) == ({}, 0)


def test_no_line_of_a_training_with_eighty_quantities_is_longer_than_the_terminal(capsys, monkeypatch):
    from template.callbacks import progress_bar

    monkeypatch.setattr(progress_bar, "_PLAIN_LINE_EVERY_SECONDS", -1.0)
    trainer = tiny_trainer(key_metric="acc29", log_per_step=1)
    plain = trainer.loss_per_batch
    trainer.loss_per_batch = lambda batch: plain(batch) | {f"loss_{i}": plain(batch)["tol_loss"] for i in range(49)}
    trainer.metric = lambda pred, y: {f"acc{i}": (pred.argmax(1) == y).float().mean() for i in range(30)}
    trainer.fit(2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert any("cur:[" in line for line in lines) and any(" acc29 " in line for line in lines)
    assert max(map(len, lines)) <= console._LEAST_WIDTH + 45  # rates, samples per second and memory stand behind
    assert all(" more" in line for line in lines if "cur:[" not in line)  # there the first of them are shown
