"""How the loops of a matrix product are cut: tiles of outputs, panels and blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.kernels.builder import (
    Expr,
    bind,
    larger,
    parallel,
    quotient,
    serial,
    smaller,
)
from codegen.packing import Packing
from qcompiler.core.target import Target

# Fewer tiles than these may leave a thread idle for a noticeable time, unless they are a multiple
# of the shares that rows are divided into then.
_FEW_TILES = 16
_SHARES = 4


def panel_rows(target: Target, row_bytes: int, block: int) -> int:
    """Choose how many rows of activations are used again and again before the next ones.

    They fill half of the second-level cache; whole blocks, at least four.
    """
    return max(target.l2_bytes // 2 // row_bytes // block, 4) * block


def over_tiles_and_panels(
    packing: Packing,
    rows: Expr,
    *,
    panel: int,
    block: int,
    emit: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Loop in parallel over all tiles of all panels of rows.

    `emit` is given the tile, the panel's first row and its number of rows (0 where the last panels
    are empty). A thread meets all tiles of a panel before the next panel. Where there are too few
    tiles to keep all threads busy, the rows are divided too.
    """
    panels = bind(ceil_quotient(rows, panel))
    if packing.tiles % _SHARES and packing.tiles < _FEW_TILES:
        panels = bind(ceil_quotient(panels, _SHARES) * _SHARES)
    # Panels of equal size, of whole blocks but for the last one.
    share = bind(quotient(rows + panels - 1, larger(panels, 1)))
    share = bind(ceil_quotient(share, block) * block)
    with parallel(panels * packing.tiles) as task:
        index = bind(quotient(task, packing.tiles))
        tile = bind(task - index * packing.tiles)
        first = bind(index * share)
        emit(tile, first, bind(larger(smaller(rows - first, share), 0)))


def over_row_blocks(
    first: Expr, rows: Expr, sizes: Sequence[int], emit: Callable[[Expr, int], None]
) -> None:
    """Cut rows into blocks of the first size, what is left into blocks of the next, and so on.

    `emit` is given a block's first row and its size. The last size is 1.
    """
    for size in sizes:
        count = bind(quotient(rows, size))
        with serial(count) as index:
            emit(bind(first + index * size), size)
        first, rows = bind(first + count * size), bind(rows - count * size)


def over_runs(total: int, longest: int, emit: Callable[[Expr, int], None]) -> None:
    """Cut `total` steps into runs to be unrolled: a loop of the longest, then the rest.

    `emit` is given a run's first step and its number of steps.
    """
    whole, rest = divmod(total, longest)
    if whole == 1:
        emit(0, longest)
    elif whole:
        with serial(whole) as run:
            emit(bind(run * longest), longest)
    if rest:
        emit(whole * longest, rest)


def over_groups(packing: Packing, emit: Callable[[Expr, Expr, int], None]) -> None:
    """Loop over groups of inputs that share a scale; the last may be shorter.

    `emit` is given the group, its first input and its number of inputs, padding included.
    """
    size = packing.group if packing.groups > 1 else packing.padded_k
    whole, rest = divmod(packing.padded_k, size)
    over_runs(whole, 1, lambda group, _: emit(group, group * size, size))
    if rest:
        emit(whole, whole * size, rest)


def ceil_quotient(value: Expr, divisor: int) -> Expr:
    """Divide a size by a constant and round up."""
    return quotient(value + (divisor - 1), divisor)
