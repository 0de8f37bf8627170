"""How bits were shared out: the front of plans as a picture, prices, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qcompiler.pictures import Point as Dot
from qcompiler.pictures import pareto_svg
from qcompiler.report.content import Allocation, Point
from qcompiler.report.figures import HEIGHT, WIDTH, figure

_AXES = {
    "bits_per_weight": "bits per weight",
    "bytes": "MB",
    "decode_ms": "ms per token",
    "prefill_ms": "ms per prompt",
}
_BUDGETS = _AXES | {"bytes": "bytes"}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The front of plans as a picture, and the one that was taken in figures."""

    step: str
    picture: str
    facts: list[tuple[str, str]]
    prices: list[tuple[str, str, str]]
    """Budget, its limit, what one unit more is worth."""
    columns: list[str]
    rows: list[list[str]]


def allocation_view(found: Allocation) -> Chosen:
    """Return what the page shows of an allocation."""
    others = [(name, point) for name, points in found.others.items() for point in points]
    every = [*found.front, *(point for _, point in others)]
    if found.chosen is not None:
        every.append(found.chosen)
    measures = [name for name in _AXES if any(_at(point, name) is not None for point in every)]
    # The first budget that was set is what the front is about.
    axis = next((name for name in (*found.budgets, *measures) if name in measures), "bytes")

    def places(points: Sequence[Point]) -> list[tuple[float, float]]:
        return [(x, one.loss) for one in points if (x := _at(one, axis)) is not None]

    chosen = [] if found.chosen is None else places([found.chosen])
    picture = pareto_svg(
        [Dot(x=x, y=y) for x, y in places(found.front)],
        chosen=Dot(x=chosen[0][0], y=chosen[0][1], label="chosen") if chosen else None,
        others=_named({name: places(points) for name, points in found.others.items()}),
        x_title=_AXES[axis],
        y_title=f"predicted loss{f' ({found.unit})' if found.unit else ''}",
        width=WIDTH,
        height=HEIGHT,
    )
    return Chosen(
        step=found.step,
        picture=Markup(picture),
        facts=_facts(found),
        prices=[
            (_BUDGETS.get(name, name), figure(found.budgets.get(name)), figure(price))
            for name in dict.fromkeys([*found.budgets, *found.prices])
            for price in [found.prices.get(name)]
        ],
        columns=["predicted loss", *(_AXES[name] for name in measures)],
        rows=[
            [figure(one.loss), *(figure(_at(one, name)) for name in measures)]
            for one in found.front
        ],
    )


def _named(series: Mapping[str, Sequence[tuple[float, float]]]) -> list[Dot]:
    """Give the first dot of each series its name; names that would lie over each other are joined.

    >>> dots = _named({"greedy": [(4.9, 0.3), (5.0, 0.2)], "closed form": [(4.9, 0.301)]})
    >>> [dot.label for dot in dots]
    ['greedy, closed form', '', '']
    """
    places = [place for spots in series.values() for place in spots]
    if not places:
        return []
    spans = [max(values) - min(values) or 1.0 for values in zip(*places, strict=True)]
    names: dict[tuple[float, float], list[str]] = {}
    for name, spots in series.items():
        for x, y in spots[:1]:
            near = (
                (a, b) for a, b in names if abs(a - x) < spans[0] / 8 and abs(b - y) < spans[1] / 25
            )
            names.setdefault(next(near, (x, y)), []).append(name)
    labels = {place: ", ".join(joined) for place, joined in names.items()}
    return [Dot(x=x, y=y, label=labels.pop((x, y), "")) for x, y in places]


def _at(point: Point, measure: str) -> float | None:
    """Return what a plan takes, in the unit of the axis."""
    value: float | None = getattr(point, measure)
    return value / 1e6 if measure == "bytes" and value is not None else value


def _facts(found: Allocation) -> list[tuple[str, str]]:
    facts = []
    if found.objective is not None:
        facts.append(("predicted loss", figure(found.objective)))
    if found.bound is not None:
        facts.append(("no plan is below", figure(found.bound)))
    if found.gap is not None:
        facts.append(("gap", f"{found.gap:.2%}"))
    return facts
