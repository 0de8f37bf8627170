"""A few rows of activations: the weight streams by, and reading it is what takes the time."""

from __future__ import annotations

from codegen.kernels.blocking import over_groups, over_row_blocks, over_runs
from codegen.kernels.builder import (
    Expr,
    Registers,
    bind,
    broadcast,
    cast,
    fma,
    load,
    parallel,
    prefetch,
    serial,
    splat,
)
from codegen.kernels.isa import ByteDots, byte_dots
from codegen.kernels.quantized_operands import Operands, QuantizedMatmul, split_halves
from qcompiler.core.artifact import LINE_BYTES
from qcompiler.core.target import Target

# The hardware's own prefetching stops at each page's end and starts anew on the next; asking two
# pages ahead takes a 4-bit product from 75 % to 94 % of the memory's bandwidth (Emerald Rapids).
_PREFETCH_BYTES = 8192


def emit_one_row(spec: QuantizedMatmul, target: Target, operands: Operands) -> None:
    """Multiply the first row by the weight, in parallel over tiles."""
    with parallel(spec.packing.tiles) as tile:
        _emit_tile(spec, target, operands, tile, 0, 0, rows=1, vectors=spec.packing.vectors)


def few_rows(target: Target) -> int:
    """Return how many rows are best multiplied by `emit_few_rows`."""
    return 4 * _row_blocks(target)[0]


def _cells(target: Target) -> int:
    """Sums of rows and vectors that stay in registers, with their totals and what they add."""
    return target.vector_registers // 4


def _row_blocks(target: Target) -> tuple[int, ...]:
    """Rows that are multiplied at once, by two vectors at least."""
    return tuple(size for size in (4, 2, 1) if 2 * size <= _cells(target))


def emit_few_rows(spec: QuantizedMatmul, target: Target, operands: Operands, rows: Expr) -> None:
    """Multiply rows by the weight, in parallel over tiles.

    The first rows bring a tile in; the others find it in the nearest caches.
    """
    packing = spec.packing
    with parallel(packing.tiles) as tile:

        def emit_block(row: Expr, size: int) -> None:
            vectors = min(packing.vectors, _cells(target) // size)
            with serial(packing.vectors // vectors) as part:
                first = bind(part * vectors)
                _emit_tile(spec, target, operands, tile, row, first, rows=size, vectors=vectors)

        over_row_blocks(0, rows, _row_blocks(target), emit_block)


def _emit_tile(
    spec: QuantizedMatmul,
    target: Target,
    operands: Operands,
    tile: Expr,
    row: Expr,
    first_vector: Expr,
    *,
    rows: int,
    vectors: int,
) -> None:
    """Multiply rows from `row` on by vectors of a tile, from `first_vector` on."""
    packing, lanes = spec.packing, spec.packing.lanes
    cells = [(r, v) for r in range(rows) for v in range(vectors)]
    totals = Registers(len(cells), lanes)
    for cell in range(len(cells)):
        totals[cell] = splat(0.0, lanes)

    def add_group(group: Expr, first: Expr, inputs: int) -> None:
        dots = byte_dots(target, packing.bits, len(cells))
        code_sums = [bind(load(operands.sums, row + r, group)) for r in range(rows)]
        for cell, (r, _) in enumerate(cells):
            dots[cell] = broadcast(code_sums[r] * -packing.offset, lanes)
        before = tile * packing.padded_k + first
        line = packing.vectors * lanes * packing.bits // 8
        start = bind(before * line + first_vector * (4 * lanes))

        def add_run(run: Expr, steps: int) -> None:
            for step in range(steps):
                _add_eight_inputs(operands, dots, start, row, first, run + step, cells)
            dots.flush()

        # A step takes eight inputs: two products.
        over_runs(inputs // 8, dots.longest_run // 2, add_run)
        for cell, (r, v) in enumerate(cells):
            place = ((tile * packing.groups + group) * packing.vectors + first_vector + v) * lanes
            total = cast(dots[cell], "float32")
            if not packing.symmetric:
                minus_sum = broadcast(cast(code_sums[r] * -1, "float32"), lanes)
                total = fma(operands.zero_point(place), minus_sum, total)
            if spec.scale_per_group:
                total = total * broadcast(load(operands.scales, row + r, group), lanes)
            totals[cell] = fma(total, operands.weight_scale(place), totals[cell])

    over_groups(packing, add_group)
    for r in range(rows):
        sums = [totals[r * vectors + v] for v in range(vectors)]
        if not spec.scale_per_group:
            sums = [total * broadcast(load(operands.scales, row + r, 0), lanes) for total in sums]
        operands.output.finish(row + r, tile, first_vector, [bind(total) for total in sums])


def _add_eight_inputs(
    operands: Operands,
    dots: ByteDots,
    start: Expr,
    row: Expr,
    first: Expr,
    step: Expr,
    cells: list[tuple[int, int]],
) -> None:
    """Add the products of inputs `first` + 8 · `step` and the seven after it.

    start: the place of the weights of input `first` and the first vector, in bytes. cells: the row
    and the vector of each sum.
    """
    packing = operands.packing
    rows, vectors = (max(numbers) + 1 for numbers in zip(*cells, strict=True))
    activations = [
        [dots.activation(four) for four in operands.fours(row + r, first + step * 8, 2)]
        for r in range(rows)
    ]
    width = 4 * packing.lanes
    step_bytes = packing.vectors * packing.lanes * packing.bits
    for v in range(vectors):
        place = start + (step * step_bytes + v * width)
        # Once for each line of the cache.
        first_of_line = v * width % LINE_BYTES == 0
        if first_of_line:
            prefetch(operands.weights, place + _PREFETCH_BYTES)
        if packing.bits == 4:
            packed = bind(operands.weight_bytes(place))
            halves = split_halves(packed)
        else:
            later = place + packing.vectors * width
            if first_of_line:
                prefetch(operands.weights, later + _PREFETCH_BYTES)
            halves = operands.weight_bytes(place), operands.weight_bytes(later)
        for half, weight in enumerate(halves):
            ready = dots.weight(weight)
            for r in range(rows):
                dots.add(r * vectors + v, ready, activations[r][half])
