"""The house: who may import whom, and the package under any name, with anything optional missing."""

import ast
import subprocess
import sys

import pytest
from tiny import ROOT, run_python

PACKAGE = ROOT / "template"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    1: ["hooks", "data", "output", "parallel"],
    2: ["checkpoint", "update", "metrics"],
    3: ["run", "callbacks", "trackers"],
    4: ["template", "tools"],
    5: ["keras_model"],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
DELETABLE = ("callbacks", "tools", "trackers")  # any file of these may go


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """(level, module or None, names, is at module level) of every import in a file that is run: what stands under
    ``if TYPE_CHECKING`` is for type checkers alone, and may name the trainer."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for_checkers = {id(inner) for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
                    for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, [], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module, [alias.name for alias in node.names], id(node) in top


def room_of(path):
    """The room that a file is in; a file on top is a room by itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_imported(path):
    """The files of the package that a file imports, as paths below the package without ending: "data/loaders"."""
    for level, module, names, _ in imports_of(path):
        if level:
            base = path.parents[level - 1].relative_to(PACKAGE).joinpath(*(module or "").split("."))
            is_folder = (PACKAGE / base).is_dir()
            yield from [(base / name).as_posix() for name in names] if is_folder else [base.as_posix()]


def floors_as_text():
    """What each room imports, floor by floor, from the top down."""
    lines = []
    for floor in sorted(FLOORS, reverse=True):
        for room in FLOORS[floor]:
            files = [path for path in FILES if room_of(path) == room]
            below = {imported.split("/")[0] for path in files for imported in files_imported(path)} - {room}
            if files:
                lines.append(f"{floor}  {room:<12}{len(files):>3} files -> {', '.join(sorted(below)) or 'nothing'}")
    return "\n".join(lines)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_package_is_never_imported_by_an_absolute_name(path):
    absolute = [module for level, module, _, _ in imports_of(path) if level == 0]
    assert not [module for module in absolute if module.split(".")[0] in ("template", "utils")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_torch_and_numpy_are_imported_at_module_level(path):
    top = [module.split(".")[0] for level, module, _, is_top in imports_of(path) if level == 0 and is_top]
    assert set(top) <= {"torch", "numpy"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) not in ("__init__", "upgrade")], ids=module_name)
def test_imports_point_down(path):
    room = room_of(path)
    own = FLOORS[FLOOR_OF[room]]  # a new room must be given its floor
    for imported in files_imported(path):
        other = imported.split("/")[0]
        if other == room:
            continue
        is_below = FLOOR_OF[other] < FLOOR_OF[room]
        is_left = FLOOR_OF[room] == 1 and other in own[:own.index(room)]
        where = f"{path.stem} on floor {FLOOR_OF[room]} imports {imported} on floor {FLOOR_OF[other]}"
        assert is_below or is_left, where


def test_no_imports_go_in_a_circle():
    imported = {path.relative_to(PACKAGE).with_suffix("").as_posix(): set(files_imported(path)) for path in FILES}
    left = {name for name in imported if name != "__init__"}
    while free := {name for name in left if not imported[name] & left}:
        left -= free
    assert not left, f"these import each other: {sorted(left)}"


def test_each_room_s_door_says_what_each_file_of_it_answers_and_loads_nothing():
    print(floors_as_text())
    for door in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(door.read_text(encoding="utf-8"))
        documented = ast.get_docstring(tree)
        files = {path.stem for path in door.parent.glob("*.py")} - {"__init__"}
        if door.parent.name not in DELETABLE:
            assert {name for name in files if f"``{name}.py``" in documented} == files, door
        is_known = door.parent.name in ("metrics", "callbacks")  # old imports; the default set
        assert is_known or len(tree.body) == 1, f"{door} does more than to say what is behind it"


def test_upgrade_stands_alone_it_imports_the_standard_library_only_and_nothing_imports_it():
    imports = list(imports_of(PACKAGE / "upgrade.py"))
    assert not [module for level, module, _, _ in imports if level]
    assert {module.split(".")[0] for _, module, _, _ in imports} <= set(sys.stdlib_module_names)
    assert not [path.name for path in FILES if "upgrade" in files_imported(path)]


@pytest.mark.parametrize("flags", [[], ["-I", "-S"], ["-P"] if sys.version_info >= (3, 11) else ["-E"]], ids=" ".join)
def test_upgrade_runs_by_path_without_torch_while_the_rest_of_the_copy_is_broken(flags, tmp_path):
    copy = tmp_path / "my utils"
    copy.mkdir()
    (copy / "upgrade.py").write_bytes((PACKAGE / "upgrade.py").read_bytes())
    for name in ("__init__", "json", "template", "signal"):
        (copy / f"{name}.py").write_text("<<<<<<< yours\n")
    done = run_python(*flags, copy / "upgrade.py", "--help", cwd=copy)
    assert "status" in done.stdout and not done.stderr


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in DELETABLE], ids=module_name)
def test_what_may_be_deleted_is_imported_by_no_sibling(path):
    siblings = [imported for imported in files_imported(path) if room_of(path) == imported.split("/")[0]]
    assert not siblings, f"{path.name} imports {siblings}: deleting one of these would break it"


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
    (tmp_path / "utils/metrics/accumulators.py").write_text("import nowhere\n")
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
