"""A page of HTML that holds everything it shows: no network, no script, legible in light and dark, on a phone and a desk.

    html = page("run 7", [section("Best values", table([{"name": "acc", "best": 0.97}])), ...])

Text is escaped where it comes in; what is called ``body`` is HTML already. It reads pictures, and nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_MOST_BYTES = 3_000_000  # of a picture

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --text: #1c1e21; --soft: #5d6570; --line: #d9dde3;
  --accent: #1668b8; --good: #1a7f37; --bad: #c4321d; --wait: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1d2125; --text: #e4e7ea; --soft: #9aa3ad;
  --line: #343a41; --accent: #62a8ea; --good: #4cc26a; --bad: #ff7b66; --wait: #d9a520 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1280px; padding: 20px 16px 60px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK SC", "Source Han Sans SC", sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 34px 0 10px }
h3 { font-size: 1rem; margin: 18px 0 6px; overflow-wrap: anywhere } p { margin: 6px 0 } .soft { color: var(--soft) }
.state { display: inline-block; padding: 0 10px; border: 1px solid; border-radius: 12px; font-size: .85rem;
  margin-right: 8px }
.good { color: var(--good) } .bad { color: var(--bad) } .wait { color: var(--wait) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 16px 0 }
.fact { background: var(--card); border-radius: 8px; padding: 8px 12px } .fact b { display: block; font-size: 1.15rem;
  font-weight: 600; overflow-wrap: anywhere } .fact span { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 14px }
.panels svg.panel { display: block; width: 100%; height: auto; background: var(--card); border-radius: 8px; padding: 6px }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 40px }
.columns > section { min-width: 0 } .columns svg.panel { max-width: 460px }
.epoch:hover { fill-opacity: .12 }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th.number { text-align: right } td { max-width: 60ch; overflow-wrap: anywhere } td:first-child { white-space: nowrap }
table.matrix td, table.matrix th { padding: 3px 7px; text-align: center; border: 0; white-space: nowrap }
table.matrix td.right { font-weight: 600 }
pre { background: var(--card); border-radius: 8px; padding: 10px 12px; font-size: .8rem; line-height: 1.4; margin: 6px 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; border-radius: 8px; background: #fff } ul { margin: 6px 0; padding-left: 20px }
details { margin: 10px 0 } summary { cursor: pointer; font-weight: 500 }
details.run > summary { font-size: 1.15rem; font-weight: 600; padding: 8px 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere }
@media (max-width: 600px) { body { padding: 14px 12px 40px; font-size: 14px } .panels svg.panel { padding: 2px } }
@media print { details > * { display: block } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file."""
    head = (f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style>")
    body = "\n".join(filter(None, parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def section(title: str, body: str, level: int = 2) -> str:
    """A heading and what stands below it; nothing where that is empty."""
    return f"<h{level}>{escape(title)}</h{level}>{body}" if body else ""


def columns(sections: Iterable[str]) -> str:
    """Sections beside each other where there is room."""
    return f'<div class="columns">{"".join(f"<section>{one}</section>" for one in sections if one)}</div>'


def folded(title: str, body: str, is_open: bool = False, kind: str = "") -> str:
    """What is shown when the title is clicked at."""
    return f'<details class="{kind}"{" open" * is_open}><summary>{escape(title)}</summary>{body}</details>' if body else ""


def text(words: str, kind: str = "") -> str:
    """A paragraph."""
    return f'<p class="{kind}">{escape(words)}</p>'


def listed(items: Sequence[str], kind: str = "") -> str:
    """A list of sentences; nothing where there are none."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>' if items else ""


def lines(words: str) -> str:
    """Text as it was printed."""
    return f"<pre>{escape(words)}</pre>"


def facts(values: Mapping[str, str]) -> str:
    """Large values with what they are below them."""
    cells = "".join(f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
                    for name, value in values.items())
    return f'<div class="facts">{cells}</div>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As ``text_table``: a line of names and one for each row, numbers to the right. Nothing where there are no rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    kind = {name: ' class="number"' if all(_is_number(row.get(name)) for row in rows) else "" for name in names}
    head = "".join(f"<th{kind[name]}>{escape(str(name))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td{kind[name]}>{escape(_cell(row.get(name)))}</td>" for name in names) + "</tr>"
                   for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>' if rows else ""


def matrix(names: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Numbers in rows with names, each colored by its share of its row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for number, (name, row) in enumerate(zip(names, values)):
        total = sum(abs(value) for value in row) or 1.0
        cells = (f'<td class="{"right" if number == column else ""}" style="background:color-mix(in srgb, var(--accent) '
                 f'{65 * abs(value) / total:.0f}%, transparent)">{value:g}</td>' for column, value in enumerate(row))
        body += f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>"
    return f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{body}</table></div>'


def picture(path: Path) -> str:
    """A png within the page, or a sentence that says why it is not there."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            return text(f"{path.name} has {size / 1e6:.1f} MB and is not copied into this page.", "soft")
        content = path.read_bytes()
    except OSError as error:
        return text(f"{path.name} cannot be read: {error.strerror or error}.", "soft")
    if not content.startswith(b"\x89PNG"):
        return text(f"{path.name} is no picture.", "soft")
    data = base64.b64encode(content).decode("ascii")
    return f'<p><img alt="{escape(path.name)}" src="data:image/png;base64,{data}"></p>'


def _cell(value):
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _is_number(value):
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
