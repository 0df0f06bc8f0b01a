"""Saves that come while an older one is written: training goes on, and what was promised is there."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_saver import FULL, Disk
from tiny import tiny_trainer, weights

from template import Callback
from template.checkpoint import files, memory
from template.checkpoint import saver as saver_module
from template.checkpoint.plain_data import HostCopy
from template.checkpoint.saver import BEHIND, IN_PLACE, Saver


@pytest.fixture
def saver():
    made = Saver()
    yield made
    made._unwritten.clear()
    made.close()
    made.failed.clear()


@pytest.fixture
def disk(saver):
    """It writes "first", and holds it until ``go`` is set."""
    made = Disk()
    made.go.clear()
    made.save(saver, "first", {"n": 0})
    assert made.begun.wait(30)
    yield made
    made.go.set()


def release(saver, disk):
    disk.go.set()
    saver.wait()
    return [(path, state["n"]) for path, state in disk.files]


# --- the row of what waits --------------------------------------------------------------------------------------------


def test_of_states_that_wait_to_become_the_newest_one_is_written_and_it_is_the_newest(saver, disk):
    weight = torch.zeros(3)
    for n in range(1, 8):
        weight.fill_(n)
        disk.save(saver, "last", {"n": n, "w": weight}, f"update {n}", replaced=BEHIND)
    weight.fill_(99)
    assert release(saver, disk) == [("first", 0), ("last", 7)] and disk.files[1][1]["w"] == [7, 7, 7]
    assert len(saver._copies["last"]) == 1 and saver._on_disk["last"] == "update 7"


def test_a_state_that_has_nothing_to_wait_for_is_written_also_when_a_newer_one_comes_before_the_thread_woke_up(saver, disk):
    release(saver, disk)
    submit, woken = saver._executor.submit, threading.Event()
    saver._executor.submit = lambda call, one: submit(lambda: woken.wait(30) and call(one))
    for n in (1, 2, 3):
        disk.save(saver, "last", {"n": n}, replaced=BEHIND)
    woken.set()
    assert release(saver, disk) == [("first", 0), ("last", 1), ("last", 3)]


def test_a_state_that_was_promised_is_written_and_at_most_two_others_have_memory(saver, disk):
    for n in (1, 2):
        disk.save(saver, "last", {"n": n, "w": torch.ones(2)}, replaced=BEHIND)
    disk.save(saver, "last", {"n": 3, "w": torch.ones(2)})  # epoch3.pth
    for n in (4, 5, 6):
        disk.save(saver, "last", {"n": n, "w": torch.ones(2)}, replaced=BEHIND)
    assert release(saver, disk) == [("first", 0), ("last", 3), ("last", 6)] and len(saver._copies["last"]) == 2


def test_the_newest_state_comes_behind_the_files_that_it_knows_of_and_the_best_before_states_that_know_it(saver, disk):
    disk.save(saver, "last", {"n": 1}, replaced=BEHIND)
    disk.save(saver, "best", {"n": 2}, replaced=IN_PLACE)
    disk.save(saver, "last", {"n": 2})  # epoch2.pth, which says that the best epoch is the second one
    disk.save(saver, "best", {"n": 3}, replaced=IN_PLACE)
    disk.save(saver, "last", {"n": 3}, replaced=BEHIND)
    disk.save(saver, "best", {"n": 4}, "epoch 4", replaced=IN_PLACE)
    disk.save(saver, "last", {"n": 4}, replaced=BEHIND)
    assert release(saver, disk) == [("first", 0), ("best", 4), ("last", 2), ("last", 4)]
    assert saver._on_disk["best"] == "epoch 4" and len(saver._copies["best"]) == 1


def test_without_room_for_another_copy_the_training_waits_as_long_as_the_one_before_takes(saver, disk, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 8007.0)
    disk.save(saver, "a", {"n": 1, "w": torch.ones(1001)})
    threading.Timer(0.1, disk.go.set).start()
    disk.save(saver, "a", {"n": 2, "w": torch.ones(1001)})
    assert [state["n"] for _, state in disk.files][:2] == [0, 1]
    saver.wait()
    assert len(disk.files) == 3 and len(saver._copies["a"]) == 1


@pytest.mark.parametrize("replaced, written", [(None, [1, 2]), (BEHIND, [2]), (IN_PLACE, [2])])
def test_when_a_copy_fails_half_way_what_was_overwritten_is_never_written(saver, disk, monkeypatch, replaced, written):
    fill = HostCopy.fill

    def fails(self, state):
        copied = fill(self, state)
        if state["n"] == 2:
            raise MemoryError
        return copied

    disk.save(saver, "a", {"n": 1, "w": torch.ones(2)}, replaced=replaced)
    monkeypatch.setattr(HostCopy, "fill", fails)
    threading.Timer(0.1, disk.go.set).start()
    disk.save(saver, "a", {"n": 2, "w": torch.zeros(2)}, replaced=replaced)  # here and now, as there is no memory
    assert [(state["n"], state["w"]) for path, state in disk.files if path == "a"] == [
        (n, [2.0 - n] * 2) for n in written]


def test_a_failure_is_told_and_the_newer_state_that_waits_takes_its_place(saver, disk, capsys):
    disk.error["a"] = FULL
    disk.save(saver, "a", {"n": 1}, "epoch 1")
    disk.save(saver, "a", {"n": 2}, "epoch 2")
    write, disk.error["a"] = disk.write("a"), None

    def fails_once(state):
        if state["n"] == 1:
            raise FULL
        write(state)

    for one in saver._writes["a"]:
        one.write = fails_once
    assert release(saver, disk) == [("first", 0), ("a", 2)]
    told = capsys.readouterr().out
    assert "SAVE FAILED: a of epoch 1" in told and "Saving works again: a of epoch 2 is written." in told
    assert not saver.failed and not saver._unwritten


def test_a_state_that_failed_is_not_given_to_the_thread_a_second_time_while_it_waits(saver, disk):
    disk.error["a"] = FULL
    disk.save(saver, "a", {"n": 1})
    release(saver, disk)
    disk.error.clear()
    disk.go.clear()
    for n in (2, 3, 4):
        disk.save(saver, "b", {"n": n}, replaced=BEHIND)
    assert release(saver, disk) == [("first", 0), ("a", 1), ("b", 4)]


def test_an_error_of_another_kind_is_raised_once_and_not_again_for_the_state_behind_it(saver, disk):
    disk.error["a"] = FloatingPointError("not finite")
    disk.save(saver, "a", {"n": 1})
    disk.save(saver, "a", {"n": 2})
    with pytest.raises(FloatingPointError):
        release(saver, disk)
    saver.wait()
    saver.close()


def test_an_interrupt_while_it_waits_gives_no_memory_away_that_is_being_written(saver, disk, monkeypatch):
    disk.save(saver, "a", {"n": 1, "w": torch.ones(2)})

    def interrupted(futures):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saver_module, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saver.wait()
    disk.save(saver, "a", {"n": 2, "w": torch.zeros(2)})  # a notebook goes on
    release(saver, disk)
    assert [(state["n"], state["w"]) for path, state in disk.files if path == "a"] == [(1, [1, 1]), (2, [0, 0])]


def test_a_disk_that_hangs_is_told_after_a_minute_and_more_rarely_then(saver, disk, capsys, monkeypatch):
    now = saver._writes["first"][0].began
    told = []
    for seconds in (1, 59, 61, 100, 121, 130, 250):
        monkeypatch.setattr(saver_module, "time", SimpleNamespace(monotonic=lambda at=now + seconds: at))
        disk.save(saver, "last", {"n": seconds}, replaced=BEHIND)
        told.append(capsys.readouterr().out)
    assert [len(text) > 0 for text in told] == [False, False, True, False, False, True, False]
    assert told[2].startswith("The disk is slow: first of epoch 1, update 6 is not complete after 61 s. Training goes on")


# --- room -------------------------------------------------------------------------------------------------------------


def test_the_free_memory_is_the_least_of_what_machine_and_container_leave(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    group = tmp_path / "memory.max", tmp_path / "memory.current", "inactive_file"
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUPS", [])
    assert memory.free_memory() == 5000 * 1024 and memory.has_room_for(2_560_000) and not memory.has_room_for(2_560_001)
    monkeypatch.setattr(memory, "_GROUPS", [group])
    assert memory.free_memory() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() == 5000 * 1024
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "not there")
    assert memory.has_room_for(5e8) and not memory.has_room_for(6e8)  # nobody tells: a gigabyte


# --- a training -------------------------------------------------------------------------------------------------------


class SlowDisk(Callback):
    """The first checkpoint is not complete before update ``until``, at which ``at_the_end`` is called; then all are."""

    def __init__(self, monkeypatch, until, at_the_end=lambda: None):
        self.go, self.until, self.at_the_end = threading.Event(), until, at_the_end
        self.written, verify = [], files._verify

        def slow(temporary):
            assert self.go.wait(30)
            verify(temporary)
            self.written.append(temporary.name.split(".")[1])

        monkeypatch.setattr(files, "_verify", slow)

    def on_after_step(self, model):
        if model.global_step == self.until:
            assert not self.written
            self.at_the_end()
            self.go.set()


def undisturbed(epochs=3):
    """6 updates an epoch."""
    trainer = tiny_trainer(ckpt_dir="undisturbed")
    trainer.fit(epochs)
    return trainer


def vector(path):
    return torch.cat([value.double().flatten() for value in torch.load(path)["model0"].values()])


def test_training_goes_on_while_a_save_is_written_and_every_file_is_there_in_the_end(monkeypatch):
    whole = undisturbed()
    slow = SlowDisk(monkeypatch, until=11)  # in the second epoch: epoch1.pth and the newest state wait
    trainer = tiny_trainer(ckpt_dir="run", save_per_steps=1, callbacks=[slow])
    trainer.fit(3)
    assert torch.equal(weights(trainer), weights(whole))
    for name in ("last", "best", "epoch1", "epoch2", "epoch3"):
        assert torch.equal(vector(f"run/{name}.pth"), vector(f"undisturbed/{name}.pth")), name
    assert slow.written.count("last") <= 12  # of 18 in an epoch and 3 behind one: 1, the first epoch, 11, and what was left
    assert len(trainer.checkpoints.saver._copies) == 0


@pytest.mark.parametrize("until", [5, 11, 14])
def test_a_kill_while_saves_wait_goes_back_to_the_last_complete_file_and_on_to_the_same_bits(monkeypatch, until):
    """A copy of the folder is what a kill at that moment leaves."""
    whole = undisturbed()
    tiny_trainer(ckpt_dir="run", save_per_steps=2).fit(updates=3)
    slow = SlowDisk(monkeypatch, until, lambda: shutil.copytree("run", "killed"))
    first = tiny_trainer(ckpt_dir="run", save_per_steps=2, callbacks=[slow])
    first.load_state("auto")
    first.fit(3)
    assert torch.equal(weights(first), weights(whole))
    again = tiny_trainer(ckpt_dir="killed", save_per_steps=2)
    again.load_state("auto")
    assert again.global_step == 3  # nothing later was complete
    again.fit(3)
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(vector("killed/last.pth"), weights(whole))


def test_an_error_while_saves_wait_loses_nothing_of_what_was_due(monkeypatch):
    def fail():
        threading.Timer(0.1, slow.go.set).start()
        raise ZeroDivisionError

    slow = SlowDisk(monkeypatch, 9, fail)  # in the midst of what follows update 9: that state is not exact
    with pytest.raises(ZeroDivisionError):
        tiny_trainer(ckpt_dir="run", save_per_steps=1, callbacks=[slow]).fit(3)
    assert torch.load("run/last.pth")["global_step"] == 8
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("auto")
    again.fit(3)
    assert torch.equal(weights(again), weights(undisturbed()))


def test_a_file_that_the_user_asks_for_is_there_with_that_very_state(monkeypatch):
    class Asks(Callback):
        def on_after_step(self, model):
            if model.global_step == 9:
                threading.Timer(0.1, slow.go.set).start()
                model.save_state("mine.pth")
                assert torch.equal(vector("mine.pth"), weights(model)) and torch.load("mine.pth")["global_step"] == 9

    slow = SlowDisk(monkeypatch, None)
    tiny_trainer(ckpt_dir="run", save_per_steps=1, callbacks=[slow, Asks()]).fit(2)
    assert Path("mine.pth").exists()


def test_a_training_that_is_stopped_in_an_epoch_waits_until_its_state_is_on_the_disk(monkeypatch):
    def stop():
        threading.Timer(0.1, slow.go.set).start()
        trainer.should_stop = "now"

    slow = SlowDisk(monkeypatch, 9, lambda: None)
    slow.on_after_step = lambda model: stop() if model.global_step == 9 else None
    trainer = tiny_trainer(ckpt_dir="run", save_per_steps=2, callbacks=[slow])
    trainer.fit(3)
    assert torch.load("run/last.pth")["global_step"] == 9 and torch.equal(vector("run/last.pth"), weights(trainer))
