"""``History`` and ``LivePlot`` in a loop of one's own: what was logged is on the disk, also after a restart."""

import csv
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_trainer

from template import History, LivePlot
from template.callbacks import history as history_module
from template.output import csv_table
from template.tools.report import report


def cells(path="history.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def train(first, last, path="history.csv", scale=1.0, **options):
    """Epochs of somebody's loop."""
    log = History(path, png=False, **options)
    for epoch in range(first, last + 1):
        log.log({"train_loss": scale / epoch, "val_acc": 1 - scale / epoch / 2, "lr": 0.5}, epoch=epoch)
    log.close()
    return log


def test_each_row_is_on_the_disk_when_it_was_logged_and_is_read_back_as_numbers():
    log = History("history.csv", png=False)
    for epoch in (1, 2):
        log.log({"train_loss": torch.tensor(1 / epoch, requires_grad=True), "val/acc": np.float32(epoch / 4)}, epoch=epoch)
        log.log({"lr": 0.5}, epoch=epoch)
        assert cells() == [{"epoch": str(number), "train/loss": str(1 / number), "eval/acc": str(number / 4), "lr": "0.5"}
                           for number in range(1, epoch + 1)]
    with open("history.csv", encoding="utf-8") as file:
        assert file.readline() == "epoch,train/loss,eval/acc,lr,seconds\n"
    read = History("history.csv").rows
    assert read == log.rows and read[1]["epoch"] == 2 and read[1]["eval/acc"] == 0.5
    assert all(0 <= row["seconds"] < 60 for row in read)


def test_a_row_says_how_long_its_epoch_took(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(history_module.time, "perf_counter", lambda: now.seconds)
    log = History("history.csv", png=False)
    for epoch in (1, 2):
        for name in ("train_loss", "val_loss"):
            now.seconds += 30 * epoch
            log.log({name: 1.0}, epoch=epoch)
    assert [row["seconds"] for row in log.rows] == [60, 120]


@pytest.mark.parametrize("next_epoch", [1, 3, 6, 9])
def test_a_training_that_is_taken_up_again_has_a_row_for_each_epoch_and_the_later_ones_are_replaced(next_epoch, capsys):
    train(1, 5, scale=4.0)
    train(next_epoch, 9)
    train(1, next_epoch - 1, path="expected.csv", scale=4.0)
    train(next_epoch, 9, path="expected.csv")
    if next_epoch <= 5:
        whole = train(next_epoch, 9, path="whole.csv").rows
        assert cells()[-len(whole):] == cells("whole.csv")
    assert [int(row["epoch"]) for row in cells()] == [*range(1, min(next_epoch, 6)), *range(next_epoch, 10)]
    assert float(cells()[-1]["train/loss"]) == 1 / 9 and capsys.readouterr().out == ""


def test_a_row_that_is_trained_again_has_nothing_of_the_old_one():
    train(1, 3)
    log = History("history.csv", png=False)
    log.log({"train_loss": 0.75}, epoch=3)
    assert cells()[-1] == {"epoch": "3", "train/loss": "0.75", "eval/acc": "", "lr": ""}


def test_without_a_number_the_next_epoch_is_meant_and_behind_old_rows_it_is_told(capsys):
    log = History("history.csv", png=False)
    for _ in range(3):
        log.log({"loss": 1.0})
    assert capsys.readouterr().out == ""
    again = History("history.csv", png=False)
    again.log({"loss": 2.0})
    again.log({"loss": 3.0})
    assert [row["epoch"] for row in cells()] == ["1", "2", "3", "4", "5"]
    assert capsys.readouterr().out.count("has 3 rows already: it goes on after epoch 3") == 1


def test_of_a_long_run_that_is_begun_anew_the_old_rows_are_kept_aside(capsys):
    train(1, 12)
    old = cells()
    train(1, 2, scale=8.0)
    assert len(cells()) == 2 and cells("history_kept.csv") == old
    assert "is written anew from epoch 1 on. What it held is kept in history_kept.csv" in capsys.readouterr().out


def test_an_epoch_may_be_a_part_of_one_and_the_report_shows_it():
    log = History("run/history.csv", png=False)
    for epoch in np.arange(0.5, 2.1, 0.5):
        log.log({"val_loss": 1 / epoch}, epoch=epoch)
    assert [row["epoch"] for row in cells("run/history.csv")] == ["0.5", "1", "1.5", "2"]
    assert [row["epoch"] for row in History("run/history.csv").rows] == [0.5, 1, 1.5, 2]
    page = Path(report("run")).read_text(encoding="utf-8")
    assert "cannot be read" not in page and "epoch 1.5\n" in page


def test_a_file_that_cannot_be_written_is_told_and_the_next_row_brings_all(monkeypatch, capsys):
    log = History("history.csv", png=False)
    log.log({"loss": 1.0})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(csv_table, "open", full, raising=False)
        log.log({"loss": 2.0})
    assert "history.csv could not be written: No space left on device" in capsys.readouterr().out
    log.log({"loss": 3.0})
    assert [row["train/loss"] for row in cells()] == ["1.0", "2.0", "3.0"]


def test_the_png_has_the_star_where_the_monitored_quantity_is_best(monkeypatch):
    drawn = []
    monkeypatch.setattr(history_module, "draw", lambda rows, title, key, best: drawn.append((title, key, best)) or b"png")
    log = History("run/history.csv", key="zeta", mode="min")
    for value in (3.0, 1.0, 2.0):
        log.log({"val_zeta": value, "val_acc": value, "train_loss": value})
    log.close()
    log.close()
    assert drawn == [("run", "zeta", {"zeta": (2, 1.0), "acc": (1, 3.0), "loss": (2, 1.0)})]
    assert Path("run/history.png").read_bytes() == b"png"


def test_pictures_in_a_loop_of_many_short_epochs_take_one_percent_of_the_time(monkeypatch):
    now, drawn = types.SimpleNamespace(seconds=100.0), []

    def draw(rows, *args):
        now.seconds += 0.5
        drawn.append(len(rows))
        return b"png"

    monkeypatch.setattr(history_module.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(history_module, "draw", draw)
    log = History("history.csv")
    for _ in range(1000):
        now.seconds += 0.5
        log.log({"loss": 1.0})
    log.close()
    assert 5 <= len(drawn) <= 11 and drawn[-1] == 1000


@pytest.mark.parametrize("values, epoch, said", [({"acc": "0.5"}, 2, r"History.log\(\).*'acc' is str '0.5'. Give a float"),
                                                 ({"acc": 1.0}, "2", "epoch must be a number.*got '2'"),
                                                 ({"acc": 1.0}, float("nan"), "epoch must be a finite number.*got nan")])
def test_what_is_no_number_is_named_and_no_row_is_lost(values, epoch, said):
    log = train(1, 3)
    with pytest.raises((TypeError, ValueError), match=said):
        log.log(values, epoch=epoch)
    assert len(cells()) == 3 and len(log.rows) == 3


@pytest.mark.parametrize("path", [False, "history", "history.png", "."])
def test_a_path_that_is_no_table_is_refused(path):
    with pytest.raises(ValueError, match=r"ends in \.csv.*got .*History\(png=False\)"):
        History(path)


def test_the_history_of_a_trainer_can_be_read_and_is_never_written_by_another_loop():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(3)
    written = Path("run/history.csv").read_text(encoding="utf-8")
    log = History("run/history.csv", png=False)
    assert [row["epoch"] for row in log.rows] == [1, 2, 3] and log.rows[2]["eval/acc"] == trainer.eval_result["acc"]
    with pytest.raises(ValueError, match="written by the training of a TemplateModel.*another file"):
        log.log({"loss": 1.0})
    log.close()
    assert Path("run/history.csv").read_text(encoding="utf-8") == written


def test_a_path_in_a_trainer_and_a_log_without_a_path_say_what_to_write():
    with pytest.raises(ValueError, match="history.csv lies in the folder of the run.*without the path 'mine.csv'"):
        tiny_trainer(callbacks=[History("mine.csv")]).fit(1)
    with pytest.raises(ValueError, match=r'History\("history.csv"\)'):
        History().log({"loss": 1.0})
    with pytest.raises(ValueError, match="'max', 'min' or None, got 'up'"):
        History("history.csv", mode="up")


def test_the_rows_of_the_history_are_those_of_a_live_plot_that_goes_on():
    train(1, 4)
    plot = LivePlot(where="nowhere")
    plot.rows = History("history.csv").rows
    plot.log({"val_acc": 0.25}, epoch=5)
    plot.close()
    assert [row["epoch"] for row in plot.rows] == [1, 2, 3, 4, 5]
    assert plot._look() == "epoch 5, best acc 0.875 (epoch 4)"


@pytest.mark.slow
def test_the_best_of_ten_thousand_rows_is_told_though_most_are_not_held(monkeypatch):
    plot = LivePlot(where="nowhere")
    for number in range(1, 10_001):
        plot.log({"val_acc": 1 / (1 + abs(number - 1234)), "val_loss": abs(number - 4321) + 1})
    assert len(plot.rows) <= 4000
    plot._look()
    assert plot._best == {"acc": (1234, 1.0), "loss": (4321, 1.0)}
