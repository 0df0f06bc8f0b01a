"""The page of a run: all there is, as text, in one file; and a page too where something is broken or missing."""

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny import run_python, tiny_trainer

from template.hooks import Callback
from template.tools.report import main, report

PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000"
                    "1f15c4890000000d49444154789c6360f8cfc000000301010018dd8db00000000049454e44ae426082")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Its text by headings, its tables, and whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.sources, self.sections, self.rows, self.heading = [], [], [], {"": ""}, [], ""
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "summary"):
            self.heading = ""
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3", "summary"):
            self.heading += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)
        self.sections[self.heading] = self.sections.get(self.heading, "") + f"{data}\n"

    @property
    def text(self):
        return "\n".join(self.sections.values())


class Failing(Callback):
    def on_train_start(self, model):
        if model.epoch == 2:
            raise ZeroDivisionError("in epoch 2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of three epochs."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(folder)
    trainer = tiny_trainer(ckpt_dir="run", key_metric="acc")
    trainer.fit(3)
    best = dict(trainer.best_metric), dict(trainer.best_epoch)
    os.chdir(before)
    return folder / "run", best


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    import shutil

    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_the_page_of_a_trainer_holds_its_best_values_curves_settings_and_files_and_asks_the_network_for_nothing(tmp_path):
    trainer = tiny_trainer(ckpt_dir="run", lr_scheduler_type="cosine")
    trainer.fit(3)
    path = report(trainer)
    assert path == tmp_path / "run/report.html"
    page = Page(path)
    assert "script" not in page.tags and page.tags.count("svg") >= 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    for name, value in trainer.best_metric.items():
        assert any(row[:3] == [name, f"{value:.5g}", str(trainer.best_epoch[name])] for row in page.rows), name
    assert "finished" in page.text and ["lr_scheduler_type", "cosine"] in page.rows
    assert any(row[0] == "torch" for row in page.rows)
    size = os.path.getsize("run/best.pth")
    assert any(row[0] == "best.pth" and row[1].startswith(f"{size / 1000:.3g}") for row in page.rows)


@pytest.mark.slow
def test_every_epoch_tells_its_values_in_the_curves(run):
    titles = re.findall(r"<title>(epoch \d[^<]*)</title>", report(run).read_text(encoding="utf-8"))
    rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    for values in rows[1:]:
        row = dict(zip(rows[0], values))
        expected = f"epoch {row['epoch']}\ntrain {float(row['train/tol_loss']):.6g}\neval {float(row['eval/tol_loss']):.6g}"
        assert expected in titles


def test_it_leaves_trainer_and_folder_as_they_were_but_for_its_file(tmp_path):
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.train_loop()
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path("run").iterdir()}
    report(trainer)
    report(trainer)
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path("run").iterdir()}
    after.pop("report.html")
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {"log.txt", ".lock"}, "the line that it printed, and the lock that is renewed"


def test_warnings_and_errors_of_the_log_are_told_with_their_lines_and_as_often_as_they_came(run):
    log = (run / "log.txt").read_text(encoding="utf-8")
    start = log.count("\n")
    (run / "log.txt").write_text(log + 'train.py:3: UserWarning: <b>labels</b> & more\n  trainer.fit(3)\nepoch 4\n'
                                 "!!! history.csv cannot be written\n!!! history.csv cannot be written\n"
                                 'Traceback (most recent call last):\n  File "train.py", line 3\n    main()\n'
                                 "RuntimeError: out of memory\nepoch 5\n", encoding="utf-8")
    page = Page(report(run))
    told = page.sections["Warnings and errors (3)"]
    assert "train.py:3: UserWarning: <b>labels</b> & more\n  trainer.fit(3)\n" in told
    assert f"line {start + 1}\n" in told and f"line {start + 4} and 1 more" in told
    assert "RuntimeError: out of memory" in told and "epoch 5" not in told
    assert "ended by an error" in page.text


