"""The house: who may import whom, and the package under any name, with anything optional missing."""

import ast
import subprocess
import sys

import pytest
from tiny import ROOT, run_python

PACKAGE = ROOT / "template"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    0: ["hooks", "lr_scheduler", "seeding", "nested", "defaults", "one_forward", "options", "run_folder",
        "summary", "metrics", "plain_data", "patient_file", "speed", "shares", "distributed", "sharded"],
    1: ["logger", "event_writer", "in_memory", "prepare", "parallel", "stepper", "epoch_metrics", "schedule", "state",
        "checkpoint", "saver", "signals", "guard"],
    2: ["loaders", "checks"],
    3: ["run_tools"],
    4: ["run_lifetime"],
    5: ["template"],
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """(level, module or None, names, is at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, [], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module, [alias.name for alias in node.names], id(node) in top


def imported_rooms(path):
    """Rooms of the package that a file imports, by name: "hooks", "callbacks", …"""
    for level, module, names, _ in imports_of(path):
        if level:
            yield from ([module.split(".")[0]] if module else names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_package_is_never_imported_by_an_absolute_name(path):
    absolute = [module for level, module, _, _ in imports_of(path) if level == 0]
    assert not [module for module in absolute if module.split(".")[0] in ("template", "utils")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_torch_and_numpy_are_imported_at_module_level(path):
    top = [module.split(".")[0] for level, module, _, is_top in imports_of(path) if level == 0 and is_top]
    assert set(top) <= {"torch", "numpy"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent == PACKAGE
                                  and path.stem not in ("__init__", "upgrade")], ids=module_name)
def test_imports_point_down(path):
    own = LAYER_OF[path.stem]  # a new room must be given its layer
    for room in imported_rooms(path):
        if room == "callbacks":
            assert path.stem == "template", "only template.py knows callbacks, and of them the default set alone"
        else:
            assert LAYER_OF[room] < own, f"{path.stem} (layer {own}) imports {room} (layer {LAYER_OF[room]})"


def test_upgrade_stands_alone_it_imports_the_standard_library_only_and_nothing_imports_it():
    imports = list(imports_of(PACKAGE / "upgrade.py"))
    assert not [module for level, module, _, _ in imports if level]
    assert {module.split(".")[0] for _, module, _, _ in imports} <= set(sys.stdlib_module_names)
    assert not [path.name for path in FILES if "upgrade" in imported_rooms(path)]


@pytest.mark.parametrize("flags", [[], ["-I", "-S"], ["-P"] if sys.version_info >= (3, 11) else ["-E"]], ids=" ".join)
def test_upgrade_runs_by_path_without_torch_while_the_rest_of_the_copy_is_broken(flags, tmp_path):
    copy = tmp_path / "my utils"
    copy.mkdir()
    (copy / "upgrade.py").write_bytes((PACKAGE / "upgrade.py").read_bytes())
    for name in ("__init__", "json", "template", "signal"):
        (copy / f"{name}.py").write_text("<<<<<<< yours\n")
    done = run_python(*flags, copy / "upgrade.py", "--help", cwd=copy)
    assert "status" in done.stdout and not done.stderr


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in ("callbacks", "tools")], ids=module_name)
def test_callbacks_and_tools_import_no_sibling_and_callbacks_only_the_lowest_layer(path):
    for level, module, names, _ in imports_of(path):
        if level == 1:
            raise AssertionError(f"{path.name} imports its sibling {module or names}: deleting that one would break it")
        if level == 2 and path.parent.name == "callbacks":
            rooms = [module.split(".")[0]] if module else names
            assert all(LAYER_OF[room] == 0 for room in rooms)


QUICK = """
import sys
from {package}.template import TemplateModel
import {package}
assert {package}.Confusion(2) and {package}.EarlyStopping()
assert "template" not in sys.modules, "the installed package was used instead of the copy"
import torch
x = torch.randn(20, 4)
class T(TemplateModel):
    def __init__(self):
        super().__init__()
        model = torch.nn.Linear(4, 2)
        self.model_list = [model]
        self.optimizer_list = [torch.optim.SGD(model.parameters(), 0.1)]
        self.criterion = torch.nn.CrossEntropyLoss()
        data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
        self.train_loader = torch.utils.data.DataLoader(data, 5, shuffle=True)
        self.eval_loader = torch.utils.data.DataLoader(list(data), 5)
