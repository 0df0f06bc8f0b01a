"""A process of its own draws what would be drawn here, and whatever happens to it ends nothing."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny import run_python

from template.callbacks.history import History
from template.output import curves, curves_process

ROWS = [{"epoch": epoch, "global_step": 10 * epoch, "train/tol_loss": 1 / epoch, "eval/acc": epoch / 4, "eval/late": late,
         "lr": 0.1} for epoch, late in ((1, float("nan")), (2, float("inf")), (3, 0.5))]
ARGUMENTS = (ROWS, "a run", "acc", {"acc": (3, 0.75)})


@pytest.fixture
def without_matplotlib_here(monkeypatch):
    """As in a program that did not import it."""
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)


@pytest.fixture
def processes(monkeypatch, without_matplotlib_here):
    """Those that were started."""
    started, popen = [], curves_process.subprocess.Popen

    def start(*args, **how):
        started.append(popen(*args, **how))
        return started[-1]

    monkeypatch.setattr(curves_process.subprocess, "Popen", start)
    return started


@pytest.fixture
def broken(monkeypatch, tmp_path, processes):
    """A matplotlib that does what the test says is found first."""
    def does(code):
        (tmp_path / "first" / "matplotlib").mkdir(parents=True)
        (tmp_path / "first" / "matplotlib" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "first"))
        return processes

    return does


@pytest.mark.slow
def test_the_picture_is_the_one_that_is_drawn_here(request):
    drawn_here = curves.draw(*ARGUMENTS)
    processes = request.getfixturevalue("processes")
    assert curves_process.draw(*ARGUMENTS) == drawn_here
    assert [process.returncode for process in processes] == [0]


@pytest.mark.slow
def test_a_program_that_has_matplotlib_draws_with_its_settings(monkeypatch):
    import matplotlib.figure

    monkeypatch.setattr(curves_process.subprocess, "Popen", lambda *args, **how: pytest.fail("a process was started"))
    with matplotlib.rc_context({"axes.facecolor": "yellow"}):
        yellow = curves_process.draw(*ARGUMENTS)
    assert yellow != curves_process.draw(*ARGUMENTS)


@pytest.mark.slow
def test_a_program_below_a_project_that_is_costly_to_import_keeps_no_matplotlib():
    """Nothing of the project is imported for a picture, and its files may have the names of rooms."""
    shutil.copytree(Path(curves_process.__file__).parent, "utils/output")
    Path("output.py").write_text("raise RuntimeError('a file of the project')")
    Path("utils/__init__.py").write_text("print('imported')")
    Path("train.py").write_text(f"""
import sys
from utils.output.curves_process import draw
print(draw(*{ARGUMENTS!r})[:4], sorted(name for name in sys.modules if name.startswith(("matplotlib", "PIL"))))
""".replace("nan", "float('nan')").replace("inf", "float('inf')"))
    done = run_python("train.py", cwd=".", env={"FORK_SERVER": "0"})
    assert done.stdout.splitlines() == ["imported", "b'\\x89PNG' []"] and not done.stderr


@pytest.mark.parametrize("code, said", [("raise RuntimeError('this build is broken')", "RuntimeError: this build is broken"),
                                        ("import os; os._exit(7)", "the process that draws it ended with 7"),
                                        ("import time; time.sleep(60)", "drawing it took longer than 1 s")])
def test_a_process_that_fails_or_hangs_is_told_in_one_line_and_is_over(code, said, broken, monkeypatch, capsys):
    processes = broken(code)
    if "longer" in said:
        monkeypatch.setattr(curves_process, "_MOST_SECONDS", 1)
    log = History("history.csv")
    log.log({"loss": 1.0})
    log.close()
    assert capsys.readouterr().out == f"{Path('history.png')} could not be written: {said}. Training goes on.\n"
    assert len(processes) == 1 and processes[0].returncode is not None  # waited for: no zombie is left
    assert sorted(os.listdir()) == ["first", "history.csv"]


def test_what_two_pictures_say_is_told_once(broken, monkeypatch, capsys):
    broken("")
    monkeypatch.setattr(curves_process, "_START", "import sys; print('a box', file=sys.stderr); sys.stdout.write('png')")
    assert curves_process.draw(*ARGUMENTS) == curves_process.draw(*ARGUMENTS) == b"png"
    assert capsys.readouterr().out == "a box\n"


@pytest.mark.parametrize("name", ["/opt/app/train", None, ""])
def test_a_program_that_is_no_python_draws_itself(name, processes, monkeypatch):
    monkeypatch.setattr(curves_process.sys, "executable", name)
    monkeypatch.setattr(curves, "draw", lambda *args: b"here")
    assert curves_process.draw(*ARGUMENTS) == b"here" and processes == []


def test_where_no_process_can_be_started_the_picture_is_drawn_here(without_matplotlib_here, monkeypatch):
    def refuse(*args, **how):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(curves_process.subprocess, "Popen", refuse)
    monkeypatch.setattr(curves, "draw", lambda *args: b"here")
    assert curves_process.draw(*ARGUMENTS) == b"here"
