"""What all trackers share, shown with one that keeps in memory what it is sent: once, in order, never in the loop's way."""

import copy
import json
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import tracker_job
from tiny import ROOT, Tiny, run_python, weights

import template
from template import Callback, Csv, JsonLines, Tracker
from template.callbacks.history import History
from template.output import run_lock, sender
from template.output.pictures import Pictures
from template.output.run_folder import REPRODUCE_IN
from template.trackers import base


class Service:
    """Where the tracker's runs are: it outlasts the trainers, and forgets what a killed process had in its memory."""

    def __init__(self):
        self.runs, self.pictures, self.texts, self.files, self.ends, self.configs = {}, [], [], [], [], {}


class Kept(Tracker):
    """Sends to a ``Service``, and waits or fails where it is told to."""

    def __init__(self, service, **options):
        super().__init__(**options)
        self.service, self.waits, self.fails, self.threads = service, threading.Event(), 0, set()
        self.waits.set()

    def start(self, about, id):
        id = id or f"run{len(self.service.runs)}"
        self.service.runs.setdefault(id, [])
        self.service.configs[id] = about.config
        return id

    def received(self, sent):
        return len(self.service.runs[self.id])

    def scalars(self, values, update, epoch, time):
        self.threads.add(threading.current_thread())
        self.waits.wait(20)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route to host")
        self.service.runs[self.id].append((update, epoch, values))

    def picture(self, name, png, update, epoch):
        self.service.runs[self.id].append((update, epoch, {}))
        self.service.pictures.append((name, update, png.read_bytes()[:4]))

    def text(self, name, text, update, epoch):
        self.service.runs[self.id].append((update, epoch, {}))
        self.service.texts.append((name, text, update))

    def file(self, path, kind):
        self.service.files.append((path.name, kind, path.read_bytes()))

    def finish(self, status):
        self.service.ends.append(status)


class Kill(Callback):
    """A kill after an update: what is on the disk then is copied, and later stands in the place of the run's folder. Of what
    the service was sent, ``arrived`` points are kept, as its package had the others in its memory."""

    def __init__(self, update, tracker, arrived):
        self.update, self.tracker, self.arrived, self.service = update, tracker, arrived, None

    def on_after_step(self, model):
        if model.global_step == self.update:
            model.wait_for_saves()
            wait_until(lambda: self.tracker._sender._sent == self.tracker._points.journal.count)
            shutil.copytree("exp", "killed")
            self.service = copy.deepcopy(vars(self.tracker.service))
            raise Killed

    def happens(self):
        shutil.rmtree("exp")
        Path("killed").rename("exp")
        Path("exp", run_lock.NAME).unlink(missing_ok=True)
        vars(self.tracker.service).update(self.service)
        for points in self.tracker.service.runs.values():
            del points[self.arrived:]


class Killed(Exception):
    pass


def wait_until(is_so):
    ends = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.01)


def built(ckpt_dir, *callbacks, **attributes):
    trainer = Tiny(ckpt_dir=ckpt_dir, log_per_step=1, save_per_steps=4, **attributes)
    trainer.callbacks = [History(png=False), *callbacks]
    trainer.check_init(use_tb=False, arg={"width": 16})
    return trainer


def curves(points):
    """``{curve: {update or epoch: value}}``; a double is refused."""
    found = {}
    for update, epoch, values in points:
        for name, value in values.items():
            x = epoch if name.startswith(("epoch/", "best/")) else update
            assert x not in found.setdefault(name, {}), f"{name} is there twice at {x}"
            found[name][x] = value
    return found


def of_whole_run(epochs, **attributes):
    record = tracker_job.Record()
    built("whole", record, **attributes).fit(epochs)
    return record.curves


def points_of_json_lines(path):
    points = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [(p.pop("update"), p.pop("epoch"), p) for p in points if p.pop("time") and "picture" not in p]


def points_of_csv(path):
    rows = [line.split(",") for line in Path(path).read_text().splitlines()]
    assert rows[0] == ["update", "epoch", "name", "value"]
    return [(int(update), int(epoch), {name: float(value)}) for update, epoch, name, value in rows[1:]]


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_each_log_point_evaluation_and_epoch_is_sent_once_at_its_update_or_epoch_with_settings_and_options():
    service = Service()
    tracker = Kept(service)
    built("exp", tracker, eval_per_steps=4).fit(3)
    assert curves(service.runs["run0"]) == of_whole_run(3, eval_per_steps=4)
    assert service.configs["run0"]["width"] == 16
    assert service.configs["run0"]["settings"]["seed"] == 3 and service.ends == ["finished"]
    assert not any(thread.is_alive() or thread is threading.main_thread() for thread in tracker.threads)


