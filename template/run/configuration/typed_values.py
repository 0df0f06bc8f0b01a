"""What a written value means where a type is wanted, and how a value is written so that it is read back equal.

    to_type(Given("1e-3"), float)              # 0.001; in YAML alone it would be a text
    to_type(Given("None"), int | None)         # None
    to_type(Given("no"), bool)                 # False
    to_type(Given("no"), str)                  # "no"
    to_type(Given("0"), str)                   # "0"
    as_yaml({"norm": 1.0})                     # '{norm: 1.0}'

The type decides, and what could mean two things is refused. Types other than numbers, texts, choices and collections of
these are left to jsonargparse, which gets them as plain data.
"""

from __future__ import annotations

import collections.abc
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .yaml_files import ConfigError, Given, pyyaml

_NONE = ("none", "null", "~", "")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_LEADING_ZERO = re.compile(r"[-+]?0[\d_]+(\.\d*)?")
_OF_YAML = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null",
          Path: "a path"}
_SCALARS = (bool, int, float, str, type(None))
_SAFE_TEXT = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./+-]*( [\w./+-]+)*", re.ASCII)


class Mismatch(ConfigError):
    """A value that does not fit its type, with the place where it stands."""

    def __init__(self, given: Given, reason: str = "") -> None:
        super().__init__(reason)
        self.given = given
        self.reason = reason


