"""The few figures that people ask for first."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.report.content import OperatorFacts, Report
from qcompiler.report.figures import duration
from qcompiler.report.grid import place


def bits_per_weight(report: Report) -> list[tuple[str, str]]:
    """Return the mean bits of a stored weight: of the layers, and of all with tables and heads."""
    every = report.operators
    layers = {name: one for name, one in every.items() if place(name)[0] is not None}
    if not every:
        return []
    found = [("bits per weight, all", f"{_mean_bits(every.values()):.2f}")]
    if layers and len(layers) < len(every):
        found.insert(0, ("bits per weight, layers", f"{_mean_bits(layers.values()):.2f}"))
    return found


def layer_bits(report: Report) -> float:
    """Return the mean bits of a weight of the layers, or of all where there are no layers."""
    every = report.operators
    layers = [one for name, one in every.items() if place(name)[0] is not None]
    return _mean_bits(layers or every.values())


def total_time(report: Report) -> list[tuple[str, str]]:
    """Return how long all steps took together, where that is known."""
    if not report.steps:
        return []
    return [("compiled in", duration(sum(seconds for _, seconds in report.steps)))]


def longest_steps(report: Report, count: int = 5) -> list[tuple[str, str]]:
    """Return the steps that took longest, the longest first."""
    ranked = sorted(report.steps, key=lambda step: -step[1])
    return [(name, duration(seconds)) for name, seconds in ranked[:count]]


def _mean_bits(operators: Iterable[OperatorFacts]) -> float:
    pairs = [(one.bits_per_weight, one.weights) for one in operators]
    return sum(bits * count for bits, count in pairs) / max(sum(count for _, count in pairs), 1)
