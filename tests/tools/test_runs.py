"""The list of runs: what each one is said to be, which ones a condition means, how two differ, and what delete takes."""

import json
import math
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PATH, Tiny, run_python, tiny_data, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.output.conditions import compares, parse
from template.output.run_lock import RunInUse
from template.tools.kfold import kfold
from template.tools.runs import delete, diff, find_run, list_runs, main, show


class At(Callback):
    def __init__(self, update, act):
        self.update, self.act = update, act

    def on_after_step(self, model):
        if model.global_step == self.update:
            self.act()


def fail():
    raise ValueError("too bad")


def train(name, epochs=2, arg=None, act=None, use_tb=False, **attributes):
    trainer = Tiny(ckpt_dir=f"check_point/{name}", callbacks=[At(8, act)] if act else None, **attributes)
    trainer.check_init(arg=arg, use_tb=use_tb)
    try:
        trainer.fit(epochs)
    except (ValueError, SystemExit):
        pass
    return trainer


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Runs that ended in each way."""
    folder, before = tmp_path_factory.mktemp("project"), Path.cwd()
    os.chdir(folder)
    try:
        train("done", 3, arg={"lr": 1e-3, "note": "first try", "optimizer": {"name": "sgd"}})
        train("wide", 3, arg={"lr": 0.5, "note": "wide", "optimizer": {"name": "adam"}}, accumulate_steps=2)
        train("failed", act=fail)
        train("signalled", act=lambda: os.kill(os.getpid(), signal.SIGTERM))
        killed = train("gone")  # as a kill leaves it: no mark, and a lock of a process that is not there any more
        starts = json.loads(Path(killed.ckpt_dir, "config.json").read_text())
        starts[0]["ended"] = None
        Path(killed.ckpt_dir, "config.json").write_text(json.dumps(starts))
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        from template.output.run_lock import _identity
        lock = Path(killed.ckpt_dir, ".lock")
        lock.write_text(json.dumps(_identity(lock.resolve()) | {"pid": process.pid, "started": "0"}))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def runs(project, tmp_path):
    """A copy of them, to be changed."""
    shutil.copytree(project / "check_point", tmp_path / "check_point")
    return tmp_path / "check_point"


def listed(capsys, *arguments):
    main(arguments)
    return capsys.readouterr().out


# --- the list -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_run_is_what_became_of_it(runs):
    states = {run.name: run.state for run in list_runs()}
    assert states == {"done": "finished", "wide": "finished", "failed": "crashed", "signalled": "stopped", "gone": "killed"}
    assert find_run("failed").value("why") == "ValueError: too bad"


def test_a_run_that_goes_on_is_running_and_is_not_deleted(runs):
    seen = []

    def look():
        seen.append({run.name: run.state for run in list_runs()}["live"])
        with pytest.raises(RunInUse, match="Stop that run first"):
            delete(find_run("live"))

    train("live", act=look)
    assert seen == ["running"] and find_run("live").state == "finished" and Path("check_point/live/last.pth").exists()


def test_a_run_that_is_continued_is_what_its_last_training_was(runs):
    shutil.copytree(runs / "signalled", runs / "again")
    trainer = tiny_trainer(ckpt_dir="check_point/again")
    trainer.load_state("auto")
    trainer.fit(3)
    assert find_run("again").state == "finished" and find_run("again").epochs == 3
    looking = tiny_trainer(ckpt_dir="check_point/again")
    looking.load_state("auto")
    looking.test()
    looking.close()
    assert find_run("again").state == "finished" and len(find_run("again").record.starts) == 3


@pytest.mark.parametrize("content", ["[{", "[1]", "{}"])
def test_a_config_that_was_damaged_meanwhile_ends_nothing(content, capsys):
    train("odd", act=lambda: Path("check_point/odd/config.json").write_text(content))
    printed = capsys.readouterr().out
    assert "2 epochs done" in printed and ("config.json could not be written: it is damaged" in printed) == (content != "{}")
    assert Path("check_point/odd/config.json").read_text() == content and find_run("odd").epochs == 2


def test_a_run_of_a_version_that_did_not_say_its_end_is_not_called_killed(runs):
    folder = shutil.copytree(runs / "done", runs / "older")
    (start,) = json.loads((folder / "config.json").read_text())
    start.pop("ended")
    log = (folder / "log.txt").read_text()
    cut, numbered = log.partition("=== 3 epochs")[0], start.pop("number")
    for state, text, more in (("unknown", cut, {}), ("finished", log, {}), ("killed", cut, {"number": numbered})):
        (folder / "config.json").write_text(json.dumps([start | more]))
        (folder / "log.txt").write_text(text)
        assert find_run("older").state == state


@pytest.mark.slow
def test_an_error_in_the_body_of_a_loop_is_a_crash_and_leaving_it_is_a_stop(tmp_path):
    (tmp_path / "job.py").write_text(
        "import sys\nfrom tiny import tiny_trainer\nfrom template import Notify\n"
        "told = Notify(command='echo \"$NOTIFY_TITLE\" >> told')\n"
        "trainer = tiny_trainer(ckpt_dir=f'check_point/{sys.argv[1]}', callbacks=[told])\n"
        "for epoch in trainer.epochs(3):\n    trainer.train_loop()\n    trainer.eval()\n"
        "    if sys.argv[1] == 'leaves':\n        break\n"
        "    if sys.argv[1] == 'fails':\n        raise KeyError('mine')\n")
    for name in ("leaves", "fails", "ends"):
        run_python("job.py", name, cwd=tmp_path, env={"PYTHONPATH": PATH}, check=False)
    assert {run.name: run.state for run in list_runs()} == {"leaves": "stopped", "fails": "crashed", "ends": "finished"}
    assert [line.partition(",")[0] for line in Path("told").read_text().splitlines()] == [
        "leaves stopped", "fails crashed (KeyError: 'mine')", "ends finished"]


def test_a_line_tells_state_epochs_the_best_value_and_minutes(runs, capsys):
    lines = listed(capsys).splitlines()
    assert lines[0].split() == ["run", "state", "age", "epochs", "metric", "best", "in", "epoch", "minutes"]
    line = next(line for line in lines if line.startswith("wide")).split()
    run = find_run("wide")
    history = [row.split(",") for row in (runs / "wide/history.csv").read_text().splitlines()]
    scores = [float(row[history[0].index("eval/acc")]) for row in history[1:]]
    epoch = max(number for number, score in enumerate(scores, 1) if score == max(scores))
    assert line[1] == "finished" and line[4:] == ["3", "acc", f"{max(scores):.4g}", str(epoch), f"{run.minutes:.4g}"]
    assert next(line for line in lines if line.startswith("signalled")).split()[4] == "1/2"


def test_the_direction_of_the_key_metric_is_the_runs_own(tmp_path):
    train("odd", 3, key_metric="tol_loss", key_metric_mode="max")
    (run,) = list_runs()
    assert run.best["tol_loss"][1] == max(row["eval/tol_loss"] for row in run.record.rows)


def test_json_holds_it_all(runs, capsys):
    found = {run["name"]: run for run in json.loads(listed(capsys, "--json"))}
    assert found["done"]["options"]["optimizer"] == {"name": "sgd"} and found["done"]["settings"]["seed"] == 3
    assert found["done"]["environment"]["threads"] == 1 and found["wide"]["settings"]["accumulate_steps"] == 2
    assert found["done"]["best"] == max(row["eval/acc"] for row in find_run("done").record.rows)


def test_runs_in_folders_of_folders_are_listed_by_their_path(tmp_path, capsys):
    kfold(lambda *sets: Tiny(nn.Linear(6, 3), **dict(zip(("train_loader", "eval_loader"), map(DataLoader, sets)))),
          TensorDataset(*tiny_data(12)), k=2, epochs=1, ckpt_dir="check_point/digits", predict=False)
    capsys.readouterr()
    assert [run.name for run in list_runs(where="options.fold>=1", sort="fold")] == ["digits/fold1", "digits/fold2"]
    main(["delete", "digits", "--yes"])
    assert not Path("check_point/digits").exists()


@pytest.mark.parametrize("damage", [
    lambda run: (run / "config.json").write_text('[{"started": '), lambda run: (run / "config.json").write_text('{"a": 1}'),
    lambda run: (run / "config.json").write_bytes(b"\xff\0\xfe"), lambda run: (run / "history.csv").write_bytes(b"\0" * 99),
    lambda run: (run / "history.csv").write_text("epoch,global_step\n1,6\n2,x\n"),
    lambda run: (run / "history.csv").unlink(), lambda run: (run / "log.txt").unlink(),
    lambda run: (run / ".lock").write_text("half"), lambda run: (run / "digests.csv").write_text("epoch\n")])
def test_a_damaged_file_is_named_and_the_run_is_listed(damage, runs, capsys):
    damage(runs / "done")
    main([])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 6
    main(["show", "done"])
    main(["diff", "done", "wide"])
    named = [name for name in ("config.json", "history.csv") if str(Path("check_point/done", name)) in printed.err]
    assert len(named) == (1 if "done" in printed.err else 0)


def test_runs_of_older_versions_are_known_by_their_logs(runs):
    for name in ("done", "failed", "signalled"):
        starts = json.loads((runs / name / "config.json").read_text())
        old = [{key: value for key, value in start.items() if key not in ("ended", "process", "number")} for start in starts]
        (runs / name / "config.json").write_text(json.dumps(old))
        (runs / name / "digests.csv").unlink()
    states = {run.name: run.state for run in list_runs()}
    assert (states["done"], states["failed"], states["signalled"]) == ("finished", "crashed", "stopped")
    assert find_run("done").key == "acc" and find_run("done").best["acc"]
    only_weights = runs / "of 2021"
    only_weights.mkdir()
    (only_weights / "epoch1.pth").touch()
    assert find_run("of 2021").state == "unknown"


@pytest.mark.slow
def test_hundreds_of_runs_take_no_torch_and_little_time(runs):
    text = (runs / "done/history.csv").read_text().splitlines()
    rows = [re.sub(r"^\d+,\d+", f"{epoch},{6 * epoch}", text[1]) for epoch in range(1, 101)]
    for number in range(300):
        shutil.copytree(runs / "done", runs / f"many/{number}", ignore=shutil.ignore_patterns("*.pth"))
        (runs / f"many/{number}/history.csv").write_text("\n".join([text[0], *rows]) + "\n")
    code = ("import sys; from template.tools.runs import main; main(['-n', '3', '--sort', 'acc']); "
            "assert not {'torch', 'numpy'} & set(sys.modules)")
    started = time.process_time_ns(), os.times().children_user
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PATH}, capture_output=True)
    assert os.times().children_user - started[1] < 3


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="There is no folder check_point here"):
        main([])


# --- conditions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where, names", [
    ("lr<1e-2", "done"), ("lr>=1e-3", "done wide"), ("options.lr=0.5", "wide"), ("optimizer.name=adam", "wide"),
    ("state=finished and not name~wi", "done"), ("lr<1e-2 or state=crashed", "done failed"), ("note='first try'", "done"),
    ("note", "done wide"), ("not note", "failed signalled gone"), ("note=none and state!=killed", "failed signalled"),
    ("accumulate-steps=2", "wide"), ("state~SIG or why~sigterm", "signalled"),
    ("(state=killed or state=crashed)", "failed gone"), ("lr>0 and last.lr>0.05", "done wide"),
    ("started>2020-01-01 and lr<1", "done wide"), ("age<1 and epochs=3", "done wide"), ("best.acc>=0 and epochs<3",
                                                                                         "failed signalled gone"),
    ("deterministic=false and threads=1 and lr<1", "done wide"), ("eval/acc>2", ""), ("lr<x", "")])
def test_a_condition_finds_the_runs_that_it_means(where, names, runs):
    assert {run.name for run in list_runs(where=where)} == set(names.split())


def test_several_conditions_all_have_to_be_true_and_a_list_is_sorted_best_first(runs, capsys):
    listing = listed(capsys, "--where", "lr>0", "--where", "state=finished", "--sort", "acc")
    scores = {run.name: run.value("acc") for run in list_runs(where="lr>0")}
    assert [line.split()[0] for line in listing.splitlines()[1:]] == sorted(scores, key=scores.get, reverse=True)
    by_loss = [run.value("best.tol_loss") for run in list_runs(sort="best.tol_loss")]
    assert by_loss == sorted(by_loss)
    assert [run.name for run in list_runs(where="lr", sort="lr", reverse=True)] == ["wide", "done"]
    assert list_runs(sort="lr", reverse=True)[-1].value("lr") is None
    assert len(listed(capsys, "-n", "2").splitlines()) == 3


@pytest.mark.parametrize("where, error", [
    ("lrr<1", "No run here has a value named 'lrr'. Did you mean lr"),
    ("lr<", "behind lr < is missing at the end"),
    ("lr<<1", "missing before '<'"),
    ("(lr<1", "bracket is not closed"), ("lr<1)", r"comes '\)'"), ("lr<1 lr>2", "comes 'lr'"),
    ("lr<'1", "cannot be read at"), ("", "a name is missing"), ("and", "a name is missing"),
    ("__import__('os').system('touch x')", "cannot be read")])
def test_what_cannot_be_read_is_told_with_the_place(where, error, runs, capsys):
    with pytest.raises(SystemExit, match=error):
        main(["--where", where])
    assert not Path("x").exists()


NAMES = st.sampled_from(["lr", "acc", "name", "flag", "nothing"])
VALUES = {"lr": 0.01, "acc": 0.9, "name": "run-7", "flag": True}
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne}
NUMBERS = st.one_of(st.floats(-2, 2), st.sampled_from([0.01, 0.9]))


def expected_of(name, sign, number):
    value = VALUES.get(name)
    if isinstance(value, float):
        return SIGNS[sign](value, number)
    return sign == "!="


@st.composite
def conditions(draw, depth=3):
    """(text, what it has to be)."""
    kind = draw(st.sampled_from(["and", "or", "not", "brackets", "one"])) if depth else "one"
    if kind == "one":
        name, sign, number = draw(NAMES), draw(st.sampled_from(list(SIGNS))), draw(NUMBERS)
        space = draw(st.sampled_from(["", " "]))
        return f"{name}{space}{sign}{space}{number!r}", expected_of(name, sign, number)
    text, value = draw(conditions(depth - 1))
    if kind == "not":
        return f"not ({text})", not value
    if kind == "brackets":
        return f"({text})", value
    other, other_value = draw(conditions(depth - 1))
    return (f"({text}) AND ({other})", value and other_value) if kind == "and" else (
        f"({text}) or ({other})", value or other_value)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(conditions())
def test_a_condition_is_what_python_would_make_of_it(condition):
    text, expected = condition
    assert parse(text)(VALUES.get) is expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["and", "or"])), min_size=1, max_size=6))
def test_and_binds_more_than_or(parts):
    """Without brackets, against Python's own rule."""
    text = " ".join(f"{'yes' if value else 'no'} {word}" for value, word in parts).rsplit(" ", 1)[0]
    python = " ".join(f"{value} {word}" for value, word in parts).rsplit(" ", 1)[0]
    assert parse(text)({"yes": True, "no": False}.get) is eval(python)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_a_sentence(text):
    try:
        assert parse(text)(VALUES.get) in (True, False)
    except ValueError as error:
        assert "A condition is a name, a sign and a value" in str(error)


