"""Charts as SVG text: they stand in an HTML page or in a file of their own, without scripts.

Text and axes take the colour of the text around them, so that a page may be dark or light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from xml.etree import ElementTree

import svg

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00", "#7f7f7f")
"""Colours that people with any colour vision can tell apart (Okabe and Ito, 2008)."""

_FONT = "system-ui, 'DejaVu Sans', sans-serif"
_NAMESPACE = "http://www.w3.org/2000/svg"
_LETTER = 6.6  # width of a letter of 12 px, about


@dataclass(frozen=True, kw_only=True)
class Point:
    """A dot in a chart; `label` is shown beside it, or when the pointer rests on it."""

    x: float
    y: float
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a chart; bars of one `kind` have one colour, which a legend explains."""

    label: str
    value: float
    kind: str = ""
    note: str = ""


def pareto_svg(
    front: Sequence[Point],
    *,
    chosen: Point | None = None,
    others: Sequence[Point] = (),
    x_title: str,
    y_title: str,
    width: int = 640,
    height: int = 400,
) -> str:
    """Draw the points that no other beats as a line of steps, the chosen one, and others.

    Between two points of the front nothing is to be had, hence the steps. `others`, such as uniform
    plans, are drawn hollow, with their labels beside them.

    >>> points = [Point(x=4.25, y=0.3), Point(x=8.5, y=0.01)]
    >>> pareto_svg(points, x_title="bits", y_title="loss").startswith("<svg")
    True
    """
    everything = [*front, *others, *([chosen] if chosen else [])]
    xs, ys = [p.x for p in everything], [p.y for p in everything]
    plot = _Plot(_ticks(xs), _ticks([0.0, *ys]), width, height)
    elements = plot.axes(x_title, y_title)
    ordered = sorted(front, key=lambda p: p.x)
    if ordered:
        elements.append(_steps(ordered, plot))
    elements += [_dot(p, plot, radius=3, fill=PALETTE[0]) for p in ordered]
    for point in others:
        elements += [_dot(point, plot, radius=4, fill="none", stroke=PALETTE[7])]
        elements += plot.label(point)
    if chosen is not None:
        elements.append(_dot(chosen, plot, radius=6, fill=PALETTE[1]))
        elements += plot.label(chosen, bold=True)
    return _document(elements, width, height, f"{y_title} against {x_title}")


def bars_svg(
    bars: Sequence[Bar],
    *,
    title: str,
    width: int = 760,
    row: int = 16,
    unit: str = "",
    logarithmic: bool = False,
) -> str:
    """Draw horizontal bars, one under the other, in the order given.

    `logarithmic` is for values that span orders of magnitude: bars then start a decade below the
    smallest positive one, and values that are not positive have none.

    >>> bars_svg([Bar(label="layer 0", value=2.0)], title="losses").startswith("<svg")
    True
    """
    kinds = list(dict.fromkeys(bar.kind for bar in bars if bar.kind))
    left = 18 + _LETTER * max((len(bar.label) for bar in bars), default=0)
    # Numbers stand behind the longest bar.
    right, top = 76.0, 40.0 + (20 if kinds else 0)
    scale = _bar_scale([bar.value for bar in bars], logarithmic=logarithmic)
    elements: list[svg.Element] = [_text(title, 4, 18, bold=True)]
    elements += _legend(kinds, 4, 38)
    for index, bar in enumerate(bars):
        y = top + index * row
        length = (width - left - right) * scale(bar.value)
        colour = PALETTE[kinds.index(bar.kind) % len(PALETTE)] if bar.kind else PALETTE[0]
        said = f"{_number(bar.value)}{unit and ' ' + unit}"
        about = f"{bar.label}: {said}{bar.note and ', ' + bar.note}"
        elements.append(
            svg.Rect(
                x=left,
                y=y,
                width=max(length, 0.5),
                height=row - 4,
                fill=colour,
                elements=[svg.Title(text=escape(about))],
            )
        )
        elements.append(_text(bar.label, left - 6, y + row - 6, anchor="end"))
        elements.append(_text(said, left + length + 4, y + row - 6, faint=True))
    return _document(elements, width, int(top + len(bars) * row + 8), title)


def stacked(charts: Sequence[str]) -> str:
    """Put SVG pictures one under the other.

    >>> stacked([bars_svg([], title="one"), bars_svg([], title="two")]).count("<svg")
    3
    """
    ElementTree.register_namespace("", _NAMESPACE)
    whole = ElementTree.Element(f"{{{_NAMESPACE}}}svg")
    width = height = 0
    for chart in charts:
        part = ElementTree.fromstring(chart)
        part.set("y", str(height))
        width, height = max(width, int(part.attrib["width"])), height + int(part.attrib["height"])
        whole.append(part)
    whole.attrib.update(width=str(width), height=str(height), viewBox=f"0 0 {width} {height}")
    return ElementTree.tostring(whole, encoding="unicode")


