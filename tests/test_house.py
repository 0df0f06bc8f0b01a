"""The house: who may import whom, and the package under any name, with anything optional missing."""

import ast
import shutil
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


@pytest.mark.slow
def test_no_imports_go_in_a_circle():
    imported = {path.relative_to(PACKAGE).with_suffix("").as_posix(): set(files_imported(path)) for path in FILES}
    left = {name for name in imported if name != "__init__"}
    while free := {name for name in left if not imported[name] & left}:
        left -= free
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.slow
def test_each_room_s_door_says_what_each_file_of_it_answers_and_loads_nothing():
    print(floors_as_text())
    for door in (path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE):
        tree = ast.parse(door.read_text(encoding="utf-8"))
        documented = ast.get_docstring(tree)
        files = {path.stem for path in door.parent.glob("*.py")} - {"__init__"}
        folders = {path.parent.name for path in door.parent.glob("*/__init__.py")}
        if door.parent.name not in DELETABLE:
            assert {name for name in files if f"``{name}.py``" in documented} == files, door
            assert {name for name in folders if f"``{name}/``" in documented} == folders, door
        is_known = door.parent.name in ("metrics", "callbacks")  # old imports; the default set
        assert is_known or len(tree.body) == 1, f"{door} does more than to say what is behind it"


@pytest.mark.slow
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
    siblings = [imported for imported in siblings if imported != "trackers/base"]  # which all of them stand on
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


@pytest.mark.slow
def test_without_any_optional_package_it_trains_and_says_what_is_missing(tmp_path):
    subprocess.run(["cp", "-r", str(PACKAGE), str(tmp_path / "utils")], check=True)
    script = tmp_path / "train.py"
    script.write_text(BLOCK.format(missing=OPTIONAL) + QUICK.format(package="utils"))
    done = run_python(script, cwd=tmp_path, env={"FORK_SERVER": "0"})  # which has imported them
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


@pytest.mark.slow
def test_importing_the_package_brings_no_heavy_module_that_is_not_used(tmp_path):
    heavy = ["tensorboard", "torch.utils.tensorboard", "matplotlib", "tqdm", "torchsummary", "torchinfo", "sklearn"]
    code = ("import torch, sys; before = set(sys.modules); import template; from template.template import TemplateModel; "
            f"print([name for name in {heavy} if name in set(sys.modules) - before])")
    assert run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "FORK_SERVER": "0"}).stdout.strip() == "[]"


@pytest.mark.slow
def test_a_public_name_whose_file_was_deleted_is_an_error_that_says_how_to_get_it(tmp_path):
    subprocess.run(["cp", "-r", str(PACKAGE), str(tmp_path / "utils")], check=True)
    (tmp_path / "utils/callbacks/profile.py").unlink()
    (tmp_path / "utils/metrics/accumulators.py").write_text("import nowhere\n")
    done = run_python("-c", "from utils import Profile", cwd=tmp_path, check=False)
    assert "Profile is in callbacks/profile.py, which is not there" in done.stderr
    assert f"python {tmp_path}/utils/upgrade.py upgrade --with callbacks/profile" in done.stderr
    (tmp_path / "utils/run/options.py").unlink()
    done = run_python("-c", "from utils import option", cwd=tmp_path, check=False)
    assert "option is in run/options.py, which is not there" in done.stderr
    assert f"python {tmp_path}/utils/upgrade.py upgrade --with core" in done.stderr
    done = run_python("-c", "from utils import Mean", cwd=tmp_path, check=False)
    assert "No module named 'nowhere'" in done.stderr and "upgrade.py" not in done.stderr


def test_an_unknown_public_name_is_an_error_that_lists_what_there_is():
    import template

    with pytest.raises(AttributeError, match="Confusion"):
        template.Confusoin  # noqa: B018
    assert set(dir(template)) >= {"TemplateModel", "__version__"}


# --- imports from where the files were before there were rooms ----------------------------------------------------------

ANSWER = """
import importlib, sys
def answer(statement):
    try:
        exec(statement, {"__name__": "__main__"})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "works"
"""


def answers(tmp_path, package, statements, before=""):
    """What Python says to each statement, all in one process, in the folder that ``package`` is in."""
    lines = [ANSWER, before, *(f"print(answer({statement!r}).splitlines()[0])" for statement in statements)]
    (tmp_path / "ask.py").write_text("\n".join(lines))
    return run_python("ask.py", cwd=tmp_path).stdout.splitlines()


