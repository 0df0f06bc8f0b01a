"""Each character of a picture is drawn that some font has; what no font has is told once; the user's settings stay."""

import io
import warnings

import numpy as np
import pytest

from template.output import curves, fonts

matplotlib = pytest.importorskip("matplotlib")
from matplotlib import font_manager  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

CHINESE = "准确率损失"


def make_font(path, family, characters):
    """A font in which each of the characters is a black square, and no other one is there."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def square():
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 900), (900, 900), (900, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = {ord(letter): f"uni{ord(letter):04X}" for letter in characters}
    order = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: square() for name in order})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in order})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def system(monkeypatch):
    """A computer with matplotlib's own fonts alone, and a list of the files that its user installs later."""
    manager, installed = font_manager.fontManager, []
    own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **options: installed)
    monkeypatch.setattr(fonts, "_told", set())
    monkeypatch.setattr(fonts, "_tried", set())

    def forget():
        fonts._search.cache_clear()
        font_manager._get_font.cache_clear()
        manager._findfont_cached.cache_clear() if hasattr(manager, "_findfont_cached") else None

    forget()
    yield installed
    forget()


def figure_with(text, **options):
    figure = Figure(figsize=(4, 1), dpi=50)
    figure.text(0.05, 0.3, text, size=20, **options)
    return figure


def black_pixels(figure):
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph 20934 missing from font(s)"
        return int((np.asarray(Image.open(io.BytesIO(fonts.png_of_figure(figure))).convert("L")) < 32).sum())


def test_a_text_has_the_font_that_was_installed_after_matplotlib_made_its_list(system, tmp_path):
    boxes = black_pixels(figure_with(CHINESE))
    system.append(make_font(tmp_path / "made.ttf", "Made CJK", CHINESE))
    fonts._search.cache_clear()
    side = 0.9 * 20 * 50 / 72
    assert boxes < 0.6 * 5 * side**2 < 0.8 * 5 * side**2 < black_pixels(figure_with(CHINESE)), "squares, not outlines"
    assert fonts.families_for(CHINESE) == ["Made CJK"]


def test_the_fewest_fonts_are_taken_and_the_known_ones_first(system, tmp_path):
    for name, family, characters in (("a", "A Made", "准确率"), ("b", "Noto Sans CJK SC", "准确"), ("c", "Z Made", "ㄅ")):
        system.append(make_font(tmp_path / f"{name}.ttf", family, characters))
    assert fonts.families_for("准确 acc") == ["Noto Sans CJK SC"]
    assert fonts.families_for(CHINESE[:3]) == ["Noto Sans CJK SC", "A Made"]
    assert fonts.families_for("ㄅ准") == ["Noto Sans CJK SC", "Z Made"]
    assert fonts.families_for("größe · Ω − …") == fonts.families_for("loss\n损"[:5]) == []


def test_what_no_font_has_is_told_once_in_place_of_a_warning_for_each_character(system, capsys):
    rows = [{"epoch": epoch, **{f"eval/{letter}{CHINESE}": 1.0 for letter in "ab"}} for epoch in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            curves.draw(rows, "实验")
    said = capsys.readouterr().out.splitlines()
    letters = "".join(sorted(set(CHINESE)))
    assert [line.startswith("No installed font has the characters") for line in said] == [True] * len(said)
    assert sum(line.count(letter) for line in said for letter in letters) == len(letters) and len(said) <= 2
    assert all("apt install fonts-noto-cjk" in line for line in said)


def test_names_of_classes_at_the_ticks_legend_and_title_are_found_and_the_settings_stay(system, tmp_path):
    system.append(make_font(tmp_path / "made.ttf", "Made CJK", "猫狗汽车"))
    before = dict(matplotlib.rcParams)
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label="汽车")
    axes.set_xticks([0, 1], ["猫", "dog"])
    axes.set_title("狗")
    axes.legend()
    fonts.find_fonts(figure)
    family = list(matplotlib.rcParams["font.family"])
    found = {text.get_text(): text.get_fontfamily() for text in
             [*axes.get_xticklabels(), axes.title, *axes.get_legend().get_texts()]}
    assert found == {"猫": [*family, "Made CJK"], "dog": family, "狗": [*family, "Made CJK"], "汽车": [*family, "Made CJK"]}
    assert dict(matplotlib.rcParams) == before


def test_a_users_chinese_font_without_a_minus_sign_gets_one(system, tmp_path):
    font_manager.fontManager.addfont(make_font(tmp_path / "made.ttf", "SimHei", CHINESE + "0123456789.-"))
    with matplotlib.rc_context({"font.family": "sans-serif", "font.sans-serif": ["SimHei"]}):
        figure = Figure()
        figure.subplots().set_ylim(-2, -1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fonts.png_of_figure(figure)
        labels = figure.axes[0].get_yticklabels()
    assert labels[0].get_text().startswith("−") and labels[0].get_fontfamily() == ["sans-serif", "DejaVu Sans"]


def test_a_font_file_that_is_broken_or_chosen_by_its_user_is_left_alone(system, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system.append(str(tmp_path / "broken.ttf"))
    path = make_font(tmp_path / "made.ttf", "Made", "准")
    text = figure_with("准", fontproperties=font_manager.FontProperties(fname=path)).texts[0]
    fonts.find_fonts(text.figure)
    assert text.get_fontproperties().get_file() == path and fonts.families_for("准") == []


def test_on_this_computer_chinese_is_drawn_where_it_has_such_a_font():
    fonts._search.cache_clear()
    found = fonts.families_for(CHINESE)
    if not found:
        pytest.skip("no Chinese font is installed: apt install fonts-noto-cjk")
    assert len(found) == 1 and black_pixels(figure_with(CHINESE)) != black_pixels(figure_with("□" * 5))
