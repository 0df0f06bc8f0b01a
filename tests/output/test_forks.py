"""A child of a fork is not the run: it saves nothing, logs nothing, ends nobody, and the run goes on as if without it."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from tiny import PATH, Tiny, run_python, tiny_trainer, weights

from template import Callback
from template.checkpoint.saver import Saver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")

JOB = """
import json, multiprocessing, os, subprocess, sys
import torch
from torch.utils.data import DataLoader, Dataset
from tiny import Tiny, tiny_data
from template import Callback

class Data(Dataset):
    x, y = tiny_data()
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return self.x[index], self.y[index]

def in_the_child(model):
    print("said by the child", flush=True)
    model.checkpoints.saver  # it sees what the run sees
    if how == "trains itself":
        trainer = Tiny(ckpt_dir="child")
        trainer.check_init()
        trainer.fit(2)
        os._exit(0 if trainer.epochs_done == 2 else 1)
    if how == "evaluates":
        os._exit(0 if model.test()["acc"] >= 0 else 1)

def fork(model):
    pid = os.fork()
    if pid:
        children.append(pid)
        return
    in_the_child(model)
    if how == "os._exit":
        os._exit(0)
    if how == "close":
        model.close()
    if how == "error":
        raise ZeroDivisionError
    if how != "goes on":
        sys.exit(0)

def process(model):
    child = multiprocessing.get_context("fork").Process(target=in_the_child, args=(model,))
    child.start()
    child.join(60)
    ended.append(child.exitcode)

class Fork(Callback):
    def on_after_step(self, model):
        if model.global_step == 9:
            model.checkpoints.save_last()  # the writer's thread is at work
            process(model) if how == "Process" else fork(model)

how, children, ended = sys.argv[1], [], []
trainer = Tiny(ckpt_dir="run", callbacks=[Fork()])
trainer.train_loader = DataLoader(Data(), 10, shuffle=True, num_workers=int(sys.argv[2]))
trainer.check_init()
trainer.fit(3)
ended += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print("the run is done", json.dumps(ended))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of the same run, without a child."""
    folder = tmp_path_factory.mktemp("whole")
    run_python("-c", JOB.replace("== 9", "== -1"), "", 0, cwd=folder, env={"PYTHONPATH": PATH})
    return torch.load(folder / "run/last.pth")["model0"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how, code", [("sys.exit", 0), ("os._exit", 0), ("close", 0), ("error", 1), ("goes on", 1),
                                       ("trains itself", 0), ("evaluates", 0), ("Process", 0)])
def test_a_child_ends_by_itself_and_the_run_goes_on_as_if_it_were_not_there(how, code, workers, whole, tmp_path):
    done = run_python("-c", JOB, how, workers, cwd=tmp_path, env={"PYTHONPATH": PATH}, timeout=120)
    assert json.loads(re.search("the run is done (.*)", done.stdout)[1]) == [code]
    assert done.stdout.count("said by the child") == 1
    assert "can only" not in done.stderr and "exited unexpectedly" not in done.stderr
    saved = torch.load(tmp_path / "run/last.pth")
    assert saved["global_step"] == 18 and all(torch.equal(value, whole[name]) for name, value in saved["model0"].items())
    log = (tmp_path / "run/log.txt").read_text()
    assert "said by the child" not in log and "Saved" not in log and log.count("train |") == 3
    assert len((tmp_path / "run/history.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "run/.lock").exists() and not list((tmp_path / "run").glob("crashed*"))


def in_child(work):
    """What ``work()`` gives in a child of a fork, as text."""
    receive, send = os.pipe()
    if os.fork() == 0:
        signal.alarm(20)  # a child that hangs ends
        try:
            os.write(send, str(work()).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        said = answer.read()
    os.wait()
    return said


@pytest.mark.slow
def test_what_a_thread_of_the_parent_holds_does_not_stop_the_child():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop()

    def print_a_line():
        print("from the child")
        return "printed"

    log = trainer.stdout_logger
    with log._lock, log.log._lock:
        assert in_child(print_a_line) == "printed"
    print("from the parent", end="")
    assert in_child(trainer.close) == "None"
    trainer.close()
    text = Path("run/log.txt").read_text()
    assert "from the child" not in text and text.count("from the parent") == 1


def test_a_save_under_way_is_the_parent_s():
    def write(saver):
        saver.save("a", {"x": torch.zeros(3)}, lambda state: torch.save(state, "a.pth"), "here")
        answer = in_child(lambda: saver.close() or saver.failed)
        saver.close()
        return answer

    assert write(Saver()) == "{}" and Path("a.pth").exists()


@pytest.mark.slow
def test_the_parent_s_trainer_writes_nothing_in_a_child():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop(), trainer.eval()
    before = {path: path.read_bytes() for path in Path("run").iterdir()}

    def use():
        said = []
        for write in (trainer.train_loop, trainer.eval, trainer.checkpoints.save_last):
            try:
                write()
            except RuntimeError as error:
                said.append(str(error))
        trainer.test(), trainer.close(), trainer.lifetime.close_at_exit()
        return sum("This process is a child, made by a fork, of the one that trains in run" in reason for reason in said)

    assert in_child(use) == "3"
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    trainer.fit(2)
    whole = Tiny(ckpt_dir="whole")
    whole.check_init(use_tb=False)
    whole.fit(2)
    assert torch.equal(weights(trainer), weights(whole))


def test_clean_up_of_callbacks_is_the_parent_s():
    class Cleaned(Callback):
        def on_exit(self, model):
            Path(f"cleaned by {os.getpid()}").touch()

    trainer = tiny_trainer(ckpt_dir="run", callbacks=[Cleaned()])
    trainer.train_loop()
    in_child(trainer.close)
    assert not list(Path().glob("cleaned*"))
    trainer.close()
    assert [path.name for path in Path().glob("cleaned*")] == [f"cleaned by {os.getpid()}"]


IMPORTS = """
import sys, threading

class Note:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            print("imported by", threading.current_thread().name, name)

sys.meta_path.insert(0, Note())
from tiny import tiny_trainer
tiny_trainer(use_tb=True).fit(2)
"""


def test_threads_import_nothing_since_a_fork_within_an_import_would_leave_its_lock_shut(tmp_path):
    """The child of such a fork would wait for ever at the same import."""
    done = run_python("-c", IMPORTS, cwd=tmp_path, env={"PYTHONPATH": PATH})
    assert "2 epochs done" in done.stdout and "imported by" not in done.stdout