def copied_as(package, tmp_path):
    folder = tmp_path.joinpath(*package.split("."))
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("package", ["utils", "project.deep.trainer"])
def test_an_import_from_an_old_place_is_an_error_that_says_what_to_write(package, tmp_path):
    folder = copied_as(package, tmp_path)
    (folder / "callbacks/mine.py").write_text("from ..run_folder import replace_file\n")
    (folder / "mine.py").write_text("from .seeding import derive\n")
    (folder / "mine_too.py").write_text("from . import loaders\n")
    (folder / "mine_three.py").write_text("from .checkpoint import CheckpointError\n")
    asked = {
        "from {p}.stepper import make_clip": ("stepper", "update.stepper", "..."),
        "import {p}.stepper": ("stepper", "update.stepper", "..."),
        "import {p}.stepper as stepper": ("stepper", "update.stepper", "..."),
        "from {p} import stepper": ("stepper", "update.stepper", "..."),
        "from {p} import Confusion, stepper": ("stepper", "update.stepper", "..."),
        "import importlib; importlib.import_module('.stepper', '{p}')": ("stepper", "update.stepper", "..."),
        "from {p}.distributed import ALONE": ("distributed", "parallel.ranks", "..."),
        "from {p}.run_lifetime import RunLifetime": ("run_lifetime", "run.lifetime", "..."),
        "import {p}.run_tools": ("run_tools", "run.requests", "..."),
        "from {p}.checkpoint import read": ("checkpoint", "checkpoint.files", "read"),
        "from {p}.checkpoint import CheckpointError, write": ("checkpoint", "checkpoint.files", "CheckpointError"),
        "from {p}.parallel import make_parallel": ("parallel", "parallel.gradients", "make_parallel"),
        "from {p}.parallel import MODES": ("parallel", "parallel.gradients", "MODES"),
        "from {p}.metrics import to_number": ("metrics", "metrics.accumulators", "to_number"),
        "import {p}.callbacks.mine": ("run_folder", "output.run_folder", "..."),
        "import {p}.mine": ("seeding", "data.seeding", "..."),
        "import {p}.mine_too": ("loaders", "data.loaders", "..."),
        "import {p}.mine_three": ("checkpoint", "checkpoint.files", "CheckpointError"),
    }
    said = answers(tmp_path, package, [statement.format(p=package) for statement in asked])
    assert said == [f"ModuleNotFoundError: {package}.{old} is {package}.{new} now. "
                    f"Write: from {package}.{new} import {name}" for old, new, name in asked.values()]
    attribute = answers(tmp_path, package, [f"import {package} as copy; copy.stepper.make_clip"])
    assert attribute == [f"AttributeError: {package}.stepper is {package}.update.stepper now."]


def test_the_line_that_an_old_import_is_answered_with_works_and_so_does_each_new_place(tmp_path):
    import template

    copied_as("utils", tmp_path)
    statements = [f"from utils.{new} import *" for new in template._MOVED.values()]
    statements += ["from utils.metrics import Confusion, Mean, Stored", "from utils.update.stepper import make_clip",
                   "from utils.checkpoint.files import read", "from utils.parallel.gradients import make_parallel"]
    assert answers(tmp_path, "utils", statements) == ["works"] * len(statements)


def test_what_never_was_in_the_folder_stays_python_s_own_error(tmp_path):
    folder = copied_as("utils", tmp_path)
    (folder / "checkpoint/sharded.py").unlink()
    (folder / "options").mkdir()  # a package of one's own by an old name
    (folder / "options/__init__.py").write_text("mine = 1\n")
    said = answers(tmp_path, "utils", [
        "import utils.nonsense", "from utils import nonsense", "import stepper", "import other.utils.stepper",
        "from utils.checkpoint import nonsense", "import utils.checkpoint.nonsense", "import utils.checkpoint.sharded",
        "from utils.options import mine", "import utils.options.nonsense", "import utils_too.stepper",
        "import utils; assert not hasattr(utils, 'nonsense') and not hasattr(utils, 'stepper')",
        "import importlib.util; assert importlib.util.find_spec('utils.nonsense') is None"])
    assert [line.split(" (")[0] for line in said] == [
        "ModuleNotFoundError: No module named 'utils.nonsense'", "ImportError: cannot import name 'nonsense' from 'utils'",
        "ModuleNotFoundError: No module named 'stepper'", "ModuleNotFoundError: No module named 'other'",
        "ImportError: cannot import name 'nonsense' from 'utils.checkpoint'",
        "ModuleNotFoundError: No module named 'utils.checkpoint.nonsense'",
        "ModuleNotFoundError: No module named 'utils.checkpoint.sharded'",
        "works", "ModuleNotFoundError: No module named 'utils.options.nonsense'",
        "ModuleNotFoundError: No module named 'utils_too'", "works", "works"]


def test_several_copies_in_one_process_answer_for_themselves_once_after_a_reload_and_a_new_import_too(tmp_path):
    copied_as("utils", tmp_path)
    copied_as("utils.second", tmp_path)
    before = ("import utils, utils.second\n"
              "for _ in range(3):\n"
              "    importlib.reload(utils); importlib.reload(utils.second)\n"
              "del sys.modules['utils.second'], utils.second\n"
              "import utils.second")
    said = answers(tmp_path, "utils", [
        "from utils.stepper import make_clip", "from utils.second import stepper",
        "import sys; assert [finder.package for finder in sys.meta_path if hasattr(finder, 'package')] == "
        "['utils', 'utils.second']"], before)
    assert said[0].startswith("ModuleNotFoundError: utils.stepper is utils.update.stepper now.")
    assert said[1].startswith("ModuleNotFoundError: utils.second.stepper is utils.second.update.stepper now.")
    assert said[2] == "works"


def test_importing_the_package_alone_loads_nothing_of_it_and_old_places_are_looked_up_last(tmp_path):
    copied_as("utils", tmp_path)
    code = ("import sys, typing; before = set(sys.modules); import utils; "
            "print(sorted(set(sys.modules) - before), [hasattr(finder, 'package') for finder in sys.meta_path][-1])")
    assert run_python("-c", code, cwd=tmp_path).stdout.strip() == "['utils'] True"
