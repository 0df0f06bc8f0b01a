"""The figure of characters fits the terminal, whatever it shows, and shows what the values say."""

import math
import re

import pytest

from template.output.curves_text import CHARACTERS, characters_for, columns_of, text_figure

RISING = [{"epoch": epoch, "train/loss": 2 / epoch, "eval/loss": 2.2 / epoch, "eval/acc": epoch / 20, "eval/f1": epoch / 30}
          for epoch in range(1, 13)]


@pytest.mark.parametrize("characters", CHARACTERS)
@pytest.mark.parametrize("width, panels", [(30, 1), (58, 2), (60, 2), (80, 2), (88, 3), (120, 3), (300, 3)])
def test_no_line_is_wider_than_the_terminal_and_as_many_panels_as_fit_stand_beside_each_other(width, panels, characters):
    lines = text_figure(RISING, "acc", {"acc": (12, 0.6)}, width, characters=characters).splitlines()
    assert max(map(columns_of, lines)) <= width and len(lines) == 14
    assert lines[0].split() == ["loss", "acc", "f1"][:panels]


@pytest.mark.parametrize("name", ["准确率", "ação", "a" * 99, "e\u0301"])
def test_names_of_wide_and_combined_letters_keep_the_columns_in_line(name):
    rows = [{"epoch": epoch, f"eval/{name}": epoch / 7, "eval/acc": epoch / 9} for epoch in (1, 2, 3)]
    lines = text_figure(rows, width=60).splitlines()
    starts = {columns_of(line[:line.rindex("│")]) for line in lines[1:11]}
    assert len(starts) == 1 and max(map(columns_of, lines)) <= 60
    assert columns_of(lines[0][:lines[0].rindex("acc")]) in range(min(starts) - 8, min(starts))


def test_a_rising_curve_rises_from_the_lower_left_to_the_star_in_the_upper_right():
    rows = [{"epoch": epoch, "eval/acc": float(epoch)} for epoch in range(1, 11)]
    lines = text_figure(rows, "acc", {"acc": (10, 10.0)}, 40, 10, "ascii").splitlines()
    grid = [line.partition("|")[2] for line in lines[1:11]]
    columns = [len(row) - len(row.lstrip()) for row in grid]
    assert columns == sorted(columns, reverse=True) and columns[-1] == 0
    assert grid[0].endswith("*")


def test_without_colors_training_is_dotted_and_with_them_both_have_one_of_their_own():
    rows = [{"epoch": epoch, "train/loss": 1.0, "eval/loss": 2.0} for epoch in (1, 2)]
    lines = text_figure(rows, width=50).splitlines()
    dots = {"train": "", "eval": ""}
    for line in lines[1:11]:
        row = line.partition("│")[2]
        if row.strip():
            dots["train" if dots["eval"] else "eval"] = row
    assert dots["eval"].count(" ") == 0 and dots["train"].count(" ") > 5
    colored = text_figure(rows, width=50, colors=True)
    assert "\x1b[34m" in colored and "\x1b[33m" in colored
    assert max(columns_of(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in colored.splitlines()) <= 50


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e308, -1e308], [1e-300, 1e-280], [math.nan, 1.0], [-5.0, 1e9, 3.0]])
def test_odd_values_are_drawn(values):
    rows = [{"epoch": epoch, "eval/score": value} for epoch, value in enumerate([*values, 0.5], 9 - len(values))]
    assert len(text_figure(rows, "score", {"score": (9, 0.5)}).splitlines()) == 14


def test_there_is_no_figure_of_nothing():
    assert text_figure([{"epoch": 1}]) == text_figure([{"epoch": 1, "eval/never": math.nan}]) == ""


@pytest.mark.parametrize("encoding, expected", [
    ("utf-8", "braille"), ("cp437", "blocks"), ("cp1252", "ascii"), ("ascii", "ascii"), (None, "ascii"), ("gbk", "ascii"),
    ("gb18030", "ascii"), ("cp932", "ascii"), ("no such one", "ascii")])
def test_a_console_gets_characters_that_it_can_show_in_one_column_each(encoding, expected):
    assert characters_for(encoding) == expected
