"""Figures of operators as a grid: a row for each block, a column for each kind of operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure as it is shown; `heat` is its place between the least (0) and the most (1)."""

    text: str
    heat: float | None = None
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells by block and column, None where there is none; `outside` are operators of no block."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    outside: tuple[tuple[str, Cell], ...]


def place(operator: str) -> tuple[int | None, str]:
    """Return the block an operator belongs to, by its name, and what it is in there.

    >>> place("model.layers.3.mlp.down_proj"), place("lm_head")
    ((3, 'mlp.down_proj'), (None, 'lm_head'))
    """
    parts = operator.split(".")
    for index, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return int(part), ".".join(parts[index + 1 :])
    return None, operator


def short_names(names: list[str]) -> dict[str, str]:
    """Shorten dotted names to as many last parts as keep them apart.

    >>> short_names(["self_attn.qkv_proj", "mlp.up", "other.mlp.up"])
    {'self_attn.qkv_proj': 'qkv_proj', 'mlp.up': 'mlp.up', 'other.mlp.up': 'other.mlp.up'}
    """
    shortest = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        shortest[name] = next(
            (
                ending
                for ending in endings
                if sum(f".{other}".endswith(f".{ending}") for other in names) == 1
            ),
            name,
        )
    return shortest


def make_grid(cells: Mapping[str, Cell]) -> Grid:
    """Arrange the cells of operators, in the order in which they come."""
    by_block: dict[int, dict[str, Cell]] = {}
    outside: list[tuple[str, Cell]] = []
    for name, cell in cells.items():
        block, kind = place(name)
        if block is None:
            outside.append((name, cell))
        else:
            by_block.setdefault(block, {})[kind] = cell
    kinds = list(dict.fromkeys(kind for row in by_block.values() for kind in row))
    short = short_names(kinds)
    return Grid(
        columns=tuple(short[kind] or "operator" for kind in kinds),
        rows=tuple(
            (block, tuple(row.get(kind) for kind in kinds))
            for block, row in sorted(by_block.items())
        ),
        outside=tuple(outside),
    )
