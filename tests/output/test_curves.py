"""The picture shows every quantity once, on axes where the late epochs can be told apart."""

import io
import math

import numpy as np
import pytest

from template.output import curves
from template.output.curves import draw


def rows_of(number, **columns):
    """Rows whose columns, ``train__loss``, are functions of the epoch; a None is no entry."""
    rows = []
    for epoch in range(1, number + 1):
        values = {name.replace("__", "/"): value(epoch) for name, value in columns.items()}
        rows.append({"epoch": epoch} | {name: value for name, value in values.items() if value is not None})
    return rows


@pytest.fixture
def axes(monkeypatch):
    """Draws rows, and returns ``{title: axes}`` of what was drawn."""
    from matplotlib.figure import Figure

    def panels(rows, **options):
        figures, savefig = [], Figure.savefig
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, *args, **how: figures.append(self) or savefig(self, *args, **how))
            draw(rows, options.pop("title", "run"), **options)
        panels.heading = figures[0].texts[0].get_text()
        return {one.get_title(): one for one in figures[0].axes}

    return panels


def lines_of(panel):
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.lines}


@pytest.mark.slow
@pytest.mark.parametrize("number, columns, lines", [(1, 2, 1), (3, 2, 2), (5, 3, 2), (9, 4, 3), (11, 4, 3), (80, 4, 5),
                                                    (400, 4, 6)])
def test_the_panels_stand_in_a_grid_of_the_size_of_a_page(number, columns, lines):
    from PIL import Image

    rows = [{"epoch": 1, "lr": 0.1} | {f"eval/m{i}": i / number for i in range(number)}]
    with Image.open(io.BytesIO(draw(rows, "run"))) as image:
        width, height = image.size
    assert (round(width / 420), round((height - 30) / 290)) == (columns, lines)


@pytest.mark.slow
def test_of_eighty_quantities_each_is_drawn_once_and_the_two_that_matter_have_panels_of_their_own(axes):
    parts = {f"{part}__part{i}": lambda epoch, i=i: i + epoch for i in range(49) for part in ("train", "eval")}
    metrics = {f"eval__m{i}": lambda epoch: 1 / epoch for i in range(30)}
    rows = rows_of(3, **parts, train__tol_loss=float, eval__tol_loss=float, **metrics, lr=lambda epoch: 0.1)
    panels = axes(rows, key="m29", best={"m29": (1, 1.0)})
    titles = list(panels)
    assert titles[:2] == ["tol_loss", "m29"] and titles[-1] == "learning rate" and len(titles) <= 24
    names = [label for panel in list(panels.values())[2:-1] for label in lines_of(panel) if not label.startswith("_")]
    assert sorted(names) == sorted([f"part{i}" for i in range(49)] + [f"m{i}" for i in range(29)])
    assert {len(panel.lines) for panel in list(panels.values())[2:-1]} <= set(range(1, 11))
    assert axes.heading == "run  ·  3 epochs, best m29 1 in epoch 1"


@pytest.mark.slow
def test_quantities_for_which_there_is_no_place_are_counted(axes):
    panels = axes([{"epoch": 1} | {f"eval/m{i}": 1.0 for i in range(500)}])
    drawn = sum(len(panel.lines) for panel in panels.values())
    assert axes.heading.endswith(f"({500 - drawn} more quantities are in history.csv)") and 200 < drawn < 500


def test_an_evaluation_every_fifth_epoch_is_a_line_through_its_own_points(axes):
    panels = axes(rows_of(20, train__tol_loss=lambda epoch: 2.0, eval__tol_loss=lambda epoch: None if epoch % 5 else 3.0))
    assert lines_of(panels["tol_loss"])["eval"] == ([5, 10, 15, 20], [3.0] * 4)
    assert lines_of(panels["tol_loss"])["train"][0] == list(range(1, 21))