def test_pictures_and_texts_of_callbacks_are_sent_and_so_are_your_own():
    service = Service()

    def look(model):
        Pictures("mine").show(model, "note", "a text\nof two lines")
        return tracker_job.noise(model)

    built("exp", template.SampleOutputs(look, keep_all=True), Kept(service)).fit(2)
    assert [(name, update, head) for name, update, head in service.pictures] == [
        ("samples/look", 6, b"\x89PNG"), ("samples/look", 12, b"\x89PNG")]
    assert service.texts == [("mine/note", "a text\nof two lines", 6), ("mine/note", "a text\nof two lines", 12)]


def test_a_picture_whose_file_was_overwritten_before_it_was_sent_is_left_out_and_never_shown_as_another_one():
    service = Service()
    tracker = Kept(service)
    tracker.waits.clear()

    class Release(Callback):
        def on_exit(self, model):
            tracker.waits.set()

    built("exp", template.SampleOutputs(tracker_job.noise), Release(), tracker).fit(2)
    assert [update for _, update, _ in service.pictures] == [12]


def test_an_evaluation_before_the_training_is_the_first_point_and_one_without_training_makes_no_run():
    service = Service()
    trainer = built("exp", Kept(service))
    trainer.eval()
    assert not service.runs
    trainer.fit(1)
    first = service.runs["run0"][0]
    assert first[0] == 0 and set(first[2]) == {"eval/tol_loss", "eval/acc"}


def test_the_best_checkpoint_and_the_code_are_sent_when_asked_for(tmp_path):
    Path("train.py").write_text("print('hello')\n")
    Path("data.bin").write_text("not code")
    service = Service()
    built("exp", Kept(service, save_checkpoints=True, save_code=True)).fit(2)
    kinds = {kind: (name, content) for name, kind, content in service.files}
    assert kinds["model"] == ("best.pth", Path("exp/best.pth").read_bytes())
    with zipfile.ZipFile("exp/trackers/code.zip") as archive:
        assert archive.namelist() == ["train.py"]
    service.files.clear()
    built("plain", Kept(service)).fit(1)
    assert not service.files


# --- a run that is resumed ----------------------------------------------------------------------------------------------


def killed(update, arrived, epochs=4, **attributes):
    """The service, after a run that was killed."""
    tracker = Kept(Service())
    kill = Kill(update, tracker, arrived)
    with pytest.raises(Killed):
        built("exp", tracker, kill, **attributes).fit(epochs)
    kill.happens()
    return tracker.service


@pytest.mark.parametrize("arrived", [0, 3, 100], ids=["nothing had arrived", "a part had", "all had"])
def test_a_killed_and_resumed_run_is_one_run_without_double_or_missing_points(arrived):
    service = killed(11, arrived, eval_per_steps=4)
    with open("exp/trackers/kept.jsonl", "a") as file:
        file.write('{"update": 11, "epo')  # a line that was being written
    again = built("exp", Kept(service), eval_per_steps=4)
    again.load_state("auto")
    assert again.global_step == 8
    again.fit(4)
    assert list(service.runs) == ["run0"]
    assert curves(service.runs["run0"]) == of_whole_run(4, eval_per_steps=4)


def test_a_run_that_goes_on_with_another_log_interval_has_no_double_point():
    service = killed(11, 100)
    again = built("exp", Kept(service))
    again.load_state("auto")
    again.log_per_step = 3
    again.fit(4)
    assert sorted(curves(service.runs["run0"])["train/tol_loss"]) == [*range(1, 11), 12, 15, 18, 21, 24]


def test_a_checkpoint_that_is_not_the_newest_begins_a_run_of_its_own_with_the_points_until_there():
    service = Service()
    built("exp", Kept(service)).fit(3)
    branch = built("branch", Kept(service))
    branch.load_state("exp/epoch1.pth")
    branch.fit(2)
    expected = of_whole_run(3)
    assert curves(service.runs["run0"]) == expected
    assert curves(service.runs["run1"]) == {name: dict(list(curve.items())[:12 if len(curve) > 3 else 2])
                                            for name, curve in expected.items()}


