"""The live figure: once an epoch, whole after a resume, in place in a notebook, and never at the training's cost."""

import io
import re
import sys
import types

import pytest
import torch
from tiny import tiny_trainer, weights

from template import History, LivePlot, ProgressBar
from template.callbacks import live_plot
from template.hooks import Callback


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stderr = Terminal()
    monkeypatch.setattr(live_plot, "sys", types.SimpleNamespace(stderr=stderr, modules={}))
    monkeypatch.setattr(live_plot, "_EVERY_SECONDS", {})  # as epochs are that are not tiny
    return stderr


@pytest.fixture
def clock(monkeypatch):
    """Time that goes on when it is told to; drawing takes ``clock.drawing`` seconds."""
    now = types.SimpleNamespace(seconds=100.0, drawing=0.0)
    monkeypatch.setattr(live_plot.time, "perf_counter", lambda: now.seconds)

    def text_figure(*args, draw=live_plot.text_figure, **options):
        now.seconds += now.drawing
        return draw(*args, **options)

    monkeypatch.setattr(live_plot, "text_figure", text_figure)
    return now


def figures(terminal):
    """The epochs at the right end of each figure's axis."""
    lines = terminal.getvalue().splitlines()
    return [int(lines[number + 1].split()[-1]) for number, line in enumerate(lines) if "└" in line]


def quiet(**attributes):
    return tiny_trainer(callbacks=[ProgressBar(show=False), *attributes.pop("callbacks")], **attributes)


def test_after_each_epoch_the_terminal_shows_all_of_them_and_the_log_none(terminal):
    plot = LivePlot()
    trainer = quiet(callbacks=[plot])
    for _ in trainer.epochs(3):
        trainer.train_loop()
        trainer.eval()
    assert figures(terminal) == [1, 2, 3]
    assert "tol_loss" in terminal.getvalue() and "│" not in trainer.path_of("log.txt").read_text(encoding="utf-8")


def test_its_rows_are_those_of_the_history(terminal):
    plot = LivePlot()
    trainer = quiet(callbacks=[plot])
    trainer.fit(3)
    history = next(callback for callback in trainer.hooks.callbacks if isinstance(callback, History))
    kept = [{name: value for name, value in row.items() if name not in ("global_step", "seconds")} for row in history.rows]
    assert plot.rows == kept


@pytest.mark.parametrize("load", ["auto", "run/epoch2.pth"])
def test_a_resumed_run_shows_the_whole_curve(terminal, load):
    quiet(callbacks=[], ckpt_dir="run").fit(3)
    plot = LivePlot()
    again = quiet(callbacks=[plot], ckpt_dir="run")
    again.load_state(load)
    again.fit(5)
    assert [row["epoch"] for row in plot.rows] == [1, 2, 3, 4, 5] and figures(terminal)[-1] == 5
    assert all("train/tol_loss" in row and "eval/acc" in row for row in plot.rows)


def test_an_epoch_without_evaluation_is_shown_when_the_next_one_begins(terminal):
    plot = LivePlot()
    quiet(callbacks=[plot], eval_loader=None).fit(2)
    assert [sorted(row) for row in plot.rows] == [["epoch", "lr", "train/tol_loss"]] * 2 and figures(terminal)[-1] == 2


def test_the_training_ends_with_the_same_bits_with_and_without_it(terminal):
    ends = []
    for callbacks in ([], [LivePlot()]):
        trainer = quiet(callbacks=callbacks)
        trainer.fit(2)
        ends.append(weights(trainer))
    assert torch.equal(*ends)


class EvaluateInTheMiddle(Callback):
    def on_after_step(self, model):
        if model.global_step % 6 == 3:
            model.eval()


def test_an_evaluation_in_the_middle_of_an_epoch_has_a_place_of_its_own(terminal):
    plot = LivePlot()
    trainer = quiet(callbacks=[plot, EvaluateInTheMiddle()])
    trainer.fit(2)
    assert [row["epoch"] for row in plot.rows] == [0.5, 1, 1.5, 2]
    assert ["train/tol_loss" in row for row in plot.rows] == [False, True, False, True]
    for name, (epoch, value) in plot._best.items():
        assert {row["epoch"]: row[f"eval/{name}"] for row in plot.rows}[epoch] == value == trainer.best_metric[name]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        for number in range(60):
            x = torch.full((6,), number / 60)
            yield x, torch.tensor(number % 3)


def test_with_a_loader_without_a_length_updates_are_counted(terminal):
    plot = LivePlot()
    loader = torch.utils.data.DataLoader(Endless(), 10)
    quiet(callbacks=[plot, EvaluateInTheMiddle()], train_loader=loader, log_per_step=1).fit(2)
    assert [row["epoch"] for row in plot.rows] == [3, 6, 9, 12] and all("train/tol_loss" in row for row in plot.rows)


