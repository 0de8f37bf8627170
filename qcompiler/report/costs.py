"""What operators cost by kind and scheme, as tables."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.report.content import ByScheme, Costs
from qcompiler.report.figures import figure
from qcompiler.report.grid import place, short_names


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Means over the operators of a kind: a row for each kind, a column for each scheme."""

    title: str
    schemes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def cost_tables(costs: Costs) -> list[CostTable]:
    """Return a table for each thing that was measured."""
    given = (
        ("kB", costs.bytes, 1e-3),
        ("µs for a token", costs.decode, 1e6),
        ("ms for a prompt", costs.prefill, 1e3),
    )
    return [_table(title, values, factor) for title, values, factor in given if values]


def _table(title: str, values: ByScheme, factor: float) -> CostTable:
    kinds: dict[str, list[str]] = {}
    for name in values:
        kinds.setdefault(place(name)[1], []).append(name)
    short = short_names(list(kinds))
    schemes = tuple(dict.fromkeys(scheme for row in values.values() for scheme in row))

    def mean(names: list[str], scheme: str) -> str:
        known = [v for name in names if (v := values[name].get(scheme)) is not None]
        return figure(sum(known) / len(known) * factor if known else None)

    return CostTable(
        title=title,
        schemes=schemes,
        rows=tuple(
            (short[kind] or "operator", tuple(mean(names, scheme) for scheme in schemes))
            for kind, names in kinds.items()
        ),
    )
