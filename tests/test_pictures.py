"""Charts are well-formed SVG, show what they are given, and put it where it belongs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from qcompiler.pictures import Bar, Point, bars_svg, lines_svg, pareto_svg, roofline_svg

SVG = "{http://www.w3.org/2000/svg}"


def circles(text: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(text)
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]


def test_better_points_lie_lower_and_dearer_ones_further_right() -> None:
    front = [Point(x=8.5, y=0.01), Point(x=4.25, y=0.3), Point(x=6.0, y=0.1)]
    first, second, third = circles(pareto_svg(front, x_title="bits", y_title="loss"))
    assert first[0] < second[0] < third[0]
    assert first[1] < second[1] < third[1]  # down is larger


def test_names_cannot_break_out_of_the_picture() -> None:
    label = '<script>alert("&")</script>'
    for text in (
        pareto_svg([], chosen=Point(x=1, y=1, label=label), x_title=label, y_title="y"),
        bars_svg([Bar(label=label, value=1.0, kind=label, note=label)], title=label),
    ):
        root = ElementTree.fromstring(text)
        assert not list(root.iter(f"{SVG}script"))
        assert label in {element.text for element in root.iter(f"{SVG}text")}


def test_one_point_and_no_point_can_be_drawn() -> None:
    assert len(circles(pareto_svg([Point(x=5, y=0)], x_title="x", y_title="y"))) == 1
    assert not circles(pareto_svg([], x_title="x", y_title="y"))


def widths(text: str) -> list[float]:
    root = ElementTree.fromstring(text)
    return [float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect")]


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar(label=str(v), value=v) for v in (1.0, 2.0, 4.0)]
    one, two, four = widths(bars_svg(bars, title="t"))
    assert abs(two / one - 2) < 1e-6
    assert abs(four / one - 4) < 1e-6


def test_logarithmic_bars_show_each_decade_alike() -> None:
    bars = [Bar(label=str(v), value=v) for v in (1e-4, 1e-3, 1e-2)]
    one, two, three = widths(bars_svg(bars, title="t", logarithmic=True))
    assert abs((two - one) - (three - two)) < 1e-6


def test_values_that_have_no_length_leave_a_trace() -> None:
    bars = [Bar(label="a", value=-1.0), Bar(label="b", value=float("nan")), Bar(label="c", value=0)]
    assert widths(bars_svg(bars, title="t")) == [0.5, 0.5, 0.5]


def test_each_series_is_a_line_through_its_points() -> None:
    series = {
        "before": [Point(x=0, y=2), Point(x=1, y=3)],
        "after": [Point(x=0, y=1), Point(x=1, y=1)],
        "never": [],
    }
    text = lines_svg(series, x_title="block", y_title="error")
    before, after = circles(text)[:2], circles(text)[2:]
    assert [x for x, _ in before] == [x for x, _ in after]
    assert all(low > high for (_, high), (_, low) in zip(before, after, strict=True))
    root = ElementTree.fromstring(text)
    assert {"before", "after", "never"} <= {element.text for element in root.iter(f"{SVG}text")}
    assert len(list(root.iter(f"{SVG}path"))) == 2


def test_a_point_at_a_limit_lies_on_the_roof() -> None:
    reads = Point(x=1.0, y=1e10, label="reads")
    works = Point(x=100.0, y=1e11, label="works")
    drawn = roofline_svg({"decode": [reads, works]}, bytes_per_s=1e10, peaks={"floats": 1e11})
    root = ElementTree.fromstring(drawn)
    (roof,) = (path.attrib["d"] for path in root.iter(f"{SVG}path"))
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", roof)]
    (x0, y0), (ridge, top) = numbers[:2], numbers[2:4]
    (x, y), (_, flat) = circles(drawn)
    assert flat == top
    # On the line from the roof's low end to its ridge.
    assert abs((y - y0) * (ridge - x0) - (top - y0) * (x - x0)) < 1e-2 * (ridge - x0)
