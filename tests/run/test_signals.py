"""SIGTERM and Ctrl-C at any moment: saved, left with the right code, continued to the same bits."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from fork_server import start_python
from ranks import once
from tiny import PATH, run_python

JOB = '''
import os, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from tiny import Tiny, tiny_data
from template import Callback, History

class Slow(Dataset):
    def __init__(self):
        self.x, self.y = tiny_data()
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        time.sleep(0.001)
        return self.x[index] + 0.1 * torch.randn(6), self.y[index]

class Told(Callback):
    """Says where training is, so that the test can aim."""
    def on_batch(self, model, batch):
        print(f"batch {model.epoch} {model.batches_done}", file=sys.stderr, flush=True)
    def on_eval_batch(self, model, batch):
        print(f"eval {model.epoch}", file=sys.stderr, flush=True)
        time.sleep(eval_seconds)

workers, eval_seconds = int(sys.argv[1]), float(sys.argv[2])
for folder in sys.argv[3:]:
    os.chdir(folder)
    trainer = Tiny(ckpt_dir="run", lr_scheduler_type="cosine", accumulate_steps=2, callbacks=[Told(), History(png=False)])
    trainer.train_loader = DataLoader(Slow(), 5, shuffle=True, num_workers=workers)
    trainer.check_init(use_tb=False)
    trainer.load_state("auto")
    for epoch in trainer.epochs(4):
        trainer.train_loop()
        trainer.eval()
    print("finished")
'''
ENVIRONMENT = {"PYTHONPATH": PATH}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state that the job ends with when nobody stops it."""
    folder = once(tmp_path_factory, "signals whole", run_to_the_end)
    return torch.load(folder / "run" / "last.pth")


def run_to_the_end(*folders, workers=0):
    """In one process, one after the other."""
    run_python("-c", JOB, workers, 0.0, *folders, cwd=folders[0], env=ENVIRONMENT)


def start(folder, workers=0, eval_seconds=0.05):
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return start_python(["-c", JOB, workers, eval_seconds, "."], cwd=folder, env=environment, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, start_new_session=True)


def send_at(process, marker, number, to_group=False, delay=0.0):
    """Signal the process when a line of its stderr starts with ``marker``; returns (stdout, rest of stderr)."""
    for line in process.stderr:
        if line.startswith(marker):
            break
    time.sleep(delay)
    (os.killpg if to_group else os.kill)(process.pid, number)
    return process.communicate(timeout=60)


def assert_continues_to(whole, folder, workers=0):
    run_to_the_end(folder, workers=workers)
    assert_same_end(whole, folder)


def assert_same_end(whole, folder):
    state = torch.load(folder / "run" / "last.pth")
    assert all(torch.equal(value, whole["model0"][name]) for name, value in state["model0"].items())
    assert state["best_metric"] == whole["best_metric"] and state["best_epoch"] == whole["best_epoch"]
    assert state["global_step_eval"] == whole["global_step_eval"]


SIGNALS = {"SIGTERM": (signal.SIGTERM, 143), "Ctrl-C": (signal.SIGINT, 130)}
MARKERS = ["batch 1 0", "batch 2 5", "eval 1", "eval 3"]


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """A folder with one for each signal at each marker: the run there was stopped, and then continued to its end."""
    def run(folder):
        folders = [folder / f"{name} at {marker}" for name in SIGNALS for marker in MARKERS]
        for own in folders:
            own.mkdir()
            name, marker = own.name.split(" at ")
            process = start(own)
            printed, _ = send_at(process, marker, SIGNALS[name][0], delay=random.random() * 0.02)
            told = {"code": process.returncode, "printed": printed, "log": (own / "run" / "log.txt").read_text()}
            (own / "stopped.json").write_text(json.dumps(told))
        run_to_the_end(*folders)

    return once(tmp_path_factory, "signalled", run)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("marker", MARKERS)
def test_a_signal_saves_and_leaves_and_the_run_continues_to_the_same_bits(name, marker, whole, signalled):
    stopped = json.loads((signalled / f"{name} at {marker}" / "stopped.json").read_text())
    assert stopped["code"] == SIGNALS[name][1]
    last_line = stopped["printed"].strip().splitlines()[-1]
    assert last_line.startswith("Stopped by a signal; saved at epoch ")
    assert last_line in stopped["log"] and "Traceback" not in stopped["log"] and "finished" not in stopped["printed"]
    assert_same_end(whole, signalled / f"{name} at {marker}")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_disturbs_none(whole, tmp_path):
    process = start(tmp_path, workers=2)
    _, errors = send_at(process, "batch 2 3", signal.SIGINT, to_group=True)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.count("SIGINT") == 1
    assert_continues_to(whole, tmp_path, workers=1)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_the_files_stay_good(whole, tmp_path):
    process = start(tmp_path, eval_seconds=3.0)
    for line in process.stderr:
        if line.startswith("eval 2"):  # when there are files
            os.kill(process.pid, signal.SIGINT)
        elif line.startswith("SIGINT"):  # heard; the eval batch goes on for seconds
            break
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert_continues_to(whole, tmp_path)


def test_the_handlers_are_given_back_after_training():
    from tiny import tiny_trainer
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    tiny_trainer().fit(1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_trains_without_handlers():
    import threading

    from tiny import tiny_trainer
    trainer = tiny_trainer()
    thread = threading.Thread(target=trainer.fit, args=(1,))
    thread.start()
    thread.join()
    assert trainer.epochs_done == 1


def test_a_signal_while_the_first_eval_batch_is_checked_waits_for_the_first_update():
    from tiny import Tiny

    class Signalled(Tiny):
        def metric(self, pred, y):
            self.world.wish = signal.SIGTERM  # as the handler would note it
            return super().metric(pred, y)

    trainer = Signalled(ckpt_dir="run")
    trainer.check_init(use_tb=False)
    with pytest.raises(SystemExit) as left:
        trainer.train_loop()
    assert left.value.code == 143
    assert torch.load("run/last.pth")["global_step"] == 1 and "Traceback" not in Path("run/log.txt").read_text()
