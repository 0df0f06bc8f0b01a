"""A condition on values with names, as a person types it: ``lr<1e-3 and (state=finished or epochs>=10)``.

    condition = parse("lr<1e-3 and not amp=none")
    condition({"lr": 1e-4, "amp": "bf16"}.get)       # True
    condition.names                                  # {"lr", "amp"}

Nothing of the text is run as code. ``tools/runs.py`` filters runs with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

_TOKEN = re.compile(r"""\s*(?:
    (?P<text>"[^"]*"|'[^']*') | (?P<sign><=|>=|!=|==|!~|=|<|>|~|\(|\)) | (?P<word>[^\s()<>=!~"']+))""", re.VERBOSE)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
_SIGNS = (*_ORDERS, "=", "==", "!=", "~", "!~")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
_HELP = ("A condition is a name, a sign and a value: lr<1e-3, state=finished, options.amp!=none, name~baseline. The signs "
         f"are {' '.join(_SIGNS)}. Join conditions by and, or, not and brackets, and put quotes around a text with spaces.")


class Condition:
    """What ``parse`` makes of a text: called with a function that gives the value of a name, it says True or False."""

    def __init__(self, names: set[str], test: Callable[[Callable[[str], Any]], bool]) -> None:
        self.names = names
        self._test = test

    def __call__(self, value_of: Callable[[str], Any]) -> bool:
        return self._test(value_of)


def parse(text: str) -> Condition:
    """The condition that a text like "lr<1e-3 and (state=finished or epochs>=10)" means. Nothing in it is run as code.

    A name alone asks whether its value is there and true. Numbers compare as numbers; ``~`` asks whether a text is in
    another one, in any case of letters. A run without the value passes ``!=`` and ``!~`` alone, and ``= none``.

    Raises:
        ValueError: it cannot be read; the message says where.
    """
    tokens, place = [], 0
    while place < len(text.rstrip()):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"{text!r} cannot be read at {text[place:].strip()!r}. {_HELP}")
        tokens.append((found.lastgroup, found[found.lastgroup or 0]))
        place = found.end()
    reader = _Reader(text, tokens)
    condition = reader.any_of()
    if reader.tokens:
        reader.refuse(f"behind the condition comes {reader.tokens[0][1]!r}")
    return condition


class _Reader:
    """Takes tokens from the front: ``or`` binds less than ``and``, and that less than ``not``."""

    def __init__(self, text, tokens):
        self.text, self.tokens = text, tokens

    def refuse(self, what):
        raise ValueError(f"{self.text!r} cannot be read: {what}. {_HELP}")

    def is_next(self, *words):
        return bool(self.tokens) and self.tokens[0][0] != "text" and self.tokens[0][1].lower() in words

    def any_of(self):
        return self._joined("or", self.all_of, any)

    def all_of(self):
        return self._joined("and", self.one, all)

    def _joined(self, word, read, how):
        parts = [read()]
        while self.is_next(word):
            self.tokens.pop(0)
            parts.append(read())
        if len(parts) == 1:
            return parts[0]
        names = set().union(*(part.names for part in parts))
        return Condition(names, lambda value_of: how(part(value_of) for part in parts))

    def one(self):
        if self.is_next("not"):
            self.tokens.pop(0)
            part = self.one()
            return Condition(part.names, lambda value_of: not part(value_of))
        if self.is_next("("):
            self.tokens.pop(0)
            part = self.any_of()
            if not self.is_next(")"):
                self.refuse("a bracket is not closed")
            self.tokens.pop(0)
            return part
        return self._comparison()

    def _comparison(self):
        name = self._operand("a name")
        if not self.is_next(*_SIGNS):
            return Condition({name}, lambda value_of: bool(value_of(name)))
        sign = self.tokens.pop(0)[1]
        is_text = bool(self.tokens) and self.tokens[0][0] == "text"
        word = self._operand(f"a value behind {name} {sign}")
        expected = word if is_text else _constant(word)
        return Condition({name}, lambda value_of: compares(value_of(name), sign, expected))

    def _operand(self, what):
        if not self.tokens or self.tokens[0][0] == "sign" or self.is_next("and", "or"):
            self.refuse(f"{what} is missing" + (f" before {self.tokens[0][1]!r}" if self.tokens else " at the end"))
        kind, text = self.tokens.pop(0)
        return text[1:-1] if kind == "text" else text


def _constant(word):
    """What a word without quotes means."""
    if word.lower() in _CONSTANTS:
        return _CONSTANTS[word.lower()]
    number = _number(word)
    return word if number is None else number


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def compares(value: Any, sign: str, expected: Any) -> bool:
    """Whether ``value sign expected`` is true. What cannot be compared is different, and in no order."""
    if sign in ("!=", "!~"):
        return not compares(value, sign.replace("!", "") if sign == "!~" else "=", expected)
    if sign == "~":
        return value is not None and str(_shown(expected)).lower() in str(value).lower()
    if isinstance(expected, float) and isinstance(value, str):  # an option that was kept as text
        number = _number(value)
        value = value if number is None else number
    if sign in ("=", "=="):
        return isinstance(value, bool) == isinstance(expected, bool) and value == expected
    if is_number(value) and is_number(expected) or isinstance(value, str) and isinstance(expected, str):
        return _ORDERS[sign](value, expected)
    return False


def _shown(value):
    return f"{value:g}" if isinstance(value, float) else value


def is_number(value: Any) -> bool:
    """A number that can be put in order: neither a bool nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
