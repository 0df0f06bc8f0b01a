"""TensorBoard's own reader finds every point: at once, after a full disk, and next to what another writer left."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from full_disk import FullDisk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_trainer
from torch.utils.tensorboard import SummaryWriter

from template.event_writer import make_writer


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def points(folder, tag="loss"):
    """``[(step, value), …]`` as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def test_it_is_a_summary_writer_and_so_are_those_of_sub_folders():
    writer = make_writer(Path("runs/mine"))
    assert isinstance(writer, SummaryWriter) and writer.log_dir == writer.get_logdir() == "runs/mine"
    part = type(writer)("runs/mine/train")
    part.add_scalar("loss", 0.5, 1)
    assert points("runs/mine/train") == [(1, 0.5)] and points("runs/mine") == []


def test_a_point_is_in_the_file_when_the_call_returns():
    writer = make_writer("runs/mine")
    for step in range(5):
        writer.add_scalar("loss", step / 4, step)
        assert points("runs/mine") == [(number, number / 4) for number in range(step + 1)]  # neither flushed nor closed


def test_everything_else_that_a_summary_writer_writes_arrives_too():
    with make_writer("runs/mine") as writer:
        writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 3)
        writer.add_histogram("weights", torch.arange(5.0), 3)
        writer.add_image("picture", torch.zeros(3, 4, 4), 3)
        writer.add_text("note", "hello", 3)
        writer.add_hparams({"lr": 0.1}, {"acc": 0.5}, run_name="trial")
        writer.flush()
    events = EventAccumulator("runs/mine")
    events.Reload()
    assert (events.Tags()["histograms"], events.Tags()["images"]) == (["weights"], ["picture"])
    assert "note/text_summary" in events.Tags()["tensors"]
    assert points("runs/mine/both_a", "both") == [(3, 1.0)] and points("runs/mine/trial", "acc") == [(0, 0.5)]


def test_two_writers_of_one_folder_made_in_one_second_do_not_share_a_file():
    writers = [make_writer("runs/mine") for _ in range(3)]
    for step in range(4):
        for number, writer in enumerate(writers):
            writer.add_scalar(f"loss{number}", step, step)
    assert len(os.listdir("runs/mine")) == 3
    for number in range(3):
        assert points("runs/mine", f"loss{number}") == [(step, step) for step in range(4)]


def test_closed_it_goes_on_in_a_new_file():
    writer = make_writer("runs/mine")
    writer.add_scalar("loss", 1, 1)
    writer.close()
    writer.add_scalar("loss", 2, 2)
    writer.close()
    assert points("runs/mine") == [(1, 1), (2, 2)]


# --- when the disk does not take it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 13, 40])
def test_a_full_disk_delays_points_and_loses_none(disk, room, capsys):
    writer = make_writer("runs/mine")
    for step in range(10):
        if step == 3:
            disk.room = room  # a record is cut at any byte
        if step == 7:
            assert points("runs/mine") == [(0, 0), (1, 1), (2, 2)]  # what is cut off is passed over
            disk.room = None
        writer.add_scalar("loss", step, step)
        writer.flush()
    assert points("runs/mine") == [(number, number) for number in range(10)]
    assert capsys.readouterr().out.count("cannot be written: No space left on device") == 1 and disk.refused > 3


def test_a_disk_that_is_full_from_the_beginning_to_the_end_raises_nowhere(disk, capsys):
    disk.room = 0
    writer = make_writer("runs/mine")
    for step in range(10):
        writer.add_scalar("loss", step, step)
    writer.flush()
    writer.close()
    writer.add_scalar("loss", 11, 11)
    writer.close()
    assert points("runs/mine") == []


def test_a_folder_that_cannot_be_made_at_first_gets_all_points_later(capsys):
    Path("runs").touch()  # a file in its place
    writer = make_writer("runs/mine")
    writer.add_scalar("loss", 1, 1)
    assert capsys.readouterr().out.count("cannot be written") == 1
    os.unlink("runs")
    writer.add_scalar("loss", 2, 2)
    assert points("runs/mine") == [(1, 1), (2, 2)]


def test_a_folder_that_was_deleted_is_begun_anew_and_told(capsys):
    writer = make_writer("runs/mine")
    writer.add_scalar("loss", 1, 1)
    shutil.rmtree("runs")
    for step in (2, 3):
        writer.add_scalar("loss", step, step)
    assert points("runs/mine") == [(2, 2), (3, 3)]
    assert capsys.readouterr().out.count("was deleted. It is begun anew.") == 1


def test_a_training_on_a_disk_without_room_for_events_goes_on_and_has_all_points_in_the_end(disk):
    trainer = tiny_trainer(use_tb=True, ckpt_dir="check_point/mine", log_per_step=2, eval_loader=None)
    for epoch in trainer.epochs(3):
        disk.room = 0 if epoch == 2 else None
        trainer.train_loop()
    assert [step for step, _ in points("runs/mine", "update/tol_loss")] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [step for step, _ in points("runs/mine/train", "epoch/tol_loss")] == [1, 2, 3]


def test_without_the_package_it_is_none_and_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert make_writer("runs/mine") is None
    assert "the package is missing. pip install tensorboard" in capsys.readouterr().out and not os.path.exists("runs")
