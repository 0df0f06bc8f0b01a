"""A run started again: equal to the last bit or not, from the files of its commit, and nothing of the project is touched."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fork_server
import pytest
from tiny import PATH, run_python

from template.output.run_record import RunRecord
from template.tools import reproduce as tool
from template.tools.reproduce import CannotReproduce, main, reproduce

JOB = """
import os, sys, signal
from pathlib import Path
import torch
from tiny import Tiny, tiny_model
from template import Callback, seed_everything

class Acts(Callback):
    def on_after_step(self, model):
        if "--kill" in sys.argv and model.global_step == 14:
            model.wait_for_saves()
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("NOISE") and model.epoch == 2:
            with torch.no_grad():
                next(model.model_list[0].parameters()).view(-1)[0] += 1e-6

scale = float(Path("data/scale.txt").read_text())
torch.set_num_threads(int(os.environ.get("THREADS_OF_JOB", 1)))
if "--drawn" in sys.argv:
    seed_everything()
    torch_seed = torch.initial_seed()
for number in range(1 + ("--two" in sys.argv)):
    model = tiny_model(torch_seed if "--drawn" in sys.argv else 1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale * WIDTH)
    trainer = Tiny(model, callbacks=[Acts()], seed=None if "--drawn" in sys.argv else 3 + number)
    trainer.ckpt_dir = os.environ.get("CKPT_DIR", f"check_point/run{number}")
    trainer.check_init(arg={"epochs": 4}, use_tb=False, log_path=os.environ.get("LOG_PATH"))
    if "--resume" in sys.argv:
        trainer.load_state("auto")
    trainer.fit(4)
