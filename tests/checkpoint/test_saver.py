"""Files written beside the training: of the moment of the save, in turn, tried again, and never lost in silence."""

import gc
import re
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import PATH, run_python, tiny_trainer

from template.checkpoint import saver as saver_module
from template.checkpoint.plain_data import HostCopy
from template.checkpoint.saver import SaveError, Saver

FULL = OSError(28, "No space left on device")
HERE = {"PYTHONPATH": PATH}


@pytest.fixture
def saver():
    made = Saver()
    yield made
    made._unwritten.clear()
    made.close()
    made.failed.clear()  # else the process of the tests would end with exit code 1


class Disk:
    """Keeps what is written to it, as ``[(path, state), …]``; may be slow or refuse."""

    def __init__(self):
        self.files, self.threads = [], []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.error = {}  # by path

    def write(self, path):
        def write(state):
            self.begun.set()
            assert self.go.wait(30)
            self.threads.append(threading.get_ident())
            if self.error.get(path) is not None:
                raise self.error[path]
            self.files.append((path, copied(state)))
        return write

    def save(self, saver, path, state, where="epoch 1, update 6", **options):
        saver.save(path, state, self.write(path), where, **options)


def copied(state):
    return {name: part.tolist() if isinstance(part, torch.Tensor) else part for name, part in state.items()}


@pytest.fixture
def disk(saver):
    made = Disk()
    yield made
    made.go.set()


# --- beside the training ----------------------------------------------------------------------------------------------


def test_save_returns_while_the_file_is_written_and_what_changes_then_is_not_in_it(saver, disk):
    weight, losses = torch.zeros(3), [1.0]
    disk.go.clear()
    disk.save(saver, "last.pth", {"w": weight, "losses": losses})
    assert disk.begun.wait(30) and disk.files == []  # the write began, and is not over
    weight.add_(1)
    losses.append(2.0)
    disk.go.set()
    saver.wait()
    assert disk.files == [("last.pth", {"w": [0, 0, 0], "losses": [1.0]})]
    assert disk.threads != [threading.get_ident()]


def test_files_are_written_one_after_another_in_the_order_of_the_saves(saver, disk):
    disk.go.clear()
    for number, path in enumerate("abcd"):
        disk.save(saver, path, {"number": number})
    disk.go.set()
    saver.wait()
    assert disk.files == [(path, {"number": number}) for number, path in enumerate("abcd")]
    assert len(set(disk.threads)) == 1


def test_saves_to_one_path_have_memory_of_their_own_and_the_fourth_waits_for_that_of_the_first(saver, disk, monkeypatch):
    moments, fill = [], HostCopy.fill
    monkeypatch.setattr(HostCopy, "fill", lambda self, state: moments.append(f"copy {state['n']}") or fill(self, state))

    def write(state):
        moments.append(f"begin {state['n']}")
        disk.begun.set()
        assert disk.go.wait(30)
        moments.append(f"end {state['n']} {state['w'].tolist()}")

    disk.go.clear()
    for n in (1, 2, 3):
        saver.save("a", {"n": n, "w": torch.full((2,), float(n))}, write, "")
        assert disk.begun.wait(30)
    threading.Timer(0.1, disk.go.set).start()
    saver.save("a", {"n": 4, "w": torch.zeros(2)}, write, "")
    saver.wait()
    assert moments[:5] == ["copy 1", "begin 1", "copy 2", "copy 3", "end 1 [1.0, 1.0]"]  # and no copy 4 before that
    written = [moment for moment in moments if not moment.startswith("copy")]
    assert written == [f"{what} {n}{state}" for n in (1, 2, 3, 4)
                       for what, state in (("begin", ""), ("end", f" {[n % 4.0] * 2}"))]


def test_each_path_has_memory_of_its_own(saver, disk):
    disk.go.clear()
    disk.save(saver, "best.pth", {"w": torch.ones(2)})
    disk.save(saver, "last.pth", {"w": torch.zeros(2)})  # of the same shape, and does not wait for the first
    assert disk.files == []
    disk.go.set()
    saver.wait()
    assert disk.files == [("best.pth", {"w": [1, 1]}), ("last.pth", {"w": [0, 0]})]


