"""Values of other types than numbers, texts and collections of them, made by jsonargparse: objects of a class, paths, …

    made_by_jsonargparse("set.callbacks", list[Callback] | None, given, ["EMA", {"class_path": "EarlyStopping"}])
"""

from __future__ import annotations

import difflib
import sys
from typing import Any, get_args

from torch import nn

from ...hooks import Callback
from .typed_values import Mismatch, parts_of
from .yaml_files import Given


def made_by_jsonargparse(key: str, hint: Any, given: Given, value: Any) -> Any:
    """A value of any type. A class of this package, or of torch.nn, needs no path where a callback or a module is wanted.

    Args:
        key: of the setting, for the message where jsonargparse is not installed.
        hint: the type.
        given: as it was written.
        value: the same as plain data.

    Raises:
        Mismatch: it does not fit.
    """
    try:
        from jsonargparse import ArgumentParser  # type: ignore  # optional
    except ImportError:
        raise ModuleNotFoundError(f"{key} is made by jsonargparse: pip install jsonargparse pyyaml") from None
    from argparse import ArgumentError
    if any(isinstance(kind, type) and issubclass(kind, (nn.Module, Callback)) for kind in _kinds(hint)):
        value = _with_whole_paths(value, given)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except (ArgumentError, ValueError, TypeError) as error:
        raise Mismatch(given, _reason(error)) from None


def _kinds(hint):
    """The types in a type: Callback in list[Callback] | None."""
    for part in parts_of(hint):
        yield part
        yield from (kind for argument in get_args(part) for kind in _kinds(argument))


def _reason(error):
    """What jsonargparse says, without its frame of types and values."""
    frame = ("Parser key", "Does not validate", "Subtypes", "Errors", "Given value")
    lines = [line.strip(" -").rstrip(".:") for line in str(error).splitlines() if "NoneType" not in line]
    return " ".join(f"{line}." for line in lines if line and not line.startswith(frame))


def _with_whole_paths(value, given):
    """A class may go by the name alone where this package or torch.nn has it: EarlyStopping, CrossEntropyLoss."""
    if isinstance(value, list):
        return [_with_whole_paths(part, one) for part, one in zip(value, given.value)]
    if isinstance(value, str):
        whole = _whole_path(value, given)
        return value if whole == value else {"class_path": whole}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return {**value, "class_path": _whole_path(value["class_path"], given.value["class_path"])}
    return value


def _whole_path(name, given):
    if not (name.isidentifier() and name[0].isupper()):
        return name
    package = sys.modules[__package__.rsplit(".", 2)[0]]
    for home in (package, nn):
        if isinstance(found := getattr(home, name, None), type):
            return f"{found.__module__}.{found.__qualname__}"
    close = difflib.get_close_matches(name, [*dir(package), *dir(nn)], n=1)
    raise Mismatch(given, f"Neither {package.__name__} nor torch.nn has a class {name}."
                   f"{f' Did you mean {close[0]}?' if close else ''} A class from elsewhere is written with its module: "
                   "my_package.my_module.MyClass.")
