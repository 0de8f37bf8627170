"""The page of a report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from qcompiler.core.artifact import Manifest
from qcompiler.report.allocation import allocation_view
from qcompiler.report.bits import bits_view
from qcompiler.report.content import Report
from qcompiler.report.costs import cost_tables
from qcompiler.report.details import details_view
from qcompiler.report.figure_grid import by_scheme
from qcompiler.report.figures import duration, figure, human_bytes
from qcompiler.report.headline import bits_per_weight, total_time


def render(manifest: Manifest, report: Report) -> str:
    """Return the page; a section is there when there is something to say in it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": figure, "duration": duration, "bytes": human_bytes}
    source = files("qcompiler.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        manifest=manifest,
        facts=_facts(manifest, report),
        steps=_steps(manifest.pipeline or report.pipeline),
        bits=bits_view(manifest, report),
        sensitivities=[
            (found, by_scheme(found.loss, found.unit)) for found in report.sensitivities()
        ],
        costs=[(found, cost_tables(found)) for found in report.costs()],
        allocations=[allocation_view(found) for found in report.allocations()],
        details=[view for found in report.details() if (view := details_view(found)) is not None],
        times=_times(report.steps),
        calibration=report.calibration,
        kernels=_kernels(manifest),
        notes={step: _alike(lines) for step, lines in report.notes.items()},
        rest={
            name: [(key, json.dumps(value, ensure_ascii=False)) for key, value in records.items()]
            for name, records in report.rest().items()
        },
    )


# --- the head of the page -------------------------------------------------------------------------


def _facts(manifest: Manifest, report: Report) -> list[tuple[str, str]]:
    """Return what matters most, as pairs of a name and a figure."""
    size = sum(record.bytes for record in manifest.files.values())
    found = [("size", human_bytes(size)), *bits_per_weight(report)]
    if manifest.model.max_context:
        found.append(("context", f"{manifest.model.max_context:,} tokens"))
    measured = sorted(manifest.measured.items())
    return [
        *found,
        *total_time(report),
        *((name.replace("_", " "), figure(value)) for name, value in measured),
    ]


def _steps(pipeline: Sequence[Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each step's name and options; lists of tables take a line for each table."""
    steps = []
    for step in pipeline:
        if not isinstance(step, Mapping):
            continue
        options = []
        for key, value in step.items():
            if key == "name" or value is None:
                continue
            tables = isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
            lines = value if tables else [value]
            options += [(key if i == 0 else "", _plain(line)) for i, line in enumerate(lines)]
        steps.append((str(step.get("name", "")), options))
    return steps


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{k} = {_plain(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- times, kernels and notes ---------------------------------------------------------------------


def _times(steps: Sequence[tuple[str, float]]) -> list[tuple[str, str, float]]:
    """Return each step, its time, and its share of the longest."""
    longest = max((seconds for _, seconds in steps), default=0.0) or 1.0
    return [(name, duration(seconds), seconds / longest) for name, seconds in steps]


def _kernels(manifest: Manifest) -> list[tuple[str, str, str, list[str]]]:
    """Return (function, kernel, reason, operators), one entry for equal choices."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, choice in manifest.kernels.items():
        operator, _, function = key.partition(" (")
        group = (function.removesuffix(")"), choice.kernel, choice.reason)
        groups.setdefault(group, []).append(operator)
    return [(*group, operators) for group, operators in groups.items()]


def _alike(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Put notes together that differ in numbers alone: the first, and the others like it.

    >>> _alike(["layer 0: joined", "layer 1: joined", "head: kept"])
    [('layer 0: joined', ['layer 1: joined']), ('head: kept', [])]
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(re.sub(r"\d+(\.\d+)?(e-?\d+)?", "#", line), []).append(line)
    return [(first, others) for first, *others in groups.values()]