def test_the_line_of_a_run_that_counts_updates_says_how_many_are_left(monkeypatch, terminal):
    told = []
    monkeypatch.setattr(LivePlot, "_show_line", lambda plot, text: told.append(text))
    monkeypatch.setattr(live_plot, "_LINE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(LivePlot, "_place", lambda plot: "notebook")
    monkeypatch.setattr(LivePlot, "_draw", lambda plot, text="": None)
    monkeypatch.setattr("template.output.time_left.time", Clock())
    trainer = quiet(callbacks=[LivePlot()], log_per_step=1)
    trainer.fit(updates=20)
    assert told[0].startswith("update 0/20 ░░░░░░░░░░░░") and "left" not in told[0]
    assert re.match(r"update 5/20 ███░░░░░░░░░, tol_loss [\d.]+, 0:15 left", told[5])
    assert told[-1].startswith("update 20/20 ████████████, 0:00 left, best acc") or "left" not in told[-1]


class Clock:
    """Each update takes a second."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        self.seconds += 1
        return self.seconds


def test_a_terminal_is_drawn_on_once_an_epoch_however_often_it_is_evaluated(monkeypatch, terminal):
    drawn = []
    monkeypatch.setattr(LivePlot, "_print", lambda plot, key, text: drawn.append(plot.rows[-1]["epoch"]))
    monkeypatch.setattr(live_plot, "_SHARE", 1e9)
    quiet(callbacks=[LivePlot()], eval_per_steps=2).fit(2)
    assert drawn == [1, 2]


class Cut(Callback):
    """Ends the process's training in the middle of epoch 2, as a crash does."""

    def on_after_step(self, model):
        if model.global_step == 9:
            raise ZeroDivisionError


def test_a_run_that_is_cut_in_the_middle_of_an_epoch_ends_with_the_same_bits_and_the_same_curves(terminal):
    whole, continued = LivePlot(), LivePlot()
    trainer = quiet(callbacks=[whole], ckpt_dir="whole")
    trainer.fit(4)
    with pytest.raises(ZeroDivisionError):
        quiet(callbacks=[LivePlot(), Cut()], ckpt_dir="parts", save_per_steps=2).fit(4)
    again = quiet(callbacks=[continued], ckpt_dir="parts", save_per_steps=2)
    again.load_state("parts/last.pth")
    assert again.batches_done > 0
    again.fit(4)
    assert torch.equal(weights(trainer), weights(again)) and continued.rows == whole.rows


def test_of_several_processes_the_main_one_alone_draws(terminal):
    plot, other = LivePlot(), types.SimpleNamespace(is_main=False, epoch=1)
    plot.on_train_start(other)
    plot.on_log(other, {"tol_loss": 1.0})
    plot.on_train_end(other, {"tol_loss": 1.0})
    plot.on_eval_result(other, {"acc": 1.0})
    plot.on_eval_end(other)
    plot.on_exit(other)
    assert plot.rows == [] and terminal.getvalue() == ""


def test_drawing_takes_a_second_and_one_percent_of_the_time_and_the_end_is_always_drawn(terminal, clock):
    clock.drawing = 0.05
    plot = LivePlot()
    for epoch in range(1, 1001):
        clock.seconds += 0.5
        plot.log({"val_acc": 1 - 1 / epoch}, epoch)
    assert figures(terminal)[:20] == list(range(1, 21)) and 110 < len(figures(terminal)) <= 122, "6 of 500 seconds"
    plot.log({"val_acc": 1.0})
    plot.close()
    plot.close()
    assert figures(terminal)[-2:] == [figures(terminal)[-2], 1001] and figures(terminal)[-2] < 1001


def test_ten_thousand_short_steps_bring_a_figure_a_second_to_a_terminal(terminal, clock, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(live_plot.time, "perf_counter", lambda: clock.seconds)
    plot = LivePlot(where="terminal")
    plot._print = lambda key, text: drawn.append(plot.rows[-1]["epoch"])
    drawn = []
    for _ in range(1000):
        clock.seconds += 0.005
        plot.log({"val_acc": 0.5})
    plot.close()
    assert len(drawn) <= 7 and drawn[-1] == 1000


def test_a_run_that_is_stopped_says_so_in_its_line_and_one_that_is_over_does_not(monkeypatch, terminal):
    told = []
    monkeypatch.setattr(LivePlot, "_show_line", lambda plot, text: told.append(text))
    monkeypatch.setattr(LivePlot, "_place", lambda plot: "notebook")
    monkeypatch.setattr(LivePlot, "_draw", lambda plot, text="": None)
    monkeypatch.setattr(live_plot._Cell, "is_here", True)
    monkeypatch.setattr(live_plot._Cell, "show", lambda cell, data: None)

    class Stop(Callback):
        moment, word = 0, True

        def on_after_step(self, model):
            if model.global_step == self.moment:
                model.should_stop = self.word

    stop = Stop()
    trainer = quiet(callbacks=[LivePlot(), stop])
    stop.moment, stop.word = 8, "now"
    trainer.fit(3)
    assert told[-1].startswith("stopped in epoch 2/3 ████░░░░░░░░ 2/6, best acc") and "left" not in told[-1]
    stop.moment, stop.word = 11, True
    trainer.should_stop = False
    trainer.fit(3)
    assert told[-1].startswith("stopped after epoch 2/3 ████████░░░░, best acc")
    trainer.should_stop = False
    trainer.fit(3)
    assert told[-1].startswith("epoch 3/3 ████████████, best acc")


def test_a_loop_of_ones_own_has_curves_a_star_and_the_time_that_is_left(terminal, clock):
    plot = LivePlot(epochs=4)
    for epoch in (1, 2, 3):
        plot.log({"train_loss": torch.tensor(1 / epoch, requires_grad=True), "validation/loss": 2 / epoch, "lr": 0.1}, epoch)
        plot.log({"val_acc": 0.5 if epoch == 2 else 0.25}, epoch)
        clock.seconds += 60
    assert plot.rows[0] == {"epoch": 1, "train/loss": 1.0, "eval/loss": 2.0, "lr": pytest.approx(0.1), "eval/acc": 0.25}
    last = terminal.getvalue().splitlines()
    assert last[-1] == "epoch 3/4, 1:00 left, best acc 0.5 (epoch 2)"
    assert "* 0.5 (2)" in last[-2]


def test_a_smaller_epoch_replaces_what_came_later_and_none_is_the_next_one(terminal):
    plot = LivePlot()
    for epoch in (1, 2, 3, 4, 2, None):
        plot.log({"loss": float(epoch or 9)}, epoch)
    assert plot.rows == [{"epoch": 1, "train/loss": 1.0}, {"epoch": 2, "train/loss": 2.0}, {"epoch": 3, "train/loss": 9.0}]


@pytest.mark.parametrize("mode, epoch", [("min", 1), ("max", 3), (None, 3)])
def test_which_way_a_name_that_says_nothing_is_better_can_be_said(terminal, clock, mode, epoch):
    plot = LivePlot(key="zeta", mode=mode)
    for value in (1.0, 2.0, 3.0):
        plot.log({"val_zeta": value})
    assert terminal.getvalue().splitlines()[-1].endswith(f"best zeta {epoch} (epoch {epoch})")


@pytest.mark.parametrize("value", ["0.5", None, [1.0], torch.zeros(2)], ids=["text", "None", "a list", "two numbers"])
def test_a_value_that_is_no_number_is_named_and_nothing_is_lost(terminal, value):
    plot = LivePlot()
    plot.log({"loss": 1.0})
    with pytest.raises(TypeError, match="'acc' is .*Give a float"):
        plot.log({"loss": 2.0, "acc": value})
    assert plot.rows == [{"epoch": 1, "train/loss": 1.0}]


def test_bad_arguments_list_what_is_accepted():
    with pytest.raises(ValueError, match="notebook.*got 'tty'"):
        LivePlot(where="tty")
    with pytest.raises(ValueError, match="'max', 'min' or None, got 'up'"):
        LivePlot(mode="up")
    with pytest.raises(TypeError, match="got 'first'"):
        LivePlot().log({}, epoch="first")


def test_without_a_terminal_nothing_is_drawn_and_without_a_stderr_nothing_fails(capsys, monkeypatch):
    plot = LivePlot()
    plot.log({"loss": 1.0})
    plot.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", None)
    LivePlot().log({"loss": 1.0})


def test_a_terminal_that_was_closed_ends_the_drawing_alone(terminal, capsys, monkeypatch):
    def write(text):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(terminal, "write", write)
    plot = LivePlot()
    quiet(callbacks=[plot]).fit(2)
    assert capsys.readouterr().out.count("LivePlot draws no more: Broken pipe.") == 1 and len(plot.rows) == 2


def test_ten_thousand_epochs_hold_a_bounded_number_of_rows_with_the_first_and_the_last():
    plot = LivePlot(where="nowhere")
    for epoch in range(1, 10_001):
        plot._note({"train/loss": 1 / epoch}, epoch)
    assert len(plot.rows) <= 4000 and (plot.rows[0]["epoch"], plot.rows[-1]["epoch"]) == (1, 10_000)
