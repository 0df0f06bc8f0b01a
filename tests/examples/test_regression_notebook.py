"""``examples/basics/regression.ipynb`` is the script beside it, runs, and has the figure that it reaches."""

import json
import re
import sys
import tempfile
from pathlib import Path

from tiny import ROOT

NOTEBOOK = ROOT / "examples/basics/regression.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
OUTPUTS = [output for cell in CELLS for output in cell["outputs"]]


def r2_printed(text):
    """``(of the network, of a linear model, of the mean)``."""
    return tuple(map(float, re.search(r"^R2: network (\S+), linear model (\S+), mean (\S+)$", text, re.M).groups()))


def test_what_is_stored_is_small_has_the_figures_and_nothing_of_the_computer_that_it_was_made_on():
    text = NOTEBOOK.read_text(encoding="utf-8")
    here = f"{Path.home()}/", f"{tempfile.gettempdir()}/"
    assert len(text) < 100_000 and not [path for path in (*here, "/home/", "/Users/", "C:\\\\") if path in text]
    assert {output["output_type"] for output in OUTPUTS} == {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in OUTPUTS if output["output_type"] == "stream"} == {"stdout"}
    assert sum("image/svg+xml" in output.get("data", {}) for output in OUTPUTS) == 1
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    network, linear, mean = r2_printed("".join("".join(output.get("text", "")) for output in OUTPUTS))
    assert network > linear > 0.5 and -0.1 < mean < 0


def test_its_data_and_its_network_are_those_of_the_script():
    script = NOTEBOOK.with_suffix(".py").read_text(encoding="utf-8")
    same = [source for source in SOURCES if source.lstrip().startswith(("def ", "class "))]
    assert len(same) == 3 and all(f"\n{source}\n" in script for source in same)


def test_the_cells_run_one_after_the_other_and_the_network_learns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {"__name__": "__main__"}
    for source in SOURCES:
        exec(compile(source.replace("epochs(100)", "epochs(25)"), str(NOTEBOOK), "exec"), names)
    network, _, mean = r2_printed(capsys.readouterr().out)
    assert names["trainer"].epochs_done == 25 and network > 0.4 > 0 > mean
