"""Command-line options from a dataclass."""

import sys
import types
from dataclasses import dataclass

import pytest
from tiny import ROOT, run_python

from template.run.options import option, parse_options


@dataclass
class Options:
    """Train something."""

    epochs: int = option(30, "passes over the data")
    batch_size: int = option(64, "samples per update")
    lr: float = option(1e-3, "learning rate, about 5 % of them work")
    name: str = "run"
    augment: bool = option(True, "flip images")
    resume: str | None = option(None, "path of a checkpoint")
    limit: int | None = None


def parse(*argv):
    return parse_options(Options, argv)


class Kernel:
    """What a notebook's IPython answers with."""
    kernel = True


def test_in_a_cell_of_a_notebook_the_arguments_are_the_kernels_and_the_defaults_hold(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    with pytest.raises(SystemExit):
        parse_options(Options)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: Kernel))
    assert parse_options(Options) == Options()
    assert parse_options(Options, ["--epochs", "2"]).epochs == 2


def test_a_script_that_a_notebook_runs_has_its_own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "7"])
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: Kernel))
    script = types.ModuleType("__main__")
    script.__file__ = "train.py"  # as %run leaves it
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert parse_options(Options).epochs == 7


def test_without_arguments_the_defaults_hold():
    assert parse() == Options(30, 64, 1e-3, "run", True, None, None)


@pytest.mark.parametrize("argv", [["--batch-size", "8"], ["--batch_size", "8"], ["--batch-size=8"], ["--batch_size=8"]])
def test_both_spellings_are_one_option(argv):
    assert parse(*argv) == Options(batch_size=8)


def test_values_get_the_types_of_their_fields():
    options = parse("--epochs", "5", "--lr", "3e-4", "--name", "7", "--resume", "auto", "--limit", "-2")
    assert options == Options(epochs=5, lr=3e-4, name="7", resume="auto", limit=-2)
    assert type(options.epochs) is int and type(options.name) is str and type(options.limit) is int


def test_a_bool_is_switched_on_and_off():
    assert parse("--no-augment").augment is False
    assert parse("--no-augment", "--augment").augment is True


@pytest.mark.parametrize("argv, said", [
    (["--epoch", "5"], "unrecognized arguments: --epoch 5"),  # an abbreviation may be another option tomorrow
    (["--learning-rate", "5"], "unrecognized arguments"),
    (["stray"], "unrecognized arguments: stray"),
    (["--epochs", "5.5"], "argument --epochs: invalid int value: '5.5'"),
    (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
    (["--limit", "x"], "argument --limit: invalid int value: 'x'"),
    (["--epochs"], "argument --epochs: expected one argument"),
    (["--augment", "yes"], "unrecognized arguments: yes"),
])
def test_what_does_not_fit_ends_the_program_and_says_which(argv, said, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code != 0
    assert said in capsys.readouterr().err


def test_an_option_without_a_default_must_be_given(capsys):
    @dataclass
    class Required:
        data: str
        epochs: int = 3

    assert parse_options(Required, ["--data", "here"]) == Required("here", 3)
    with pytest.raises(SystemExit):
        parse_options(Required, [])
    assert "the following arguments are required: --data" in capsys.readouterr().err


def test_help_shows_the_description_the_texts_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("Train something.", "passes over the data (default: 30)", "--batch-size INT", "--no-augment",
                 "about 5 % of them work (default: 0.001)", "path of a checkpoint (default: None)"):
        assert text in said


def test_the_command_line_of_a_script_is_read(tmp_path):
    (tmp_path / "script.py").write_text("""
from __future__ import annotations  # types become strings
from dataclasses import dataclass
from template import option, parse_options

@dataclass
class Options:
    epochs: int = option(3, "passes")
    resume: str | None = option(None, "checkpoint")

print(parse_options(Options))
""")
    env = {"PYTHONPATH": str(ROOT)}
    done = run_python("script.py", "--epochs", "9", cwd=tmp_path, env=env)
    assert done.stdout == "Options(epochs=9, resume=None)\n"
    assert run_python("script.py", "--epoch", "9", cwd=tmp_path, env=env, check=False).returncode != 0
