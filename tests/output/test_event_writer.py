"""TensorBoard's own reader finds every point: at once, after a full disk, and next to what another writer left."""

import math
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import FullDisk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, Tiny, run_python, tiny_trainer
from torch.utils.tensorboard import SummaryWriter

from template.output import event_writer
from template.output.event_writer import make_writer


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


def test_two_starts_within_one_second_are_read_in_their_order_whatever_their_process_numbers_are(monkeypatch):
    for now, pid, step in ((1e9 + 0.2, 9998, 1), (1e9 + 0.7, 10002, 2)):  # as text, the second number comes first
        with monkeypatch.context() as patched:
            patched.setattr(event_writer.time, "time", lambda now=now: now)
            patched.setattr(event_writer.os, "getpid", lambda pid=pid: pid)
            writer = make_writer("runs/a")
            writer.add_scalar("loss", step, step)
            writer.close()
    events = EventAccumulator("runs/a").Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_closed_it_goes_on_in_a_new_file():
    writer = make_writer("runs/mine")
    writer.add_scalar("loss", 1, 1)
    writer.close()
    writer.add_scalar("loss", 2, 2)
    writer.close()
    assert points("runs/mine") == [(1, 1), (2, 2)]


# --- scalars of a fast loop -------------------------------------------------------------------------------------------


def steps(folder, tag="loss"):
    return [step for step, _ in points(folder, tag)]


@pytest.fixture
def clock(monkeypatch):
    """``time.monotonic``, which stands still unless it is set."""
    now = [1000.0]
    monkeypatch.setattr(event_writer.time, "monotonic", lambda: now[0])
    return now


def test_values_are_in_the_file_after_flush(clock):
    writer = make_writer("runs/mine")
    for step in range(5):
        writer.add_values({"loss": step / 4, "lr": 0.5}, step)
    assert points("runs/mine") == []
    writer.flush()
    assert points("runs/mine") == [(step, step / 4) for step in range(5)]
    assert points("runs/mine", "lr") == [(step, 0.5) for step in range(5)]
    writer.flush()
    assert steps("runs/mine") == list(range(5))


def test_without_flush_values_are_in_the_file_after_a_second(clock):
    writer = make_writer("runs/mine")
    for step, now in enumerate([1000.5, 1000.9, 1001.1, 1001.9, 1002.0, 1002.2]):
        clock[0] = now
        writer.add_values({"loss": step}, step)
        assert steps("runs/mine") == [[], [], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4, 5]][step]


def test_values_are_in_the_file_after_close():
    writer = make_writer("runs/mine")
    writer.add_values({"loss": 1.0}, 1)
    writer.close()
    assert points("runs/mine") == [(1, 1.0)]
    writer.add_values({"loss": 2.0}, 2)  # in a new file
    writer.close()
    assert points("runs/mine") == [(1, 1.0), (2, 2.0)]


def test_values_keep_their_place_among_other_events_and_their_time(clock, monkeypatch):
    now = [5000.0]
    monkeypatch.setattr(event_writer.time, "time", lambda: now[0])
    writer = make_writer("runs/mine")
    for step in range(6):
        now[0] += 1
        if step % 3 == 2:
            writer.add_scalar("loss", step, step, walltime=now[0])
            assert steps("runs/mine") == list(range(step + 1))  # what waited is written with it
        else:
            writer.add_values({"loss": step}, step)
    events = EventAccumulator("runs/mine", size_guidance={"scalars": 0})
    events.Reload()
    found = [(event.step, event.wall_time) for event in events.Scalars("loss")]
    assert found == [(step, 5001.0 + step) for step in range(6)]


def test_values_may_be_any_floats(clock):
    writer = make_writer("runs/mine")
    values = {"zero": 0.0, "small": 1e-30, "infinite": math.inf, "numpy": np.float64(0.25), "whole": 3}
    writer.add_values({**values, "nan": math.nan}, 7)
    writer.flush()
    assert {tag: points("runs/mine", tag) for tag in values} == {
        tag: [(7, pytest.approx(value, rel=1e-6))] for tag, value in values.items()}
    assert math.isnan(points("runs/mine", "nan")[0][1])


class NoValues(SummaryWriter):
    """A writer of the user's own, which knows ``add_scalar`` alone."""

    calls = []

    def add_scalar(self, tag, value, step):
        self.calls.append((tag, step))
        super().add_scalar(tag, value, step)


def test_a_writer_of_the_users_own_gets_scalars_one_by_one(monkeypatch):
    monkeypatch.setattr(NoValues, "calls", [])
    trainer = Tiny(log_per_step=2)
    trainer.writer = NoValues("elsewhere")
    trainer.check_init()
    trainer.fit(1)
    for tag in ("update/tol_loss", "lr/0"):
        assert [step for name, step in NoValues.calls if name == tag] == [2, 4, 6] == steps("elsewhere", tag)
    assert {("epoch/tol_loss", 1), ("epoch/acc", 1), ("speed/data_wait", 6)} <= set(NoValues.calls)


KILLED = """
import os, signal
from tiny import tiny_trainer
from template import Callback

class Kill(Callback):
    def on_after_step(self, model):
        if model.global_step == 14:                 # two updates after the second save of the second epoch
            model.wait_for_saves()
            os.kill(os.getpid(), signal.SIGKILL)

tiny_trainer(use_tb=True, ckpt_dir="run", log_per_step=1, save_per_steps=4, callbacks=[Kill()]).fit(4)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_a_process_that_is_killed_leaves_every_point_up_to_its_last_checkpoint(tmp_path):
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = run_python("-c", KILLED, cwd=tmp_path, env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    saved = torch.load("run/last.pth")["global_step"]
    assert saved == 12
    for tag in ("update/tol_loss", "lr/0"):
        found = steps("runs/run", tag)
        assert found == list(range(1, len(found) + 1)) and len(found) >= saved
    assert steps("runs/run/train", "epoch/tol_loss") == steps("runs/run/eval", "epoch/acc") == [1, 2]


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


def test_a_full_disk_delays_values_and_loses_none(disk, clock):
    writer = make_writer("runs/mine")
    for step in range(10):
        disk.room = 0 if 3 <= step < 7 else None
        writer.add_values({"loss": step}, step)
        writer.flush()
        assert len(points("runs/mine")) == (3 if 3 <= step < 7 else step + 1)
    assert steps("runs/mine") == list(range(10))


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