def test_values_that_are_not_finite_and_cells_with_text_are_left_out(axes):
    values = [1.0, math.nan, math.inf, "mine", 0.5]
    panels = axes(rows_of(5, train__tol_loss=lambda epoch: values[epoch - 1], eval__never=lambda epoch: math.nan))
    assert lines_of(panels["tol_loss"])["train"] == ([1, 5], [1.0, 0.5]) and "never" in panels


@pytest.mark.parametrize("first", [30.0, 1e4])
def test_a_first_epoch_of_another_size_leaves_most_of_the_axis_to_the_others(axes, first):
    panel = axes(rows_of(20, train__tol_loss=lambda epoch: first if epoch == 1 else 0.5 + 0.4 / epoch))["tol_loss"]
    low, high = panel.get_ylim()
    scale = np.log if panel.get_yscale() == "log" else np.asarray
    first_tenth, last = 0.5 + 0.4 / 3, 0.5 + 0.4 / 20
    assert low < last and high > first_tenth
    assert scale(first_tenth) - scale(last) > (scale(high) - scale(low)) / 2
    assert [text.get_text() for text in panel.texts] == [f"begins at {first:.3g}"]


def test_a_loss_that_falls_by_decades_has_a_logarithmic_axis_and_a_score_has_not(axes):
    panels = axes(rows_of(30, train__tol_loss=lambda epoch: 10 ** (-epoch / 10), eval__acc=lambda epoch: 1 - 0.9**epoch,
                          eval__signed=lambda epoch: 5 - epoch, lr=lambda epoch: 0.1 * (1 + math.cos(math.pi * epoch / 30))))
    assert {title: panel.get_yscale() for title, panel in panels.items()} == {
        "tol_loss": "log", "acc": "linear", "signed": "linear", "learning rate": "linear"}
    assert not any(panel.texts for panel in panels.values())
    for panel in panels.values():
        low, high = panel.get_ylim()
        assert all(low <= value <= high for line in panel.lines for value in line.get_ydata())


def test_a_best_value_in_an_epoch_that_would_be_left_out_is_shown(axes):
    rows = rows_of(20, eval__score=lambda epoch: 9.0 if epoch == 1 else 1 + epoch / 100)
    low, high = axes(rows, key="score", best={"score": (1, 9.0)})["score"].get_ylim()
    assert low < 1.05 and high > 9


def test_every_rate_has_a_line_with_its_name(axes):
    panels = axes(rows_of(3, train__tol_loss=float, **{"lr__backbone": lambda epoch: 0.1, "lr__head": lambda epoch: 1.0}))
    assert list(lines_of(panels["learning rate"])) == ["backbone", "head"]
    assert panels["learning rate"].get_legend() is not None


def test_the_picture_of_ten_thousand_epochs_draws_a_thousand_points_with_the_first_and_the_last(axes):
    x, _ = lines_of(axes(rows_of(10_000, train__tol_loss=float))["tol_loss"])["train"]
    assert len(x) == 1000 and (x[0], x[-1]) == (1, 10_000)


@pytest.mark.parametrize("name", ["$x$ $y", "准确率", "a_very_long_name_" * 9, "größe^{", "\\frac{1}"])
def test_a_name_is_shown_as_it_is_written_without_a_warning(axes, name):
    rows = [{"epoch": 1, f"eval/{name}": 1.0, f"eval/{name}2": 1.0, "lr/" + name: 0.1}]
    assert len(axes(rows, title=name, key=name, best={name: (1, 1.0)})) == 3


def test_a_single_row_and_equal_values_have_axes_around_them(axes):
    for rows in (rows_of(1, train__tol_loss=float), rows_of(9, train__tol_loss=lambda epoch: 0.0)):
        (panel,) = axes(rows).values()
        (low, high), (left, right) = panel.get_ylim(), panel.get_xlim()
        assert low < high and left < 1 < right
    assert axes(rows_of(1)) == {}
    assert curves.value_range(np.array([1.0]), np.array([-2.0]), None)[0] < -2