def test_confusion_matrix_worst_samples_and_pictures_are_shown_where_the_folder_holds_them(run):
    (run / "interpret").mkdir()
    (run / "interpret/confusion.csv").write_text("true,cat,<dog>\ncat,9,1\n<dog>,3,7\n", encoding="utf-8")
    (run / "interpret/confusion.png").write_bytes(PNG)
    (run / "interpret/largest_loss.csv").write_text("index,score,label\n17,3.25,<dog>\n4,2.5,cat\n", encoding="utf-8")
    (run / "interpret/largest_loss.png").write_bytes(PNG)
    (run / "samples").mkdir()
    (run / "samples/poem.txt").write_text("roses <are> red")
    (run / "pictures").mkdir()
    (run / "pictures/epoch3.png").write_bytes(PNG)
    (run / "pictures/broken.png").write_bytes(b"")
    page = Page(report(run))
    assert ["<dog>", "3", "7"] in page.rows and ["17", "3.25", "<dog>"] in page.rows
    assert page.tags.count("img") == 2 and "broken.png is no picture" in page.text
    assert "roses <are> red" in page.text and "are" not in page.tags


def test_a_matrix_of_many_classes_is_shown_as_its_picture_and_one_that_is_broken_as_a_table(run):
    names = ",".join(f"class{i}" for i in range(100))
    (run / "confusion_matrix.csv").write_text(f"true,{names}\n" + f"class0,{names}\n", encoding="utf-8")
    assert "class7" in Page(report(run)).sections["Confusion matrix"]
    (run / "confusion_matrix.png").write_bytes(PNG)
    page = Page(report(run))
    assert page.tags.count("img") == 1 and "class7" not in page.text


@pytest.mark.parametrize("content, told, epochs", [
    (b"epoch,train/tol_loss\n1,0.5\n2,0.4\n3", "1 line of history.csv cannot be read", "2"),
    (b"\x00" * 100, "history.csv holds no epoch yet", "0"),
    (b"\xff\xfe\x00garbage\n\n\nmore, of, it", "of history.csv cannot be read", "0"),
    (b"epoch,eval/acc\n1,nan\n2,inf\n3,mine\n4,0.5", "", "4"),
    (b"epoch,eval/acc,seconds\n1,1e308,-1\n2,-1e308,x", "", "2"),
    (b"", "", "0"),
])
def test_a_history_that_is_broken_gives_the_rows_that_can_be_read_and_says_so(run, content, told, epochs):
    (run / "history.csv").write_bytes(content)
    page = Page(report(run))
    assert told in page.text and f"{epochs}\nepochs" in page.text


def test_evaluations_within_an_epoch_have_places_of_their_own_and_a_loader_without_a_length_counts_updates(run):
    (run / "history.csv").write_text("epoch,global_step,eval/acc\n0.5,10,0.2\n1,20,0.9\n1.5,30,0.4\n")
    page = Page(report(run))
    assert ["acc", "0.9", "1", "0.4"] in [row[:4] for row in page.rows] and "epoch 1.5\neval 0.4" in page.text
    (run / "history.csv").write_text("epoch,global_step,eval/acc\n0.5,10,0.2\n0.5,20,0.9\n0.5,30,0.4\n")
    page = Page(report(run))
    assert ["acc", "0.9", "20", "0.4"] in [row[:4] for row in page.rows] and "update 30\neval 0.4" in page.text


@pytest.mark.parametrize("name", ["history.csv", "config.json", "log.txt"])
def test_a_file_that_is_missing_is_named_and_the_rest_is_there(run, name):
    (run / name).unlink()
    page = Page(report(run))
    assert f"{name} is not there." in page.text and any(row[0] == "best.pth" for row in page.rows)


@pytest.mark.parametrize("content", ["{", "7", '["x"]', '[{"options": 3, "settings": [1], "environment": null}]',
                                     '[{"command": 1}]', "[]"])
def test_a_config_that_is_no_config_costs_its_section_alone(run, content):
    (run / "config.json").write_text(content)
    page = Page(report(run))
    assert "config.json" in page.text and "tol_loss" in page.text


def test_what_changed_between_the_starts_of_a_run_is_listed(run):
    starts = json.loads((run / "config.json").read_text())
    again = json.loads(json.dumps(starts[0]))
    again["options"], again["settings"]["clip_grad"] = {"lr": 0.5}, 1.0
    (run / "config.json").write_text(json.dumps([*starts, again]))
    (row,) = (row for row in Page(report(run)).rows if "clip_grad = 1.0" in row[-1])
    assert "lr = 0.5" in row[-1] and "seed" not in row[-1]


