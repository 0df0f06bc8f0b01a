"""What makes the start of a forked script cheap: code that is compiled before the fork, and no picture of its curves.

Tests copy ``template/`` into other folders and run scripts there. Python would compile each copy again, since a copy in a
new folder has no ``__pycache__``, and a tiny training would draw its ``history.png``: each takes as long as the training.
"""

import _imp
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_compiled = {}  # source -> code
_loader = importlib.machinery.SourceFileLoader
_compile = _loader.source_to_code


def compile_ahead(folder=ROOT / "template"):
    """From now on, importing a file with the contents of one in ``folder`` takes the code that is made here."""
    for path in sorted(folder.rglob("*.py")):
        source = path.read_bytes()
        _compiled[source] = compile(source, str(path), "exec", dont_inherit=True)
    _loader.source_to_code = _source_to_code


def _source_to_code(self, data, path, **options):
    code = _compiled.get(bytes(data))
    if code is None:
        return _compile(self, data, path, **options)
    _imp._fix_co_filename(code, path)  # a traceback names the copy's file
    return code


class WithoutCurves:
    """An import hook: ``History`` of each copy of the template draws no ``history.png``. ``CURVES=1`` in the environment
    of a script has it drawn."""

    def find_spec(self, name, path=None, target=None):
        if not name.endswith(".callbacks.history") or os.environ.get("CURVES") == "1":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                module.History._draw = lambda self, model: None

            spec.loader.exec_module = exec_module
        return spec


def warm_up():
    compile_ahead()
    sys.meta_path.insert(0, WithoutCurves())
