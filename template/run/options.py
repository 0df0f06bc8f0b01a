"""Command-line options from a dataclass, with nothing but the standard library.

    @dataclass
    class Options:
        epochs: int = option(30, "passes over the training data")
        lr: float = option(1e-3, "learning rate at the end of the warm-up")
        resume: str | None = option(None, "auto, or the path of a checkpoint")

    options = parse_options(Options)        # python train.py --epochs 5 --lr 3e-4

``--batch-size`` and ``--batch_size`` are one option; an unknown or abbreviated one is an error. For a YAML file beside
the command line there is ``tools/configure.py``, which takes the same dataclass.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence

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
    parser = argparse.ArgumentParser(
        description=options_class.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        names = list(dict.fromkeys(["--" + field.name.replace("_", "-"), "--" + field.name]))
        kind = _plain_type(hints[field.name])
        told = "" if field.default is dataclasses.MISSING else f"(default: {field.default})"
        help_text = f"{field.metadata.get('help', '')} {told}".strip().replace("%", "%%")  # argparse formats it
        described: dict[str, typing.Any] = {"help": help_text, "dest": field.name}
        if field.default is dataclasses.MISSING:
            described["required"] = True
        else:
            described["default"] = field.default
        if kind is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **described)
        else:
            parser.add_argument(*names, type=kind, metavar=kind.__name__.upper(), **described)
    return options_class(**vars(parser.parse_args([] if argv is None and in_notebook() else argv)))


def in_notebook() -> bool:
    """In a cell, not in a script that ``%run script.py --epochs 3`` started in the same kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and not hasattr(sys.modules["__main__"], "__file__")


def _plain_type(hint):
    """``int | None`` -> ``int``: on the command line an option that is not given stays None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint
