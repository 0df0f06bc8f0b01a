"""When files of a run are written, by whom they are kept, and that using weights writes none."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny import Tiny, tiny_trainer, weights
from torch import nn

from template.run import checkpoints


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix in (".pth", ".csv")}


def vector(state):
    return torch.cat([value.double().flatten() for value in state["model0"].values()])


# --- using weights, and going back ------------------------------------------------------------------------------------


def fitted(**attributes):
    trainer = tiny_trainer(ckpt_dir="run", **attributes)
    trainer.fit(5)
    trainer.best_epoch.clear()
    return trainer


@pytest.mark.parametrize("way", [lambda trainer: trainer.use_best(), lambda trainer: trainer.load_state("best"),
                                 lambda trainer: trainer.load_state("best", optim=False)],
                         ids=["use_best", "load_state", "optim=False"])
def test_looking_with_the_best_weights_writes_nothing_that_a_resume_would_take(way):
    trainer = fitted(key_metric="tol_loss")
    last, before = weights(trainer), contents("run")
    assert torch.load("run/best.pth")["epoch"] < 5, "the last epoch is the best one, which shows nothing"
    way(trainer)
    best = vector(torch.load("run/best.pth"))
    assert torch.equal(weights(trainer), best) and not torch.equal(best, last)
    trainer.eval()
    trainer.test()
    trainer.predict(trainer.eval_loader)
    trainer.close()
    assert contents("run") == before
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("auto")
    assert torch.equal(weights(again), last) and again.epochs_done == 5


def test_use_best_touches_no_counter_and_training_may_go_on_with_these_weights():
    trainer = fitted(key_metric="tol_loss")
    counters = trainer.epoch, trainer.epochs_done, trainer.global_step, trainer.global_step_eval
    assert trainer.use_best() == str(Path("run/best.pth"))
    assert counters == (trainer.epoch, trainer.epochs_done, trainer.global_step, trainer.global_step_eval)
    trainer.fit(6)
    state = torch.load("run/last.pth")
    assert state["epochs_done"] == 6 and torch.equal(vector(state), weights(trainer))


def test_use_best_after_an_epoch_that_was_not_evaluated_loses_nothing_of_it():
    trainer = tiny_trainer(ckpt_dir="run")
    for _ in range(2):
        trainer.train_loop()
        trainer.eval()
    trainer.train_loop()
    trained = weights(trainer)
    trainer.use_best()
    assert torch.equal(vector(torch.load("run/last.pth")), trained)


def test_use_best_without_a_best_file_says_so():
    trainer = tiny_trainer(ckpt_dir="run")
    with pytest.raises(FileNotFoundError, match="best.pth"):
        trainer.use_best()


# --- files are there when eval() returns ------------------------------------------------------------------------------


def test_in_a_plain_loop_every_file_is_there_when_eval_returns():
    trainer = tiny_trainer(ckpt_dir="run", key_metric="tol_loss")
    for epoch in range(1, 5):
        trainer.train_loop()
        trainer.eval(save_per_epochs=2)
        assert torch.load("run/last.pth")["epochs_done"] == epoch
        assert Path(f"run/epoch{epoch}.pth").exists() == (epoch % 2 == 0)
        assert torch.load("run/best.pth")["epoch"] == trainer.best_epoch["tol_loss"]
        shutil.copy("run/best.pth", f"copy{epoch}.pth")


def test_in_the_loop_of_epochs_the_training_does_not_wait(monkeypatch):
    trainer, waited = tiny_trainer(ckpt_dir="run"), []
    original = trainer.checkpoints.wait
    monkeypatch.setattr(trainer.checkpoints, "wait", lambda: waited.append(1) or original())
    trainer.fit(3)
    assert not waited and torch.load("run/last.pth")["epochs_done"] == 3
    trainer.train_loop()
    trainer.eval()
    assert waited


# --- a folder that holds a run ----------------------------------------------------------------------------------------


def test_a_second_start_keeps_the_run_that_is_there_and_begins_beside_it(capsys):
    tiny_trainer(ckpt_dir="check_point/mine").fit(6)
    before = contents("check_point/mine")
    for number in (2, 3):
        capsys.readouterr()
        trainer = tiny_trainer(ckpt_dir="check_point/mine", use_tb=True)
        said = capsys.readouterr().out
        assert f"check_point/mine holds a run already, which is kept: this one begins in check_point/mine_{number}" in said
        trainer.fit(1)
        assert Path(trainer.ckpt_dir).name == trainer.run_name == f"mine_{number}"
        assert {path.name for path in Path(trainer.ckpt_dir).glob("epoch*")} == {"epoch1.pth"}
    assert contents("check_point/mine") == before


def test_auto_goes_on_with_the_newest_run_of_that_name_in_its_folder_and_leaves_no_other():
    tiny_trainer(ckpt_dir="mine").fit(2)
    tiny_trainer(ckpt_dir="mine").fit(3)
    os.makedirs("mine_7")  # of somebody else, who chose that name
    tiny_trainer(ckpt_dir="mine_7").fit(1)
    again = tiny_trainer(ckpt_dir="mine")
    assert again.load_state("auto") == str(Path("mine_2/last.pth")) and again.ckpt_dir == "mine_2"
    again.fit(4)
    assert torch.load("mine_2/last.pth")["epochs_done"] == 4 and torch.load("mine/last.pth")["epochs_done"] == 2
    assert {path.name for path in Path().glob("mine*")} == {"mine", "mine_2", "mine_7"}


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_best_and_the_last_of_that_name_are_found_from_a_new_start(name):
    first = tiny_trainer(ckpt_dir="mine")
    first.fit(2)
    again = tiny_trainer(ckpt_dir="mine")
    assert again.load_state(name) == str(Path(f"mine/{name}.pth"))
    assert again.ckpt_dir == ("mine" if name == "last" else "mine_2")


def test_a_folder_without_a_run_in_it_is_taken():
    os.makedirs("mine")
    Path("mine/notes.txt").write_text("mine")
    assert tiny_trainer(ckpt_dir="mine").ckpt_dir == tiny_trainer(ckpt_dir="mine").ckpt_dir == "mine"


def test_overwrite_replaces_the_run_that_is_there_at_the_first_save_and_not_before():
    tiny_trainer(ckpt_dir="mine").fit(4)
    before = contents("mine")
    trainer = tiny_trainer(ckpt_dir="mine", overwrite=True)
    assert trainer.ckpt_dir == "mine" and contents("mine") == before
    trainer.fit(1)
    assert {path.name for path in Path("mine").glob("*.pth")} == {"best.pth", "last.pth", "epoch1.pth"}


def test_overwrite_deletes_nothing_of_a_run_that_is_continued():
    tiny_trainer(ckpt_dir="mine").fit(4)
    trainer = tiny_trainer(ckpt_dir="mine", overwrite=True)
    trainer.load_state("auto")
    trainer.fit(5)
    assert {f"epoch{number}.pth" for number in range(1, 6)} <= {path.name for path in Path("mine").glob("*.pth")}


# --- what it will come to ---------------------------------------------------------------------------------------------


class Large(Tiny):
    def __init__(self, **attributes):
        model = nn.Sequential(nn.Linear(6, 1000), nn.Linear(1000, 100), nn.Linear(100, 3))
        super().__init__(model=model, optimizer_list=[torch.optim.Adam(model.parameters())], ckpt_dir="run", **attributes)


def test_the_size_of_all_checkpoints_is_told_once_where_it_is_much(monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "_MUCH", 1e6)
    for keep, epochs, told in ((None, 10, 1), (3, 10, 0), (None, 3, 0)):
        trainer = Large(keep_checkpoints=keep, overwrite=True, total_epochs=epochs)
        trainer.check_init(use_tb=False)
        trainer.train_loop()
        trainer.eval()
        trainer.train_loop()
        trainer.eval()
        said = capsys.readouterr().out
        assert said.count("Every epoch<N>.pth is kept") == told, (keep, epochs)
        if told:
            size = os.path.getsize("run/epoch1.pth")
            found = re.search(r"kept, (\S+) GB each: 10 epochs come to (\S+) GB", said)
            each, total = map(float, found.groups())
            assert each == pytest.approx(size / 1e9, rel=0.1) and total == pytest.approx(10 * size / 1e9, rel=0.1)


def test_the_size_is_not_told_of_a_small_model(capsys):
    tiny_trainer(ckpt_dir="run").fit(3)
    assert "is kept" not in capsys.readouterr().out