t = T()
t.check_init()
t.fit(2)
"""


@pytest.mark.parametrize("package", ["utils", "my_lib", "project.deep.trainer"])
def test_the_folder_works_under_any_name_and_depth_from_a_bare_copy(package, tmp_path):
    folder = tmp_path.joinpath(*package.split("."))
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", str(PACKAGE), str(folder)], check=True)
    script = tmp_path / "train.py"
    script.write_text(QUICK.format(package=package))
    run_python(script, cwd=tmp_path)
    assert len(list(tmp_path.glob("check_point/*/last.pth"))) == 1
    assert len(list(tmp_path.glob("runs/*/eval/events*"))) == 1


BLOCK = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {missing} else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
OPTIONAL = ["tqdm", "tensorboard", "torchsummary", "torchinfo", "torchmetrics", "matplotlib", "sklearn", "scipy", "PIL"]


def test_without_any_optional_package_it_trains_and_says_what_is_missing(tmp_path):
    subprocess.run(["cp", "-r", str(PACKAGE), str(tmp_path / "utils")], check=True)
    script = tmp_path / "train.py"
    script.write_text(BLOCK.format(missing=OPTIONAL) + QUICK.format(package="utils"))
    done = run_python(script, cwd=tmp_path)
    for package in ("tqdm", "tensorboard", "matplotlib"):
        assert done.stdout.count(f"pip install {package}") == 1
    assert len(list(tmp_path.glob("check_point/*/best.pth"))) == 1
    assert not (tmp_path / "runs").exists()


def test_any_callback_may_be_deleted_and_the_rest_still_trains(tmp_path):
    subprocess.run(["cp", "-r", str(PACKAGE), str(tmp_path / "utils")], check=True)
    for name in ("progress_bar", "tensorboard", "history"):
        (tmp_path / "utils" / "callbacks" / f"{name}.py").unlink()
    script = tmp_path / "train.py"
    script.write_text(QUICK.format(package="utils"))
    run_python(script, cwd=tmp_path)
    assert len(list(tmp_path.glob("check_point/*/last.pth"))) == 1
    assert not list(tmp_path.glob("check_point/*/history.csv"))


def test_importing_the_package_brings_no_heavy_module_that_is_not_used(tmp_path):
    heavy = ["tensorboard", "torch.utils.tensorboard", "matplotlib", "tqdm", "torchsummary", "torchinfo", "sklearn"]
    code = ("import torch, sys; before = set(sys.modules); import template; from template.template import TemplateModel; "
            f"print([name for name in {heavy} if name in set(sys.modules) - before])")
    assert run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}).stdout.strip() == "[]"


def test_a_public_name_whose_file_was_deleted_is_an_error_that_says_how_to_get_it(tmp_path):
    subprocess.run(["cp", "-r", str(PACKAGE), str(tmp_path / "utils")], check=True)
    (tmp_path / "utils/callbacks/profile.py").unlink()
    (tmp_path / "utils/metrics.py").write_text("import nowhere\n")
    done = run_python("-c", "from utils import Profile", cwd=tmp_path, check=False)
    assert "Profile is in callbacks/profile.py, which is not there" in done.stderr
    assert f"python {tmp_path}/utils/upgrade.py upgrade --with callbacks/profile" in done.stderr
    done = run_python("-c", "from utils import Mean", cwd=tmp_path, check=False)
    assert "No module named 'nowhere'" in done.stderr and "upgrade.py" not in done.stderr


def test_an_unknown_public_name_is_an_error_that_lists_what_there_is():
    import template

    with pytest.raises(AttributeError, match="Confusion"):
        template.Confusoin  # noqa: B018
    assert set(dir(template)) >= {"TemplateModel", "__version__"}
