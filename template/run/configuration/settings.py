"""Which settings a trainer's class has: the arguments of its ``__init__``, and the attributes of ``TemplateModel``.

    for setting in settings_of(Digits).values():
        print(setting.key, setting.hint, setting.default, setting.meaning)     # lr0, set.amp, loss.recon_weight, …

A dataclass among the arguments gives its fields: below its name, or at the top where it is the only argument. Attributes
stand below ``set``. How values are written stands in ``typed_values.py``.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...hooks import Callback
from . import attribute_docs
from .typed_values import described, parts_of

SET = "set"
MISSING = dataclasses.MISSING
_STATE = "state"
_BY_INIT = ("model_list", "optimizer_list", "train_loader", "eval_loader", "test_loader", "lr_scheduler_list",
            "warm_up_scheduler_list", "eval_metrics")
_OTHER_HINTS: dict[str, Any] = {"criterion": nn.Module | None, "callbacks": list[Callback] | None, "train_metrics": bool}


@dataclasses.dataclass
class Setting:
    """One value that can be set."""

    key: str
    """Where it stands: "lr0", "loss.recon_weight", "set.amp"."""
    hint: Any
    default: Any
    """``MISSING`` where it must be given."""
    meaning: str = ""
    group: str = ""
    refusal: str = ""
    """Why it cannot be set in this way."""

    @property
    def is_attribute(self) -> bool:
        return self.key.startswith(f"{SET}.")

    @property
    def accepted(self) -> str:
        return described(self.hint)


def template_of(kind: type) -> type:
    """``TemplateModel`` itself among the bases of a trainer's class.

    Raises:
        TypeError: it is none.
    """
    for base in getattr(kind, "__mro__", ()):
        if "_overrides" in vars(base):
            return base
    raise TypeError(f"A trainer's class is needed, a subclass of TemplateModel, got {kind!r}. Write the name of the class, "
                    "without brackets behind it.")


def settings_of(kind: type, without: Iterable[str] = ()) -> dict[str, Setting]:
    """``{key: Setting}`` in the order in which they are shown. ``without``: arguments that the script gives itself."""
    found = [*_of_arguments(kind, frozenset(without)), *_of_attributes(template_of(kind))]
    return {setting.key: setting for setting in found}


def names_of_arguments(kind: type) -> list[str]:
    """The parameters of ``__init__``.

    Raises:
        TypeError: it is no class of a trainer.
    """
    return [name for name, *_ in _arguments(kind, frozenset())]


def arguments_from(kind: type, values: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The keyword arguments of ``kind(**arguments)``, from ``{key: value}``."""
    arguments = {}
    for name, hint, _, prefix in _arguments(kind, frozenset(without)):
        if prefix is not None:
            arguments[name] = _make(hint, prefix, values)
        elif name in values:
            arguments[name] = values[name]
    return arguments


# --- arguments of __init__ --------------------------------------------------------------------------------------------


def _arguments(kind, without):
    """(name, type, default, prefix of its fields or None) of the parameters of ``__init__``; those behind ``**`` are taken
    from the next class that has an ``__init__``."""
    found: dict[str, tuple[Any, Any]] = {}
    template = template_of(kind)
    for base in kind.__mro__[:kind.__mro__.index(template)]:
        if "__init__" not in vars(base):
            continue
        init = vars(base)["__init__"]
        hints = _hints(init)
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                default = MISSING if parameter.default is parameter.empty else parameter.default
                found.setdefault(parameter.name, (_hint(hints.get(parameter.name), default), default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    rest = {name: pair for name, pair in found.items() if name not in without}
    for name, (hint, default) in rest.items():
        is_section = dataclasses.is_dataclass(hint) and isinstance(hint, type)
        yield name, hint, default, None if not is_section else "" if len(rest) == 1 else f"{name}."


def _hints(function):
    try:
        return typing.get_type_hints(function)
    except NameError as error:  # a name that is imported for type checkers alone
        raise TypeError(f"The types of {function.__qualname__} cannot be read: {error}. Import that name outside of `if "
                        "TYPE_CHECKING:`, or leave that type out.") from None


def _hint(hint, default):
    if hint is None:
        hint = {int: int | float, bool: bool, float: float, str: str}.get(type(default), Any)
    if default is None and hint is not Any and type(None) not in parts_of(hint):
        hint = typing.Optional[hint]  # noqa: UP045  # hint | None fails for the names of types
    return hint


def _of_arguments(kind, without):
    group = f"{kind.__name__}"
    docs = _docs_of_arguments(kind)
    for name, hint, default, prefix in _arguments(kind, without):
        if prefix is None:
            yield Setting(name, hint, default, docs.get(name, ""), group)
        else:
            yield from _of_dataclass(hint, prefix, default, group)


def _of_dataclass(kind, prefix, instance, group):
    hints, docs = _hints(kind), _docs_of_fields(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        if instance is not MISSING:
            default = getattr(instance, field.name)
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
        hint = _hint(hints[field.name], default)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _of_dataclass(hint, f"{prefix}{field.name}.", default, group)
        else:
            meaning = field.metadata.get("help") or docs.get(field.name, "")
            yield Setting(prefix + field.name, hint, default, meaning, group)


def _make(kind, prefix, values):
    hints, arguments = _hints(kind), {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.init and dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[field.name] = _make(hint, f"{prefix}{field.name}.", values)
        elif field.init and prefix + field.name in values:
            arguments[field.name] = values[prefix + field.name]
    return kind(**arguments)


def _docs_of_arguments(kind):
    """``{name: text}`` of the section "Args:" in the docstrings of the class and of its ``__init__``."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        for text in (vars(base).get("__doc__"), getattr(vars(base).get("__init__"), "__doc__", None)):
            section = re.search(r"^Args:\n((?:[ \t]+\S.*\n?|\n)*)", inspect.cleandoc(text or ""), re.M)
            for entry in re.split(r"\n(?=\S)", textwrap.dedent(section[1]).strip()) if section else ():
                names, _, meaning = entry.partition(":")
                for name in names.split(","):
                    docs[name.split("(")[0].strip()] = " ".join(meaning.split())
    return docs


@functools.lru_cache
def _docs_of_fields(kind):
    """``{name: text}`` of the docstrings below the fields of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError, SyntaxError, IndexError):  # made in a console, or by a function
            continue
        for statement, below in zip(body, body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if meaning := attribute_docs.docstring_in(below):
                    docs[statement.target.id] = meaning
    return docs


# --- attributes of TemplateModel --------------------------------------------------------------------------------------


@functools.lru_cache
def _of_attributes(template):
    return tuple(_read_attributes(template))


def _read_attributes(template):
    source = Path(inspect.getfile(template)).read_text(encoding="utf-8")
    names = vars(sys.modules[template.__module__])
    for group, members in attribute_docs.groups(source).items():
        for name, written, default, meaning in members:
            value = MISSING if default == attribute_docs.COMPUTED else ast.literal_eval(default)
            hint = _OTHER_HINTS[name] if name in _OTHER_HINTS else _evaluated(written, names)
            yield Setting(f"{SET}.{name}", hint, value, meaning.replace("``", "`"), group, _refusal(name, group))


def _refusal(name, group):
    if group.startswith(_STATE):
        return f"{name} is counted by the trainer itself, and cannot be set."
    if name in _BY_INIT:
        return (f"{name} holds objects, which __init__ builds. Give __init__ an argument for what should be set, such as "
                "a batch size or a width.")
    return ""


def _evaluated(written, names):
    """A type as it stands in the source, which is ours."""
    try:
        return eval(written, dict(names))
    except NameError:  # imported for type checkers alone: it is no plain value
        return Any