def lines_svg(
    series: Mapping[str, Sequence[Point]],
    *,
    x_title: str,
    y_title: str,
    width: int = 640,
    height: int = 320,
) -> str:
    """Draw a line through the points of each series, from zero up, with a legend.

    >>> lines_svg({"before": [Point(x=0, y=1)]}, x_title="block", y_title="error")[:4]
    '<svg'
    """
    everything = [point for points in series.values() for point in points]
    xs, ys = [p.x for p in everything], [p.y for p in everything]
    # Blocks and steps are counted: no ticks between whole numbers.
    whole = max(1, min(6, int(max(xs) - min(xs)))) if all(x == int(x) for x in xs) and xs else 6
    plot = _Plot(_ticks(xs, whole), _ticks([0.0, *ys]), width, height, top=34)
    elements = [*plot.axes(x_title, y_title), *_legend(list(series), plot.left, 18)]
    for index, points in enumerate(series.values()):
        colour = PALETTE[index % len(PALETTE)]
        if points:
            path: list[svg.PathData] = [svg.M(plot.x(points[0].x), plot.y(points[0].y))]
            path += [svg.L(plot.x(point.x), plot.y(point.y)) for point in points[1:]]
            elements.append(svg.Path(d=path, fill="none", stroke=colour, stroke_width=1.5))
        elements += [_dot(point, plot, radius=2.5, fill=colour) for point in points]
    return _document(elements, width, height, f"{y_title} against {x_title}")


def roofline_svg(
    series: Mapping[str, Sequence[Point]],
    *,
    bytes_per_s: float,
    peaks: Mapping[str, float],
    width: int = 760,
    height: int = 480,
) -> str:
    """Draw what operators reach below what a machine can do (Williams et al., 2009).

    Points have operations per byte, and operations per second; `peaks` are the operations per
    second that each arithmetic reaches at best. Both axes are logarithmic, marked with powers of
    ten.

    >>> point = Point(x=4.0, y=1e11, label="product")
    >>> roofline_svg({"decode": [point]}, bytes_per_s=5e10, peaks={"bytes": 4e12})[:4]
    '<svg'
    """
    points = [point for group in series.values() for point in group]
    ridges = [peak / bytes_per_s for peak in peaks.values()]
    xs = _decades([*(point.x for point in points), *ridges, max(ridges) * 2])
    ys = _decades([*(point.y for point in points), *peaks.values()])
    plot = _Plot(xs, ys, width, height, top=34, number=lambda power: f"1e{power:.0f}")
    elements = [
        *plot.axes("operations per byte", "operations per second"),
        *_legend(list(series), plot.left, 18),
    ]
    for name, peak in peaks.items():
        ridge, top = math.log10(peak / bytes_per_s), math.log10(peak)
        # Where memory is the limit, twice the operations per byte are twice those per second.
        low = max(xs[0], ys[0] - top + ridge)
        path: list[svg.PathData] = [
            svg.M(plot.x(low), plot.y(top + low - ridge)),
            svg.L(plot.x(ridge), plot.y(top)),
            svg.H(plot.x(xs[-1])),
        ]
        elements.append(svg.Path(d=path, fill="none", stroke="currentColor", opacity=0.6))
        elements.append(_text(name, plot.x(xs[-1]) - 4, plot.y(top) - 5, anchor="end", faint=True))
    for index, group in enumerate(series.values()):
        for point in group:
            where = Point(x=math.log10(point.x), y=math.log10(point.y), label=point.label)
            about = f"{point.label}: {_number(point.x)}, {_number(point.y)}"
            elements.append(_dot(where, plot, radius=4, fill=PALETTE[index], about=about))
            elements += plot.label(where)
    return _document(elements, width, height, "operations per second against operations per byte")