def test_going_back_in_the_same_process_leaves_the_old_run_as_it_is_and_begins_another_one():
    service = Service()
    trainer = built("exp", Kept(service))
    trainer.fit(4)
    trainer.load_state("exp/epoch1.pth")
    trainer.change_lr([0.5])
    trainer.fit(2)
    first, second = curves(service.runs["run0"]), curves(service.runs["run1"])
    assert len(service.runs) == 2 and max(first["train/tol_loss"]) == 24 and max(second["train/tol_loss"]) == 12
    assert second["lr"][6] == 0.1 and second["lr"][7] == 0.5


def test_the_same_trainer_that_goes_on_after_its_end_or_after_an_error_continues_the_run():
    service = Service()

    class Fail(Callback):
        at = 8

        def on_after_step(self, model):
            assert model.global_step != self.at, "a mistake"

    fail = Fail()
    trainer = built("exp", Kept(service), fail)
    with pytest.raises(AssertionError):
        trainer.fit(2)
    assert service.ends == ["failed"]
    fail.at = None
    trainer.fit(2)
    trainer.fit(3)
    assert service.ends == ["failed", "finished", "finished"] and len(service.runs) == 1
    assert sorted(curves(service.runs["run0"])["train/tol_loss"]) == [*range(1, 8), *range(9, 19)]  # 8 was not logged


def test_a_signal_ends_the_run_as_stopped_and_without_uploading_a_checkpoint():
    service = Service()

    class Terminate(Callback):
        def on_after_step(self, model):
            if model.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        built("exp", Kept(service, save_checkpoints=True), Terminate()).fit(2)
    assert service.ends == ["stopped"] and not service.files
    again = built("exp", Kept(service))
    again.load_state("auto")
    again.fit(2)
    assert curves(service.runs["run0"]) == of_whole_run(2)


def test_several_trainers_in_one_process_have_a_run_each_also_with_one_tracker_between_them():
    service = Service()
    shared = Kept(service)
    for number in range(2):
        built(f"exp{number}", shared).fit(1)
    built("exp2", Kept(service), Kept(service)).fit(1)
    assert [len(curves(points)["train/tol_loss"]) for points in service.runs.values()] == [6, 6, 6, 6]


def test_the_folder_of_the_run_without_its_trackers_continues_the_run_whose_id_is_in_the_checkpoint():
    service = Service()
    built("exp", Kept(service)).fit(2)
    for path in Path("exp/trackers").iterdir():
        path.unlink()
    for epochs in (3, 4):
        again = built("exp", Kept(service))
        again.load_state("auto")
        again.fit(epochs)
    assert len(service.runs) == 1 and curves(service.runs["run0"]) == of_whole_run(4)


# --- a tracker that is slow, fails, or is not there -----------------------------------------------------------------------


def test_a_tracker_that_fails_is_told_once_tried_again_later_and_loses_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.05)
    service = Service()
    tracker = Kept(service)
    tracker.fails = 3
    plain = built("plain")
    plain.fit(3)

    class Slow(Callback):
        def on_after_step(self, model):
            time.sleep(0.02)

    trainer = built("exp", tracker, Slow())
    trainer.fit(3)
    assert capsys.readouterr().out.count("no route to host") == 1
    assert curves(service.runs["run0"]) == of_whole_run(3)
    assert weights(trainer).equal(weights(plain))


def test_while_a_tracker_is_away_it_is_not_tried_at_each_log_point_and_the_next_run_sends_what_is_left(capsys):
    service = Service()
    away = Kept(service)
    away.fails = 10**6
    built("exp", away).fit(3)
    assert 10**6 - away.fails <= 2  # once, and once more at the end
    told = capsys.readouterr().out
    assert told.count("no route to host") == 1 and "points could not be sent" in told
    again = built("exp", Kept(service))
    again.load_state("auto")
    again.fit(4)
    assert curves(service.runs["run0"]) == of_whole_run(4)