"""
IDENTITY = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True,
                          env={**os.environ, **IDENTITY}).stdout


def job(*arguments, **environment):
    return run_python("job.py", *arguments, cwd=Path.cwd(), env={"PYTHONPATH": PATH, **environment}, check=False)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with a script, and data that git ignores. Processes are forks of one that has torch."""
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setattr(tool, "_LOOKS_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(tool, "_start", lambda command, folder, environment, output: fork_server.start_python(
        command[1:], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("data/scale.txt").write_text("0.5")
    Path("job.py").write_text(JOB.replace("WIDTH", "1.0"))
    Path(".gitignore").write_text("check_point/\nruns/\ndata/\n__pycache__/\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    return folder


def tree(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
            for path in Path(folder).rglob("*") if ".git" not in path.parts}


def said(run="check_point/run0", **options):
    lines = []
    found = reproduce(run, tell=lines.append, **options)
    return found, "\n".join(lines)


# --- equal --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_equal_to_the_last_bit_and_nothing_of_the_project_is_touched(project, capsys):
    assert job().returncode == 0
    Path("job.py").write_text("raise SystemExit('the file is another one now')")
    before = tree(project)
    with pytest.raises(SystemExit) as left:
        main(["check_point/run0"])
    printed = capsys.readouterr().out
    assert left.value.code == 0 and "check_point/run0: equal to the last bit for 4 epochs." in printed
    assert "Linked, as git does not hold it: data" in printed and printed.count(": equal, ") == 4
    assert tree(project) == before and len(git("worktree", "list").splitlines()) == 1
    assert list((project.parent / "tmp").glob("reproduce-*")) == []


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_is_equal_to_one_that_never_stopped(project):
    assert job("--kill").returncode == -signal.SIGKILL
    first = json.loads(Path("check_point/run0/config.json").read_text())
    first[0]["process"]["arguments"] = ["job.py"]  # it does not kill itself again
    Path("check_point/run0/config.json").write_text(json.dumps(first))
    assert job("--resume").returncode == 0
    assert len(RunRecord("check_point/run0").starts) == 2
    found, _ = said()
    assert found.is_equal and found.epochs == 4


@pytest.mark.slow
def test_a_quick_check_stops_behind_the_epochs_that_were_asked_for(project):
    job()
    found, text = said(epochs=2, keep=True)
    assert found.is_equal and found.epochs == 2 and "epoch 3" not in text
    (again,) = (Path(found.folder) / "project/check_point").iterdir()
    assert RunRecord(again).state in ("stopped", "finished")
    assert str(found) == "check_point/run0: equal to the last bit for 2 epochs."


@pytest.mark.slow
def test_a_seed_that_was_drawn_is_drawn_again(project):
    job("--drawn")
    found, text = said(epochs=1)
    assert found.is_equal and f"seed {RunRecord('check_point/run0').starts[0]['settings']['seed']}" in text


@pytest.mark.slow
def test_of_several_runs_of_a_script_the_same_one_is_compared(project):
    job("--two")
    found, _ = said("check_point/run1", epochs=1)
    assert found.is_equal
    one, other = (RunRecord(f"check_point/run{number}").digests for number in (0, 1))
    assert one[6]["digest"] != other[6]["digest"]


@pytest.mark.slow
def test_a_run_in_a_folder_and_with_a_log_of_absolute_paths_is_not_written_to(project, monkeypatch):
    places = {"CKPT_DIR": str(project / "check_point/fixed"), "LOG_PATH": str(project / "own.log")}
    job(**places)
    before = tree(project)
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    found, _ = said("check_point/fixed", epochs=1)
    assert found.is_equal and tree(project) == before


@pytest.mark.slow
def test_a_project_without_git_runs_the_present_files(project):
    shutil.rmtree(".git")
    job()
    before = tree(project)
    found, text = said(epochs=1)
    assert found.is_equal and "run as they are now" in text and tree(project) == before


@pytest.mark.slow
def test_a_run_of_changed_files_is_refused_unless_told_to_run_the_present_ones(project):
    Path("job.py").write_text(JOB.replace("WIDTH", "1.5"))
    job()
    with pytest.raises(CannotReproduce, match="--present-files"):
        reproduce("check_point/run0")
    before = tree(project)
    found, _ = said(epochs=1, present_files=True)
    assert found.is_equal and tree(project) == before


# --- not equal ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_epoch_that_differs_is_named_with_what_is_different_now(project, monkeypatch, capsys):
    job()
    monkeypatch.setenv("NOISE", "1")
    monkeypatch.setenv("THREADS_OF_JOB", "2")
    with pytest.raises(SystemExit) as left:
        main(["check_point/run0"])
    printed = capsys.readouterr().out
    assert left.value.code == 1 and "epoch 1: equal" in printed and "epoch 2: different" in printed
    assert "The weights differ after epoch 2; 1 epoch before it is equal to the last bit." in printed
    assert re.search(r"environment.threads +1 +2", printed) and "Epoch 2: train/tol_loss " in printed
    assert "environment.torch" not in printed and list((project.parent / "tmp").glob("reproduce-*")) == []


@pytest.mark.slow
def test_data_that_changed_is_a_difference_in_nothing_that_the_run_noted(project):
    job()
    Path("data/scale.txt").write_text("0.500001")
    found, _ = said()
    assert not found.is_equal and (found.epochs, found.first_difference, found.differences) == (0, 1, [])
    assert "data that has changed" in str(found) or "did not come from its seed" in str(found)


@pytest.mark.slow
def test_a_command_that_fails_now_shows_its_last_lines(project):
    job()
    Path("data/scale.txt").unlink()
    found, _ = said()
    assert not found.is_equal and found.first_difference is None
    assert "exit code 1" in str(found) and "FileNotFoundError" in str(found)


@pytest.mark.slow
def test_other_settings_of_a_later_start_are_told(project):
    job()
    path = Path("check_point/run0/config.json")
    (start,) = json.loads(path.read_text())
    later = json.loads(json.dumps(start)) | {"options": {"epochs": 9}}
    path.write_text(json.dumps([start, later]))
    rows = Path("check_point/run0/digests.csv").read_text().splitlines()
    rows[2] = rows[2][:-64] + 64 * "0"
    Path("check_point/run0/digests.csv").write_text("\n".join(rows) + "\n")
    found, _ = said()
    assert found.first_difference == 2 and "in start 2: options.epochs (4, then 9)" in str(found)


# --- refused ------------------------------------------------------------------------------------------------------------


def changed(change):
    path = Path("check_point/run0/config.json")
    starts = json.loads(path.read_text())
    change(starts[0])
    path.write_text(json.dumps(starts))


@pytest.mark.parametrize("spoil, error", [
    (lambda: changed(lambda start: start["process"].update(
        arguments=["/venv/ipykernel_launcher.py", "-f", "kernel.json"])), "from a notebook"),
    (lambda: changed(lambda start: start["process"].update(arguments=["-i"])), "interactive session"),
    (lambda: changed(lambda start: start["process"].update(nodes=4)), "4 machines"),
    (lambda: changed(lambda start: start.pop("process")), "a version of the template that did not note how"),
    (lambda: changed(lambda start: start["environment"].update(commit=40 * "d")), "cannot check out commit ddd"),
    (lambda: Path("check_point/run0/digests.csv").unlink(), "no digests.csv"),
    (lambda: Path("check_point/run0/config.json").write_text("[{"), "nobody knows how"),
    (lambda: shutil.rmtree("check_point/run0"), "There is no run")])
def test_what_cannot_be_started_again_is_refused_with_the_reason(spoil, error, project, capsys):
    (template,) = [made_once()]
    shutil.copytree(template, "check_point/run0")
    changed(lambda start: (start["process"].update(folder=str(project)),
                           start["environment"].update(commit=git("rev-parse", "HEAD").strip())))
    spoil()
    with pytest.raises(SystemExit, match=error):
        main(["check_point/run0"])
    assert list((project.parent / "tmp").glob("reproduce-*")) == [] and len(git("worktree", "list").splitlines()) == 1


_made = []


def made_once():
    """The folder of a run that one of these tests made."""
    if not _made:
        import tempfile

        job()
        _made.append(Path(tempfile.mkdtemp(dir=Path.cwd().parent.parent)) / "run0")
        shutil.move("check_point/run0", _made[0])
    return _made[0]


# --- the command --------------------------------------------------------------------------------------------------------


def command_of(arguments, project, top, scratch, **process):
    start = {"process": {"arguments": arguments, "ranks": 1, **process}}
    return tool._command(start, project, (top, scratch / "project"), scratch)


def test_the_command_is_that_of_the_first_start_with_paths_where_they_are_now(tmp_path):
    top, scratch, outside = tmp_path / "top", tmp_path / "scratch", tmp_path / "outside.yaml"
    for name in ("top/pkg/train.py", "scratch/project/pkg/train.py", "top/sub/only-here.yaml", "outside.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (scratch / "project/sub").mkdir()
    cases = [
        (["-m", "pkg.train", "--lr", "1e-3"], ["-m", "pkg.train", "--lr", "1e-3"]),
        (["-X", "dev", "../pkg/train.py", "-u"], ["-X", "dev", "../pkg/train.py", "-u"]),
        ([f"{top}/pkg/train.py", f"--config={top}/pkg/train.py"], [
            f"{scratch}/project/pkg/train.py", f"--config={scratch}/project/pkg/train.py"]),
        (["../pkg/train.py", "only-here.yaml", "../../outside.yaml", "--to=new.txt"], [
            "../pkg/train.py", f"{top}/sub/only-here.yaml", str(outside), "--to=new.txt"]),
        (["-c", "import pkg.train", "x"], ["-c", "import pkg.train", "x"])]
    for arguments, expected in cases:
        command, folder = command_of(arguments, top / "sub", top, scratch)
        assert command == [sys.executable, *expected] and folder == scratch / "project/sub", arguments
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    for script in (["../pkg/train.py", "-v"], ["-m", "pkg.train"]):
        assert command_of(["-u", *script], top / "sub", top, scratch, ranks=3)[0] == [sys.executable, *launcher, *script]


@pytest.mark.parametrize("saved, is_equal, epochs", [([1, 2, 3], True, 3), ([1, 3], True, 2), ([2, 3, 5], True, 2),
                                                     ([1, 2, 4], False, 2), ([1, 2], False, 2)])
def test_an_epoch_whose_save_was_taken_together_with_a_later_one_is_passed_over_unless_it_is_the_last(
        saved, is_equal, epochs, monkeypatch, tmp_path):
    def row(epoch):
        return {"epoch": epoch, "batch": 0, "global_step": 6 * epoch, "digest": f"{epoch}" * 64}

    Path("output.txt").write_text("the last line")
    monkeypatch.setattr(tool, "_start", lambda *args: SimpleNamespace(poll=lambda: 0, returncode=0))
    monkeypatch.setattr(tool, "_counterpart", lambda *args: "other")
    monkeypatch.setattr(tool, "RunRecord", lambda folder: SimpleNamespace(digests={6 * n: row(n) for n in saved}))
    found = tool._compare(SimpleNamespace(folder="run"), {n: row(n) for n in (1, 2, 3)}, [], "", {}, Path(), print)
    assert (found.is_equal, found.epochs) == (is_equal, epochs)
    assert is_equal or ("Epoch 3 was not compared" in str(found)) == (4 in saved)


def test_trackers_that_the_users_code_calls_itself_are_told_to_send_nothing(tmp_path):
    environment = tool._environment({}, tmp_path / "scratch", tmp_path, (tmp_path, tmp_path / "scratch"))
    assert environment["WANDB_MODE"] == environment["SWANLAB_MODE"] == "disabled"
    assert environment["MLFLOW_TRACKING_URI"] == (tmp_path / "scratch/mlruns").as_uri()
    assert environment["TRACKIO_DIR"] == str(tmp_path / "scratch/trackio")


@pytest.mark.slow
def test_a_run_of_two_processes_is_equal_and_has_the_digest_of_one_file(project):
    done = run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "job.py", cwd=project,
                      env={"PYTHONPATH": PATH}, check=False)
    assert done.returncode == 0, done.stderr
    assert RunRecord("check_point/run0").starts[0]["process"]["ranks"] == 2
    before = tree(project)
    found, _ = said(epochs=2)
    assert found.is_equal and tree(project) == before