def _decades(values: Sequence[float]) -> list[float]:
    """Return the powers of ten from below the least of some values to above the largest.

    >>> _decades([0.5, 200.0])
    [-1.0, 0.0, 1.0, 2.0, 3.0]
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(power) for power in range(low, max(high, low + 1) + 1)]


def _document(elements: list[svg.Element], width: int, height: int, title: str) -> str:
    drawing = svg.SVG(
        viewBox=svg.ViewBoxSpec(0, 0, width, height),
        width=width,
        height=height,
        xmlns=_NAMESPACE,
        extra={"role": "img"},
        elements=[svg.Title(text=escape(title)), *elements],
    )
    return drawing.as_str()


class _Plot:
    """A rectangle with a linear scale on each axis, from its first tick to its last."""

    def __init__(
        self,
        xs: list[float],
        ys: list[float],
        width: int,
        height: int,
        *,
        top: int = 14,
        number: Callable[[float], str] | None = None,
    ) -> None:
        """Take the ticks, and how the number at each is written."""
        self.xs, self.ys = xs, ys
        self.number = number or _number
        self.left = 24 + _LETTER * max(len(self.number(y)) for y in ys) + 8
        self.right = width - 16
        self.top, self.bottom = top, height - 46
        self.width, self.height = width, height

    def x(self, value: float) -> float:
        return _between(value, self.xs, self.left, self.right)

    def y(self, value: float) -> float:
        return _between(value, self.ys, self.bottom, self.top)

    def axes(self, x_title: str, y_title: str) -> list[svg.Element]:
        """Return grid lines, the numbers at them and the titles."""
        middle_x, middle_y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        elements: list[svg.Element] = [
            _text(x_title, middle_x, self.height - 8, anchor="middle"),
            _text(y_title, 14, middle_y, anchor="middle", turned=True),
        ]
        for x in self.xs:
            elements.append(_grid(self.x(x), self.top, self.x(x), self.bottom))
            elements.append(_text(self.number(x), self.x(x), self.bottom + 16, anchor="middle"))
        for y in self.ys:
            elements.append(_grid(self.left, self.y(y), self.right, self.y(y)))
            elements.append(_text(self.number(y), self.left - 6, self.y(y) + 4, anchor="end"))
        return elements

    def label(self, point: Point, *, bold: bool = False) -> list[svg.Element]:
        """Return a point's label, on the side of it that has room."""
        if not point.label:
            return []
        x, y = self.x(point.x), self.y(point.y)
        fits = x + 9 + _LETTER * len(point.label) < self.right
        side = ("start", x + 9) if fits else ("end", x - 9)
        return [_text(point.label, side[1], y - 6, anchor=side[0], bold=bold)]


def _between(value: float, ticks: list[float], first: float, last: float) -> float:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return round(first + share * (last - first), 2)


def _ticks(values: Iterable[float], count: int = 6) -> list[float]:
    """Return about `count` round numbers, evenly apart, that enclose the values.

    >>> _ticks([4.13, 8.4])
    [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    """
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _bar_scale(values: Sequence[float], *, logarithmic: bool) -> _Scale:
    positive = [v for v in values if v > 0 and math.isfinite(v)]
    if not positive:
        return _Scale(0.0, 1.0, logarithmic=False)
    if logarithmic:
        return _Scale(math.log10(min(positive)) - 1, math.log10(max(positive)), logarithmic=True)
    return _Scale(0.0, max(positive), logarithmic=False)


@dataclass(frozen=True)
class _Scale:
    """Lengths of bars, as shares of the longest."""

    low: float
    high: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        if not value > 0:
            return 0.0
        shown = math.log10(value) if self.logarithmic else value
        return min(1.0, max(0.0, (shown - self.low) / (self.high - self.low)))


def _number(value: float) -> str:
    """Write a number in few letters.

    >>> [_number(v) for v in (4.25, 0.0000123, 134_515_008, 8.0)]
    ['4.25', '1.23e-05', '1.35e+08', '8']
    """
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"


def _steps(points: Sequence[Point], plot: _Plot) -> svg.Element:
    path: list[svg.PathData] = [svg.M(plot.x(points[0].x), plot.y(points[0].y))]
    for point in points[1:]:
        path += [svg.H(plot.x(point.x)), svg.V(plot.y(point.y))]
    return svg.Path(d=path, fill="none", stroke=PALETTE[0], stroke_width=1.5, opacity=0.6)


def _dot(
    point: Point, plot: _Plot, *, radius: float, fill: str, stroke: str = "none", about: str = ""
) -> svg.Element:
    """Draw a point; `about` is shown when the pointer rests on it, its numbers if nothing else."""
    about = about or f"{point.label}{point.label and ': '}{_number(point.x)}, {_number(point.y)}"
    return svg.Circle(
        cx=plot.x(point.x),
        cy=plot.y(point.y),
        r=radius,
        fill=fill,
        stroke=stroke,
        stroke_width=1.5,
        elements=[svg.Title(text=escape(about))],
    )


def _grid(x1: float, y1: float, x2: float, y2: float) -> svg.Element:
    return svg.Line(x1=x1, y1=y1, x2=x2, y2=y2, stroke="currentColor", opacity=0.15)


def _legend(kinds: Sequence[str], x: float, y: float) -> list[svg.Element]:
    elements: list[svg.Element] = []
    for kind, colour in zip(kinds, PALETTE * len(kinds), strict=False):
        elements.append(svg.Rect(x=x, y=y - 10, width=11, height=11, fill=colour))
        elements.append(_text(kind, x + 16, y))
        x += 34 + _LETTER * len(kind)
    return elements


def _text(
    text: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    bold: bool = False,
    faint: bool = False,
    turned: bool = False,
) -> svg.Element:
    return svg.Text(
        text=escape(text),
        x=x,
        y=y,
        text_anchor=anchor,  # type: ignore[arg-type]
        font_family=_FONT,
        font_size=12,
        font_weight="bold" if bold else None,
        fill="currentColor",
        opacity=0.75 if faint else None,
        transform=[svg.Rotate(-90, x, y)] if turned else None,
    )