def test_the_state_of_a_run_is_told_by_its_lock_and_the_last_start_in_its_log(run):
    log = (run / "log.txt").read_text(encoding="utf-8")
    (run / "log.txt").write_text(log + "=== 2030-01-01 00:00:00 | run | cpu | seed 3 ===\nepoch 4\n", encoding="utf-8")
    assert "not finished" in Page(report(run)).text
    (run / ".lock").write_text("{}")
    assert "still going on" in Page(report(run)).text
    os.utime(run / ".lock", (time.time() - 600,) * 2)
    (run / "log.txt").write_text(log + "=== 2030-01-01 00:00:00 | run | cpu | seed 3 ===\nInterrupted; saved at epoch 4\n",
                                 encoding="utf-8")
    assert "interrupted" in Page(report(run)).text


def test_names_of_a_person_are_text_wherever_they_come_from(run):
    evil = "<script>alert(1)</script>"
    (run / "history.csv").write_text(f"epoch,eval/{evil},lr/{evil}\n1,0.5,0.1\n")
    start = {"started": evil, "command": [evil], "options": {evil: evil}, "environment": {evil: evil}}
    (run / "config.json").write_text(json.dumps([start | {"settings": {evil: evil, "key_metric": evil}}]))
    (run / "log.txt").write_text(f"UserWarning: {evil}\n")
    (run / f"{evil.replace('/', '_')}.txt").write_text("")
    assert "script" not in Page(report(run)).tags


def test_several_runs_are_compared_by_their_best_values_settings_and_common_curves(run, tmp_path, capsys):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    starts = json.loads((other / "config.json").read_text())
    starts[0]["settings"]["clip_grad"] = 0.25
    (other / "config.json").write_text(json.dumps(starts))
    rows = (other / "history.csv").read_text().splitlines()
    (other / "history.csv").write_text("\n".join(rows[:2]) + "\n")
    path = report([run, str(other)])
    page = Page(path)
    assert path == tmp_path / "report.html" and f"The report is in {path}" in capsys.readouterr().out
    assert ["clip_grad", "None", "0.25"] in page.rows
    assert {row[0]: row[2] for row in page.rows if row[1:2] == ["finished"]} == {"run": "3", "other": "1"}
    assert re.search(r"epoch 1\nrun [\d.]+\nrun \(training\) [\d.]+\nother [\d.]+\nother \(training\)", page.text)


def test_what_is_no_run_is_an_error_that_lists_the_runs_beside_it(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist. The runs in .* are: run"):
        report(tmp_path / "rum")
    with pytest.raises(FileNotFoundError, match="so it is no run. The runs in .* are: run"):
        report(tmp_path)
    with pytest.raises(NotADirectoryError, match="Give the folder it is in"):
        report(run / "history.csv")
    with pytest.raises(FileNotFoundError, match="at least one run"):
        report([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no run in"):
        report(tmp_path / "empty")


def test_a_history_of_ten_thousand_epochs_makes_a_page_of_moderate_size(run):
    lines = [f"{epoch},{epoch},{1 / epoch},{2 / epoch},{1 - 1 / epoch},0.1,1.0" for epoch in range(1, 10_001)]
    header = "epoch,global_step,train/tol_loss,eval/tol_loss,eval/acc,lr,seconds"
    (run / "history.csv").write_text("\n".join([header, *lines]))
    path = report(run)
    assert path.stat().st_size < 500_000 and "10000\nepochs" in Page(path).text


def test_a_run_that_an_error_ended_says_so_with_the_error():
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[Failing()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(3)
    page = Page(report("run"))
    assert "ended by an error" in page.text and "ZeroDivisionError: in epoch 2" in page.sections["Warnings and errors (1)"]


def test_the_shell_s_command_writes_where_it_is_told_to_and_ends_with_the_reason_where_it_cannot(run, tmp_path):
    main([str(run), "-o", str(tmp_path / "page.html")])
    assert Page(tmp_path / "page.html").tags
    with pytest.raises(SystemExit, match="does not exist"):
        main([str(tmp_path / "none")])


@pytest.mark.slow
def test_it_runs_as_a_module(run):
    done = run_python("-m", "template.tools.report", run, cwd=Path(__file__).parents[2])
    assert "report.html" in done.stdout and not done.stderr
