"""Fonts for text in any script: matplotlib's own font has no Chinese, Japanese or Korean characters.

    png = png_of_figure(figure)          # each text has the characters that some installed font has

Only texts with a character that their own font lacks are changed, and nothing of the user's settings (``rcParams``). A font
that was installed after matplotlib had made its list of fonts is found too. It needs matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

FAMILIES = (  # those that are looked at first, in this order
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "Microsoft YaHei",
    "PingFang SC", "Hiragino Sans GB", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "SimHei", "Noto Sans CJK JP",
    "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans TC", "Noto Sans JP", "Noto Sans KR", "Microsoft JhengHei", "Heiti SC",
    "Heiti TC", "STHeiti", "SimSun", "Yu Gothic", "Meiryo", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic",
    "Droid Sans Fallback", "Arial Unicode MS", "Noto Serif CJK SC", "Noto Serif CJK JP")
_MOST_FILES = 500  # that are opened in search of a character; one takes about a millisecond
_told: set[str] = set()    # characters that no font has
_tried: set[str] = set()   # files that are in no list of matplotlib


def png_of_figure(figure: Any, dpi: float | None = None) -> bytes:
    """A matplotlib figure as a png, in which every character is drawn that a font here has."""
    find_fonts(figure)
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # _tell_of has said it once, and not for each character
        figure.savefig(image, format="png", dpi=figure.get_dpi() if dpi is None else dpi)
    return image.getvalue()


def find_fonts(figure: Any) -> None:
    """Give each text of a figure, whose font lacks a character, a second font that has it."""
    from matplotlib.text import Text  # type: ignore  # optional

    for axes in figure.axes:
        for name in ("xaxis", "yaxis", "zaxis"):
            if axis := getattr(axes, name, None):
                axis.get_ticklabels(which="both")  # which brings them up to date
    for text in figure.findobj(Text):
        words = text.get_text()
        if words and not words.isascii() and text.get_visible() and text.get_fontproperties().get_file() is None:
            families = text.get_fontfamily()
            if more := families_for(words, families):
                text.set_fontfamily([*families, *more])


def families_for(text: str, families: Iterable[str] = ("DejaVu Sans",)) -> list[str]:
    """Installed families, the fewest in their order, that have what ``families`` lack of the characters of a text. What no
    font has is told once."""
    characters = frozenset(one for one in text if not one.isascii() and one.isprintable() and not one.isspace())
    found, lacking = _search(characters, tuple(families)) if characters else ([], ())
    _tell_of(lacking)
    return list(found)


@lru_cache(maxsize=64)
def _search(characters, families):
    """``(families, characters that none has)``"""
    from matplotlib import font_manager  # type: ignore  # optional

    lacking = set(characters)
    for family in families:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]))
        lacking -= _of_these_in(path, lacking)
    found: list[str] = []
    if not lacking:
        return found, lacking
    _add_new_fonts(font_manager)
    for family, path in _in_order(font_manager.fontManager.ttflist)[:_MOST_FILES]:
        if had := _of_these_in(path, lacking):
            found.append(family)
            lacking -= had
            if not lacking:
                break
    return found, lacking


def _in_order(entries):
    """Upright fonts as ``(family, path)``, one of each family: those that are known to be suitable, and then all others."""
    upright: dict[str, Any] = {}
    for entry in entries:
        is_box = "lastresort" in entry.name.lower().replace(" ", "")  # a font that has a box for every character
        if entry.style == "normal" and not is_box:
            weight = entry.weight if isinstance(entry.weight, int) else 400
            upright.setdefault(entry.name, []).append((abs(weight - 400), entry.fname))
    known = [family for family in FAMILIES if family in upright]
    others = sorted(upright.keys() - set(known), key=lambda family: ("Serif" in family, "Mono" in family, family))
    return [(family, min(upright[family])[1]) for family in known + others]


def _of_these_in(path, characters):
    """The characters that a font file has."""
    from matplotlib.ft2font import FT2Font  # type: ignore  # optional

    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # a broken or unusual file: matplotlib could not draw with it either
        return set()
    if not font.scalable:  # emoji made of pixels, which matplotlib cannot draw
        return set()
    return {letter for letter in characters if font.get_char_index(ord(letter))}


def _add_new_fonts(font_manager):
    """Fonts that were installed since matplotlib wrote its list of them, which it keeps for good."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    new = set(font_manager.findSystemFonts()) - known - _tried
    _tried.update(new)
    for path in sorted(new):
        with suppress(Exception):  # matplotlib's own search leaves out whatever it cannot read, too
            font_manager.fontManager.addfont(path)


def _tell_of(characters):
    new = sorted(set(characters) - _told)
    if not new:
        return
    _told.update(new)
    shown = "".join(new[:20]) + ("…" if len(new) > 20 else "")
    is_cjk = re.search("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af]", shown)
    print(f"No installed font has the characters {shown!r}: pictures show boxes in their place. Install a font that has them"
          f"{', for example with: apt install fonts-noto-cjk' if is_cjk else '.'}")
