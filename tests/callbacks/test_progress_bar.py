"""The bar on a terminal, plain lines without one, and no trace of it where it is not wanted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT, Tiny, run_python, tiny_data, tiny_model, tiny_trainer
from torch.utils.data import DataLoader, IterableDataset

from template import Callback
from template.callbacks import progress_bar
from template.callbacks.progress_bar import ProgressBar

ENV = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

SCRIPT = """
import sys, time
import torch
from tiny import Tiny, tiny_data
from torch.utils.data import DataLoader, TensorDataset
from template import ProgressBar

class Slow(Tiny):
    def loss_per_batch(self, batch):
        if self.hooks.callbacks and self.model_list[0].training:
            time.sleep(0.06)  # a bar is redrawn ten times a second at most
        return super().loss_per_batch(batch)

def train(accumulate_steps):
    trainer = Slow(log_per_step=1, accumulate_steps=accumulate_steps,
                   train_loader=DataLoader(TensorDataset(*tiny_data(60)), 10))
    trainer.check_init(use_tb=False)
    trainer.fit(2)

train(1)
"""


def on_a_terminal(script, columns=160):
    """Run with stderr on a terminal; returns what was drawn there and what went to stdout."""
    pty, fcntl, termios, struct = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios", "struct"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, **ENV, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other side was closed
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    said = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == 0, drawn.decode()
    return drawn.decode(), said


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_loss_rate_and_speed_and_counts_updates():
    both, said = on_a_terminal(SCRIPT + "print('accumulating', file=sys.stderr); train(4)")
    drawn, accumulating = both.split("accumulating")
    assert re.search(r"\repoch 1/2 .*/2, ", accumulating)
    for epoch in (1, 2):
        assert re.search(rf"\repoch {epoch}/2 .*/6", drawn)
    assert re.search(r", tol_loss \d\.\d+, \d:\d\d left, ", drawn) and ", lr 0.1, " in drawn and "% waited for data" in drawn
    assert re.search(r"\repoch 2/2 .* best acc \d\.\d+", drawn)
    speeds = [float(speed) for speed in re.findall(r"([\d.e+]+) samples/s", drawn)]
    assert speeds and all(2 < speed < 170 for speed in speeds)  # ten samples in at least 0.06 s, or more on a busy machine
    assert "\r" not in said and "epoch   2 eval" in said
    logs = list(Path("check_point").glob("*/log.txt"))
    for log in logs:
        assert not {"it/s", "update", "\r"} & set(re.findall("it/s|update|\r", log.read_text()))
    assert logs


@pytest.mark.slow
def test_without_a_terminal_nothing_is_drawn(tmp_path):
    done = run_python("-c", SCRIPT, cwd=tmp_path, env=ENV)
    assert "\r" not in done.stdout and done.stderr == ""
    assert "epoch   2 train" in done.stdout


def test_without_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "_PLAIN_LINE_EVERY_SECONDS", 0.0)
    tiny_trainer(log_per_step=3).fit(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "cur:[" in line]
    assert [re.match(r"epoch 1/1 cur:\[(\d)\]\\\[6\] ", line)[1] for line in lines] == ["3", "6"]
    assert all(re.search(r"tol_loss \S+, \d:\d\d left, \S+ samples/s, lr 0.1, ", line) for line in lines)


def test_plain_lines_wait_their_time(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now[0])
    trainer = tiny_trainer(log_per_step=1)
    after = []

    class Clock:
        def on_batch(self, model, batch):
            now[0] += 11.0
            after.append(now[0])

    trainer.hooks.__init__([*trainer.hooks.callbacks, Clock()])
    trainer.train_loop()
    lines = [line for line in capsys.readouterr().out.splitlines() if "cur:[" in line]
    assert ["cur:[3]" in line for line in lines] == [True, False] and "cur:[6]" in lines[1]  # after 33 and 66 seconds


def test_each_epoch_has_its_bar_which_is_closed_before_the_epochs_line(fake_tqdm):
    tiny_trainer(accumulate_steps=4, log_per_step=1).fit(2)
    bars = [bar for bar in fake_tqdm if bar.unit == "update"]
    assert [(bar.options["total"], bar.options["initial"], bar.updates) for bar in bars] == [(2, 0, 2)] * 2
    assert [bar.desc for bar in bars] == ["epoch 1/2", "epoch 2/2"]
    assert [bar.closed for bar in fake_tqdm] == [1, 1, 1, 1]


def test_an_evaluation_has_a_bar_that_waits_two_seconds_before_it_shows(fake_tqdm):
    trainer = tiny_trainer()
    trainer.fit(1)
    trainer.test()
    first, second = (bar for bar in fake_tqdm if bar.unit == "batch")
    assert (first.desc, first.total, first.options["delay"], first.updates, first.closed) == ("evaluation", 3, 2.0, 3, 1)
    assert second.updates == 3


def test_an_evaluation_in_the_midst_of_an_epoch_leaves_its_bar_alone(fake_tqdm):
    class Looks(Callback):
        def on_after_step(self, model):
            model.test()

    tiny_trainer(callbacks=[Looks()]).train_loop()
    assert [(bar.unit, bar.updates, bar.closed) for bar in fake_tqdm] == [("update", 6, 1)]


def test_what_is_printed_within_an_epoch_stands_on_lines_of_its_own(fake_tqdm):
    seen = []

    class Prints(Callback):
        def on_after_step(self, model):
            before = [bar.cleared for bar in fake_tqdm]
            print("a callback", "speaks")
            seen.append(fake_tqdm[-1].cleared - before[-1])

    trainer = tiny_trainer(callbacks=[Prints()], eval_per_steps=2)
    trainer.fit(1)
    assert seen == [1] * 6
    before = [bar.cleared for bar in fake_tqdm]
    assert trainer.stdout_logger.before_line is None
    print("behind the run")
    assert [bar.cleared for bar in fake_tqdm] == before


@pytest.mark.parametrize("room, shown", [
    (None, "tol_loss 0.5, 1:20 left, 99 samples/s, lr 0.1"), (46, "tol_loss 0.5, 1:20 left, 99 samples/s, lr 0.1"),
    (44, "tol_loss 0.5, 1:20 left, 99 samples/s"), (23, "tol_loss 0.5, 1:20 left"), (22, "tol_loss 0.5"),
    (3, "tol_loss 0.5"),
])
def test_what_does_not_fit_is_left_out_from_the_end(room, shown):
    assert progress_bar._fitting(["tol_loss 0.5", "1:20 left", "99 samples/s", "lr 0.1"], room) == shown


def test_the_time_left_counts_the_rest_of_the_epoch_and_the_epochs_after(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now[0])
    left = []

    class Clock(Callback):
        def on_batch(self, model, batch):
            now[0] += 2.0

        def on_log(self, model, values):
            left.append(bar._seconds_left(model))

        def on_eval_start(self, model):
            now[0] += 7.0

    bar = ProgressBar()
    tiny_trainer(callbacks=[bar, Clock()], log_per_step=3, preflight=False).fit(3)  # epochs of 6 updates, 12 s, and 7 s more
    assert left == [6 + 24, 24, 6 + 19, 19, 6, 0]


def test_the_lowest_and_the_highest_rate_are_shown_where_groups_differ(fake_tqdm, monkeypatch):
    monkeypatch.setattr(progress_bar, "_REDRAWN_EVERY_SECONDS", 0.0)
    model = tiny_model()
    groups = [{"params": model[0].parameters(), "lr": 1e-4}, {"params": model[-1].parameters(), "lr": 0.1}]
    tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(groups)], log_per_step=3, preflight=False).train_loop()
    assert ", lr 0.0001 to 0.1" in fake_tqdm[0].postfixes[0]


def test_the_numbers_are_those_of_the_window(fake_tqdm, monkeypatch):
    monkeypatch.setattr(progress_bar, "_REDRAWN_EVERY_SECONDS", 0.0)
    trainer = tiny_trainer(log_per_step=2)
    seen = []

    class Listener:
        def on_log(self, model, values):
            seen.append(f"tol_loss {values['tol_loss']:.4g}")

    trainer.hooks.__init__([*trainer.hooks.callbacks, Listener()])
    trainer.train_loop()
    assert [text.split(", ")[0] for text in fake_tqdm[0].postfixes] == seen and len(seen) == 3


def test_a_resumed_epoch_starts_its_bar_where_it_was(fake_tqdm):
    class Killed(Exception):
        pass

    class Kill:
        def on_after_step(self, model):
            if model.global_step == 4:
                raise Killed

    trainer = tiny_trainer(save_per_steps=2, callbacks=[Kill()], ckpt_dir="run")
    with pytest.raises(Killed):
        trainer.train_loop()
    assert fake_tqdm[0].closed == 1  # also after an error
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("last")
    again.train_loop()
    assert (fake_tqdm[1].options["initial"], fake_tqdm[1].updates) == (2, 4)


class Endless(IterableDataset):
    """Has no length."""

    def __iter__(self):
        yield from zip(*tiny_data(25))


def test_a_loader_without_a_length_has_a_bar_without_an_end(fake_tqdm, monkeypatch, capsys):
    trainer = tiny_trainer(train_loader=DataLoader(Endless(), 10), log_per_step=1)
    trainer.train_loop()
    assert fake_tqdm[0].options["total"] is None and fake_tqdm[0].updates == 3
    monkeypatch.setattr(progress_bar, "_find_tqdm", lambda: (False, False))
    monkeypatch.setattr(progress_bar, "_PLAIN_LINE_EVERY_SECONDS", 0.0)
    tiny_trainer(train_loader=DataLoader(Endless(), 10), log_per_step=1).train_loop()
    assert r"cur:[3]\[?]" in capsys.readouterr().out


def test_not_shown_means_neither_bar_nor_lines(fake_tqdm, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "_PLAIN_LINE_EVERY_SECONDS", 0.0)
    trainer = tiny_trainer(callbacks=[ProgressBar(show=False)], log_per_step=1)
    assert sum(isinstance(callback, ProgressBar) for callback in trainer.hooks.callbacks) == 1
    trainer.fit(1)
    assert fake_tqdm == [] and "cur:[" not in capsys.readouterr().out


def test_without_tqdm_training_runs_and_says_once_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    trainer = tiny_trainer()
    trainer.fit(2)
    said = capsys.readouterr().out
    assert said.count("The progress bar is not shown: the package is missing. pip install tqdm") == 1
    assert trainer.epochs_done == 2


def test_the_bar_waits_for_nothing(fake_tqdm):
    """Beside the log points there is no call that asks the device for a number."""
    asked = []
    original = torch.Tensor.item
    trainer = Tiny(callbacks=[], log_per_step=3, eval_loader=None, preflight=False)
    trainer.check_init(use_tb=False)
    bar = trainer.hooks.callbacks[0]
    assert isinstance(bar, ProgressBar)
    torch.Tensor.item = lambda self: asked.append(1) or original(self)
    try:
        bar.on_train_start(trainer)
        for _ in range(5):
            bar.on_batch(trainer, tiny_data(10))
            bar.on_after_step(trainer)
        bar.on_log(trainer, {"tol_loss": 0.5})
    finally:
        torch.Tensor.item = original
    assert asked == []
