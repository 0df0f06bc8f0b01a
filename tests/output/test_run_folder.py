"""The run's folder and name, and the configuration that reproduces it."""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_trainer

from template.output import run_folder

STAMP = "2024-05-06_07-08-09"
WINDOWS_RESERVED = re.compile(r'[<>:"|?*&\x00-\x1f]|[ .]$')


def config(folder):
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def test_every_name_of_a_run_is_legal_on_windows():
    trainer = tiny_trainer(use_tb=True)
    trainer.fit(2)
    names = [path.name for root in ("check_point", "runs") for path in Path(root).rglob("*")]
    assert {"log.txt", "config.json", "history.csv", "best.pth", "last.pth", "epoch1.pth"} <= set(names)
    assert not [name for name in names if WINDOWS_RESERVED.search(name)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", Path(trainer.ckpt_dir).name)


def test_a_time_stamp_that_is_taken_gets_a_number():
    assert [Path(run_folder.make_folder(f"a/{STAMP}")).name for _ in range(3)] == [STAMP, f"{STAMP}_2", f"{STAMP}_3"]
    assert sorted(os.listdir("a")) == [STAMP, f"{STAMP}_2", f"{STAMP}_3"]


def test_many_that_start_in_one_second_get_a_folder_each():
    made, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait()
        for _ in range(20):
            made.append(run_folder.make_folder(STAMP))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 160


def test_a_name_of_ones_own_is_used_again():
    assert run_folder.make_folder("mine") == run_folder.make_folder("mine") == "mine"


def test_a_folder_that_is_a_file_is_told():
    Path("mine").touch()
    with pytest.raises(FileExistsError, match="mine"):
        tiny_trainer(ckpt_dir="mine")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_before_training():
    os.mkdir("locked", 0o500)
    with pytest.raises(PermissionError, match="locked"):
        tiny_trainer(ckpt_dir="locked")


def test_a_folder_that_the_system_calls_unwritable_is_told(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="ckpt_dir must be writable, and mine is not. Choose another"):
        run_folder.make_folder("mine")


def test_runs_beside_are_the_time_stamped_ones_newest_first():
    for name in (STAMP, "2025-01-01_00-00-00", "2023-01-01_00-00-00", "mine", "2024-05-06"):
        os.makedirs(f"check_point/{name}")
    found = [path.name for path in run_folder.runs_beside("check_point/whatever")]
    assert found == ["2025-01-01_00-00-00", STAMP, "2023-01-01_00-00-00"]


def test_auto_takes_the_run_that_was_started_last_also_when_the_clock_was_set_back(capsys, monkeypatch):
    for stamp in ("2030-01-01_00-00-00", "2031-01-01_00-00-00", "2029-01-01_00-00-00"):  # set back before the third
        trainer = tiny_trainer(ckpt_dir=f"check_point/{stamp}")
        trainer.fit(1)
    trainer = tiny_trainer(ckpt_dir="check_point/2028-01-01_00-00-00")
    assert Path(trainer.load_state("auto")).parent.name == "2029-01-01_00-00-00"
    assert "2029-01-01_00-00-00 was started last. 2031-01-01_00-00-00 has a later name" in capsys.readouterr().out
    older = tiny_trainer(ckpt_dir="check_point/2032-01-01_00-00-00")  # and one that was continued is the newest from then on
    older.load_state("check_point/2030-01-01_00-00-00/last.pth")
    older.fit(2)
    found = [path.name for path in run_folder.runs_beside("check_point/whatever")]
    assert found == [f"20{year}-01-01_00-00-00" for year in (30, 29, 31)]


def test_of_runs_of_one_name_auto_takes_the_one_that_was_started_last():
    for _ in range(3):
        tiny_trainer(ckpt_dir="run").fit(1)
    assert Path(tiny_trainer(ckpt_dir="run").load_state("auto")).parent.name == "run_3"
    tiny_trainer(ckpt_dir="run").load_state("run/last.pth")  # continues the first one
    assert Path(tiny_trainer(ckpt_dir="run").load_state("auto")).parent.name == "run"


def test_runs_from_before_starts_had_numbers_are_older_and_in_the_order_of_their_names():
    for name in ("2024-01-01_00-00-00", "2025-01-01_00-00-00"):
        os.makedirs(f"check_point/{name}")
        Path(f"check_point/{name}/config.json").write_text('[{"started": "x"}]')
    tiny_trainer(ckpt_dir="check_point/2023-01-01_00-00-00").fit(1)
    found = [path.name for path in run_folder.runs_beside("check_point/whatever")]
    assert found == [f"202{year}-01-01_00-00-00" for year in (3, 5, 4)]


def test_a_run_name_that_tensorboard_already_shows_gets_a_time_stamp():
    first = tiny_trainer(use_tb=True, ckpt_dir="a/mine")
    first.fit(1)
    second = tiny_trainer(use_tb=True, ckpt_dir="b/mine")
    second.fit(1)
    assert first.run_name == "mine"
    assert re.fullmatch(r"mine_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", second.run_name)
    assert sorted(os.listdir("runs")) == sorted([first.run_name, second.run_name])
    third = tiny_trainer(use_tb=True, run_name="mine")  # asked for by name: the person's decision
    assert third.run_name == "mine"


# --- temporary files --------------------------------------------------------------------------------------------------


def test_what_killed_processes_left_is_removed_when_the_run_is_taken_up_and_what_is_being_written_stays():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(1)
    kept = sorted(os.listdir("run"))
    minutes_ago = {".last.pth.123.tmp": 11, ".config.json.9.tmp": 1000, ".best.pth.4.tmp": 9, ".last.pth.5.tmp": 0,
                   ".mine": 1000, "results.tmp": 1000}
    for name, minutes in minutes_ago.items():
        path = Path("run", name)
        path.write_bytes(b"half a file")
        os.utime(path, (time.time() - 60 * minutes,) * 2)
    tiny_trainer(ckpt_dir="run").load_state("auto")
    assert sorted(os.listdir("run")) == sorted(
        [*kept, ".best.pth.4.tmp", ".last.pth.5.tmp", ".lock", ".mine", "results.tmp"])


def test_a_left_over_file_that_is_gone_before_it_is_looked_at_is_no_error():
    os.mkdir("run")
    os.symlink("nowhere", "run/.last.pth.1.tmp")  # listed, and not found: another process has just renamed it
    run_folder.remove_leftovers("run")


@pytest.mark.parametrize("content, expected", [("größer", "größer".encode()), (b"\x89PNG", b"\x89PNG")])
def test_a_small_file_is_replaced_as_a_whole(content, expected):
    path = Path("a.txt")
    path.write_bytes(b"a longer old text")
    run_folder.replace_file(path, content)
    assert path.read_bytes() == expected and os.listdir() == ["a.txt"]


@pytest.mark.parametrize("function", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_small_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(monkeypatch, function):
    path = Path("a.txt")
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(OSError, match="No space left"):
            run_folder.replace_file(path, "new")
    assert path.read_text() == "old" and os.listdir() == ["a.txt"]


def test_only_errors_of_the_disk_are_told_and_let_pass(capsys):
    with run_folder.told_when_it_fails("a.txt"):
        raise OSError(28, "No space left on device")
    assert capsys.readouterr().out == "a.txt could not be written: No space left on device. Training goes on.\n"
    with pytest.raises(TypeError), run_folder.told_when_it_fails("a.txt"):
        raise TypeError("a bug")


# --- config.json ------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    lr: float = 0.1
    name: str = "名字"


@pytest.mark.parametrize("arg, expected", [
    (None, {}), ({"lr": 0.1}, {"lr": 0.1}), (argparse.Namespace(lr=0.1, tags=["a"]), {"lr": 0.1, "tags": ["a"]}),
    (Options(), {"lr": 0.1, "name": "名字"}),
])
def test_options_of_every_kind_are_printed_and_stored(arg, expected, capsys):
    trainer = Tiny()
    trainer.check_init(arg=arg, use_tb=False)
    assert config(trainer.ckpt_dir)[0]["options"] == expected
    said = capsys.readouterr().out
    assert all(f"  {name}: {value}\n" in said for name, value in expected.items())


def test_the_configuration_holds_what_reproduces_the_run():
    trainer = tiny_trainer(accumulate_steps=2, lr_scheduler_type="cosine", seed=None, ckpt_dir="run")
    (start,) = config("run")
    assert start["settings"]["accumulate_steps"] == 2
    assert start["settings"]["lr_scheduler_type"] == "cosine"
    assert start["settings"]["seed"] == trainer.seed  # the one that was drawn
    assert start["environment"]["torch"] == torch.__version__
    assert start["command"] == sys.argv
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", start["started"])


def test_each_start_of_a_run_adds_one_entry():
    for lr in (0.1, 0.2):
        trainer = Tiny(ckpt_dir="run")
        trainer.check_init(arg={"lr": lr}, use_tb=False)
    assert [start["options"]["lr"] for start in config("run")] == [0.1, 0.2]
    os.mkdir("other")
    run_folder.move_config("run", "other")
    assert len(config("other")) == 2 and not os.path.exists("run/config.json")


def test_a_start_that_cannot_write_the_file_says_so_and_spoils_nothing(monkeypatch, capsys):
    tiny_trainer(ckpt_dir="run")
    before = config("run")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        tiny_trainer(ckpt_dir="run")
    assert "run/config.json could not be written: No space left on device" in capsys.readouterr().out
    assert config("run") == before and not list(Path("run").glob(".*.tmp"))
    tiny_trainer(ckpt_dir="run")
    assert len(config("run")) == 2


def test_a_list_of_batches_does_not_end_up_in_the_configuration():
    tiny_trainer(train_loader=[tiny_data(10) for _ in range(100)], ckpt_dir="run")
    assert os.path.getsize("run/config.json") < 10_000


def test_the_commit_of_the_working_directory_is_noted():
    tiny_trainer(ckpt_dir="a")
    assert config("a")[0]["environment"]["commit"] is None  # no repository here
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    tiny_trainer(ckpt_dir="b")
    assert config("b")[0]["environment"]["commit"] == commit
    Path("file").touch()
    subprocess.run(["git", "add", "file"], check=True)
    tiny_trainer(ckpt_dir="c")
    assert config("c")[0]["environment"]["commit"] == f"{commit}-dirty"
