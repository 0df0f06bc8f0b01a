"""Write ``attributes.md``, the page of every attribute, from the source of ``TemplateModel.__init__``.

    python docs/make_attributes.py

How the source is read stands in ``template/run/configuration/attribute_docs.py``.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "template/template.py"
sys.path.insert(0, str(DOCS.parent))

from template.run.configuration.attribute_docs import COMPUTED, groups  # noqa: E402  # of this repository, installed or not

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


def page(source):
    """The whole page as text."""
    parts = [INTRODUCTION]
    for group, members in groups(source).items():
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n\n{HEAD}")
        for member in members:
            default = member.default if member.default == COMPUTED else f"`{member.default}`"
            cells = [f"`{member.name}`", f"`{member.type}`", default, member.meaning.replace("``", "`")]
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    (DOCS / "attributes.md").write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
