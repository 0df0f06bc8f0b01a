"""Command-line options from a dataclass or a function, with nothing but the standard library.

    @dataclass
    class Options:
        epochs: int = option(30, "passes over the training data")
        lr: float = option(1e-3, "learning rate at the end of the warm-up")
        resume: str | None = option(None, "auto, or the path of a checkpoint")

    options = parse_options(Options)        # python train.py --epochs 5 --lr 3e-4

    if __name__ == "__main__":
        run_main(main)                      # of def main(epochs=30, lr=1e-3): its parameters are the options

``--batch-size`` and ``--batch_size`` are one option; an unknown or abbreviated one is an error. For a YAML file beside
the command line there is ``tools/configure.py``, which takes the same dataclass.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T")
OptionsT = typing.TypeVar("OptionsT", bound="DataclassInstance")


def option(default: T, help_text: str) -> T:
    """A dataclass field with a default and the text that ``--help`` shows."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def parse_options(options_class: type[OptionsT], argv: Sequence[str] | None = None) -> OptionsT:
    """Build an ``options_class`` from the command line.

    Args:
        options_class: a dataclass whose fields are int, float, str, bool or ``T | None`` of these. A field without a
            default is an option that must be given.
        argv: list of arguments; None takes ``sys.argv[1:]``, and in a notebook, where these are the kernel's, the defaults.

    Raises:
        SystemExit: an unknown or missing option or a value of the wrong type, after argparse has said which.
    """
    parser = _parser(options_class.__doc__, argparse.ArgumentDefaultsHelpFormatter)
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        _add(parser, field.name, _plain_type(hints[field.name]), field.default, field.metadata.get("help", " "))
    return options_class(**_parsed(parser, argv))


def run_main(main: Callable[..., T], argv: Sequence[str] | None = None, **presets: Mapping[str, Any]) -> T:
    """Call ``main`` with its parameters from the command line, and give what it returns.

        def main(epochs=20, resume: str | None = None):
            ...

        if __name__ == "__main__":
            run_main(main, full={"epochs": 200})      # python script.py --epochs 5; python script.py --full

    ``--help`` shows the docstring of the script, and the defaults.

    Args:
        main: a function. The type of an option is that of the default, where no annotation says more. A parameter without
            a default is an option that must be given.
        argv: as in ``parse_options``.
        presets: ``name={parameter: value}`` makes an option ``--name``, with which these are the defaults.

    Raises:
        SystemExit: as in ``parse_options``.
        TypeError: ``main`` takes ``*args`` or ``**kwargs``, or a preset names no parameter.
    """
    parameters, hints = inspect.signature(main).parameters, typing.get_type_hints(main)
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"run_main() makes an option of each parameter, and {parameter} stands for any number of them. "
                            "Give the function named parameters alone.")
    for preset, values in presets.items():
        if unknown := values.keys() - parameters.keys():
            raise TypeError(f"The preset {preset!r} sets {sorted(unknown)}; the function takes {list(parameters)}.")
        if preset in parameters:
            raise TypeError(f"--{preset} would be a preset and a parameter of the function. Give one of them another name.")
    script = getattr(sys.modules.get(main.__module__), "__doc__", None)
    parser = _parser(main.__doc__ or script, argparse.RawDescriptionHelpFormatter)
    for name, parameter in parameters.items():
        is_given = parameter.default is not parameter.empty
        default = parameter.default if is_given else dataclasses.MISSING
        kind = _plain_type(hints[name]) if name in hints else type(default) if is_given and default is not None else str
        _add(parser, name, kind, default, f"(default: {default})" if is_given else " ", argparse.SUPPRESS)
    for preset, values in presets.items():
        told = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
        parser.add_argument(f"--{preset.replace('_', '-')}", dest=preset, action="store_true", help=f"the same as {told}")
    given = _parsed(parser, argv)
    chosen = [presets[name] for name in presets if given.pop(name)]
    return main(**{name: value for values in (*chosen, given) for name, value in values.items()})


def _parser(description, formatter):
    return argparse.ArgumentParser(description=description, allow_abbrev=False, formatter_class=formatter)


def _add(parser, name, kind, default, help_text, not_given=None):
    """An option; ``not_given`` stands in the namespace in place of the default where the option is not given."""
    names = list(dict.fromkeys(["--" + name.replace("_", "-"), "--" + name]))
    described = {"help": help_text.replace("%", "%%"), "dest": name}  # argparse formats it
    if default is dataclasses.MISSING:
        described["required"] = True
    else:
        described["default"] = default if not_given is None else not_given
    if kind is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **described)
    else:
        parser.add_argument(*names, type=kind, metavar=kind.__name__.upper(), **described)


def _parsed(parser, argv):
    return vars(parser.parse_args([] if argv is None and in_notebook() else argv))


def in_notebook() -> bool:
    """In a cell, not in a script that ``%run script.py --epochs 3`` started in the same kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and not hasattr(sys.modules["__main__"], "__file__")


def _plain_type(hint):
    """``int | None`` -> ``int``: on the command line an option that is not given stays None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint
