"""How bits were shared out: the front of plans as a picture, prices, figures."""

from __future__ import annotations

from collections.abc import Sequence
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

    def dots(points: Sequence[Point], label: str = "") -> list[Dot]:
        placed = [(x, one.loss) for one in points if (x := _at(one, axis)) is not None]
        # A name at the first of its points is enough.
        return [Dot(x=x, y=y, label="" if i else label) for i, (x, y) in enumerate(placed)]

    chosen = [] if found.chosen is None else dots([found.chosen], "chosen")
    picture = pareto_svg(
        dots(found.front),
        chosen=chosen[0] if chosen else None,
        others=[dot for name, points in found.others.items() for dot in dots(points, name)],
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
