"""Figures of operators as grids: sensitivities, costs, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.report.figures import common_power, heats, power_of_ten
from qcompiler.report.grid import Cell, Grid, make_grid


@dataclass(frozen=True)
class Figures:
    """A grid of figures, all in one power of ten."""

    name: str
    unit: str
    grid: Grid


def figure_grid(
    name: str,
    values: Mapping[str, float],
    unit: str = "",
    *,
    power: int | None = None,
    heat: Mapping[float, float] | None = None,
) -> Figures:
    """Arrange the figures of operators; `power` and `heat` are theirs alone if not given."""
    power = common_power(values.values()) if power is None else power
    heat = heats(values.values()) if heat is None else heat
    cells = {
        operator: Cell(
            text=_short(value / 10.0**power),
            heat=heat.get(value),
            title=f"{operator}: {value:.4g} {unit}".rstrip(),
        )
        for operator, value in values.items()
    }
    return Figures(name, f"{power_of_ten(power)} {unit}".strip(), make_grid(cells))


def _short(value: float) -> str:
    if abs(value) < 0.005:
        return "0"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures that there are."""
    return {name: value for name, value in values.items() if value is not None}


def by_scheme(table: Mapping[str, Mapping[str, float | None]], unit: str) -> list[Figures]:
    """Return a grid for each scheme, each with a scale of colours of its own.

    Schemes differ by orders of magnitude: with one scale for all, each would be of one colour.
    """
    schemes = dict.fromkeys(scheme for losses in table.values() for scheme in losses)
    return [
        figure_grid(
            scheme,
            known({name: losses.get(scheme) for name, losses in table.items()}),
            unit,
        )
        for scheme in schemes
    ]
