"""What was set in files, on the command line and in the script, with every name known and every value checked.

    settings = Settings(Digits, given={"width": 8})
    settings.read(["--config", "digits.yml", "--lr", "3e-4"])
    settings.values                                    # {"lr": 0.0003, "width": 8, "set.amp": "bf16", …}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...output.warn import warn
from .objects_by_class import made_by_jsonargparse
from .settings import MISSING, SET, Setting, names_of_arguments, settings_of
from .typed_values import Mismatch, is_plain, is_plain_value, parts_of, to_type
from .yaml_files import INCLUDE, ConfigError, Given, parse_value, read_yaml

if TYPE_CHECKING:
    from ...template import TemplateModel

_RESERVED = ("config", "print_config", "help", SET, INCLUDE)


class Settings:
    """What can be set in a trainer's class, and what was set.

    Args:
        kind: the class.
        given: arguments of ``__init__`` that come from the script.
    """

    def __init__(self, kind: type[TemplateModel], given: Mapping[str, Any]) -> None:
        own = dict(given)
        attributes = dict(own.pop(SET, {}))
        objects = [name for name in names_of_arguments(kind) if name in own and not is_plain_value(own[name])]
        self.kind: Any = kind
        self.objects = {name: own[name] for name in objects}
        self.known: dict[str, Setting] = settings_of(kind, objects)
        self.given: dict[str, Given] = {}   # what was written
        self.values: dict[str, Any] = {}    # and what it means, together with the defaults of __init__
        self.fixed = {**{name: own[name] for name in own if name not in objects},
                      **{f"{SET}.{name}": value for name, value in attributes.items()}}
        for key in self.known:
            if key.split(".")[0] in _RESERVED and not key.startswith(f"{SET}."):
                raise ConfigError(f"{kind.__name__}.__init__ must not have an argument {key!r}: {list(_RESERVED)} have a "
                                  "meaning of their own. Give it another name.")
        for name in self.fixed:
            if name not in self.known:
                raise ConfigError(self._unknown(name, "configure()"))
        self.values = {key: setting.default for key, setting in self.known.items()
                       if not setting.is_attribute and setting.default is not MISSING} | self.fixed

    def read(self, argv: Sequence[str], config: str | Path | None = None) -> set[str]:
        """Read the files and the command line. Returns what else was asked for: "help", "print_config".

        Raises:
            ConfigError: a name that does not exist, or a value that does not fit.
        """
        files, written, asked = self._command_line(argv)
        for file in files or ([] if config is None else [config]):
            for tree in read_yaml(file):
                self._take(list(self._entries(tree)))
        self._take(written)
        for key, given in self.given.items():
            if key in self.fixed:
                self._tell_fixed(key, given)
            else:
                self.values[key] = self._value(self.known[key], given)
        return asked

    def _command_line(self, argv):
        files, written, asked, words = [], [], set(), list(argv)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                if word == "-h":
                    asked.add("help")
                    continue
                hint = f" Write --config {word}." if word.endswith((".yml", ".yaml")) else " Names begin with --."
                raise ConfigError(f"The command line takes --name value, got {word!r} alone.{hint}")
            written_name, has_value, text = word[2:].partition("=")
            name = written_name if written_name in self.known else written_name.replace("-", "_")
            if name in ("help", "print_config"):
                asked.add(name)
                continue
            if not has_value and words and not words[0].startswith("--"):
                text, has_value = words.pop(0), "="
            if name == "config":
                if not has_value:
                    raise ConfigError("--config needs the path of a YAML file behind it.")
                files.append(text)
                continue
            key, rest = self._found(name)
            negated = name.removeprefix("no_") if key is None and not has_value else ""
            if negated in self.known and bool in parts_of(self.known[negated].hint):
                key, text, has_value = negated, "false", "="
            if key is None:
                raise ConfigError(self._unknown(name, f"--{written_name}", on_command_line=True))
            if not has_value:
                if bool not in parts_of(self.known[key].hint):
                    raise ConfigError(f"--{written_name} needs a value: {self.known[key].accepted}.")
                text = "true"
            written.append((key, rest, self._typed(text, f"--{written_name}", self.known[key].hint if not rest else Any)))
        return files, written, asked

    def _typed(self, text, place, hint):
        """A word of the command line. A text needs no quotes there; lists and sections are written as in YAML."""
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        takes_more = any(part not in (str, int, float, bool, type(None)) for part in parts_of(hint))
        if is_quoted or takes_more and text[:1] in ("[", "{"):
            return parse_value(text, place)
        return Given(text, place, plain=text != "")

    def _found(self, name):
        """(key, path of an entry in its value) of a name with dots; (None, ()) where there is no such setting."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in self.known:
                return key, tuple(parts[length:])
        return None, ()

    def _entries(self, tree, prefix="", seen=None):
        """(key, path within its value, Given) of everything that stands in a file."""
        seen = {} if seen is None else seen
        for name, given in tree.items():
            full = prefix + name
            key, rest = self._found(full)
            is_section = any(known.startswith(f"{full}.") for known in self.known)
            if key is None and is_section:
                if isinstance(given.value, dict):
                    yield from self._entries(given.value, f"{full}.", seen)
                elif given.value not in ("", "null", "~"):  # all that stands below is a comment
                    raise ConfigError(f"{given.place}: {full} is a section, with names and values below it, got "
                                      f"{given.shown()}.")
                continue
            if key is None:
                raise ConfigError(f"{given.place}: {self._unknown(full, name)}")
            if (key, rest) in seen:
                raise ConfigError(f"{given.place}: {full} stands twice, before in {seen[key, rest].place}. Remove one.")
            seen[key, rest] = given
            yield key, rest, given

    def _take(self, entries):
        """What comes later counts."""
        for key, rest, given in entries:
            if refusal := self.known[key].refusal:
                raise ConfigError(f"{given.place}: {refusal}")
            before = self.given.get(key)
            self.given[key] = _joined(before, rest, given)

    def _value(self, setting, given):
        try:
            value = to_type(given, setting.hint)
            if is_plain(setting.hint) or any(type(value) is part for part in parts_of(setting.hint)):
                return value
            return made_by_jsonargparse(setting.key, setting.hint, given, value)
        except Mismatch as error:
            meaning = f" It is: {setting.meaning}" if setting.meaning else ""
            reason = f" {error.reason}" if error.reason else ""
            raise ConfigError(f"{error.given.place or given.place}: {setting.key} must be {setting.accepted}, got "
                              f"{error.given.shown()}.{reason}{meaning}") from None

    def _tell_fixed(self, key, given):
        fixed = self.fixed[key]
        if given.file.startswith("--"):
            raise ConfigError(f"{given.place}: the script sets {key} itself, to {fixed!r}, so it cannot be set here.")
        if self._value(self.known[key], given) != fixed:
            warn(f"{given.place}: the script sets {key} itself, to {fixed!r}, so {given.shown()} has no effect.")

    def _unknown(self, name, written, on_command_line=False):
        """What to say of a name that does not exist, with the nearest one that does."""
        dash = "--" if on_command_line else ""
        possible = [key for key, setting in self.known.items() if not setting.refusal]
        if inside := [key for key in possible if key.startswith(f"{name}.")]:
            return f"{written} is a section, and its settings are {', '.join(dash + key for key in inside[:8])}."
        section, _, last = name.rpartition(".")
        close = ([key for key in possible if key.rpartition(".")[2] == last]
                 or _nearest(last, [key for key in possible if key.rpartition(".")[0] == section])
                 or _nearest(last, possible))
        meant = f" Did you mean {dash}{close[0]}?" if close else ""
        own = [key for key in possible if not key.startswith(f"{SET}.")]
        listed = ", ".join(own[:40]) + (", …" if len(own) > 40 else "") if own else "none"
        return (f"{written} is no setting of {self.kind.__name__}.{meant} Its arguments are: {listed}. Attributes of the "
                f"trainer stand below `{SET}`; --help lists all.")

    def require_all(self) -> None:
        """
        Raises:
            ConfigError: an argument without a default was not given.
        """
        missing = [key for key, setting in self.known.items() if not setting.is_attribute and key not in self.values]
        if missing:
            first = self.known[missing[0]]
            raise ConfigError(
                f"{self.kind.__name__} needs {', '.join(missing)}. Set {first.key} in the file or with --{first.key} "
                f"({first.accepted}). An object comes from the script: configure({self.kind.__name__}, {first.key}=…).")

    def written(self, key: str) -> Any:
        """A value as plain data: an object as its class_path."""
        if key in self.given and key not in self.fixed and not is_plain(self.known[key].hint):
            return to_type(self.given[key], Any)
        return self.values[key]


def _joined(before, rest, given):
    """The later value in the place of the earlier one; a name with dots changes one entry of it."""
    if not rest:
        is_same_class = (before is not None and isinstance(before.value, dict) and isinstance(given.value, dict)
                         and "class_path" in before.value and set(given.value) == {"init_args"})
        if not is_same_class:
            return given
        inner = {**getattr(before.value.get("init_args"), "value", {}), **given.value["init_args"].value}
        return Given({**before.value, "init_args": Given(inner, given.file, given.line)}, given.file, given.line)
    inner = dict(before.value) if before is not None and isinstance(before.value, dict) else {}
    inner[rest[0]] = _joined(inner.get(rest[0]), rest[1:], given)
    return Given(inner, given.file, given.line)


def _nearest(last, keys):
    """The key whose last part looks most like ``last``, as a list; an empty one where none does."""
    plain = {_plain(key.rpartition(".")[2]): key for key in reversed(keys)}
    return [plain[match] for match in difflib.get_close_matches(_plain(last), plain, n=1, cutoff=0.7)]


def _plain(name):
    return name.replace("_", "").replace("-", "").lower()
