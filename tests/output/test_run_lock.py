"""One folder has one writer: who is refused, what is taken over, and who may look."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fork_server import start_python
from tiny import PATH, tiny_trainer, weights

from template import Callback
from template.output import processes, run_lock
from template.output.run_lock import RunInUse, RunLock

JOB = """
import sys, time
from tiny import tiny_trainer
from template import Callback
class Slow(Callback):
    def on_after_step(self, model):
        print("update", flush=True)
        time.sleep(0.1)
trainer = tiny_trainer(ckpt_dir="run", callbacks=[Slow()], save_per_steps=2)
trainer.load_state("auto")
trainer.fit(1000)
"""


def lock_file(where="run", **changes):
    """The file of this process, with other entries."""
    path = Path(where, ".lock").absolute()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**run_lock._identity(path), **changes}))
    return path


def ago(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "SILENT_SECONDS", 0.5)


@pytest.fixture
def other_run(tmp_path):
    """A process that trains in "run" and has saved."""
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = start_python(["-c", JOB], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=None)
    while not Path("run/last.pth").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


# --- a run that goes on in another process ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_goes_on_is_looked_at_by_others_and_written_by_nobody_else(other_run, capsys):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.load_state("auto")
    assert "run is being trained in by process" in capsys.readouterr().out and trainer.ckpt_dir == "run_2"
    assert trainer.test()["acc"] >= 0 and trainer.predict(torch.zeros(2, 6)).shape == (2, 3)
    before = weights(trainer)
    for write in (trainer.train_loop, trainer.eval):
        with pytest.raises(RunInUse, match=rf"run is being trained in by process {other_run.pid} on .* since 20.*ckpt_dir"):
            write()
    assert torch.equal(weights(trainer), before)
    trainer.close()
    assert not Path("run_2/last.pth").exists() and other_run.poll() is None
    new = tiny_trainer(ckpt_dir="run", overwrite=True)
    assert new.ckpt_dir == "run_2" and "run holds a run that goes on" in capsys.readouterr().out

    other_run.send_signal(signal.SIGKILL)  # and from then on the folder is free at once
    other_run.wait()
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("auto")
    assert again.ckpt_dir == "run"
    again.train_loop()


@pytest.mark.slow
def test_a_process_that_ends_with_its_loop_or_by_a_signal_leaves_no_lock(other_run):
    assert Path("run/.lock").exists()
    other_run.send_signal(signal.SIGTERM)
    assert other_run.wait(60) == 143 and not Path("run/.lock").exists()


# --- what was left behind ---------------------------------------------------------------------------------------------


def test_a_lock_whose_process_is_gone_or_whose_number_another_one_has_is_taken_over_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for changes in ({"pid": gone.pid}, {"pid": os.getppid(), "started": "1"}, {"pid": os.getpid()}):
        lock_file(**changes)
        lock = RunLock()
        lock.claim("run", waits=False)
        lock.require()
        lock.release()
        assert os.listdir("run") == []


def test_a_process_that_was_killed_and_that_nobody_asked_about_is_gone():
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert processes.started(zombie.pid) is None and processes.started(os.getpid()) == processes.started(os.getpid())
    zombie.wait()


def test_a_lock_of_another_machine_is_taken_over_when_it_is_not_renewed(quick, capsys):
    ago(lock_file(machine="elsewhere", host="node7"), 3600)
    RunLock().claim("run", waits=True)
    assert capsys.readouterr().out == ""  # long ago: no waiting
    lock_file("other", machine="elsewhere", host="node7")
    with pytest.raises(RunInUse, match="on node7"):
        RunLock().claim("other", waits=False)
    started = time.monotonic()
    RunLock().claim("other")
    assert 0.3 < time.monotonic() - started < 5 and "whether that one still goes on" in capsys.readouterr().out


def test_a_lock_of_another_machine_that_is_renewed_holds_whatever_its_clock_says(monkeypatch):
    monkeypatch.setattr(run_lock, "SILENT_SECONDS", 30.0)
    path = lock_file(machine="elsewhere", host="node7")
    ago(path, -7200)  # two hours ahead
    sleep = time.sleep

    def renewed_meanwhile(seconds):
        sleep(0.01)
        ago(path, -7205)

    monkeypatch.setattr(time, "sleep", renewed_meanwhile)
    with pytest.raises(RunInUse, match="on node7"):
        RunLock().claim("run")


def test_a_job_that_was_started_again_on_another_machine_goes_on_at_once(monkeypatch):
    lock_file(machine="elsewhere", jobs={"SLURM_JOB_ID": ["17", 0]})
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(RunInUse):
        RunLock().claim("run", waits=False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock().claim("run", waits=False)


def test_the_lock_in_a_copy_of_a_folder_counts_only_while_it_is_renewed(quick):
    parent = {"pid": os.getppid(), "started": processes.started(os.getppid())}
    lock_file("run", **parent)
    with pytest.raises(RunInUse):
        RunLock().claim("run")
    lock_file("copy", **parent, folder=str(Path("run").absolute()))
    RunLock().claim("copy")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"token": 3}'])
def test_a_file_that_says_nothing_is_watched_too(quick, content):
    Path("run").mkdir()
    Path("run/.lock").write_bytes(content)
    with pytest.raises(RunInUse):
        RunLock().claim("run", waits=False)
    RunLock().claim("run")


@pytest.mark.slow
def test_of_many_that_find_a_stale_lock_at_once_one_gets_it(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for _ in range(3):
        lock_file(pid=gone.pid)
        code = ("import sys\nfrom template.output.run_lock import RunLock, RunInUse\n"
                "print('ready', flush=True)\nsys.stdin.readline()\nlock = RunLock()\n"
                "try:\n    lock.claim('run')\n    print('won', flush=True)\n    sys.stdin.readline()\n"
                "except RunInUse:\n    print('lost', flush=True)\n")
        processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": PATH},
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert sorted(process.stdout.readline() for process in processes) == ["lost\n", "lost\n", "won\n"]
        for process in processes:
            process.communicate("\n")


def test_where_there_are_no_links_the_file_is_made_all_the_same(monkeypatch):
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(1, "no links here")))
    Path("run").mkdir()
    assert run_lock._create(Path("run/.lock"), b"one") and not run_lock._create(Path("run/.lock"), b"two")
    assert Path("run/.lock").read_bytes() == b"one" and os.listdir("run") == [".lock"]


def test_a_disk_that_takes_no_lock_is_told_and_trains(monkeypatch, capsys):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_lock, "_create", fail)
    tiny_trainer(ckpt_dir="run").fit(1)
    assert ".lock could not be written: No space left on device" in capsys.readouterr().out


def test_a_lock_is_renewed_and_only_its_own(monkeypatch):
    Path("run").mkdir()
    lock, other = RunLock(), lock_file("other")
    lock.claim("run")
    for path in (Path("run/.lock"), other):
        ago(path, 1000)
    monkeypatch.setattr(run_lock, "RENEWED_EVERY_SECONDS", 0)
    turns = iter([0])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(turns))
    with pytest.raises(StopIteration):
        run_lock._renew()
    assert time.time() - Path("run/.lock").stat().st_mtime < 100 < time.time() - other.stat().st_mtime
    lock.release()


def test_a_run_that_another_machine_took_over_stops_before_it_writes(monkeypatch):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop(), trainer.eval()
    before = Path("run/last.pth").read_bytes()
    lock_file(token="another", host="node7")
    monkeypatch.setattr(trainer.checkpoints.lock, "_looked", -1e9)
    with pytest.raises(RunInUse, match="taken over by process .* on node7"):
        trainer.train_loop()
    trainer.close()
    assert Path("run/last.pth").read_bytes() == before and json.loads(Path("run/.lock").read_text())["token"] == "another"


def test_a_folder_that_was_deleted_is_claimed_again(monkeypatch):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop(), trainer.eval()
    Path("run/.lock").unlink()
    monkeypatch.setattr(trainer.checkpoints.lock, "_looked", -1e9)
    trainer.train_loop()
    assert Path("run/.lock").exists()


# --- several trainers of one process ----------------------------------------------------------------------------------


def test_the_trainer_that_begins_last_has_the_folder_and_the_one_before_is_told(capsys):
    first = tiny_trainer(ckpt_dir="run")
    first.train_loop(), first.eval()  # a cell that is run again: nobody closed it
    second = tiny_trainer(ckpt_dir="run")
    second.load_state("auto")
    second.test()
    first.train_loop(), first.eval()  # the second one has only looked
    second.load_state("auto")
    second.fit(3)
    with pytest.raises(RunInUse, match="Another trainer or process has trained in run since"):
        first.train_loop()
    first.load_state("auto")
    first.fit(4)
    assert first.epochs_done == 4 and not Path("run/.lock").exists()


def test_a_trainer_made_in_the_midst_of_another_one_s_training_has_a_folder_of_its_own():
    inner = []

    class Begin(Callback):
        def on_train_start(self, model):
            inner.append(tiny_trainer(ckpt_dir="run"))
            inner[0].fit(1)

    tiny_trainer(ckpt_dir="run", callbacks=[Begin()]).fit(1)
    assert inner[0].ckpt_dir == "run_2" and torch.load("run/last.pth")["global_step"] == 6


def test_a_closed_trainer_goes_on_unless_somebody_trained_in_its_folder_since():
    first = tiny_trainer(ckpt_dir="run")
    first.fit(1)
    first.fit(2)
    second = tiny_trainer(ckpt_dir="run")
    second.load_state("auto")
    second.fit(3)
    with pytest.raises(RunInUse):
        first.fit(4)


def test_a_trainer_that_is_gone_gives_its_folder_and_its_log_back():
    import gc
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop(), trainer.eval()
    log = trainer.stdout_logger
    assert Path("run/.lock").exists() and log.log is not None
    del trainer
    gc.collect()
    assert not Path("run/.lock").exists() and log.log is None and sys.stdout is not log


# --- Windows ----------------------------------------------------------------------------------------------------------


def test_on_windows_a_process_is_looked_at_and_never_signalled(monkeypatch):
    monkeypatch.setattr(run_lock.os, "name", "nt")
    monkeypatch.setattr(run_lock.os, "kill", lambda *arguments: pytest.fail("on Windows this ends the process"))
    monkeypatch.setattr(processes, "_started_on_windows", lambda pid: f"process {pid}")
    assert processes.started(4) == "process 4"