def test_waiting_for_one_path_is_enough_for_it(saver, disk):
    disk.save(saver, "a", {})
    disk.save(saver, "b", {})
    saver.wait("a", "never saved")
    assert disk.files[0] == ("a", {})
    saver.wait()
    saver.wait()
    assert len(disk.files) == 2


def test_what_is_no_plain_data_is_refused_at_once_and_the_file_before_it_stays(saver, disk):
    disk.save(saver, "a", {"n": 1})
    with pytest.raises(TypeError, match=r"state\['model'\] is a builtins.object"):
        disk.save(saver, "a", {"model": object()})
    saver.wait()
    assert disk.files == [("a", {"n": 1})] and not saver.failed


# --- here and now -----------------------------------------------------------------------------------------------------


def test_not_beside_it_is_written_here_and_now_after_what_came_before(saver, disk):
    disk.go.clear()
    disk.save(saver, "a", {"n": 1})
    threading.Timer(0.1, disk.go.set).start()
    state = {"n": 2}
    seen = []
    saver.save("b", state, lambda given: seen.append((given is state, list(disk.files))), "", beside=False)
    assert seen == [(True, [("a", {"n": 1})])]  # without a copy


@pytest.mark.parametrize("error", [RuntimeError("not enough memory: you tried to allocate 9 bytes"), MemoryError()])
def test_without_memory_for_the_copy_the_training_waits_for_the_write(saver, disk, monkeypatch, error):
    def fill(self, state):
        raise error

    disk.save(saver, "a", {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(HostCopy, "fill", fill)
        disk.save(saver, "a", {"n": 2, "w": torch.ones(1)})
        assert disk.files == [("a", {"n": 1}), ("a", {"n": 2, "w": [1]})]
        assert disk.threads[1] == threading.get_ident() != disk.threads[0]
    disk.save(saver, "a", {"n": 3})  # there is memory again
    saver.wait()
    assert disk.files[2] == ("a", {"n": 3}) and disk.threads[2] == disk.threads[0]


# --- when it fails ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_path_cause_and_what_is_kept_and_ends_nothing(saver, disk, capsys):
    disk.error["a"] = OSError(28, "No space left on device", "a.tmp")
    disk.save(saver, "a", {}, "epoch 1, update 6")
    saver.wait()
    assert capsys.readouterr().out == (
        "!!! SAVE FAILED: a of epoch 1, update 6: No space left on device (a.tmp). What was there before is kept; training "
        "goes on, and the next save tries again.\n")
    assert list(saver.failed) == ["a"]
    disk.error.clear()
    disk.save(saver, "a", {}, "epoch 2, update 12")
    saver.wait()
    assert capsys.readouterr().out == "Saving works again: a of epoch 2, update 12 is written.\n"
    assert saver.failed == {}
    disk.error["a"] = PermissionError("no")
    disk.save(saver, "a", {}, "epoch 3, update 18")
    saver.wait()
    told = capsys.readouterr().out
    assert "a of epoch 3, update 18: PermissionError: no. The file of epoch 2, update 12 is kept" in told


def test_a_disk_that_stays_full_is_told_once_a_minute(saver, disk, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(saver_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    disk.error["a"] = FULL
    told = []
    for seconds in (0, 1, 30, 59, 61, 62, 122):
        now[0] = 1000.0 + seconds
        disk.save(saver, "a", {}, f"update {seconds}")
        saver.wait()
        told.append(capsys.readouterr().out.count("SAVE FAILED"))
    assert told == [1, 0, 0, 0, 1, 0, 1]
    disk.error.clear()
    disk.save(saver, "a", {}, "")
    saver.wait()
    disk.error["a"] = FULL
    disk.save(saver, "a", {}, "")  # it had worked meanwhile, so this one is news
    saver.wait()
    assert capsys.readouterr().out.count("SAVE FAILED") == 1


def test_the_first_failure_of_another_file_is_told_too(saver, disk, capsys):
    disk.error.update(a=FULL, b=FULL)
    disk.save(saver, "a", {})
    disk.save(saver, "b", {})
    saver.wait()
    assert capsys.readouterr().out.count("SAVE FAILED") == 2 and set(saver.failed) == {"a", "b"}


def test_a_file_that_failed_is_written_by_the_next_save_of_another_as_it_was_then(saver, disk, capsys):
    weight = torch.ones(2)
    disk.error["best.pth"] = FULL
    disk.save(saver, "best.pth", {"w": weight})
    saver.wait()
    disk.error.clear()
    weight.zero_()
    disk.save(saver, "last.pth", {"w": weight})
    saver.wait()
    assert disk.files == [("best.pth", {"w": [1, 1]}), ("last.pth", {"w": [0, 0]})]
    assert saver.failed == {} and "Saving works again: best.pth of" in capsys.readouterr().out
    disk.save(saver, "last.pth", {"w": weight})
    saver.wait()
    assert len(disk.files) == 3  # it is not written again and again


def test_a_file_that_failed_is_written_by_a_save_that_is_not_beside(saver, disk):
    disk.error["best.pth"] = FULL
    disk.save(saver, "best.pth", {"n": 1})
    saver.wait()
    disk.error.clear()
    disk.save(saver, "last.pth", {"n": 2}, beside=False)
    assert sorted(disk.files) == [("best.pth", {"n": 1}), ("last.pth", {"n": 2})]


def test_close_tries_once_more_what_failed(saver, disk, capsys):
    disk.error.update(a=FULL, b=FULL)
    disk.save(saver, "a", {"n": 1})
    disk.save(saver, "b", {"n": 2})
    saver.wait()
    del disk.error["a"]
    saver.close()
    assert disk.files == [("a", {"n": 1})] and list(saver.failed) == ["b"]
    assert "Saving works again: a" in capsys.readouterr().out


def test_of_a_path_that_failed_only_the_newer_state_counts(saver, disk):
    disk.error["a"] = FULL
    disk.save(saver, "a", {"n": 1})
    saver.wait()
    disk.error.clear()
    disk.save(saver, "a", {"n": 2})
    saver.close()
    assert disk.files == [("a", {"n": 2})]


@pytest.mark.parametrize("ask", [lambda saver, disk: saver.wait(), lambda saver, disk: saver.wait("a"),
                                 lambda saver, disk: disk.save(saver, "a", {}), lambda saver, disk: saver.close()])
@pytest.mark.parametrize("kind", [FloatingPointError, TypeError, RuntimeError])
def test_an_error_of_another_kind_is_raised_by_the_next_call_once_and_not_tried_again(saver, disk, kind, ask, capsys):
    disk.error["a"] = kind("the weights must stay finite")
    disk.save(saver, "a", {"n": 1})
    with pytest.raises(kind, match="must stay finite"):
        ask(saver, disk)
    assert list(saver.failed) == ["a"]  # the file is not what it should be, whatever the reason
    disk.error.clear()
    saver.wait()
    saver.close()
    assert disk.files == [] and capsys.readouterr().out == ""
    disk.save(saver, "a", {"n": 2})
    saver.wait()
    assert disk.files == [("a", {"n": 2})] and saver.failed == {}


def test_an_error_of_another_kind_here_and_now_is_raised_here_and_now(saver, disk):
    disk.error["a"] = FloatingPointError("not finite")
    with pytest.raises(FloatingPointError):
        disk.save(saver, "a", {}, beside=False)


def test_a_failure_may_be_raised_by_those_who_would_rather_stop(saver, disk):
    saver.raise_failure()
    disk.error["a"] = FULL
    disk.save(saver, "a", {}, beside=False)
    with pytest.raises(SaveError, match=r"a could not be written \(No space left on device\), and stop_when") as told:
        saver.raise_failure()
    assert told.value.__cause__ is FULL and isinstance(told.value, OSError)


# --- the end ----------------------------------------------------------------------------------------------------------


def writers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_close_gives_memory_and_thread_back_and_another_save_may_follow(saver, disk):
    seen, others = [], writers()
    saver.save("a", {"w": torch.ones(5)}, lambda state: seen.append(weakref.ref(state["w"])), "")
    saver.wait()
    (writer,) = set(writers()) - set(others)
    assert seen[0]() is not None
    saver.close()
    saver.close()
    writer.join(30)
    assert seen[0]() is None and not writer.is_alive()
    disk.save(saver, "a", {"n": 2})
    saver.wait()
    assert disk.files == [("a", {"n": 2})]


def test_many_saves_of_states_that_change_at_once_never_mix(saver):
    """Each file holds one number throughout, whatever was saved meanwhile."""
    seen = {"a": [], "b": []}
    weight = torch.zeros(2000)
    for number in range(60):
        weight.fill_(number)
        path = "ab"[number % 2]
        saver.save(path, {"w": weight}, lambda state, path=path: (time.sleep(0.0005), seen[path].append(
            state["w"].unique().tolist())), "")
    saver.wait()
    assert seen == {"a": [[n] for n in range(0, 60, 2)], "b": [[n] for n in range(1, 60, 2)]}


SCRIPT = """
import sys
from template.checkpoint.saver import Saver
saver = Saver()
full = True
def write(state):
    if full:
        raise OSError(28, "No space left on device")
print("training")
saver.save("a.pth", {}, write, "epoch 1")
"""
TOLD = "The last save failed: a.pth (No space left on device). Exit code 1.\n"


@pytest.mark.slow
@pytest.mark.parametrize("end, code, stderr", [
    ("", 1, TOLD),  # nobody waited for it
    ("saver.wait(); sys.exit(0)", 1, TOLD),
    ("saver.wait(); full = False; saver.close()", 0, ""),
    ("saver.wait(); full = False; saver.save('a.pth', {}, write, 'epoch 2')", 0, ""),
], ids=["end of file", "sys.exit(0)", "close worked", "a later save worked"])
def test_the_exit_code_tells_of_a_last_save_that_failed(end, code, stderr, tmp_path):
    done = run_python("-c", SCRIPT + end + "\nprint('the end', end='')", cwd=tmp_path, env=HERE, check=False)
    assert (done.returncode, done.stderr) == (code, stderr)
    assert done.stdout.startswith("training\n") and "SAVE FAILED: a.pth of epoch 1" in done.stdout
    assert ("the end" in done.stdout) == ("exit" not in end)  # what was printed is not cut off


@pytest.mark.slow
def test_the_exit_code_tells_of_an_error_of_another_kind_that_nobody_heard_of(tmp_path):
    done = run_python("-c", SCRIPT.replace("OSError(28, ", "TypeError("), cwd=tmp_path, env=HERE, check=False)
    assert (done.returncode, done.stderr) == (1, TOLD.replace("(No", "(TypeError: No"))


JOB = """
import sys
from pathlib import Path
from tiny import Tiny
from template.checkpoint import files as checkpoint

fails = set(sys.argv[1].split(","))     # <file><epoch>: which writes of which epoch find the disk full
epochs, end = int(sys.argv[2]), sys.argv[3]
verify = checkpoint._verify

def full(temporary):
    verify(temporary)
    if f"{temporary.name.split('.')[1]}{trainer.epoch}" in fails:
        raise OSError(28, "No space left on device")

checkpoint._verify = full
trainer = Tiny(ckpt_dir="run", preflight=False)
trainer.check_init(use_tb=False)
for epoch in range(1, epochs + 1):
    trainer.train_loop()
    if epoch < epochs or end != "without eval":
        trainer.eval()
    trainer.wait_for_saves()
if end == "exit 0":
    sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails, epochs, end, code, newest", [
    ("last2", 2, "exit 0", 1, 1),
    ("last1", 2, "", 0, 2),
    ("best1", 2, "without eval", 0, 2),  # the end saves the open epoch, and best.pth of the first one with it
], ids=["the last fails", "the first fails", "best fails before an open epoch"])
def test_a_plain_loop_that_never_closes_ends_with_the_right_exit_code(fails, epochs, end, code, newest, tmp_path):
    done = run_python("-c", JOB, fails, epochs, end, cwd=tmp_path, env=HERE, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert torch.load(Path("run/last.pth"))["epoch"] == newest
    assert Path("run/best.pth").exists()
    assert done.returncode == code
    told = re.search(r"The last save failed: \S*last.pth \(No space left on device\). Exit code 1.", done.stderr)
    assert (told is not None) == bool(code)


def test_a_trainer_that_nobody_closed_leaves_no_thread_and_no_copy_behind():
    """A sweep makes hundreds of them."""
    others = writers()
    trainer = tiny_trainer()
    trainer.train_loop()
    trainer.eval()
    (writer,) = set(writers()) - set(others)
    copies = trainer.checkpoints.saver._copies
    assert copies
    del trainer
    gc.collect()
    writer.join(30)
    assert not writer.is_alive() and not copies
