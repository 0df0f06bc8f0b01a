"""Command-line options from the parameters of a function."""

import sys
import types

import pytest
from tiny import ROOT, run_python

from template.run.main_function import run_main


def main(epochs=20, lr=1e-3, name="run", augment=False, csv: str | None = None, limit: int | None = None, resume=None):
    """Train something, which takes 5 % of an hour."""
    return epochs, lr, name, augment, csv, limit, resume


def test_without_arguments_the_function_has_its_own_defaults_and_gives_what_it_returns():
    assert run_main(main, []) == main()


def test_values_get_the_types_of_the_annotations_or_else_of_the_defaults():
    given = "--epochs 5 --lr 2 --name 7 --augment --csv 8 --limit -3 --resume auto".split()
    found = run_main(main, given)
    assert found == (5, 2.0, "7", True, "8", -3, "auto") and [type(part) for part in found[:3]] == [int, float, str]
    assert run_main(main, ["--no-augment"]) == main()


def test_a_preset_sets_several_parameters_and_what_is_given_beside_it_wins():
    full = {"epochs": 200, "name": "full"}
    assert run_main(main, [], full=full) == main()
    assert run_main(main, ["--full"], full=full) == main(200, name="full")
    assert run_main(main, ["--epochs", "20", "--full"], full=full) == main(20, name="full"), "the default, but asked for"
    both = run_main(main, ["--quick-look", "--full"], quick_look={"epochs": 1, "lr": 0.5}, full=full)
    assert both == main(200, 0.5, "full")


def test_a_parameter_without_a_default_must_be_given(capsys):
    def needs(path, epochs=3):
        return path, epochs

    assert run_main(needs, ["--path", "here"]) == ("here", 3)
    with pytest.raises(SystemExit):
        run_main(needs, [])
    assert "the following arguments are required: --path" in capsys.readouterr().err


@pytest.mark.parametrize("argv, said", [
    (["--epoch", "5"], "unrecognized arguments: --epoch 5"), (["--epochs", "x"], "argument --epochs: invalid int value"),
    (["full"], "unrecognized arguments: full"), (["--full"], "unrecognized arguments: --full")])
def test_what_does_not_fit_ends_the_program_before_the_function_is_called(argv, said, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(lambda epochs=3: pytest.fail("called"), argv)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_help_shows_the_docstring_the_defaults_and_what_a_preset_sets(capsys):
    with pytest.raises(SystemExit):
        run_main(main, ["--help"], full={"epochs": 200, "lr": 0.1})
    said = " ".join(capsys.readouterr().out.split())
    for text in ("Train something, which takes 5 % of an hour.", "--epochs INT (default: 20)",
                 "--full is the same as --epochs 200 --lr 0.1."):
        assert text in said


def test_a_function_or_a_preset_that_cannot_become_options_is_refused_in_words():
    with pytest.raises(TypeError, match=r"an option of each parameter, and \*\*more stands for any number"):
        run_main(lambda **more: None, [])
    with pytest.raises(TypeError, match=r"The preset 'full' sets \['epoch'\]; the function takes \['epochs'\]"):
        run_main(lambda epochs=1: None, [], full={"epoch": 2})
    with pytest.raises(TypeError, match="--full would be a preset and a parameter"):
        run_main(lambda full=1: None, [], full={"full": 2})


def test_in_a_cell_of_a_notebook_the_defaults_hold(monkeypatch):
    class Kernel:
        kernel = True

    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: Kernel))
    assert run_main(main) == main()


def test_a_script_shows_its_own_docstring_and_reads_its_command_line(tmp_path):
    (tmp_path / "script.py").write_text('''"""What this script trains."""
from __future__ import annotations  # types become strings
from template import run_main

def main(epochs=3, resume: str | None = None):
    print(epochs, resume)

if __name__ == "__main__":
    run_main(main, full={"epochs": 30})
''')
    env = {"PYTHONPATH": str(ROOT)}
    assert run_python("script.py", "--full", "--resume", "auto", cwd=tmp_path, env=env).stdout == "30 auto\n"
    assert "What this script trains." in run_python("script.py", "--help", cwd=tmp_path, env=env).stdout
