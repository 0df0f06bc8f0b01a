"""What may go wrong, done for real: kills, damaged files, full disks, hostile files, losses that are not finite.

A short form runs with all tests. The long one, with the figures at its end::

    make faults

The job is ``fault_job.py``. A run that was disturbed is compared, bit by bit, with one that nobody disturbed.
"""

import copy
import io
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from fault_job import EPOCHS, SAVE_PER_STEPS, UPDATES, AverageWeights, Job
from fault_results import LONG, comparable, curves, differences, history, times
from fork_server import start_python
from tiny import PATH, run_python, weights

from template import Callback
from template.callbacks.history import History
from template.checkpoint import state
from template.checkpoint.files import CheckpointError, read

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")]

ENVIRONMENT = {"PYTHONPATH": PATH, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


# --- what is compared ---------------------------------------------------------------------------------------------------


class Undisturbed:
    """The run that nobody disturbed, and how often it passed each place of ``fault_moments.PLACES``."""

    def __init__(self, folder, num_workers):
        done = job(folder, num_workers, "count")
        self.folder = folder
        self.last, self.best = read(folder / "run/last.pth"), read(folder / "run/best.pth")
        self.curves = curves(folder / "runs/run")
        passed = re.search(r"^passed (.*)$", done.stderr, re.M)[1]
        self.passed = {place: int(count) for place, count in (part.split("=") for part in passed.split())}
        assert min(self.passed.values()) >= WRITINGS and self.passed["open"] == WRITINGS, "watched at the wrong places"

    def assert_same_end(self, folder, rngs=("torch", "numpy", "python")):
        """Everything that the run left is what it would have left undisturbed, to the bit."""
        last, best = read(folder / "run/last.pth"), read(folder / "run/best.pth")
        assert differences(comparable(last, rngs), comparable(self.last, rngs)) == []
        assert differences(comparable(best), comparable(self.best)) == []
        assert history(folder / "run") == history(self.folder / "run")
        assert differences(comparable(read(folder / f"run/epoch{EPOCHS}.pth"), rngs), comparable(last, rngs)) == []
        assert curves(folder / "runs" / last["run_name"]) == self.curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """``undisturbed(num_workers)``, run once for each number."""
    runs = {}

    def of(num_workers):
        if num_workers not in runs:
            runs[num_workers] = Undisturbed(tmp_path_factory.mktemp("undisturbed"), num_workers)
        return runs[num_workers]
    return of


def test_the_comparison_sees_one_bit_and_one_number(undisturbed):
    saved = undisturbed(0).last
    assert saved["global_step"] == UPDATES and differences(comparable(saved), comparable(saved)) == []
    for place in (("model0", "0.weight"), ("optimizer_list0", "state", 0, "exp_avg"), ("rng", "numpy", "keys"),
                  ("callbacks", "AverageWeights", "average", "3.bias")):
        changed = copy.deepcopy(saved)
        inside(changed, place).view(torch.uint8)[0] ^= 1
        assert len(differences(comparable(saved), comparable(changed))) == 1
    changed = copy.deepcopy(saved)
    changed["callbacks"]["History"]["rows"][2]["lr"] *= 1 + 1e-15
    assert differences(comparable(saved), comparable(changed)) == [
        f"state['callbacks']['History']['rows'][2]['lr']: {saved['callbacks']['History']['rows'][2]['lr']!r} and "
        f"{changed['callbacks']['History']['rows'][2]['lr']!r}"]


def test_the_number_of_workers_changes_nothing_but_the_generators_that_only_data_code_draws_from(undisturbed):
    undisturbed(0).assert_same_end(undisturbed(2).folder, rngs=["torch"])


def inside(nested, place):
    for key in place:
        nested = nested[key]
    return nested


# --- running the job ----------------------------------------------------------------------------------------------------


def job(folder, num_workers=0, fault=""):
    """To its end, whatever that is."""
    return run_python("-m", "fault_moments", num_workers, cwd=folder, env={**ENVIRONMENT, "FAULT": fault}, check=False)


class Process:
    """The job as a process that the test sends signals to. What it says goes to files: workers would keep pipes open."""

    def __init__(self, folder, num_workers, fault=""):
        self.said_file, self.printed_file = folder / "said.txt", folder / "printed.txt"
        with open(self.said_file, "w") as said, open(self.printed_file, "w") as printed:
            self.process = start_python(
                ["-m", "fault_moments", num_workers], cwd=folder, stdout=printed, stderr=said,
                env={**os.environ, **ENVIRONMENT, "FAULT": fault}, start_new_session=True)

    def wait_for(self, marker, count):
        """Until it said ``marker`` that often; False when it ended before."""
        while self.said().count("\n" + marker) < count:
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    def send(self, number):
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def end(self):
        """The exit code, once it ended; its workers are ended with it."""
        code = self.process.wait(timeout=120)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return code

    def said(self):
        return "\n" + self.said_file.read_text()

    def printed(self):
        return self.printed_file.read_text()

    def reached(self):
        """The last update that it did, or None."""
        updates = re.findall(r"^update (\d+)$", self.said(), re.M)
        return int(updates[-1]) if updates else None

    def resumed(self):
        """The update and the file that it went on from, or None."""
        found = re.search(r"^resumed (\d+) (.+)$", self.said(), re.M)
        return found and (int(found[1]), found[2])


# --- 1. kills -----------------------------------------------------------------------------------------------------------

KILLS_OF_ONE_TEST = 9 if LONG else 4
MARKERS = {  # how often each is said at most before the signal, and how many seconds later it is sent at most
    "imported": (1, 0.1), "check_init": (1, 0.15), "load_state": (1, 0.03), "resumed": (1, 0.1),
    "batch": (12, 0.01), "update": (8, 0.01), "eval": (8, 0.01),
}


def fault_in_a_write(rng, passed):
    """One of the places that a write goes through, in the first quarter of what the whole run does there."""
    place = rng.choice(sorted(passed))
    moment = rng.choice(["before", "after", "half"] if place == "write" else ["before", "after"])
    return f"kill {place} {rng.randint(1, 1 + passed[place] // 4)} {moment}"


def signal_at_a_moment(process, rng, number, markers=tuple(MARKERS)):
    """Wait for a moment behind one of the markers, and signal."""
    marker = rng.choice(markers)
    if marker == "start":
        time.sleep(rng.uniform(0, 1.5))
    else:
        count, seconds = MARKERS[marker]
        process.wait_for(marker, rng.randint(1, count))
        time.sleep(rng.uniform(0, seconds))
    process.send(number)


class Restarts:
    """What one run went through from process to process, checked at each of them."""

    def __init__(self):
        self.reached = 0    # by the process before
        self.largest_loss = 0
        self.continued = 0  # starts that went on from a checkpoint
        self.leftovers = 0  # starts beside what a killed write left

    def look_at(self, process, leftovers):
        self.leftovers += bool(leftovers)
        if process.resumed() is not None:
            step, path = process.resumed()
            assert re.fullmatch(r"None|(.*/)?run/(last|previous|epoch\d)\.pth", path), path
            assert self.reached - step <= 2 * SAVE_PER_STEPS, f"at update {self.reached}, went on from {path} of {step}"
            self.largest_loss = max(self.largest_loss, self.reached - step)
            self.continued += step > 0
            self.reached = process.reached() or step
        assert "skipped" not in process.printed()


@pytest.mark.parametrize("chain", times(1, 8))
@pytest.mark.parametrize("workers", [(0,), (2,), (0, 2)], ids=["0 workers", "2 workers", "0 and 2 workers"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(workers, chain, undisturbed, tmp_path,
                                                                     record_property):
    rng = random.Random(f"{workers} {chain}")
    whole = undisturbed(workers[0])
    killed = {"a write": 0, "else": 0}
    runs = largest = leftovers = continued = 0
    while sum(killed.values()) < KILLS_OF_ONE_TEST:
        runs += 1
        folder = tmp_path / f"run{runs}"
        folder.mkdir()
        restarts = Restarts()
        while True:
            before = list(folder.glob("run/.*.tmp"))
            in_write = killed["a write"] <= killed["else"]
            is_enough = sum(killed.values()) == KILLS_OF_ONE_TEST
            fault = fault_in_a_write(rng, whole.passed) if in_write and not is_enough else ""
            process = Process(folder, rng.choice(workers), fault)
            if not fault and not is_enough:
                markers = ("start", *MARKERS) if killed["else"] else ("eval",)  # one at least behind a checkpoint
                signal_at_a_moment(process, rng, signal.SIGKILL, markers)
            code = process.end()
            assert code in (0, -signal.SIGKILL), f"a restart failed with {code}: {process.said()}"
            restarts.look_at(process, before)
            if code == 0:
                assert "Traceback" not in process.said(), process.said()
                break
            killed["a write" if fault else "else"] += 1
        whole.assert_same_end(folder, ("torch", "numpy", "python") if len(workers) == 1 else ("torch",))
        largest, leftovers = max(largest, restarts.largest_loss), leftovers + restarts.leftovers
        continued += restarts.continued
    assert continued
    for name, value in {
        "kills: in a write": killed["a write"], "kills: at start-up, in updates and evaluations": killed["else"],
        "kills: runs, each ended with the same bits": runs, "kills: restarts beside a half-written file": leftovers,
        "kills: restarts, none failed": sum(killed.values()), "kills: restarts from a checkpoint": continued,
        "largest number of updates done again after a kill": largest,
    }.items():
        record_property(name, value)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("workers, chain", [(number % 2 * 2, number) for number in times(1, 10)])
def test_no_signal_loses_an_update(number, code, workers, chain, undisturbed, tmp_path, record_property):
    """Two to each run, then it is let go on to its end."""
    rng = random.Random(f"{number} {workers} {chain}")
    signals, reached = 0, 0
    while signals < 2:
        process = Process(tmp_path, workers)
        process.wait_for("update", 1)
        signal_at_a_moment(process, rng, number, ("batch", "update", "eval"))
        assert process.end() == code, process.said()
        assert process.resumed()[0] == reached
        reached = process.reached()
        assert f"Stopped by a signal; saved at epoch {read(tmp_path / 'run/last.pth')['epoch']}, update {reached}" in \
            process.printed()
        signals += 1
    done = job(tmp_path, workers)
    assert done.returncode == 0 and re.search(rf"^resumed {reached} .*last\.pth$", done.stderr, re.M)
    undisturbed(workers).assert_same_end(tmp_path)
    record_property(f"signals: {signal.Signals(number).name}, no update lost", signals)


@pytest.mark.parametrize("attributes, update, goes_on_in", [
    ({"run_name": "mine"}, 3, "run"), ({"run_name": "mine"}, 3, "run_2"), ({}, None, "run"),
    ({"save_per_steps": 7}, None, "run"),
], ids=["killed before the first save", "interrupted before the first save", "in its evaluation",
        "in its evaluation, saved at its last update"])
def test_an_epoch_that_was_cut_short_shows_once_in_tensorboard(attributes, update, goes_on_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Cut(Callback):
        def on_after_step(self, model):
            if model.global_step == update:
                raise KeyboardInterrupt

        def on_eval_batch(self, model, batch):
            raise KeyboardInterrupt

    def trainer(*callbacks):
        made = Job(callbacks=[AverageWeights(), History(png=False), *callbacks], **attributes)
        made.check_init()
        made.load_state("auto")
        return made

    with pytest.raises(KeyboardInterrupt):
        trainer(Cut()).fit(1)
    if update is not None and goes_on_in == "run":
        Path("run/crashed.pth").unlink()  # a kill leaves none
    time.sleep(1)  # the names of event files, and so their order, begin with the second
    again = trainer()
    again.fit(1)
    assert Path(again.ckpt_dir) == Path(goes_on_in)
    found = curves(tmp_path / "runs" / read(tmp_path / goes_on_in / "last.pth")["run_name"])
    assert [step for step, _ in found["train", "epoch/tol_loss"]] == [1]
    assert [step for step, _ in found["", "update/tol_loss"]] == [2, 4, 6, 7]


# --- 2. damaged files ---------------------------------------------------------------------------------------------------


def build(folder, **attributes):
    """The job's trainer in this process, after ``check_init``."""
    trainer = Job(**{"callbacks": [AverageWeights(), History(png=False)], "ckpt_dir": str(folder), "run_name": "run",
                     **attributes})
    trainer.check_init(use_tb=False)
    return trainer


class CopyFolder(Callback):
    """What a kill after that update would leave."""

    def __init__(self, update, target):
        self.update, self.target = update, target

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.wait_for_saves()
            shutil.copytree(model.ckpt_dir, self.target)


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    """``(folder as it was after update 17, the state of the run's end)``; last.pth is of update 15."""
    folder = tmp_path_factory.mktemp("halted")
    halted = folder / "halted"
    trainer = build(folder / "run", callbacks=[AverageWeights(), History(png=False), CopyFolder(17, halted)])
    trainer.fit(EPOCHS)
    assert read(halted / "last.pth")["global_step"] == 15 and read(halted / "previous.pth")["global_step"] == 14
    assert (halted / "best.pth").exists()
    return halted, comparable(state.collect(trainer))


def loaded(folder, capsys):
    """A new trainer after load_state("auto"), and what was printed."""
    trainer = build(folder)
    capsys.readouterr()
    trainer.load_state("auto")
    return trainer, capsys.readouterr().out


def state_of(trainer):
    return comparable(copy.deepcopy(state.collect(trainer)))


def assert_ends_as(trainer, end):
    trainer.fit(EPOCHS)
    assert differences(state_of(trainer), end) == []


class Damage:
    """The halted run, its newest checkpoint damaged again and again, and how that ended."""

    def __init__(self, halted, tmp_path, capsys):
        self.folder, self.capsys = tmp_path / "damaged", capsys
        self.end = halted[1]
        shutil.copytree(halted[0], self.folder)
        self.whole = (self.folder / "last.pth").read_bytes()
        self.last = state_of(loaded(self.folder, capsys)[0])
        shutil.copy(self.folder / "previous.pth", self.folder / "last.pth")
        self.previous = state_of(loaded(self.folder, capsys)[0])
        assert len(differences(self.last, self.previous)) > 10
        self.harmless = self.detected = 0

    def load(self, data, to_the_end):
        """Either the same state as undamaged, or said to be damaged and the one before it taken."""
        (self.folder / "last.pth").write_bytes(data)
        trainer, printed = loaded(self.folder, self.capsys)
        if "skipped: " in printed:
            assert re.search(r"^skipped: .*damaged/last\.pth", printed, re.M) and "previous.pth: epoch" in printed
            assert differences(state_of(trainer), self.previous) == []
            self.detected += 1
        else:
            assert differences(state_of(trainer), self.last) == []
            self.harmless += 1
        if to_the_end:
            before = (self.folder / "previous.pth").read_bytes()
            assert_ends_as(trainer, self.end)
            for path in self.folder.iterdir():
                path.unlink()
            (self.folder / "previous.pth").write_bytes(before)


def test_a_newest_checkpoint_that_was_cut_short_is_named_and_the_one_before_it_used(halted, tmp_path, capsys,
                                                                                   record_property):
    damage, rng = Damage(halted, tmp_path, capsys), random.Random(0)
    lengths = [0, 1, len(damage.whole) - 1, *(rng.randrange(len(damage.whole)) for _ in times(10, 60))]
    for number, length in enumerate(lengths):
        damage.load(damage.whole[:length], to_the_end=number % 20 == 5)
    assert damage.detected == len(lengths)
    record_property("truncations: named, previous.pth used", damage.detected)


def test_a_flipped_byte_of_the_newest_checkpoint_is_detected_or_harmless(halted, tmp_path, capsys, record_property):
    damage, rng = Damage(halted, tmp_path, capsys), random.Random(1)
    for number in times(40, 400):
        data = bytearray(damage.whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        damage.load(data, to_the_end=number % 40 == 7)
    assert damage.detected > 5 and damage.harmless > 5
    record_property("flipped bytes: named, previous.pth used", damage.detected)
    record_property("flipped bytes: in padding, the same state", damage.harmless)


# --- 3. full disks ------------------------------------------------------------------------------------------------------

WRITINGS = 16  # of checkpoints in an undisturbed run


def assert_told_once(printed, reason):
    """One loud line for each file, however many saves in a row failed, and one when it works again."""
    failed = re.findall(r"!!! SAVE FAILED: (\S+) of epoch \d, update \d+: (.*?)\. ", printed)
    assert failed and len({path for path, _ in failed}) == len(failed), failed
    assert all(re.match(reason, what) for _, what in failed), failed
    assert printed.count("SAVE FAILED") == len(failed)
    assert all(path.endswith(("run/last.pth", "run/best.pth")) for path, _ in failed), failed
    return [path for path, _ in failed]


def assert_log_is_whole(folder, printed):
    """Every line that was printed stands in log.txt, but those about the log itself and what came after the end."""
    log = (folder / "run/log.txt").read_text()
    lines = [line for line in printed.splitlines() if line != "finished" and "log.txt cannot be written" not in line]
    assert len("".join(lines)) == len(log.replace("\n", "")), (log, printed)
    assert all(line in printed for line in log.splitlines())


@pytest.mark.parametrize("part", [0, 0.5, 0.95])
@pytest.mark.parametrize("first", range(1, WRITINGS + 1) if LONG else [5])
def test_training_goes_on_when_a_save_fails_and_saving_works_again(first, part, undisturbed, tmp_path, record_property):
    """Behind that part of the file; up to three writings in a row, of last.pth or best.pth."""
    whole, num_failing = undisturbed(0), 1 + first % 3
    offsets = [int(part * (whole.folder / f"run/{name}.pth").stat().st_size) for name in ("last", "best")]
    done = job(tmp_path, 0, f"full {first} {first + num_failing - 1} {offsets[0]} {offsets[1]}")
    assert done.returncode == 0, done.stderr
    told = assert_told_once(done.stdout, "File too large")
    assert all(f"Saving works again: {path} of epoch" in done.stdout for path in told)
    writings = re.findall(r"^writing (\d+) (True|False) (\w+)$", done.stderr, re.M)
    from_first = [digest for number, _, digest in writings if first <= int(number) <= first + num_failing]
    assert len(from_first) == num_failing + 1 and len(set(from_first)) == 1, writings
    assert_log_is_whole(tmp_path, done.stdout)
    whole.assert_same_end(tmp_path)
    record_property("full disk: runs with saves that failed, same bits at the end", 1)
    record_property("full disk: saves that failed", num_failing)


@pytest.mark.parametrize("first", range(1, WRITINGS + 1) if LONG else [12])
def test_when_the_last_save_failed_the_process_says_so_and_a_restart_goes_on_exactly(first, undisturbed, tmp_path,
                                                                                    record_property):
    done = job(tmp_path, 0, f"full {first} 999 {1000 + first} 500")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"^The last save failed: .*run/last\.pth \(File too large.*Exit code 1\.$", done.stderr, re.M)
    assert f"update {UPDATES}" in done.stderr and "run/last.pth" in " ".join(assert_told_once(done.stdout, "File too large"))
    resumed = job(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    undisturbed(0).assert_same_end(tmp_path)
    record_property("full disk: last save failed, exit code 1, restart exact", 1)


def in_a_mount_namespace(folder, fault):
    """The job on a small tmpfs of its own; what it left is in ``folder / "left"`` afterwards."""
    (folder / "disk").mkdir()
    return run_python("-m", "mounted_job", cwd=folder, env={**ENVIRONMENT, "FAULT": fault}, check=False, timeout=120)


@pytest.fixture(scope="module")
def mounting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    try:
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)],
                              capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here, so nothing can be mounted")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.mark.parametrize("begins, ends, reason", [
    ("fill ballast", "delete ballast", "No space left on device"),
    ("mount_readonly run", "unmount run", "Read-only file system"),
], ids=["full tmpfs", "read-only mount"])
@pytest.mark.parametrize("first, last", [(2, 5), (4, 16), (9, 20), (16, 27)] if LONG else [(9, 20)])
def test_on_a_disk_that_takes_nothing_for_a_while_training_goes_on(begins, ends, reason, first, last, mounting, undisturbed,
                                                                   tmp_path, record_property):
    done = in_a_mount_namespace(tmp_path, f"at {first} {begins};at {last} {ends}")
    assert done.returncode == 0, done.stderr
    told = assert_told_once(done.stdout, reason)
    assert "run/last.pth" in " ".join(told)
    assert all(f"Saving works again: {path} of epoch" in done.stdout for path in told)
    before, after = re.findall(r"^files (\w+)$", done.stderr, re.M)
    assert before == after
    assert_log_is_whole(tmp_path / "left", done.stdout)
    undisturbed(0).assert_same_end(tmp_path / "left")
    record_property(f"full disk: runs with a real {reason!r}, same bits at the end", 1)


def test_on_a_disk_that_stays_full_it_ends_with_exit_code_1_and_a_restart_goes_on_exactly(mounting, undisturbed, tmp_path):
    done = in_a_mount_namespace(tmp_path, "at 9 fill ballast")
    assert done.returncode == 1 and "Traceback (most recent call last)" not in done.stderr, done.stderr
    assert re.search(r"^The last save failed: .*run/last\.pth \(No space left on device.*Exit code 1\.$", done.stderr, re.M)
    (tmp_path / "left/ballast").unlink()
    assert job(tmp_path / "left").returncode == 0
    undisturbed(0).assert_same_end(tmp_path / "left")


@pytest.mark.parametrize("update", [4, 9, 14, 20, 27] if LONG else [9])
def test_a_folder_that_is_deleted_in_the_middle_is_made_again(update, undisturbed, tmp_path):
    done = job(tmp_path, 0, f"at {update} delete_folder run")
    assert done.returncode == 0 and "files none" in done.stderr, done.stderr
    whole = undisturbed(0)
    assert differences(comparable(read(tmp_path / "run/last.pth")), comparable(whole.last)) == []
    assert history(tmp_path / "run") == history(whole.folder / "run")
    assert curves(tmp_path / "runs/run") == whole.curves
    assert "epoch   4 eval" in (tmp_path / "run/log.txt").read_text()


def test_a_folder_that_becomes_read_only_for_a_while_costs_nothing(undisturbed, tmp_path):
    (tmp_path / "probe").mkdir(mode=0o555)
    if os.access(tmp_path / "probe", os.W_OK):
        pytest.skip("this user, root for example, may write to read-only folders")
    done = job(tmp_path, 0, "at 9 chmod run 555;at 20 chmod run 755")
    assert done.returncode == 0, done.stderr
    assert "run/last.pth" in " ".join(assert_told_once(done.stdout, "Permission denied"))
    before, after = re.findall(r"^files (\w+)$", done.stderr, re.M)
    assert before == after
    undisturbed(0).assert_same_end(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_training_goes_on_when_the_file_that_takes_its_output_is_on_a_full_disk(undisturbed, tmp_path):
    """As of ``nohup python -u train.py > out.txt``, or of a terminal that was closed."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    with open("/dev/full", "w") as printed:
        process = start_python(["-m", "fault_moments", "0"], cwd=tmp_path, stdout=printed, stderr=subprocess.PIPE,
                               env=environment)
    _, said = process.communicate(120)
    assert f"update {UPDATES}" in said, said
    undisturbed(0).assert_same_end(tmp_path)
    assert "epoch   4 eval" in (tmp_path / "run/log.txt").read_text()


# --- 4. hostile files ---------------------------------------------------------------------------------------------------


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


PAYLOAD_PLACES = {
    "a weight": ("model0", "0.weight"), "all weights": ("model0",),
    "a momentum": ("optimizer_list0", "state", 0, "exp_avg"),
    "a learning rate": ("optimizer_list0", "param_groups", 0, "lr"),
    "a callback": ("callbacks", "AverageWeights", "average"),
    "rng": ("rng", "torch"), "loader": ("loader",), "losses": ("losses",), "schedule": ("schedule",),
    "stepper": ("stepper", "scaler"), "best_metric": ("best_metric", "acc"), "a counter": ("global_step",),
    "an unknown entry": ("more",), "a key": None, "the whole file": None,
}


def with_payload(saved, place, payload):
    saved = copy.deepcopy(saved)
    if place == "the whole file":
        return payload
    if place == "a key":
        saved[payload] = 1
        return saved
    *path, name = PAYLOAD_PLACES[place]
    inside(saved, path)[name] = payload
    return saved


def as_zip(saved):
    return _saved(saved)


def as_file_of_torch_1_5(saved):
    return _saved(saved, _use_new_zipfile_serialization=False)


def with_pickle_protocol_4(saved):
    return _saved(saved, pickle_protocol=4)


def _saved(saved, **options):
    data = io.BytesIO()
    torch.save(saved, data, **options)
    return data.getvalue()


def records_added(*names):
    """A good file with further records, each of them a pickled payload."""
    def make(good, payload):
        data = io.BytesIO(good)
        with zipfile.ZipFile(data, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            for name in names:
                archive.writestr(name.format(root=root), pickle.dumps(payload))
        return data.getvalue()
    return make


def as_tar(good, payload):
    """The format of torch 0.1."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(payload)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


class Refusals:
    """Loads a hostile file in every way that there is."""

    def __init__(self, halted, tmp_path, capsys, executed):
        self.folder, self.capsys, self.executed = tmp_path / "run", capsys, executed
        shutil.copytree(halted, self.folder)
        self.good = {name: (halted / name).read_bytes() for name in ("last.pth", "previous.pth", "best.pth")}
        self.trainer = build(self.folder)
        self.trainer.load_state(self.folder / "previous.pth")
        self.previous = state_of(self.trainer)
        self.trainer.load_state("last")
        self.last = state_of(self.trainer)
        assert differences(self.last, self.previous)

    def assert_refused(self, data):
        before = state_of(self.trainer)
        self._only({"best.pth": data, "other.pth": data, "last.pth": data})
        for name in ("best", "last", self.folder / "other.pth"):
            for optim in (True, False):
                with pytest.raises(CheckpointError, match=r"\.pth"):
                    self.trainer.load_state(name, optim=optim)
        self._auto(optim=True, expected=None)
        self._auto(optim=False, expected=None)
        assert differences(state_of(self.trainer), before) == []
        self._only({"last.pth": data, "previous.pth": self.good["previous.pth"]})
        self._auto(optim=True, expected="previous.pth")
        assert differences(state_of(self.trainer), self.previous) == []
        assert not self.executed.exists()

    def assert_refused_or_good(self, data):
        """Of records that nobody reads: never executed, and what is loaded is the good state."""
        self._only({"last.pth": data})
        try:
            self.trainer.load_state("last")
            assert differences(state_of(self.trainer), self.last) == []
        except CheckpointError:
            pass
        assert not self.executed.exists()

    def _auto(self, optim, expected):
        self.capsys.readouterr()
        path = self.trainer.load_state("auto", optim=optim)
        assert path is None if expected is None else path.endswith(expected)
        assert re.search(r"^skipped: .*last\.pth", self.capsys.readouterr().out, re.M)

    def _only(self, files):
        for path in self.folder.glob("*.pth"):
            path.unlink()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encode", [as_zip, as_file_of_torch_1_5, with_pickle_protocol_4])
@pytest.mark.parametrize("place", PAYLOAD_PLACES)
def test_a_payload_anywhere_in_a_checkpoint_is_refused_and_never_executed(place, encode, halted, tmp_path, capsys,
                                                                         record_property):
    executed = tmp_path / "executed"
    data = encode(with_payload(read(halted[0] / "last.pth"), place, Payload(executed)))
    torch.load(io.BytesIO(data), weights_only=False)
    executed.rmdir()  # it was there: the trap works
    Refusals(halted[0], tmp_path, capsys, executed).assert_refused(data)
    record_property("hostile files: refused, none executed", 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, is_refused", [
    (records_added("{root}/constants.pkl", "{root}/code/__torch__.py", "{root}/code/__torch__.py.debug_pkl"), True),
    (as_tar, True),
    (records_added("{root}/data.pkl"), False),
    (records_added("{root}/more.pkl", "more.pkl", "{root}/.data/more", "{root}/data/999"), False),
    (records_added("{root}/byteorder"), False),
], ids=["TorchScript", "tar", "a second data.pkl", "further records", "a second byteorder"])
def test_a_payload_beside_the_data_is_never_executed(make, is_refused, halted, tmp_path, capsys, record_property):
    executed = tmp_path / "executed"
    data = make((halted[0] / "last.pth").read_bytes(), Payload(executed))
    refusals = Refusals(halted[0], tmp_path, capsys, executed)
    pickle.loads(pickle.dumps(Payload(executed)))
    executed.rmdir()  # the trap works
    (refusals.assert_refused if is_refused else refusals.assert_refused_or_good)(data)
    record_property("hostile files: refused, none executed" if is_refused else "hostile files: nothing of it read", 1)


# --- 5. losses and gradients that are not finite --------------------------------------------------------------------------


class Spoiled(Job):
    """The losses of the batches ``{(epoch, number of the batch)}`` are ``value``, or those of all evaluations."""

    def __init__(self, at=(), in_eval=False, value=math.nan, **attributes):
        super().__init__(**{"callbacks": [AverageWeights(), History(png=False)], **attributes})
        self.at, self.in_eval, self.value = at, in_eval, value
        self.run_name = "run"

    def loss_per_batch(self, batch):
        loss = super().loss_per_batch(batch)["tol_loss"]
        if self.model_list[0].training:
            is_spoiled = (self.epoch, self.batches_done + 1) in self.at
        else:
            is_spoiled = self.in_eval and self.global_step > 0
        return {"tol_loss": loss * self.value if is_spoiled else loss}


class SpoilGradient(Callback):
    """One number of one gradient, in update ``update``. Before unscaling: a hook of the parameter sees the loss scale."""

    def __init__(self, update, value):
        self.update, self.value = update, value
        self.weights = {}  # {update: the weights after it}
        self._model = None

    def on_train_start(self, model):
        if self._model is None:
            self._model = model
            model.model_list[0][3].bias.register_hook(self._spoil)

    def _spoil(self, grad):
        if self._model.global_step + 1 != self.update:
            return grad
        self._model.wait_for_saves()
        grad = grad.clone()
        grad[1] = self.value
        return grad

    def on_after_step(self, model):
        self.weights[model.global_step] = weights(model)


def spoiled(folder, **attributes):
    trainer = Spoiled(ckpt_dir=str(folder), **attributes)
    trainer.check_init(use_tb=False)
    return trainer


def assert_all_files_are_finite(folder):
    for path in folder.glob("*.pth"):
        assert all(value.isfinite().all() for value in read(path)["model0"].values()), path


def assert_goes_on_without_the_fault(folder, halted, at_least):
    assert_all_files_are_finite(folder)
    trainer = build(folder)
    trainer.load_state("auto")
    assert trainer.global_step >= at_least
    assert_ends_as(trainer, halted[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("save_per_steps", [1, 3])
@pytest.mark.parametrize("epoch, batch", [(1, 4), (2, 1), (2, 14), (4, 9)])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch_named(epoch, batch, save_per_steps, value, halted, tmp_path,
                                                                     record_property):
    trainer = spoiled(tmp_path / "run", at={(epoch, batch)}, value=value, save_per_steps=save_per_steps)
    with pytest.raises(FloatingPointError, match=rf"it is {value} in epoch {epoch}, batch {batch} .*seen at update \d+\."):
        trainer.fit(EPOCHS)
    update = 7 * (epoch - 1) + (batch + 1) // 2
    assert update - 1 <= trainer.global_step <= update + trainer.log_per_step
    assert_goes_on_without_the_fault(tmp_path / "run", halted, at_least=update - 1 - save_per_steps)
    record_property("not finite: losses, each batch named and the run continued", 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("update", [4, 6, 7, 14, 27, 28])
def test_weights_that_became_nan_never_become_the_newest_checkpoint(update, value, halted, tmp_path, record_property):
    """7, 14 and 28 are the last updates of epochs: what comes next is an evaluation, or the end."""
    spoil = SpoilGradient(update, value)
    trainer = spoiled(tmp_path / "run", save_per_steps=1, callbacks=[AverageWeights(), History(png=False), spoil])
    with pytest.raises(FloatingPointError, match="must stay finite"):
        trainer.fit(EPOCHS)
    trainer.checkpoints.saver.failed.clear()  # else this process would end with exit code 1
    assert not spoil.weights[update].isfinite().all()
    assert_goes_on_without_the_fault(tmp_path / "run", halted, at_least=update - 1)
    record_property("not finite: gradients, the files good and the run continued", 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_under_fp16_the_scaler_leaves_that_update_out_and_training_goes_on(value, tmp_path):
    spoil = SpoilGradient(9, value)
    trainer = spoiled(tmp_path / "run", amp="fp16", callbacks=[AverageWeights(), History(png=False), spoil])
    trainer.fit(EPOCHS)
    left_out = {update for update in range(2, UPDATES + 1) if torch.equal(spoil.weights[update], spoil.weights[update - 1])}
    assert 9 in left_out and left_out <= {2, 3, 4, 5, 9}  # the first ones may overflow at the scale that it begins with
    assert trainer.global_step == UPDATES and weights(trainer).isfinite().all()
    assert_all_files_are_finite(tmp_path / "run")


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_may_be_skipped_and_a_resumed_run_still_counts_it(value, fault, tmp_path, capsys):
    def run(folder):
        spoil = SpoilGradient(10 if fault == "gradient" else None, value)
        at = {(2, 6)} if fault == "loss" else ()
        trainer = spoiled(folder, skip_non_finite=3, at=at, value=value,
                          callbacks=[AverageWeights(), History(png=False), spoil])
        return trainer, spoil

    whole, spoil = run(tmp_path / "whole")
    whole.fit(EPOCHS)
    assert "Skipped an update: loss or gradient was not finite (epoch 2, update 10, up to batch 6); 1 so far." in \
        capsys.readouterr().out
    unchanged = [update for update in range(2, UPDATES + 1) if torch.equal(spoil.weights[update], spoil.weights[update - 1])]
    assert unchanged[:1] == [10] and whole.skipped_updates == 1
    parts, _ = run(tmp_path / "parts")
    for epoch in parts.epochs(EPOCHS):
        parts.train_loop()
        parts.eval()
        if epoch == 2:
            break
    continued, _ = run(tmp_path / "parts")
    assert continued.skipped_updates == 0
    continued.load_state("auto")
    assert continued.skipped_updates == 1
    continued.fit(EPOCHS)
    assert differences(state_of(continued), state_of(whole)) == []


@pytest.mark.parametrize("in_a_row", [3, 4])
def test_more_skipped_updates_in_a_row_than_allowed_end_the_run(in_a_row, halted, tmp_path, capsys):
    at = {(2, batch) for batch in (3, 5, 7, 9)[:in_a_row]}
    trainer = spoiled(tmp_path / "run", skip_non_finite=3, at=at)
    if in_a_row == 3:
        trainer.fit(EPOCHS)
        assert trainer.skipped_updates == 3 and trainer.global_step == UPDATES
        return
    with pytest.raises(FloatingPointError, match=r"4 updates in a row .* skip_non_finite is 3 \(epoch 2, update 12, "):
        trainer.fit(EPOCHS)
    assert capsys.readouterr().out.count("Skipped an update") == 3
    assert_all_files_are_finite(tmp_path / "run")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_evaluation_that_is_not_finite_is_told_and_never_best(value, tmp_path, capsys):
    trainer = spoiled(tmp_path / "run", key_metric="tol_loss", value=value)
    best = []
    for epoch in trainer.epochs(EPOCHS):
        trainer.in_eval = epoch in (2, 3)
        trainer.train_loop()
        trainer.eval()
        trainer.wait_for_saves()
        best.append((tmp_path / "run/best.pth").read_bytes())
    printed = capsys.readouterr().out
    for epoch in (2, 3):
        assert f"The evaluation of epoch {epoch} gave tol_loss = {value}, which never counts as best." in printed
    assert best[0] == best[1] == best[2]
    assert trainer.best_epoch["tol_loss"] in (1, 4) and math.isfinite(trainer.best_metric["tol_loss"])
    assert trainer.global_step == UPDATES
