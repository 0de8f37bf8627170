"""Work on one row of numbers, vector by vector: read it, sweep over it, reduce it to one number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from codegen.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    bind,
    load_first,
    parallel,
    serial,
    splat,
    when,
)

Rows = Literal["one", "many"]
Read = Callable[[Expr, int, int], Expr]
"""Return the vector at a feature, of so many lanes, of which the first `count` exist."""

# Vectors of a row that are read once and kept in registers.
_KEPT = 8
_UNROLL = 4
# Features that one thread normalises or quantises in about 4 µs; starting two takes half of that.
_FEW = 12288


def over_rows(rows: Expr, features: int, visit: Callable[[Expr], None]) -> None:
    """Visit every row, shared among the threads unless it takes longer to start them."""

    def run(loop: Callable[[Expr], AbstractContextManager[Expr]]) -> None:
        with loop(rows) as row:
            visit(row)

    if isinstance(rows, int):
        run(serial)
    else:
        when(rows * features < _FEW, lambda: run(serial), lambda: run(parallel))


def reader(x: Buffer, row: Expr) -> Read:
    """Read vectors of one row of x."""
    return lambda start, lanes, count: load_first(x, row, start, count=count, lanes=lanes)


def pieces(length: int, lanes: int) -> list[tuple[int, int, int]]:
    """Cut a row into vectors: where each starts, its lanes, and how many of them exist.

    >>> pieces(44, 16)
    [(0, 16, 16), (16, 16, 16), (32, 8, 8), (40, 8, 4)]
    """
    cut = [(start, lanes, lanes) for start in range(0, length - lanes + 1, lanes)]
    rest = min(lanes, 8)
    starts = range(len(cut) * lanes, length, rest)
    return cut + [(start, rest, min(rest, length - start)) for start in starts]


def sweep(length: int, lanes: int, visit: Callable[[Expr, int, int], None]) -> None:
    """Visit the pieces of a row in order, the bulk of a long one in a loop."""
    whole = length // (lanes * _UNROLL) if length > lanes * _KEPT else 0
    if whole:
        with serial(whole) as i:
            for j in range(_UNROLL):
                visit(i * (lanes * _UNROLL) + j * lanes, lanes, lanes)
    done = whole * lanes * _UNROLL
    for start, width, count in pieces(length - done, lanes):
        visit(done + start, width, count)


class Total:
    """A number accumulated lane by lane over the pieces of a row, a register for each width."""

    def __init__(self, length: int, lanes: int, dtype: str, start: float, ways: int = 1) -> None:
        self._ways = ways
        widths = {width for _, width, _ in pieces(length, lanes)}
        self.parts = {width: Registers(ways, width, dtype) for width in widths}
        self._turn = 0
        for width, registers in self.parts.items():
            for way in range(ways):
                registers[way] = splat(start, width, dtype)

    def update(self, width: int, combine: Callable[[Expr], Expr]) -> None:
        """Replace one of the accumulators of this width by `combine` of it."""
        way = self._turn % self._ways
        self._turn += 1
        self.parts[width][way] = combine(self.parts[width][way])

    def reduce(
        self, across: Callable[[Expr, int], Expr], join: Callable[[Expr, Expr], Expr]
    ) -> Expr:
        """Combine the accumulators, then their lanes (by `across`), to one number."""
        results = []
        for width, registers in self.parts.items():
            whole = bind(registers[0])
            for way in range(1, self._ways):
                whole = bind(join(whole, bind(registers[way])))
            results.append(across(whole, width))
        result = results[0]
        for other in results[1:]:
            result = bind(join(result, other))
        return result


def keep(read: Read, length: int, lanes: int) -> Read:
    """Read a short row now and remember it; a long one is read each time."""
    if length > lanes * _KEPT:
        return lambda at, width, count: bind(read(at, width, count))
    kept = {at: bind(read(at, width, count)) for at, width, count in pieces(length, lanes)}
    return lambda at, width, count: kept[at]
