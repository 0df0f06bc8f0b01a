"""YAML files as settings are written in them: one may include others, and every value knows its file and line.

    tree = read_yaml("cls.yml")                    # {"lr0": Given("1e-3", "cls.yml", 2), "set": Given({…}, "cls.yml", 3)}

Values stay as they are written: what ``1e-3``, ``no`` or ``None`` means depends on the type that is wanted, and stands in
``typed_values.py``. YAML is read by PyYAML (``pip install pyyaml``). There is no ``${…}``: a value stands in one place, and
what several files share is in a file that they include.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INCLUDE = "include"
_STANDARD_TAG = "tag:yaml.org,2002:"


class ConfigError(ValueError):
    """A setting that cannot be read, or that does not fit. The message says what to do."""


@dataclass
class Given:
    """A value as somebody wrote it: a text, a list of ``Given`` or a dict of them."""

    value: Any
    file: str = ""
    """The file, or the option of the command line."""
    line: int | None = None
    plain: bool = True
    """Whether a text stands without quotes."""

    @property
    def place(self) -> str:
        """ "cls.yml, line 3", for the beginning of a message."""
        return self.file if self.line is None else f"{self.file}, line {self.line}"

    def shown(self) -> str:
        """The value, for a message."""
        if isinstance(self.value, dict):
            return "{" + ", ".join(f"{name}: {part.shown()}" for name, part in self.value.items()) + "}"
        if isinstance(self.value, list):
            return f"[{', '.join(part.shown() for part in self.value)}]"
        return repr(self.value) if self.plain else f'"{self.value}"'


def read_yaml(path: str | Path) -> list[dict[str, Given]]:
    """The settings of a file and of those it includes, one dict per file: where two say something, the later one counts.

    ``include: base.yml``, or a list of files, is read before the file itself. Such a path counts from the file that it
    stands in.

    Raises:
        ConfigError: no such file, no UTF-8, no valid YAML, one key twice, files that include each other.
    """
    return _read(Path(path), [], "")


def _read(path, including, asked_by):
    if not path.is_file():
        beside = [other.name for pattern in ("*.yml", "*.yaml") for other in path.parent.glob(pattern)]
        close = difflib.get_close_matches(path.name, beside, n=1)
        hint = f" Did you mean {path.with_name(close[0])}?" if close else f" It is looked for as {path.absolute()}."
        raise ConfigError(f"{asked_by}There is no file {path}.{hint}")
    here = path.resolve()
    if here in including:
        circle = " -> ".join(file.name for file in [*including[including.index(here):], here])
        raise ConfigError(f"{asked_by}Files must not include each other in a circle, and these do: {circle}. Put what they "
                          "share into a third file.")
    tree = _parse_file(path)
    files = []
    if included := tree.pop(INCLUDE, None):
        parts = included.value if isinstance(included.value, list) else [included]
        for part in parts:
            if not isinstance(part.value, str):
                raise ConfigError(f"{part.place}: include takes a path, or a list of paths, got {part.shown()}.")
            files += _read(path.parent / part.value, [*including, here], f"{part.place}: ")
    return [*files, tree]


def _parse_file(path):
    given = parse_value(path.read_bytes(), str(path), 1)
    if given is None:
        return {}
    if not isinstance(given.value, dict):
        raise ConfigError(f"{given.place}: a file of settings has a name and a value in each line, such as `lr: 1e-3`, and "
                          f"this one begins with {given.shown()[:60]}. Write a blank behind the colon.")
    return given.value


def parse_value(text: str | bytes, file: str, line: int | None = None) -> Given | None:
    """One value in YAML, of which bytes may be UTF-8 or UTF-16; None where the text is empty. ``line`` is the number of its
    first line; without it the place is the file alone.

    Raises:
        ConfigError: it is no valid YAML, or uses a part of YAML that settings do without.
    """
    yaml = pyyaml()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        if isinstance(text, bytes) and getattr(error, "encoding", None) == "utf-8":
            wrong = error.position
            raise ConfigError(f"{file}, line {1 + text[:wrong].count(10)}: settings are read as UTF-8, and the byte "
                              f"0x{text[wrong]:02x} is none. Save the file as UTF-8 in your editor.") from None
        mark = getattr(error, "problem_mark", None)
        where = file if mark is None or line is None else f"{file}, line {line + mark.line}"
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: this is no valid YAML: {problem}. {_advice(problem, text, mark)}") from None
    return None if node is None else _Reader(yaml, file, line).given(node, ())


def _advice(problem, text, mark):
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).splitlines()
    at = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\\t" in problem or "\t" in at[:len(at) - len(at.lstrip())]:
        return "Indentation is made of spaces. Replace the tab."
    if "single document" in problem or "document start" in problem or "another document" in problem:
        return "One file holds one document. Remove the line with ---."
    return "Put a text with signs such as : or @ into quotes, and indent all names of one section alike."


class _Reader:
    """Nodes of PyYAML as ``Given``."""

    def __init__(self, yaml, file, line):
        self.yaml, self.file, self.line = yaml, file, line

    def given(self, node, above):
        line = None if self.line is None else self.line + node.start_mark.line
        here = Given(None, self.file, line)
        if any(node is other for other in above):
            raise ConfigError(f"{here.place}: a value must not hold itself. Look at the & and * there.")
        if not node.tag.startswith(_STANDARD_TAG) or "python" in node.tag:
            raise ConfigError(f"{here.place}: settings have no tags, got {node.tag}. Write the value without the sign !.")
        if isinstance(node, self.yaml.MappingNode):
            here.value = self._mapping(node, here, (*above, node))
        elif isinstance(node, self.yaml.SequenceNode):
            here.value = [self.given(part, (*above, node)) for part in node.value]
        else:
            is_quoted = node.style is not None
            written = node.end_mark.index > node.start_mark.index
            here.value, here.plain = node.value, not is_quoted
            if here.plain and written and "${" in node.value:
                raise ConfigError(f"{here.place}: ${{…}} is not filled in here, got {node.value!r}. Write the value itself; "
                                  f"what several files share goes into a file that they name in `{INCLUDE}:`. Quotes keep "
                                  "the text as it is.")
        return here

    def _mapping(self, node, here, above):
        found: dict[str, Given] = {}
        merged: dict[str, Given] = {}
        for key, value in node.value:
            if key.tag == f"{_STANDARD_TAG}merge":
                parts = value.value if isinstance(value, self.yaml.SequenceNode) else [value]
                for part in reversed(parts):
                    merged |= self._merged(part, here, above)
                continue
            if not isinstance(key, self.yaml.ScalarNode):
                raise ConfigError(f"{here.place}: the name of a setting is a text. Look at the brackets there.")
            given = self.given(value, above)
            if key.style is None and ":" in key.value and given.value == "":
                raise ConfigError(f"{given.place}: a blank stands behind the colon, got {key.value!r}. Write "
                                  f"{key.value.replace(':', ': ', 1)!r}.")
            if key.value in found:
                line = None if self.line is None else self.line + key.start_mark.line
                raise ConfigError(f"{Given(None, self.file, line).place}: {key.value} stands twice, here with "
                                  f"{given.shown()} and before ({found[key.value].place}) with "
                                  f"{found[key.value].shown()}. Remove one of them.")
            found[key.value] = given
        return merged | found

    def _merged(self, part, here, above):
        given = self.given(part, above)
        if not isinstance(given.value, dict):
            raise ConfigError(f"{here.place}: `<<:` takes a section, got {given.shown()}.")
        return given.value


def pyyaml() -> Any:
    """
    Raises:
        ModuleNotFoundError: PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore  # optional
    except ImportError:
        raise ModuleNotFoundError("Settings in YAML need two packages: pip install jsonargparse pyyaml") from None
    return yaml