def parts_of(hint: Any) -> list[Any]:
    """The members of a union; a type that is none is the only one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for member in typing.get_args(hint) for part in parts_of(member)]
    return [type(None) if hint is None else hint]


def is_plain(hint: Any) -> bool:
    """Whether ``to_type`` itself knows what a value of this type is."""
    for part in parts_of(hint):
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if part is Any or part in _SCALARS or _choices(part):
            continue
        if (origin or part) not in (*_LISTS, *_DICTS) or not all(is_plain(one) for one in arguments if one is not ...):
            return False
    return True


def is_plain_value(value: Any) -> bool:
    """Whether ``as_yaml`` writes it."""
    if isinstance(value, Mapping):
        return all(isinstance(name, (str, int, float)) and is_plain_value(part) for name, part in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain_value, value))
    return value is None or isinstance(value, (bool, int, float, str, enum.Enum, Path))


def _choices(part):
    """``{as it is written: value}`` of a ``Literal`` or an enumeration; empty for other types."""
    if typing.get_origin(part) is Literal:
        return {str(choice): choice for choice in typing.get_args(part)}
    if isinstance(part, type) and issubclass(part, enum.Enum):
        return dict(part.__members__)
    return {}


def described(hint: Any) -> str:
    """What a type accepts, in words: "a whole number or null"."""
    words = []
    for part in parts_of(hint):
        origin = typing.get_origin(part)
        if choices := _choices(part):
            words.append("one of " + ", ".join(choices))
        elif (origin or part) in _LISTS:
            (of,) = typing.get_args(part)[:1] or (Any,)
            words.append("a list" if of is Any else f"a list of items that are {described(of)}")
        elif (origin or part) in _DICTS:
            words.append("a section of names and values")
        elif part is Any or part in _WORDS:
            words.append(_WORDS.get(part, "any value"))
        else:
            words.append(f"an object of the class {getattr(part, '__name__', str(part))}")
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def to_type(given: Given, hint: Any) -> Any:
    """The value that somebody meant, for a type made of bool, int, float, str, None, Literal, Enum, Any, lists and dicts;
    for other types plain data that jsonargparse takes.

    Raises:
        Mismatch: it does not fit, or could mean two things.
    """
    parts = parts_of(hint)
    if isinstance(given.value, dict):
        return _section(given, parts)
    if isinstance(given.value, list):
        return _list(given, parts)
    text = given.value
    if not isinstance(text, str):
        return text
    if not given.plain:
        if str in parts or Any in parts or not is_plain(hint):
            return text  # is_plain: what jsonargparse makes of it
        given = Given(text, given.file, given.line)  # "1e-3" in quotes where a number is wanted
    return _scalar(given, text, parts, hint)


def _scalar(given, text, parts, hint):
    word = text.strip().lower()
    choices = {written: choice for part in parts for written, choice in _choices(part).items()}
    if text in choices:
        return choices[text]
    for choice, words in ((None, _NONE), (True, _TRUE), (False, _FALSE)):
        if word in words and choices.get(str(choice), text) is choice:
            return choice
    anything = Any in parts or str not in parts and not is_plain(hint)
    if word in _NONE and (type(None) in parts or anything):
        return None
    if word in (*_TRUE, *_FALSE) and (bool in parts or anything):
        return word in _TRUE
    wants_number = int in parts or float in parts or anything
    if wants_number and (number := _number(given, text, parts, anything)) is not None:
        return number
    if str in parts or anything:
        if word in _NONE and not anything:
            raise Mismatch(given, f"None is no text. Write '{text}' in quotes if you mean the word." if text else
                           "Nothing stands there. Write '' for an empty text.")
        return text
    names = {written.lower(): written for written in choices}
    close = difflib.get_close_matches(word, names, n=1)
    raise Mismatch(given, f"Did you mean {names[close[0]]}?" if close else "")


def _number(given, text, parts, anything):
    if _LEADING_ZERO.fullmatch(text):
        if str in parts or anything:
            return None  # 007 is a name where a text may stand
        raise Mismatch(given, f"A number does not begin with a zero: write {text.lstrip('+-0_') or '0'}.")
    value = _as_number(text)
    if isinstance(value, int):
        return value if int in parts or anything else float(value)
    if value is None or float in parts or anything and (math.isfinite(value) or "." in text):
        return value
    return int(value) if int in parts and value.is_integer() else None  # 1e3 where a whole number is wanted


def _as_number(text):
    """As Python reads it, or YAML (``.inf``); None where it is none."""
    for read in (lambda text: int(text, 0), float):
        try:
            return read(text)
        except ValueError:
            pass
    return _OF_YAML.get(text.strip().lower())


def _section(given, parts):
    arguments = typing.get_args(_collection(given, parts, _DICTS))
    of_name, of = arguments if len(arguments) == 2 else (str, Any)
    return {to_type(Given(name, part.file, part.line), of_name): to_type(part, of) for name, part in given.value.items()}


def _list(given, parts):
    hint = _collection(given, parts, _LISTS)
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is tuple and of and of[-1] is not ...:
        if len(of) != len(given.value):
            raise Mismatch(given, f"It needs {len(of)} entries.")
        return tuple(to_type(part, one) for part, one in zip(given.value, of))
    values = [to_type(part, of[0] if of else Any) for part in given.value]
    return kind(values) if kind in (tuple, set, frozenset) else values


def _collection(given, parts, kinds):
    """Which of the types is such a collection; plain data for jsonargparse where none is and another type may take it."""
    found = next((part for part in parts if (typing.get_origin(part) or part) in kinds), None)
    if found is None and all(is_plain(part) and part is not Any for part in parts):
        raise Mismatch(given)
    return found


# --- and back ---------------------------------------------------------------------------------------------------------


def as_yaml(value: Any) -> str:
    """A value on one line, as ``to_type`` and other readers of YAML take it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return _text_as_yaml(value.name)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _float_as_yaml(float(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text_as_yaml(str(name))}: {as_yaml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{', '.join(map(as_yaml, value))}]"
    return _text_as_yaml(str(value))


def _float_as_yaml(value):
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # 1e-05 is a text in YAML 1.1


def _text_as_yaml(text):
    is_word = text.lower() in (*_NONE, *_TRUE, *_FALSE, "y", "n") or _as_number(text) is not None
    if _SAFE_TEXT.fullmatch(text) and not is_word:
        return text
    quoted: str = pyyaml().safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()
