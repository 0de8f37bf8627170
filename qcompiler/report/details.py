"""What quantising passes say of single operators and blocks: errors before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qcompiler.pictures import Point, lines_svg
from qcompiler.report.content import Details, OperatorRecord, WholeTraining
from qcompiler.report.figure_grid import Figures, figure_grid, known
from qcompiler.report.figures import HEIGHT, WIDTH, common_power, figure, heats
from qcompiler.report.grid import place, short_names

_CURVES = 4
"""Curves drawn in one picture: more would hide each other."""


@dataclass(frozen=True)
class Detail:
    """What a pass said of operators and blocks, as pictures, grids and tables."""

    step: str
    measure: str
    compared: bool
    """Whether the error of rounding to nearest is known as well."""
    by_kind: list[tuple[str, int, str, str, str]]
    """Kind of operator, how many, mean error before and after, change."""
    picture: str
    grids: list[Figures]
    blocks_measure: str
    blocks_picture: str
    blocks: list[tuple[str, ...]]
    curves_picture: str
    whole: str
    whole_picture: str
    remarks: list[tuple[str, str]]


def details_view(found: Details) -> Detail | None:
    """Return what the page shows of a pass's details; None where that is nothing."""
    before = known({name: one.before for name, one in found.operators.items()})
    after = known({name: one.after for name, one in found.operators.items()})
    values = [*before.values(), *after.values()]
    power, heat = common_power(values), heats(values)
    grids = [
        figure_grid(name, errors, power=power, heat=heat)
        for name, errors in (("after", after), ("rounded to nearest", before))
        if errors
    ]
    remarks = [(name, text) for name, one in found.operators.items() if (text := _remark(one))]
    if not (grids or found.blocks or remarks or found.whole):
        return None
    return Detail(
        found.step,
        found.measure,
        bool(before),
        _by_kind(before, after),
        _blocks_of_operators(before, after, found.measure),
        grids,
        found.blocks_measure,
        _blocks_picture(found),
        [
            (
                str(one.block),
                figure(one.before),
                figure(one.after),
                _change(one.before, one.after),
                "" if one.best is None else str(one.best),
            )
            for one in found.blocks
        ],
        _curves_picture(found),
        _whole(found.whole),
        _whole_picture(found.whole),
        remarks,
    )


def _remark(one: OperatorRecord) -> str:
    parts = []
    if one.method:
        parts.append(one.method)
    if one.damping is not None:
        parts.append(f"damping {figure(one.damping)}")
    if one.dead_columns:
        parts.append(f"{one.dead_columns} inputs always zero")
    if one.condition is not None:
        parts.append(f"condition {figure(one.condition)}")
    return ", ".join(parts)


def _by_kind(
    before: Mapping[str, float], after: Mapping[str, float]
) -> list[tuple[str, int, str, str, str]]:
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys([*before, *after]):
        kinds.setdefault(place(name)[1], []).append(name)
    short = short_names(list(kinds))
    rows = []
    for kind, names in kinds.items():
        first, last = (_mean([e[n] for n in names if n in e]) for e in (before, after))
        rows.append((short[kind], len(names), figure(first), figure(last), _change(first, last)))
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or before <= 0:
        return ""
    return f"{after / before - 1:+.0%}".replace("-", "−")


def _blocks_of_operators(
    before: Mapping[str, float], after: Mapping[str, float], measure: str
) -> str:
    """Draw the mean error of each block's operators, where there are several blocks."""
    series = {}
    for label, errors in (("rounded to nearest", before), ("after", after)):
        by_block: dict[int, list[float]] = {}
        for name, error in errors.items():
            if (block := place(name)[0]) is not None:
                by_block.setdefault(block, []).append(error)
        points = [Point(x=b, y=sum(es) / len(es)) for b, es in sorted(by_block.items())]
        if len(points) > 1:
            series[label] = points
    if not series:
        return ""
    title = measure or "error"
    return Markup(lines_svg(series, x_title="block", y_title=title, width=WIDTH, height=HEIGHT))


def _blocks_picture(found: Details) -> str:
    series = {
        label: [
            Point(x=one.block, y=error)
            for one in found.blocks
            if (error := getattr(one, key)) is not None
        ]
        for label, key in (("at first", "before"), ("best iterate", "after"))
    }
    series = {label: points for label, points in series.items() if len(points) > 1}
    if not series:
        return ""
    title = found.blocks_measure or "error of the block's output"
    return Markup(lines_svg(series, x_title="block", y_title=title, width=WIDTH, height=HEIGHT))


def _whole(found: WholeTraining | None) -> str:
    """Say in a sentence what training all together did."""
    if found is None:
        return ""
    return (
        f"All together, {found.steps} steps: the loss on samples held out went from "
        f"{figure(found.before)} to {figure(found.after)}, at step {found.best}."
    )


def _whole_picture(found: WholeTraining | None) -> str:
    """Draw the loss of training all together."""
    if found is None:
        return ""
    series = {
        label: [Point(x=step, y=loss) for step, loss in points if loss is not None]
        for label, points in (("training", found.curve), ("held out", found.held_out))
    }
    series = {label: points for label, points in series.items() if len(points) > 1}
    if not series:
        return ""
    title = found.loss or "loss"
    return Markup(lines_svg(series, x_title="step", y_title=title, width=WIDTH, height=HEIGHT))


def _curves_picture(found: Details) -> str:
    """Draw how the loss of some blocks fell, as a share of what it was at first."""
    count = len(found.curves)
    shown = (
        sorted({round(i * (count - 1) / (_CURVES - 1)) for i in range(_CURVES)}) if count else []
    )
    series = {}
    for index in shown:
        points = [
            Point(x=at, y=loss) for at, loss in enumerate(found.curves[index]) if loss is not None
        ]
        if len(points) > 1 and points[0].y > 0:
            first = points[0].y
            series[f"block {index}"] = [Point(x=p.x, y=p.y / first) for p in points]
    if not series:
        return ""
    return Markup(
        lines_svg(
            series, x_title="step", y_title="share of the first loss", width=WIDTH, height=HEIGHT
        )
    )
