"""Command-line options from the parameters of a function.

    def main(epochs=20, lr=1e-3, resume: str | None = None):
        ...

    if __name__ == "__main__":
        run_main(main, full={"epochs": 200})      # python script.py --epochs 5; python script.py --full
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .options import in_notebook, parse_options

T = typing.TypeVar("T")


def run_main(main: Callable[..., T], argv: Sequence[str] | None = None, **presets: Mapping[str, Any]) -> T:
    """Call ``main`` with its parameters from the command line, and give what it returns.

    ``--help`` shows the docstring of the function or else of its script, and the defaults.

    Args:
        main: a function. The type of an option is that of the default, where no annotation says more. A parameter without
            a default is an option that must be given.
        argv: as in ``parse_options``.
        presets: ``name={parameter: value}`` makes an option ``--name``, with which these are the defaults.

    Raises:
        SystemExit: as in ``parse_options``.
        TypeError: ``main`` takes ``*args`` or ``**kwargs``, or a preset names no parameter.
    """
    parameters = inspect.signature(main).parameters
    _refuse(parameters, presets)
    words = ([] if in_notebook() else sys.argv[1:]) if argv is None else list(argv)
    flags = {f"--{name.replace('_', '-')}": name for name in presets} | {f"--{name}": name for name in presets}
    asked = {flags[word] for word in words if word in flags}
    defaults = {name: value for preset in presets if preset in asked for name, value in presets[preset].items()}
    given = parse_options(_options(main, parameters, defaults, presets), [word for word in words if word not in flags])
    return main(**dataclasses.asdict(given))


def _refuse(parameters, presets):
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"run_main() makes an option of each parameter, and {parameter} stands for any number of them. "
                            "Give the function named parameters alone.")
    for preset, values in presets.items():
        if unknown := values.keys() - parameters.keys():
            raise TypeError(f"The preset {preset!r} sets {sorted(unknown)}; the function takes {list(parameters)}.")
        if preset in parameters:
            raise TypeError(f"--{preset} would be a preset and a parameter of the function. Give one of them another name.")


def _options(main, parameters, defaults, presets):
    """A dataclass with a field for each parameter."""
    hints, fields = typing.get_type_hints(main), []
    for name, parameter in parameters.items():
        default = defaults.get(name, parameter.default)
        is_required = default is parameter.empty
        kind = hints.get(name, str if is_required or default is None else type(default))
        fields.append((name, kind, dataclasses.field(**({} if is_required else {"default": default}))))
    told = [f"--{preset.replace('_', '-')} is the same as "
            + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items()) + "."
            for preset, values in presets.items()]
    text = main.__doc__ or getattr(sys.modules.get(main.__module__), "__doc__", None) or ""
    described = "\n\n".join([inspect.cleandoc(text), *told])
    return dataclasses.make_dataclass("Options", fields, namespace={"__doc__": described}, kw_only=True)
