"""What a run keeps of its rows does not grow with its epochs, and a resumed run has the history.csv of one never stopped."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from test_history import Killed, rows, without_seconds
from tiny import Tiny, tiny_trainer

from template.callbacks import history
from template.callbacks.history import History
from template.hooks import Callback
from template.output.csv_table import CsvTable


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A checkpoint holds two to four rows."""
    monkeypatch.setattr(history, "_FEWEST", 2)
    monkeypatch.setattr(history, "_MOST", 4)


def history_of(trainer):
    return next(callback for callback in trainer.hooks.callbacks if isinstance(callback, History))


def epochs_in(folder):
    return [int(row["epoch"]) for row in rows(folder)]


def edit(path, change):
    path = Path(path)
    path.write_text(change(path.read_text()))


def continued(folder, epochs, name="auto", **attributes):
    trainer = tiny_trainer(ckpt_dir=folder, **attributes)
    trainer.load_state(name)
    trainer.fit(epochs)
    return trainer


class Later(Tiny):
    """Its metrics bring another column in epochs 7 and 9."""

    def metric(self, pred, y):
        return super().metric(pred, y) | ({f"late_acc{self.epoch}": 0.25} if self.epoch in (7, 9) else {})


def later(folder, **attributes):
    trainer = Later(ckpt_dir=folder, key_metric="acc", **attributes)
    trainer.check_init(use_tb=False)
    return trainer


# --- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_of_epoch_sixty_is_no_larger_than_that_of_epoch_ten():
    trainer = tiny_trainer(ckpt_dir="run", keep_checkpoints=3)
    sizes, held = {}, []
    for epoch in trainer.epochs(60):
        trainer.train_loop()
        held.append(len(history_of(trainer).state_dict()["rows"]))
        trainer.eval()
        trainer.wait_for_saves()
        sizes[epoch] = os.path.getsize("run/last.pth")
    assert max(held) <= 5 and min(held[4:]) >= 2
    assert max(sizes.values()) - sizes[10] < 1000, sizes
    assert epochs_in("run") == list(range(1, 61))


def test_rows_are_all_rows_as_numbers_whether_they_are_in_memory_or_on_the_disk():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(9)
    own = history_of(trainer)
    assert own.rows == [{name: int(value) if name in ("epoch", "global_step") else float(value)
                         for name, value in row.items()} for row in rows("run")]
    assert len(own.rows) == 9 and len(own._newest) < 9
    again = continued("run", 10)
    assert [row["epoch"] for row in history_of(again).rows] == list(range(1, 11))


def on_whole_files(monkeypatch):
    """The last epochs in history.csv whenever it is written as a whole from here on; digests.csv does not count."""
    whole, replace = [], CsvTable.replace

    def noted(self, rows):
        if self.path.name == "history.csv":
            whole.append(rows[-1]["epoch"])
        replace(self, rows)

    monkeypatch.setattr(CsvTable, "replace", noted)
    return whole


def test_the_file_is_written_as_a_whole_only_for_a_new_column(monkeypatch):
    whole = on_whole_files(monkeypatch)
    later("run").fit(12)
    assert whole == [1, 7, 9]
    assert epochs_in("run") == list(range(1, 13))


def test_a_second_evaluation_of_an_epoch_changes_its_row_and_writes_no_more_than_that(monkeypatch):
    trainer = tiny_trainer(ckpt_dir="run")
    for epoch in trainer.epochs(8):
        trainer.train_loop()
        trainer.eval()
        if epoch == 1:
            whole = on_whole_files(monkeypatch)
        with torch.no_grad():
            trainer.model_list[0][0].weight.mul_(0.5)
        score = trainer.eval()
        assert float(rows("run")[-1]["eval/acc"]) == score and len(rows("run")) == epoch
    assert not whole