def test_a_value_that_is_not_finite_and_one_of_another_kind_are_in_no_order():
    for sign in ("<", "<=", ">", ">=", "="):
        assert not compares(math.nan, sign, 1.0) and not compares(True, sign, 1.0) and not compares(None, sign, 1.0)
    assert compares("1e-3", "=", 0.001) and compares("1e-3", "<", 1.0) and compares("v2", "~", 2.0)


# --- one, two, and none -------------------------------------------------------------------------------------------------


def test_one_run_is_shown_with_its_starts_settings_versions_and_the_digest_of_its_weights(runs, capsys):
    text = listed(capsys, "show", "don")
    newest = (runs / "done/digests.csv").read_text().splitlines()[-1].rpartition(",")[2]
    for part in ("finished", "first try", "optimizer.name", "torch", newest[:16], "last.pth", "best"):
        assert part in text, part


def test_two_runs_differ_in_what_was_different(runs, capsys):
    text = listed(capsys, "diff", "done", "wide")
    for part in ("options.lr", "0.001", "settings.accumulate_steps", "optimizer.name", "eval/acc",
                 "The weights differ from update"):
        assert part in text, part
    assert "settings.seed" not in text and "environment.torch" not in text
    shutil.copytree(runs / "done", runs / "twin")
    text = diff(find_run("done"), find_run("twin"))
    assert "are the same" in text and "equal to the last bit in all 3 saves" in text


