"""What an editor and a type checker know of the folder: the names, their types and docstrings, and a user's mistakes.

mypy and pyright run here as a user would run them, over a project that holds the folder as ``utils``. Default modes are for
the quick start and train.py, which a beginner reads: strict modes would ask for ``-> None`` everywhere, and pyright's for
types that torch and scikit-learn do not have. ``jobs/typed_job.py`` passes both strict modes.
"""

import ast
import importlib
import inspect
import json
import re
import shutil
import sys

import pytest
from tiny import ROOT, run_python

import template

PACKAGE = ROOT / "template"
JOBS = ROOT / "tests/jobs"
OWN = ("quick_start.py", "train.py", "typed_job.py", "typing_mistakes.py")  # the user's files
# Scikit-learn has no types. What torch is made of inside takes mypy ten seconds, and is nothing that the programs name. One
# program is checked by what ``mypy --strict`` asks for, which is no option of single files.
INSIDE = ["matplotlib", "sympy", *(f"torch.{name}" for name in (
    "_decomp", "_dynamo", "_export", "_functorch", "_higher_order_ops", "_inductor", "_prims", "_refs", "_subclasses", "ao",
    "fx", "testing"))]
MYPY_INI = """
[mypy]
warn_redundant_casts = True
[mypy-sklearn.*]
ignore_missing_imports = True
[mypy-INSIDE]
follow_imports = skip
[mypy-utils]
implicit_reexport = False
[mypy-typed_job]
check_untyped_defs = True
disallow_any_generics = True
disallow_incomplete_defs = True
disallow_subclassing_any = True
disallow_untyped_calls = True
disallow_untyped_decorators = True
disallow_untyped_defs = True
extra_checks = True
implicit_reexport = False
strict_equality = True
warn_return_any = True
warn_unused_ignores = True
""".replace("INSIDE", ",".join(f"{name}.*" for name in INSIDE))
CHECKED = ["Metric", "Score", "Hooks", *(name for name in template.__all__ if name != "__version__")]


# --- what the source says ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_type_checkers_are_told_the_names_that_the_package_gives():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {alias.asname: (alias.name, f".{node.module}") for node in block.body for alias in node.names}
    assert told == {name: (name, home) for name, home in template._HOMES.items()}
    assert template.__all__ == ["__version__", *template._HOMES]
    assert all(getattr(template, name) is not None for name in template.__all__)


def attribute_lines():
    """(group, name, statement, the statement below it) of every public attribute that ``TemplateModel.__init__`` makes."""
    source = (PACKAGE / "template.py").read_text(encoding="utf-8")
    groups = [(number, line.strip(" -#")) for number, line in enumerate(source.splitlines(), 1) if "# --- " in line]
    (model,) = [node for node in ast.parse(source).body if getattr(node, "name", None) == "TemplateModel"]
    (init,) = [node for node in model.body if getattr(node, "name", None) == "__init__"]
    for statement, below in zip(init.body, [*init.body[1:], None]):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            group = [group for number, group in groups if number < statement.lineno][-1]
            if not target.attr.startswith("_"):
                yield group, target.attr, statement, below


def test_every_attribute_has_a_type_and_those_for_users_a_docstring():
    found = list(attribute_lines())
    assert {group for group, *_ in found} >= {"must be set", "may be set: the update", "state, to read"}
    for group, name, statement, below in found:
        is_inside = "for callbacks and the rooms" in group
        is_made_there = is_inside and isinstance(statement.value, ast.Call)  # as in self.checkpoints = Checkpoints(self)
        assert isinstance(statement, ast.AnnAssign) or is_made_there, f"self.{name} needs a type"
        is_told = isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)
        assert is_told or is_inside, f"self.{name} needs a docstring on the line below it"


def functions_of(thing):
    """(name, function) of a public function, or of the public methods and properties that a class defines itself."""
    if not inspect.isclass(thing):
        yield thing.__name__, thing
        return
    for name, member in vars(thing).items():
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            yield f"{thing.__name__}.{name}", member


def find(name):
    if name == "Hooks":
        return template.hooks.Hooks
    return getattr(template, name, None) or getattr(template.metrics, name)


def missing_annotations(thing):
    for name, function in functions_of(thing):
        signature, is_method = inspect.signature(function), "." in name
        parameters = list(signature.parameters.values())[is_method:]
        yield from (f"{name}: {part.name}" for part in parameters if part.annotation is part.empty)
        if signature.return_annotation is signature.empty:
            yield f"{name}: what it returns"


