"""`qcompiler plan`: what a budget would lead to, before anything is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import qcompiler
from qcompiler.budgets import budget_settings
from qcompiler.commands.calibration import CalibrationOptions
from qcompiler.commands.output import print_json, print_table
from qcompiler.commands.picture import check_picture, write_picture
from qcompiler.commands.progress import watch
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline
from qcompiler.report.figures import human_bytes
from targets import NATIVE, find

if TYPE_CHECKING:
    from qcompiler.allocation_plan import BitPlan
    from qcompiler.core.facts import PlanPoint

_COLUMNS = {
    "bits_per_weight": "bits per weight",
    "bytes": "weights",
    "decode_ms": "ms per token",
    "prefill_ms": "ms per prompt",
}


def plan(
    model: str,
    *,
    target: str | None,
    pipeline: str,
    settings: tuple[str, ...],
    budgets: tuple[str, ...],
    calibration: CalibrationOptions,
    picture: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the plans that no other beats, the one that was chosen, and what more would bring."""
    # What is wrong with the request should show before seconds are spent on loading torch …
    config = find_pipeline(pipeline)
    settings = (*budget_settings(config, budgets, times=True), *settings)
    machine = find(target or config.with_settings(settings).target or NATIVE)
    if picture is not None:
        check_picture("--picture", picture)
    calibration.check()
    check_found(model)
    # … and what is wrong with options of passes, which are written in it, before TVM is loaded.
    from qcompiler.planning import plan_request

    steps, _ = plan_request(pipeline, target, settings)
    calibration.check_against(steps.steps)
    with watch(quiet=quiet) as progress:
        found = qcompiler.plan(
            model,
            target=machine.name,
            pipeline=pipeline,
            settings=settings,
            progress=progress,
            **calibration.keywords(),
        )
    if picture is not None:
        draw(found, picture)
    if as_json:
        print_json(as_object(found))
    else:
        print_plan(found)


def print_plan(found: BitPlan) -> None:
    """Print tables: of the front, of what was chosen, and of prices."""
    allocation, chosen = found.allocation, found.chosen
    names = [name for name in _COLUMNS if name in chosen.totals]
    loss = f"predicted loss ({found.unit})"
    columns = ("", *(_COLUMNS[name] for name in names), loss)
    points = sorted(
        [*(p for p in allocation.front if p.totals != chosen.totals), chosen],
        key=lambda p: (p.totals[found.over], -p.loss),
    )
    points += sorted(
        (p for p in allocation.others if p.label.startswith("uniform")),
        key=lambda p: p.totals[found.over],
    )
    rows = [
        (
            "→ chosen" if point is chosen else point.label,
            *(_figure(name, point) for name in names),
            f"{point.loss:.4g}",
        )
        for point in points
    ]
    print_table(columns, rows, numbers=columns[1:])
    print()
    schemes = ", ".join(f"{count} × {scheme}" for scheme, count in found.counts.items())
    gap = "unknown" if allocation.gap != allocation.gap else f"{allocation.gap:.2%}"
    facts = [("operators", schemes), ("the best plan is better by at most", gap)]
    facts += [
        (f"one {_UNIT[name]} more saves", f"{price * _PER[name]:.3g} {found.unit}")
        for name, price in allocation.prices.items()
    ]
    if found.times:
        source = {"timer": "kernels timed on this machine", "roofline": "estimated"}[found.times]
        facts.append(("times", f"{source}; a prompt has {found.prompt_tokens} tokens"))
    print_table((found.model, found.target), facts)


_UNIT = {"bits_per_weight": "tenth of a bit", "bytes": "MB"}
_UNIT |= {"decode_ms": "µs per token", "prefill_ms": "ms per prompt"}
_PER = {"bits_per_weight": 0.1, "bytes": 1e6, "decode_ms": 1e-3, "prefill_ms": 1.0}


def _figure(name: str, point: PlanPoint) -> str:
    """Write a total; "" where the point has none."""
    if name not in point.totals:
        return ""
    value = point.totals[name]
    return human_bytes(value) if name == "bytes" else f"{value:.3f}"


def as_object(found: BitPlan) -> dict[str, object]:
    """Return everything that is known of a plan, as JSON can say it."""
    allocation = found.allocation
    return {
        "model": found.model,
        "target": found.target,
        "unit": found.unit,
        "budgets": dict(allocation.budgets),
        "chosen": _point(found.chosen),
        "bound": allocation.bound,
        "gap": allocation.gap,
        "prices": dict(allocation.prices),
        "front": [_point(point) for point in allocation.front],
        "others": [{"label": p.label, **_point(p)} for p in allocation.others],
        "plan": dict(allocation.plan),
        "times": found.times,
        "prompt_tokens": found.prompt_tokens,
        "notes": list(found.notes),
    }


def _point(point: PlanPoint) -> dict[str, float]:
    return {**point.totals, "loss": point.loss}


def draw(found: BitPlan, picture: Path) -> None:
    """Draw the front into a file."""
    from qcompiler.pictures import Point, pareto_svg

    over = found.over
    scale = 1e-6 if over == "bytes" else 1.0

    def dot(point: PlanPoint, label: str = "") -> Point:
        return Point(x=point.totals[over] * scale, y=point.loss, label=label)

    drawing = pareto_svg(
        [dot(point) for point in (*found.allocation.front, found.chosen)],
        chosen=dot(found.chosen, "chosen"),
        others=[
            dot(point, point.label)
            for point in found.allocation.others
            if point.label.startswith("uniform")
        ],
        x_title="MB of weights" if over == "bytes" else _COLUMNS[over],
        y_title=f"predicted rise of the loss ({found.unit})",
    )
    write_picture(drawing, picture)
