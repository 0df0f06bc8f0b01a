"""A row per epoch as it happens, none twice and none missing, and a picture of them."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, tiny_trainer
from torch.utils.data import DataLoader, TensorDataset

from template.callbacks import history
from template.callbacks.history import History
from template.hooks import Callback
from template.output.csv_table import CsvTable


def rows(folder):
    with open(Path(folder, "history.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_row_is_there_when_its_epoch_is_over_with_the_values_that_were_returned():
    trainer = tiny_trainer(lr_scheduler_type="cosine", lr_scheduler_interval="epoch")
    for epoch in trainer.epochs(3):
        lr = trainer.optimizer_list[0].param_groups[0]["lr"]
        trained = trainer.train_loop()
        score = trainer.eval()
        written = rows(trainer.ckpt_dir)
        assert len(written) == epoch
        assert list(written[-1]) == ["epoch", "global_step", "train/tol_loss", "eval/tol_loss", "eval/acc", "lr", "seconds"]
        last = {name: float(value) for name, value in written[-1].items()}
        assert last["seconds"] >= 0
        assert last | {"seconds": 0} == {
            "epoch": epoch, "global_step": 6 * epoch, "train/tol_loss": trained["tol_loss"], "eval/acc": score,
            "eval/tol_loss": trainer.eval_result["tol_loss"], "lr": lr, "seconds": 0}
    assert not [name for name in os.listdir(trainer.ckpt_dir) if name.startswith(".")]


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["a number", "a tensor"])
def test_the_rate_of_each_row_is_the_number_that_it_was_then(kind):
    model = tiny_model()
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.Adam(model.parameters(), kind(0.0625), foreach=False)],
                           lr_scheduler_type="step", lr_scheduler_args={"step_size": 1, "gamma": 0.5}, ckpt_dir="run")
    trainer.fit(3)
    again = tiny_trainer(model=model, optimizer_list=[torch.optim.Adam(model.parameters(), kind(0.0625), foreach=False)],
                         lr_scheduler_type="step", lr_scheduler_args={"step_size": 1, "gamma": 0.5}, ckpt_dir="run")
    again.load_state("run/epoch2.pth")
    again.fit(3)
    for folder in ("run", again.ckpt_dir):
        assert [row["lr"] for row in rows(folder)] == ["0.0625", "0.03125", "0.015625"]


def test_an_evaluation_every_second_epoch_leaves_the_other_cells_empty():
    trainer = tiny_trainer()
    for epoch in trainer.epochs(4):
        trainer.train_loop()
        if epoch % 2 == 0:
            trainer.eval()
    written = rows(trainer.ckpt_dir)
    assert [row["epoch"] for row in written] == ["1", "2", "3", "4"]
    assert [bool(row["eval/acc"]) for row in written] == [False, True, False, True]
    assert all(row["train/tol_loss"] for row in written)


def test_without_evaluation_the_last_row_is_there_too():
    trainer = tiny_trainer(eval_loader=None)
    trainer.fit(2)
    assert [list(row)[:3] for row in rows(trainer.ckpt_dir)] == [["epoch", "global_step", "train/tol_loss"]] * 2


def test_an_evaluation_after_the_loop_completes_the_last_row():
    trainer = tiny_trainer()
    for _ in trainer.epochs(2):
        trainer.train_loop()
    score = trainer.eval()
    written = rows(trainer.ckpt_dir)
    assert [row["eval/acc"] for row in written] == ["", repr(score)]


def test_an_evaluation_before_the_training_makes_no_row():
    trainer = tiny_trainer()
    trainer.eval()
    trainer.fit(1)
    assert [row["epoch"] for row in rows(trainer.ckpt_dir)] == ["1"]


def test_a_column_that_comes_later_fits():
    class Later(Tiny):
        def metric(self, pred, y):
            return super().metric(pred, y) | ({"late": 0.25} if self.epoch == 2 else {})

    trainer = Later(key_metric="acc")
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    assert [row["eval/late"] for row in rows(trainer.ckpt_dir)] == ["", "0.25"]


def without_seconds(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment, number", [("on_after_step", 9), ("on_after_step", 13), ("on_eval_batch", 2),
                                            ("on_train_end", 2), ("on_eval_result", 2)])
def test_a_resumed_run_has_every_row_once(moment, number):
    """Killed in the second or third epoch, in its training or its evaluation."""
    whole = tiny_trainer(ckpt_dir="whole", save_per_steps=2)
    whole.fit(4)

    class Kill(Callback):
        pass

    def strike(model, *args):
        if model.epochs_done >= 1 and (moment != "on_after_step" or model.global_step == number):
            raise Killed

    kill = Kill()
    setattr(kill, moment, strike)
    trainer = tiny_trainer(ckpt_dir="mine", save_per_steps=2, callbacks=[kill])
    with pytest.raises(Killed):
        trainer.fit(4)
    again = tiny_trainer(ckpt_dir="mine", save_per_steps=2)
    again.load_state("auto")
    again.fit(4)
    assert [row["epoch"] for row in rows("mine")] == ["1", "2", "3", "4"]
    assert without_seconds("mine") == without_seconds("whole")


def test_going_back_to_an_earlier_epoch_drops_the_rows_after_it():
    tiny_trainer(ckpt_dir="run").fit(4)
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("run/epoch2.pth")
    again.train_loop()
    again.eval()
    assert [row["epoch"] for row in rows(again.ckpt_dir)] == ["1", "2", "3"]
    assert [row["epoch"] for row in rows("run")] == ["1", "2", "3", "4"]  # the run that was there is kept


def test_a_table_that_cannot_be_written_is_told_and_the_next_row_brings_all(monkeypatch, capsys):
    class Disk(Callback):
        def on_train_end(self, model, result):
            if model.epoch == 2:
                monkeypatch.setattr(CsvTable, "append", full)
            if model.epoch == 3:
                monkeypatch.setattr(CsvTable, "append", append)

    def full(*args):
        raise OSError(28, "No space left on device")

    append = CsvTable.append
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[Disk(), History(png=False)])
    seen = []
    for _ in trainer.epochs(3):
        trainer.train_loop()
        trainer.eval()
        seen.append([row["epoch"] for row in rows("run")])
    assert seen == [["1"], ["1"], ["1", "2", "3"]]
    assert capsys.readouterr().out.count("history.csv could not be written: No space left on device. Training goes on.") == 1


def test_an_epoch_that_was_given_up_by_loading_an_earlier_one_leaves_no_row():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(2)
    trainer.train_loop()  # of epoch 3, which is not evaluated
    trainer.load_state("run/epoch1.pth")
    trainer.close()
    assert "3" not in [row["epoch"] for row in rows("run")]


# --- the picture ------------------------------------------------------------------------------------------------------


DRAW = History._draw  # which the conftest takes out of all tests


@pytest.fixture
def curves(monkeypatch):
    """They are drawn, in this process since it has matplotlib."""
    import matplotlib.figure  # noqa: F401

    monkeypatch.setattr(History, "_draw", DRAW)


def picture(folder):
    from PIL import Image

    with Image.open(Path(folder, "history.png")) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
def test_the_picture_shows_the_data(curves):
    tiny_trainer(ckpt_dir="a/run").fit(4)
    tiny_trainer(ckpt_dir="b/run").fit(4)
    other = DataLoader(TensorDataset(*tiny_data(seed=9)), 10)
    tiny_trainer(ckpt_dir="c/run", train_loader=other).fit(4)
    a, b, c = (picture(f"{folder}/run") for folder in "abc")
    assert a.shape[0] > 500 and a.shape[1] > a.shape[0]  # two rows of two
    assert np.array_equal(a, b)
    assert a.shape == c.shape and not np.array_equal(a, c)


def test_the_charts_hold_the_rows_values_and_the_best_point(monkeypatch, curves):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: drawn.append(self))
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(4)
    charts = {axes.get_title(): axes for axes in drawn[-1].axes}
    assert list(charts) == ["tol_loss", "acc", "learning rate"]
    (heading,) = drawn[-1].texts
    assert heading.get_text().startswith("run  ·  4 epochs, best acc 0.26")
    lines = {line.get_label().split()[0]: (list(line.get_xdata()), list(line.get_ydata()))
             for line in charts["tol_loss"].lines}
    for part in ("train", "eval"):
        assert lines[part] == ([1, 2, 3, 4], [float(row[f"{part}/tol_loss"]) for row in rows("run")])
    (line,) = [line for line in charts["acc"].lines if line.get_label().startswith("best")]
    scores = [float(row["eval/acc"]) for row in rows("run")]
    (x,), (y,) = line.get_xdata(), line.get_ydata()
    assert y == max(scores) == scores[x - 1]


class Clock:
    """In the place of ``time``: an epoch takes so many seconds, and a picture too."""

    def __init__(self, of_an_epoch, of_a_picture):
        self.of_an_epoch, self.of_a_picture, self.now, self.drawn = of_an_epoch, of_a_picture, 1000.0, []

    def perf_counter(self):
        return self.now

    def draw(self, rows, *args):
        self.now += self.of_a_picture
        self.drawn.append(rows[-1]["epoch"])
        return b""

    def run(self, monkeypatch, epochs):
        monkeypatch.setattr(history, "time", self)
        monkeypatch.setattr(history, "draw", self.draw)
        trainer = tiny_trainer()
        for _ in trainer.epochs(epochs):
            trainer.train_loop()
            self.now += self.of_an_epoch
            trainer.eval()
        return self


@pytest.mark.slow
def test_all_pictures_together_take_one_percent_of_the_time_and_the_last_one_is_drawn(monkeypatch, curves):
    clock = Clock(of_an_epoch=100, of_a_picture=8).run(monkeypatch, 50)
    assert clock.drawn == [1, 16, 24, 32, 40, 48, 50]  # the first is expected to take a second
    assert Clock(of_an_epoch=1, of_a_picture=0.0).run(monkeypatch, 250).drawn == [100, 131, 162, 193, 224, 250]


def test_the_end_of_a_short_run_draws_once_and_a_second_end_not_again(monkeypatch, curves):
    drawn = []
    monkeypatch.setattr(history, "draw", lambda rows, *args: drawn.append(len(rows)) or b"")
    trainer = tiny_trainer()
    trainer.fit(3)
    trainer.close()
    trainer.test()
    trainer.close()
    assert drawn == [3]
    trainer.fit(4)
    assert drawn == [3, 4]


def test_a_run_of_one_epoch_has_a_picture(curves):
    tiny_trainer(ckpt_dir="run").fit(1)
    assert picture("run").shape[0] > 500


@pytest.mark.slow
def test_the_picture_of_a_resumed_run_shows_all_of_it(monkeypatch, curves):
    monkeypatch.setattr(history, "_FEWEST", 1)
    monkeypatch.setattr(history, "_MOST", 2)
    tiny_trainer(ckpt_dir="parts/run").fit(3)
    again = tiny_trainer(ckpt_dir="parts/run")
    again.load_state("auto")
    again.fit(6)
    tiny_trainer(ckpt_dir="whole/run").fit(6)
    assert np.array_equal(picture("parts/run"), picture("whole/run"))


def test_png_off_draws_nothing(curves):
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[History(png=False)])
    trainer.fit(2)
    assert sum(isinstance(callback, History) for callback in trainer.hooks.callbacks) == 1
    assert not os.path.exists("run/history.png") and len(rows("run")) == 2


def test_without_matplotlib_it_says_so_once_and_the_csv_is_all(monkeypatch, capsys, curves):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(history, "_PNG_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(history, "_PNG_SHARE", 1e9)
    tiny_trainer(ckpt_dir="run").fit(4)
    assert capsys.readouterr().out.count("history.png is not drawn: the package is missing. pip install matplotlib") == 1
    assert len(rows("run")) == 4 and not os.path.exists("run/history.png")


def test_drawing_leaves_the_users_figures_and_backend_alone(curves):
    import matplotlib
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    plt.switch_backend("svg")
    mine = plt.figure()
    tiny_trainer().fit(2)
    assert matplotlib.get_backend() == "svg" and plt.get_fignums() == [mine.number]
    plt.close(mine)
    plt.switch_backend(before)


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_told_and_the_old_one_stays(monkeypatch, capsys, curves):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(2)
    before = Path("run/history.png").read_bytes()

    def full(path, content):
        if path.name == "history.png":
            raise OSError(28, "No space left on device")
        original(path, content)

    original = history.replace_file
    monkeypatch.setattr(history, "replace_file", full)
    trainer.fit(3)
    assert "history.png could not be written: No space left on device" in capsys.readouterr().out
    assert Path("run/history.png").read_bytes() == before and len(rows("run")) == 3