@pytest.mark.parametrize("name", CHECKED)
def test_every_public_function_method_and_event_is_fully_annotated(name):
    assert list(functions_of(find(name))), name
    assert not list(missing_annotations(find(name)))


@pytest.mark.parametrize("path", sorted((PACKAGE / "tools").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_tool_is_fully_annotated(path):
    module = importlib.import_module(f"template.tools.{path.stem}")
    tools = [member for name, member in vars(module).items() if inspect.isfunction(member) or inspect.isclass(member)
             if not name.startswith("_") and member.__module__ == module.__name__]
    assert tools
    assert not [missing for tool in tools for missing in missing_annotations(tool)]


def test_a_missing_annotation_is_noticed():
    class Half:
        def __init__(self):
            self.value = 0

        def total(self, part: int, other) -> int:
            return part + other

    assert list(missing_annotations(Half)) == ["Half.__init__: what it returns", "Half.total: other"]


# --- what the checkers say --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A user's project: the folder as ``utils``, again as ``fewer`` without what may be left out, and programs."""
    for name in ("utils", "fewer"):
        shutil.copytree(PACKAGE, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*tmp_path.glob("fewer/callbacks/[!_]*.py"), *tmp_path.glob("fewer/tools/[!_]*.py")]:
        path.unlink()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "quick_start.py").write_text(re.search(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[1])
    script = (ROOT / "train.py").read_text(encoding="utf-8")
    (tmp_path / "train.py").write_text(re.sub(r"^from template\b", "from utils", script, flags=re.MULTILINE))
    for name in ("typed_job.py", "typing_mistakes.py"):
        shutil.copy(JOBS / name, tmp_path)
    return tmp_path


def mypy(project, cache):
    """{file: {line: message}} of the errors. What mypy learned of torch is kept in pytest's cache for the next time."""
    (project / "mypy.ini").write_text(MYPY_INI)
    options = ["--cache-dir", cache.mkdir("mypy"), "--no-color-output"]
    done = run_python("-m", "mypy", *options, ".", cwd=project, check=False)
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
    assert re.search("^(Success: no issues found|Found .* errors?) in", done.stdout, re.MULTILINE), done.stdout
    errors = {}
    for file, line, message in re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        errors.setdefault(file, {})[int(line)] = message
    return errors


def pyright(project, strict, files):
    """The same of pyright, from its files and a node that are both installed by pip: nothing is downloaded."""
    asked = run_python("-m", "pyright", "--version", cwd=project, check=False)
    if asked.returncode:
        pytest.skip(f"pyright does not run here: {(asked.stdout + asked.stderr).strip().splitlines()[-1]}")
    (project / "pyrightconfig.json").write_text(json.dumps({"include": files, "strict": strict}))
    done = run_python("-m", "pyright", "--pythonpath", sys.executable, "--outputjson", cwd=project, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= len(files), done.stdout
    errors = {}
    for one in found["generalDiagnostics"]:
        file = str((project / one["file"]).relative_to(project))
        errors.setdefault(file, {})[one["range"]["start"]["line"] + 1] = one["message"]
    return errors


def as_text(errors):
    return "\n".join(f"{file}:{line}: {message}" for file, lines in errors.items() for line, message in lines.items())


def marked(*endings):
    """Numbers of the lines of ``typing_mistakes.py`` that end so."""
    lines = (JOBS / "typing_mistakes.py").read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith(endings)}


@pytest.mark.slow
def test_mypy_finds_the_mistakes_and_nothing_in_the_folder_or_in_programs_one_of_them_in_strict_mode(project, pytestconfig):
    errors = mypy(project, pytestconfig.cache)
    assert set(errors.pop("typing_mistakes.py")) == marked("# mistake")
    assert not errors, as_text(errors)


@pytest.mark.slow
def test_pyright_finds_the_mistakes_and_passes_the_programs_one_of_them_in_strict_mode(project):
    errors = pyright(project, strict=["typed_job.py"], files=[*OWN, "utils/__init__.py", "fewer/__init__.py"])
    assert set(errors.pop("typing_mistakes.py")) == marked("# mistake", "# mistake to pyright")
    assert not errors, as_text(errors)


@pytest.mark.slow
def test_the_program_that_passes_strict_modes_is_one_that_runs(project):
    run_python("typed_job.py", "--epochs", 2, cwd=project)
    assert (project / "check_point/typed/losses.txt").exists()