def test_a_point_that_the_tracker_never_takes_is_left_out_and_the_others_arrive(monkeypatch):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.001)
    service = Service()

    class Picky(Kept):
        def scalars(self, values, update, epoch, time):
            if update == 2 and "lr" in values:
                raise ValueError("not this one")
            super().scalars(values, update, epoch, time)

    tracker = Picky(service)

    class Wait(Callback):
        def on_train_end(self, model, result):
            wait_until(lambda: tracker._sender._sent >= 6)

    built("exp", tracker, Wait()).fit(1)
    assert sorted(curves(service.runs["run0"])["train/tol_loss"]) == [1, 3, 4, 5, 6]


def test_a_tracker_that_hangs_holds_up_no_update_and_the_end_for_so_long_only(monkeypatch, capsys):
    monkeypatch.setattr(base, "_PATIENCE", 0.3)
    tracker = Kept(Service())
    tracker.waits.clear()
    started = time.monotonic()
    built("exp", tracker).fit(2)
    assert time.monotonic() - started < 10
    assert "points are not sent after 0 s, and nobody waits" in capsys.readouterr().out
    tracker.waits.set()


def test_a_package_that_is_missing_is_named_when_the_tracker_is_made():
    class Nowhere(Tracker):
        package, pip = "no_such_package", "no-such-package"

    with pytest.raises(ModuleNotFoundError, match="Nowhere needs a package that is missing: pip install no-such-package"):
        Nowhere()


def test_only_the_first_process_of_several_sends(monkeypatch):
    service = Service()
    tracker = Kept(service)
    trainer = built("exp", tracker)
    with monkeypatch.context() as there:
        there.setattr(trainer.world, "is_main", False)
        tracker.on_train_start(trainer)
        tracker.on_log(trainer, {"tol_loss": 1.0})
        tracker.on_eval_result(trainer, {"tol_loss": 1.0})
        tracker.on_exit(trainer)
        assert not service.runs and not Path("exp/trackers").exists()
    tracker.on_train_start(trainer)
    tracker.on_exit(trainer)
    assert len(service.runs) == 1


def test_a_run_that_is_reproduced_sends_nothing_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv(REPRODUCE_IN, str(tmp_path))
    service, trainer = Service(), Tiny()
    trainer.callbacks = [Kept(service, save_checkpoints=True, save_code=True), JsonLines()]
    trainer.check_init(use_tb=False)
    trainer.fit(1)
    assert not service.runs and not service.files and not service.ends
    assert trainer.path_of("numbers.jsonl").stat().st_size


def test_a_tool_that_looks_at_a_trainer_begins_no_run():
    from template.tools.find_lr import find_lr

    service = Service()
    trainer = built("exp", Kept(service))
    find_lr(trainer)
    assert not service.runs


# --- Csv and JsonLines ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind, file, read", [(JsonLines, "numbers.jsonl", points_of_json_lines),
                                              (Csv, "numbers.csv", points_of_csv)], ids=["JsonLines", "Csv"])
def test_the_file_of_a_killed_and_resumed_run_is_that_of_a_run_that_was_never_killed(kind, file, read, tmp_path):
    for update in (31, 53, 0):
        done = run_python("-m", "tracker_job", kind.__name__, str(update), "0", "{}", cwd=tmp_path, check=False,
                          env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/jobs"})
        assert done.returncode == (-9 if update else 0), done.stderr
    assert curves(read(f"exp/{file}")) == tracker_job.expected()


@pytest.mark.parametrize("kind, file, read", [(JsonLines, "numbers.jsonl", points_of_json_lines),
                                              (Csv, "numbers.csv", points_of_csv)], ids=["JsonLines", "Csv"])
def test_going_back_cuts_the_file_back_and_other_values_take_the_place_of_the_old_ones(kind, file, read):
    trainer = built("exp", kind())
    trainer.fit(4)
    trainer.load_state("exp/epoch1.pth")
    trainer.change_lr([0.5])
    trainer.fit(2)
    found = curves(read(f"exp/{file}"))
    assert sorted(found["train/tol_loss"]) == list(range(1, 13)) and found["lr"][12] == 0.5


def test_pandas_like_readers_take_the_csv_and_a_name_with_a_comma_is_one_cell():
    import csv

    trainer = built("exp", Csv())
    trainer.metric = lambda pred, y: {"acc, top": 1.0}
    trainer.key_metric = "acc, top"
    trainer.fit(1)
    with open("exp/numbers.csv") as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert "eval/acc, top" in names and "csv" in sys.modules