# --- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3, 6, 7, 10])
@pytest.mark.parametrize("instant", ["before the row", "in the row", "behind the row", "behind the sync"])
def test_killed_around_the_writing_of_a_row_the_resumed_run_has_the_same_file(monkeypatch, instant, number):
    later("whole").fit(11)
    seen = []

    def strike(self, *args):
        is_now = epoch() == number and not seen
        if is_now and instant != "before the row":
            original(self, *args)
            if instant == "in the row":
                with open(self.path, "r+b") as file:
                    file.truncate(os.path.getsize(self.path) - 9)
        if is_now:
            seen.append(number)
            raise Killed
        return original(self, *args)

    def epoch():
        return trainer.epoch

    name = {"behind the sync": "sync"}.get(instant, "replace" if number in (1, 7) else "append")
    original = getattr(CsvTable, name)
    trainer = later("run")
    with monkeypatch.context() as patch:
        patch.setattr(CsvTable, name, strike)
        patch.setattr(History, "on_exit", lambda self, model: None)
        try:
            trainer.fit(11)
        except Killed:
            trainer.checkpoints.wait()
    again = later("run")
    again.load_state("auto")
    again.fit(11)
    folder = again.ckpt_dir  # a new one where nothing was saved yet that could be continued
    assert without_seconds(folder) == without_seconds("whole")
    assert not list(Path(folder).glob("history_kept*"))


@pytest.mark.parametrize("epoch", [1, 2, 3, 6, 7, 8, 10])
def test_a_branch_from_an_earlier_epoch_takes_its_rows_along_and_leaves_the_others(epoch):
    later("run").fit(10)
    before = Path("run/history.csv").read_bytes()
    branch = later("other")
    branch.load_state(f"run/epoch{epoch}.pth")
    assert epochs_in("other") == list(range(1, epoch + 1))
    branch.fit(10)
    assert without_seconds("other") == without_seconds("run")
    assert Path("run/history.csv").read_bytes() == before


def test_killed_after_going_back_in_its_own_folder_a_run_finds_the_rows_of_its_newest_checkpoint(capsys):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(12)
    before = without_seconds("run")
    trainer.load_state("run/epoch2.pth")
    assert epochs_in("run") == [1, 2]
    assert "What it held is kept in history_kept.csv" in capsys.readouterr().out
    again = tiny_trainer(ckpt_dir="run")  # nothing was saved since
    again.load_state("auto")
    assert without_seconds("run") == before
    assert "was changed" not in capsys.readouterr().out


def test_going_on_from_an_earlier_epoch_in_its_own_folder_leaves_what_later_files_need():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(12)
    before = rows("run")
    trainer.load_state("run/epoch2.pth")
    trainer.change_lr([1e-4])
    trainer.fit(9)
    new = rows("run")
    assert [row["epoch"] for row in new] == [str(number) for number in range(1, 10)] and new[:2] == before[:2]
    assert new[2]["train/tol_loss"] != before[2]["train/tol_loss"]
    other = tiny_trainer(ckpt_dir="other")
    other.load_state("run/epoch12.pth")
    assert rows("other") == before
    continued("run", 10)
    assert rows("run")[:9] == new


def test_in_a_moved_folder_and_from_a_name_of_ones_own_the_run_goes_on():
    tiny_trainer(ckpt_dir="whole").fit(9)
    tiny_trainer(ckpt_dir="old").fit(6)
    shutil.move("old", "new")
    continued("new", 9)
    assert without_seconds("new") == without_seconds("whole")


def test_the_rows_of_weights_alone_and_of_a_file_without_a_history_stay_where_they_are():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(7)
    trainer.load_state("run/epoch3.pth", optim=False)
    assert epochs_in("run") == list(range(1, 8))
    trainer.fit(4)
    assert epochs_in("run") == [1, 2, 3, 4]
    without = tiny_trainer(ckpt_dir="without")
    without.hooks.remove(history_of(without))
    without.fit(2)
    assert continued("without", 4) and epochs_in("without") == [3, 4]


