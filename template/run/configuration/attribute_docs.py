"""What the source of ``TemplateModel.__init__`` says of every attribute: group, type, default, meaning.

    for group, members in groups(source_of_template).items():
        for attribute in members: print(attribute.name, attribute.type, attribute.default, attribute.meaning)

A comment ``# --- name ---`` begins a group, and each attribute in it is an annotated assignment with its docstring on the
line below. A group without any docstring is not for users and is left out. ``docs/attributes.md`` is made of this, and so
are the comments of a configuration file. It only uses the standard library.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

GROUP = "# --- "
COMPUTED = "computed"


class Attribute(NamedTuple):
    name: str
    type: str
    default: str  # as it stands in the source; "computed" where it is no plain value
    meaning: str  # "" where it has no docstring


def groups(source: str) -> dict[str, list[Attribute]]:
    """``{group: [Attribute, …]}`` of the public attributes, in the order of the source.

    Raises:
        ValueError: an attribute stands before the first group, or lacks a type or a docstring that others of its group have.
    """
    lines = source.splitlines()
    found: dict[str, list[Attribute]] = {}
    (init,) = [function for kind in ast.parse(source).body if getattr(kind, "name", None) == "TemplateModel"
               for function in getattr(kind, "body", []) if getattr(function, "name", None) == "__init__"]
    for statement, below in zip(init.body, [*init.body[1:], None]):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            attribute = _attribute(lines, statement, below)
            headings = [line.strip() for line in lines[init.lineno:statement.lineno] if line.strip().startswith(GROUP)]
            if not headings:
                raise ValueError(f"self.{attribute.name} must stand below a comment {GROUP!r} that names its group.")
            if not attribute.name.startswith("_"):
                found.setdefault(headings[-1].removeprefix(GROUP).rstrip("- "), []).append(attribute)
    public = {group: members for group, members in found.items() if any(member.meaning for member in members)}
    for member in (member for members in public.values() for member in members):
        if not (member.meaning and member.type):
            raise ValueError(f"self.{member.name} must have a type and, on the line below it, a docstring.")
    return public


def _attribute(lines, statement, below):
    is_annotated = isinstance(statement, ast.AnnAssign)
    target = statement.target if is_annotated else statement.targets[0]
    try:
        ast.literal_eval(statement.value)
        default = _as_written(lines, statement.value)
    except ValueError:
        default = COMPUTED
    return Attribute(target.attr, ast.unparse(statement.annotation) if is_annotated else "", default, docstring_in(below))


def _as_written(lines, node):
    """The source of a value. ``ast.get_source_segment`` splits the whole file each time: half a second for all of them."""
    if node.lineno != node.end_lineno:
        return ast.unparse(node)
    return lines[node.lineno - 1].encode("utf-8")[node.col_offset:node.end_col_offset].decode("utf-8")


def docstring_in(statement: Any) -> str:
    """The text of a docstring that stands as a statement of its own, on one line; "" where it is something else."""
    is_text = isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)
    return " ".join(inspect.cleandoc(statement.value.value).split()) if is_text else ""
