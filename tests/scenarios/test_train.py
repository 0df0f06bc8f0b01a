"""The main job, run as a person runs it: options, what it leaves behind, killed and continued."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from fork_server import start_python
from ranks import once
from tiny import ROOT, run_python

pytestmark = pytest.mark.slow
TRAIN = ROOT / "train.py"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A short run of train.py to its end: (folder, printed text)."""
    def run(folder):
        done = run_python(TRAIN, "--epochs", 4, "--batch-size", "96", "--patience=50", cwd=folder, env={"CURVES": "1"})
        folder.with_suffix(".txt").write_text(done.stdout)

    folder = once(tmp_path_factory, "run of train.py", run)
    return folder, folder.with_suffix(".txt").read_text()


def test_digits_are_learned_in_a_few_epochs(finished_run):
    folder, _ = finished_run
    (path,) = folder.glob("check_point/*/best.pth")
    assert torch.load(path)["best_metric"]["acc"] > 0.95


def test_a_run_leaves_what_the_readme_promises(finished_run):
    folder, printed = finished_run
    (run,) = (folder / "check_point").iterdir()
    assert {path.name for path in run.iterdir()} == {
        "log.txt", "history.csv", "history.png", "best.pth", "last.pth", "previous.pth", "config.json", "digests.csv",
        "epoch2.pth", "epoch3.pth", "epoch4.pth"}
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    config = json.loads((run / "config.json").read_text())
    assert config[0]["options"]["batch_size"] == 96 and config[0]["environment"]["torch"] == torch.__version__
    assert (run / "log.txt").read_text() == printed
    assert {path.name for path in (folder / "runs" / run.name).iterdir() if path.is_dir()} == {"train", "eval"}


def test_the_best_file_scores_what_it_says(finished_run):
    """Loaded into a bare model, in plain PyTorch, without the template."""
    folder, _ = finished_run
    (path,) = folder.glob("check_point/*/best.pth")
    code = f"""
import sys, torch; sys.path.insert(0, {str(ROOT)!r})
from train import digits_loaders, small_cnn
state = torch.load({str(path)!r})
model = small_cnn().eval()
model.load_state_dict(state["model0"])
right = sum((model(x).argmax(1) == y).sum().item() for x, y in digits_loaders(64)[1])
assert abs(right / 359 - state["best_metric"]["acc"]) < 1e-9, (right / 359, state["best_metric"])
"""
    run_python("-c", code, cwd=folder)


def test_unknown_options_and_wrong_values_are_errors_before_anything_is_written(tmp_path):
    wrong = [["--epoch", "3"], ["--batchsize", "3"], ["--lr", "fast"], ["oops"]]
    code = f"""
import runpy, sys; sys.path.insert(0, {str(ROOT)!r})
for arguments in {wrong!r}:  # in one process: torch is imported once
    sys.argv = [{str(TRAIN)!r}, *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        print("left with", left.code)
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stdout == "left with 2\n" * len(wrong) and done.stderr.count("train.py: error: ") == len(wrong)
    assert all(f" {arguments[0]}" in done.stderr for arguments in wrong), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_run_is_continued_by_resume_auto_to_the_same_bits(tmp_path, finished_run):
    arguments = ["--epochs", "4", "--batch_size", "96", "--patience", "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = start_python([TRAIN, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("check_point/*/epoch2.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = run_python(TRAIN, *arguments, "--resume", "auto", cwd=tmp_path)
    (run,) = (tmp_path / "check_point").iterdir()  # its own folder, not a second one
    (whole,) = (finished_run[0] / "check_point").iterdir()
    for part in ("last.pth", "best.pth"):
        a, b = torch.load(run / part), torch.load(whole / part)
        assert all(torch.equal(value, b["model0"][name]) for name, value in a["model0"].items())
        assert a["best_metric"] == b["best_metric"]
    assert "load model state from" in done.stdout
    epochs = [row["epoch"] for row in csv.DictReader((run / "history.csv").read_text().splitlines())]
    assert epochs == ["1", "2", "3", "4"]
    assert len(json.loads((run / "config.json").read_text())) == 2
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_resuming_a_run_that_is_complete_says_so(tmp_path, finished_run):
    shutil.copytree(finished_run[0], tmp_path, dirs_exist_ok=True)  # the others look at the run as it ended
    done = run_python(TRAIN, "--epochs", "4", "--resume", "auto", cwd=tmp_path)
    assert "Nothing left to train: 4 of 4 epochs are done." in done.stdout