def test_a_checkpoint_that_holds_all_rows_itself_is_continued_also_without_a_file():
    tiny_trainer(ckpt_dir="whole").fit(9)
    tiny_trainer(ckpt_dir="run").fit(7)
    state = torch.load("run/last.pth", weights_only=True)
    numbers = [{name: int(value) if name in ("epoch", "global_step") else float(value) for name, value in row.items()}
               for row in rows("run")]
    state["callbacks"]["History"] = {"rows": numbers}  # as until version 0.2.0
    torch.save(state, "run/last.pth")
    os.unlink("run/history.csv")
    trainer = continued("run", 9)
    assert without_seconds("run") == without_seconds("whole")
    assert len(history_of(trainer).state_dict()["rows"]) <= 4


# --- a file that somebody deleted or edited ---------------------------------------------------------------------------


def test_a_file_that_was_deleted_before_the_resume_is_told_and_goes_on_with_the_newest_rows(capsys):
    tiny_trainer(ckpt_dir="run").fit(8)
    os.unlink("run/history.csv")
    continued("run", 10)
    there = epochs_in("run")
    assert there == list(range(there[0], 11)) and 2 <= len(there) - 2 <= 4
    lacks = f"it has 0 of the {there[0] - 1} rows before epoch {there[0]}."
    assert f"was deleted or changed since this checkpoint was written: {lacks}" in capsys.readouterr().out


def test_a_file_that_was_edited_before_the_resume_keeps_the_edits(capsys):
    tiny_trainer(ckpt_dir="run").fit(8)
    cells = [",mine", ",", ",good"] + [","] * 6
    edit("run/history.csv", lambda text: "\n".join(map("".join, zip(text.splitlines(), cells))))
    continued("run", 10)
    assert [row["mine"] for row in rows("run")] == ["", "good"] + [""] * 8 and epochs_in("run") == list(range(1, 11))
    assert "changed since this checkpoint was written: its rows stay as they are now" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["epoch;loss\n1;2\n2;3\n", "my notes\nof this run\n"])
def test_a_file_that_is_no_table_any_more_is_kept(capsys, text):
    tiny_trainer(ckpt_dir="run").fit(8)
    Path("run/history.csv").write_text(text)
    continued("run", 9)
    assert Path("run/history_kept.csv").read_text() == text
    assert epochs_in("run")[-2:] == [8, 9]
    assert "What it held is kept in history_kept.csv." in capsys.readouterr().out


@pytest.mark.parametrize("change", ["delete", "note", "column"])
def test_a_file_that_somebody_changes_while_the_run_goes_on_is_gone_on_with(capsys, change):
    class Person(Callback):
        def on_train_start(self, model):
            if model.epoch == 7 and change == "delete":
                os.unlink("run/history.csv")
            elif model.epoch == 7:
                edit("run/history.csv", lambda text: text + "a note\n" if change == "note" else
                     "\n".join(line + ",mine" for line in text.splitlines()))

    trainer = tiny_trainer(ckpt_dir="run", callbacks=[Person()])
    trainer.fit(9)
    assert epochs_in("run")[-4:] == [6, 7, 8, 9]
    if change == "delete":
        assert "history.csv was deleted or changed. It goes on with 0 of the " in capsys.readouterr().out
    else:
        assert epochs_in("run") == list(range(1, 10))
    if change == "column":
        assert rows("run")[0]["mine"] == "mine"
    before = without_seconds("run")
    continued("run", 9)
    assert without_seconds("run") == before


def test_a_run_that_replaces_another_one_leaves_its_own_rows_alone():
    tiny_trainer(ckpt_dir="run").fit(8)
    tiny_trainer(ckpt_dir="run", overwrite=True).fit(1)
    assert epochs_in("run") == [1]
    tiny_trainer(ckpt_dir="run", overwrite=True).fit(6)
    assert epochs_in("run") == [1, 2, 3, 4, 5, 6] and not list(Path("run").glob("history_kept*"))
