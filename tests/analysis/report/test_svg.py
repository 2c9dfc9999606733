"""Charts say what the numbers say: axes hold them, lines go through them, text is escaped."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from fasttrain.analysis.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Level,
    Scale,
    Series,
    compact,
    thin,
)


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [-3.2, 7.1], [5.0], [0.0], [1e-7, 2e-7], [1e5, 1.2e5], [1.9, 266.0], [1e-3, 1e9]],
)
@pytest.mark.parametrize("zero", [False, True])
def test_scale_holds_the_values_and_has_a_few_ticks(values: list[float], zero: bool) -> None:
    scale = Scale.fit(values, zero=zero)
    assert scale.low < scale.high
    places = [scale.at(value) for value in values]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert 2 <= len(scale.ticks()) <= 10
    assert scale.ticks() == sorted(set(scale.ticks()))
    air = 1e-9 * (scale.high - scale.low)
    assert all(scale.low - air <= tick <= scale.high + air for tick in scale.ticks())
    if zero and min(values) >= 0:
        assert scale.at(0.0) == 0.0


def test_log_axis_only_for_positive_values_of_a_wide_span() -> None:
    assert Scale.fit([2, 266]).log
    assert not Scale.fit([2, 20]).log
    assert not Scale.fit([-2, 266]).log
    assert not Scale.fit([2, 266], zero=True).log
    scale = Scale.fit([1, 100], log=True)
    assert math.isclose(scale.at(10), 0.5)
    assert scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert scale.at(0) == 0  # a value that a log axis cannot show lies at its end


def test_linear_ticks_are_round() -> None:
    assert Scale(0, 6016).ticks() == [0, 2000, 4000, 6000]
    assert [compact(tick) for tick in Scale(-0.7, 0.7).ticks(4)] == ["-0.5", "0", "0.5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (24.46, "24.5"), (6016, "6.02k"), (999.9, "1k"), (2e6, "2M"), (-1500, "-1.5k")],
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


def test_thin_keeps_means_and_drops_what_is_not_finite() -> None:
    points = [(float(i), 2.0 * i) for i in range(1000)]
    thinned = thin([*points, (1000.0, math.nan), (1001.0, math.inf)], most=100)
    assert len(thinned) == 100
    assert thinned[0] == (4.5, 9.0)
    assert thinned[-1] == (994.5, 1989.0)
    assert thin(points[:100], most=100) == points[:100]
    assert thin([]) == []


def parse(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart.svg))


def test_lines_go_through_their_points() -> None:
    chart = Chart("c", "C", 200, [Series("a", "after", [(0, 0), (100, 5), (200, 10)])], zero=True)
    line = parse(chart).find("polyline")
    assert line is not None
    drawn = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in drawn] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    top, bottom = TOP, HEIGHT - BOTTOM
    assert drawn[0][1] == bottom
    assert drawn[2][1] == pytest.approx(bottom - (bottom - top) / 1.06, abs=0.1)
    assert drawn[1][1] == pytest.approx((drawn[0][1] + drawn[2][1]) / 2, abs=0.1)


def test_marks_levels_and_legend() -> None:
    series = [Series("one step", "after", [(0, 266), (64, 24.5)], marked=True)]
    chart = Chart("fd", "Distance", 64, series, [Level("teacher", "teacher", 22.9)])
    svg = parse(chart)
    titles = [title.text for title in svg.iterfind("circle/title")]
    assert titles == ["one step 266 at 0 images seen", "one step 24.5 at 64 images seen"]
    level = next(line for line in svg.iterfind("line") if line.attrib["class"] == "level")
    dots = [float(circle.attrib["cy"]) for circle in svg.iterfind("circle")]
    assert float(level.attrib["y1"]) > dots[1] > dots[0]  # lower values lie lower
    assert chart.keys == [("one step", "after", False), ("teacher: 22.9", "teacher", True)]
    assert svg.findtext("desc") == "one step: 266 to 24.5 at 64 images seen; teacher: 22.9"
    assert svg.attrib["aria-labelledby"].split() == ["fd-title", "fd-desc"]


def test_another_axis_says_what_it_counts() -> None:
    chart = Chart("f", "Power", 4, [Series("a", "ink", [(0.5, 3), (4, 1)], True)], across="cycles")
    svg = parse(chart)
    assert [t.text for t in svg.iterfind("circle/title")] == [
        "a 3 at 0.5 cycles",
        "a 1 at 4 cycles",
    ]
    assert svg.findtext("desc") == "a: 3 to 1 at 4 cycles"
    assert [t.text for t in svg.iterfind("text") if t.attrib.get("class") == "unit"] == ["cycles"]


def test_a_single_point_can_be_seen() -> None:
    assert parse(Chart("c", "C", 64, [Series("a", "ink", [(64, 3)])])).find("circle") is not None


def test_text_is_escaped() -> None:
    evil = '<script>alert("1")</script>'
    chart = Chart("c", evil, 1, [Series(evil, "ink", [(1, 1)])], [Level(evil, "ink", 2)])
    assert "<script" not in chart.svg
    assert parse(chart).findtext("title") == evil
