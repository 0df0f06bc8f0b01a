"""Write ``attributes.md``, the page of every attribute, from the source of ``TemplateModel.__init__``.

    python docs/make_attributes.py

It reads the source and imports nothing. A comment ``# --- name ---`` begins a group, and each attribute in it is an
annotated assignment with its docstring on the line below. A group without any docstring is not for users and is left out.
"""

import ast
import inspect
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "template/template.py"
GROUP = "# --- "
HEAD = "| attribute | type | default | meaning |\n|---|---|---|---|\n"
INTRODUCTION = """\
# Every attribute

```python
from train import Trainer        # the quick start of the README

trainer = Trainer()
trainer.log_per_step = 20        # set attributes before check_init(), here or in __init__
trainer.check_init()
trainer.fit(1)
```

You must set the first group; for the others the default is often what you want. `check_init()` warns of most misspelled
names. What is under "State" is for you to read, for example in a callback.

Three more can be read after `check_init()`: `writer` is the run's TensorBoard `SummaryWriter` or None, `is_main` is False in
all processes but the first, and `skipped_updates` counts what `skip_non_finite` has left out.

This page is made from `TemplateModel.__init__` in `template/template.py` by `docs/make_attributes.py`, so it says what the
code does.
"""


class Attribute(NamedTuple):
    name: str
    type: str
    default: str
    meaning: str  # "" where it has no docstring


def groups(source):
    """``{group: [Attribute, …]}`` of the public attributes, in the order of the source.

    Raises:
        ValueError: an attribute stands before the first group, or lacks a type or a docstring that others of its group have.
    """
    lines, found = source.splitlines(), {}
    (init,) = [function for kind in ast.parse(source).body if getattr(kind, "name", None) == "TemplateModel"
               for function in kind.body if getattr(function, "name", None) == "__init__"]
    for statement, below in zip(init.body, [*init.body[1:], None]):
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            attribute = _attribute(source, statement, below)
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


def _attribute(source, statement, below):
    is_annotated = isinstance(statement, ast.AnnAssign)
    target = statement.target if is_annotated else statement.targets[0]
    is_documented = isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)
    try:
        ast.literal_eval(statement.value)
        default = f"`{ast.get_source_segment(source, statement.value)}`"
    except ValueError:
        default = "computed"
    return Attribute(target.attr, ast.unparse(statement.annotation) if is_annotated else "", default,
                     " ".join(inspect.cleandoc(below.value.value).split()) if is_documented else "")


def page(source):
    """The whole page as text."""
    parts = [INTRODUCTION]
    for group, members in groups(source).items():
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n\n{HEAD}")
        for member in members:
            cells = [f"`{member.name}`", f"`{member.type}`", member.default, member.meaning.replace("``", "`")]
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (DOCS / "attributes.md").write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
