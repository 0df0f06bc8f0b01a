"""``examples/quickstart.ipynb`` runs as it is stored, in the repository and in a project with the folder as ``utils``."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from test_notebook import forked_kernels, nbclient, nbformat, start_kernel, what_stands_under  # noqa: F401
from tiny import ROOT, run_python

NOTEBOOK = ROOT / "examples/quickstart.ipynb"
FASTER = """
from template.callbacks.history import History
History._draw = lambda self, model: None             # matplotlib takes as long as the training
"""
CHECK = """
import json
right = (trainer.model_list[0].eval()(images[held_out]).argmax(1) == labels[held_out]).sum().item()
print(json.dumps([trainer.epochs_done, right, len(wrong), result["acc"], page.read_text(encoding="utf-8").count("<svg")]))
"""


def code_cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_what_is_stored_is_small_has_the_figure_and_nothing_of_the_computer_that_it_was_made_on():
    text = NOTEBOOK.read_text(encoding="utf-8")
    here = f"{Path.home()}/", f"{tempfile.gettempdir()}/"
    assert len(text) < 100_000 and not [path for path in (*here, "/home/", "/Users/", "C:\\\\") if path in text]
    outputs = [output for cell in code_cells() for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 3
    assert [cell.execution_count for cell in code_cells()] == list(range(1, len(code_cells()) + 1))


@pytest.mark.slow
def test_the_notebook_runs_in_the_repository_and_the_network_learns(tmp_path):
    shutil.copytree(ROOT / "template", tmp_path / "template", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "examples"
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    imports = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(imports + 1, nbformat.v4.new_code_cell(FASTER))
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    manager, options = start_kernel(tmp_path)
    options["cwd"] = str(folder)
    del options["env"]["PYTHONPATH"]
    client = nbclient.NotebookClient(notebook, km=manager, timeout=120)
    try:
        client.execute(**options)
    finally:
        client.kc.stop_channels()
        manager.shutdown_kernel(now=True)
    cells = [what_stands_under(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.error or cell.stderr for cell in cells if cell.error or cell.stderr]
    epochs, right, wrong, acc, charts = json.loads(cells[-1].stdout)
    assert epochs == 15 and right + wrong == 360 and acc == pytest.approx(right / 360) and acc > 0.95 and charts >= 3
    trained, more, resumed = [cell for cell in cells if "image/svg+xml" in cell.kinds]
    for cell, last in ((trained, 8), (more, 12), (resumed, 15)):
        figure, line = cell.shown
        assert figure.splitlines()[-2].split()[-1] == str(last) and line.startswith(f"epoch {last}/{last} ")
    assert "last.pth: epoch 12 done" in resumed.stdout
    assert (folder / "quickstart.html").is_file() and len(list((folder / "check_point").iterdir())) == 1, "one run"


def test_in_a_project_the_first_cell_takes_the_folder_that_was_copied(tmp_path):
    shutil.copytree(ROOT / "template", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cell.py").write_text(code_cells()[0].source + "\nprint(TemplateModel.__module__, report.__module__)\n")
    assert run_python("cell.py", cwd=tmp_path).stdout.split() == ["utils.template", "utils.tools.report"]