def test_a_name_that_means_none_or_several_is_told(runs):
    with pytest.raises(SystemExit, match="no run 'x'.*wide"):
        main(["show", "x"])
    shutil.copytree(runs / "done", runs / "done2")
    assert find_run("done").name == "done"
    with pytest.raises(SystemExit, match="means 2 runs.*done, done2"):
        main(["show", "do"])
    assert find_run(str(runs / "wide")).name == "wide" == Path("check_point/wide").name
    assert "lr" in show(find_run("check_point/wide"))


def test_delete_asks_and_takes_the_events_along_but_not_those_that_another_run_shares(runs, monkeypatch, capsys):
    train("drawn", use_tb=True, arg={})
    assert Path("runs/drawn").is_dir()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or ("n" if len(asked) == 1 else "y"))
    main(["delete", "drawn"])
    assert Path("check_point/drawn").exists() and asked[0].startswith("Delete check_point/drawn (")
    shutil.copytree(runs / "drawn", runs / "copy")
    main(["delete", "drawn"])
    assert not Path("check_point/drawn").exists() and Path("runs/drawn").exists()
    main(["delete", "copy"])
    assert not Path("runs/drawn").exists() and Path("check_point/done").exists()


def test_nothing_is_deleted_where_nobody_can_be_asked_or_where_a_name_leads_out_of_the_folder(runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit, match="--yes"):
        main(["delete", "done"])
    assert (runs / "done/last.pth").exists()
    Path("runs/other").mkdir(parents=True)
    for evil in ("..", ".", "../check_point/wide", "", "/tmp"):
        starts = json.loads((runs / "wide/config.json").read_text())
        starts[-1]["settings"]["run_name"] = evil
        shutil.copytree(runs / "wide", runs / "evil")
        (runs / "evil/config.json").write_text(json.dumps(starts))
        main(["delete", "evil", "--yes"])
        assert not (runs / "evil").exists() and (runs / "wide/last.pth").exists() and Path("runs/other").exists()
    Path("precious.txt").touch()
    for outside in ("..", ".", "../runs", str(runs), str(runs.parent), "check_point"):
        with pytest.raises(SystemExit, match="no run|not in"):
            main(["delete", outside, "--yes"])
    assert Path("precious.txt").exists() and Path("runs/other").exists() and (runs / "done/last.pth").exists()
    shutil.move(runs / "done", "elsewhere")
    with pytest.raises(SystemExit, match="elsewhere is not in check_point"):
        main(["delete", "elsewhere", "--yes"])
    assert Path("elsewhere/last.pth").exists()
