"""The SVG shows every line in its place, tells its values, and holds no text as code."""

import math
from xml.etree import ElementTree

import pytest

from template.output.curves import panels_of
from template.output.curves_svg import figure, panel_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def rows_of(number, **columns):
    return [{"epoch": epoch} | {name.replace("__", "/"): value(epoch) for name, value in columns.items()}
            for epoch in range(1, number + 1)]


def polylines(svg):
    """The points of each line, as pairs of pixels."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


def test_points_stand_at_equal_distances_and_as_high_as_their_values():
    (line,) = polylines(figure(rows_of(5, eval__score=lambda epoch: 10.0 * epoch), "run"))
    (step,) = {round(b[0] - a[0], 0) for a, b in zip(line, line[1:])}
    (rise,) = {round(a[1] - b[1], 0) for a, b in zip(line, line[1:])}
    assert step > 50 and rise > 30


def test_each_epoch_tells_all_its_values():
    svg = figure(rows_of(3, train__loss=lambda epoch: 1 / epoch, eval__loss=lambda epoch: 2 / epoch), "run")
    titles = [title.text for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == [f"epoch {epoch}\ntrain {1 / epoch:.6g}\neval {2 / epoch:.6g}" for epoch in (1, 2, 3)]


def test_the_star_stands_on_the_best_point_and_its_value_in_the_legend():
    svg = figure(rows_of(9, eval__acc=lambda epoch: epoch / 10 - epoch * epoch / 90), "run", "acc", {"acc": (4, 0.2222)})
    (star,) = ElementTree.fromstring(svg).iter(f"{SVG}path")
    corners = [tuple(map(float, corner.split())) for corner in star.get("d")[1:-1].split("L")]
    (line,) = polylines(svg)
    middle = [sum(values) / len(corners) for values in zip(*corners)]
    assert middle == pytest.approx(line[3], abs=0.5) and "best 0.2222 (epoch 4)" in svg


@pytest.mark.parametrize("name", ['<script>alert("1")</script>', "a&b", "准确率", "'quoted'\"", "long_" * 40])
def test_names_are_text(name):
    svg = figure([{"epoch": 1, f"eval/{name}": 1.0, f"lr/{name}": 0.1}], name, name, {name: (1, 1.0)})
    root = ElementTree.fromstring(svg)
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    assert any(name in (text.text or "") for text in root.iter(f"{SVG}text"))


def test_a_line_of_ten_thousand_epochs_stays_small_and_ends_where_it_ends():
    svg = figure(rows_of(10_000, train__loss=lambda epoch: 1 / epoch), "run")
    assert len(svg) < 60_000 and "epoch 10000" in svg


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1.0, math.nan, math.inf], [1e308, -1e308], [1e-300, 1e-280],
                                    [5e-324, 1.0]])
def test_odd_values_are_drawn_or_left_out(values):
    rows = [{"epoch": epoch, "train/loss": value} for epoch, value in enumerate(values, 1)]
    svg = figure(rows, "run", "loss", {"loss": (1, values[0])})
    assert "nan" not in svg and "inf" not in svg.replace("infer", "")
    ElementTree.fromstring(svg)


def test_a_panel_alone_fills_the_width_it_has():
    (panel, rates), _ = panels_of(rows_of(2, eval__acc=float, lr=float), None, {})
    assert 'class="panel"' in panel_svg(panel) and "width=" not in panel_svg(panel).partition(">")[0]
    assert "learning rate" in panel_svg(rates)


@pytest.mark.parametrize("low, high", [(0, 1), (-3.3, 17), (0.53, 0.54), (1e-9, 3e-9), (1e5, 9e5), (-1e-3, 1e-3)])
def test_ticks_are_round_numbers_within_the_axis(low, high):
    found = ticks(low, high, False)
    assert 2 <= len(found) <= 6 and all(low <= value <= high + 1e-9 * (high - low) for value in found)
    steps = {round((b - a) / 10 ** math.floor(math.log10(b - a) + 1e-9), 6) for a, b in zip(found, found[1:])}
    assert len(steps) == 1 and steps <= {1, 2, 5}


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten():
    assert ticks(0.0005, 20, True) == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert ticks(0.9, 9, True) == pytest.approx([1, 2, 5])


@pytest.mark.parametrize("rates, panels", [((0.1, 0.1), ["acc"]), ((0.1, 0.05), ["acc", "learning rate"])])
def test_a_learning_rate_that_stays_as_it_is_takes_no_room_in_a_figure(rates, panels):
    rows = [{"epoch": epoch, "eval/acc": 0.5, "lr": rate} for epoch, rate in enumerate(rates, 1)]
    found = ElementTree.fromstring(figure(rows, "run")).iter(f"{SVG}svg")
    assert [part[0].text for part in found if part.get("y") and part.get("viewBox")] == panels
    assert "learning rate" in figure([{"epoch": 1, "lr": 0.1}], "run"), "where there is nothing else"
