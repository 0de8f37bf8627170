"""Many rows of activations: each weight serves a block of rows, and multiplying takes the time."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels.blocking import (
    over_groups,
    over_row_blocks,
    over_runs,
    over_tiles_and_panels,
    panel_rows,
)
from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    broadcast,
    cast,
    fma,
    load,
    low_bits,
    reinterpret,
    scratch,
    serial,
    splat,
    store,
)
from codegen.kernels.isa import byte_dots
from codegen.kernels.quantized_operands import Operands, QuantizedMatmul, split_halves
from qcompiler.core.target import Target

# An integer i, |i| < 2²², added to the bits of the float 1.5 · 2²³ makes the bits of 1.5 · 2²³ + i.
# Sums that start there need no conversion: (1.5 · 2²³ + i) · s - 1.5 · 2²³ · s is one fused
# multiply-add, and it is i · s rounded once, provided that 1.5 · 2²³ · s is exact. For that, the
# two lowest bits of the activation scale s are cleared, which changes it by less than 2⁻²¹ of it.
_BIAS = 1.5 * 2**23
_BIAS_BITS = 0x4B400000
_LARGEST_BIASED = 1 << 22
_LARGEST_ACTIVATION = 127


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of the weight, ready to be multiplied by block after block of rows.

    weights: 8-bit codes, those of the tile's input 0 at `start`; scales and zero points widened to
    float32, [group][vector][lane].
    """

    index: Expr
    weights: Buffer
    start: Expr | int
    scales: Buffer
    zero_points: Buffer | None


@dataclass(frozen=True, slots=True)
class _RowFactors:
    """What differs between rows and groups only, for one block: flat buffers [row][group].

    initial: where the integer sums start. minus_sums: -Σ codes, for zero points. scales and
    minus_biases: the activation scale s and -1.5 · 2²³ · s, if sums are biased.
    """

    initial: Buffer
    minus_sums: Buffer | None
    scales: Buffer | None
    minus_biases: Buffer | None


def emit_many_rows(spec: QuantizedMatmul, target: Target, operands: Operands, rows: Expr) -> None:
    """Multiply all rows by the weight, in parallel over tiles and panels of rows."""
    # Integer sums, float totals, weights and an activation of a block stay in registers.
    block = 3 * target.vector_registers // 16
    panel = panel_rows(target, spec.packing.padded_k, block)

    def emit_panel(tile: Expr, first: Expr, count: Expr) -> None:
        ready = _prepare_tile(operands, tile)

        def emit_block(row: Expr, size: int) -> None:
            _emit_block(spec, target, operands, ready, row, size, narrow=size == block)

        over_row_blocks(first, count, sorted({block, block // 2, 1}, reverse=True), emit_block)

    over_tiles_and_panels(spec.packing, target, rows, panel=panel, block=block, emit=emit_panel)


def _prepare_tile(operands: Operands, tile: Expr) -> _Tile:
    """Widen what is narrow, once for all blocks of rows."""
    packing, lanes, vectors = operands.packing, operands.packing.lanes, operands.packing.vectors
    width = 4 * lanes
    weights, start = operands.weights, tile * (packing.padded_k * vectors * lanes)
    if packing.bits == 4:
        weights, start = scratch(packing.padded_k * vectors * lanes, "uint8"), 0
        steps = packing.padded_k // 8
        with serial(steps) as step:
            for v in range(vectors):
                packed = bind(operands.weight_bytes(((tile * steps + step) * vectors + v) * width))
                for half, codes in enumerate(split_halves(packed)):
                    place = ((step * 2 + half) * vectors + v) * width
                    store(weights, reinterpret(codes, "uint8", width), place)
    count = packing.groups * vectors
    scales = scratch(count * lanes, "float32")
    zero_points = None if packing.symmetric else scratch(count * lanes, "float32")
    with serial(count) as index:
        place = bind((tile * count + index) * lanes)
        store(scales, operands.weight_scale(place), index * lanes)
        if zero_points is not None:
            store(zero_points, operands.zero_point(place), index * lanes)
    return _Tile(tile, weights, start, scales, zero_points)


def _prepare_rows(
    spec: QuantizedMatmul, operands: Operands, row: Expr, rows: int, *, biased: bool
) -> _RowFactors:
    """Compute the factors of a block of rows."""
    packing = spec.packing
    count = rows * packing.groups
    factors = _RowFactors(
        scratch(count, "int32"),
        None if packing.symmetric else scratch(count, "float32"),
        scratch(count, "float32") if biased else None,
        scratch(count, "float32") if biased else None,
    )

    def prepare(place: Expr, lanes: int) -> None:
        # Rows follow each other: the groups of all of the block's rows are one run of numbers.
        sums = bind(load(operands.sums, row, place, lanes=lanes))
        initial = sums * splat(-packing.offset, lanes, "int32")
        store(factors.initial, initial + splat(_BIAS_BITS if biased else 0, lanes, "int32"), place)
        if factors.minus_sums is not None:
            store(factors.minus_sums, cast(sums * splat(-1, lanes, "int32"), "float32"), place)
        if biased:
            bits = reinterpret(load(operands.scales, row, place, lanes=lanes), "int32", lanes)
            scale = bind(reinterpret(low_bits(bits, -4), "float32", lanes))
            store(factors.scales, scale, place)
            store(factors.minus_biases, scale * splat(-_BIAS, lanes), place)

    lanes = packing.lanes if count >= packing.lanes else 1
    with serial(count // lanes) as index:
        prepare(index * lanes, lanes)
    if count % lanes:
        prepare(count - lanes, lanes)  # some for the second time
    return factors


def _is_biased(spec: QuantizedMatmul) -> bool:
    """Tell whether sums of a group are small enough to be biased, and it saves anything."""
    packing = spec.packing
    largest_code = packing.offset or (1 << packing.bits) - 1
    # An asymmetric sum passes through the code sums without their zero points.
    largest_sum = packing.group * largest_code * _LARGEST_ACTIVATION
    return spec.scale_per_group and largest_sum < _LARGEST_BIASED


def _emit_block(
    spec: QuantizedMatmul,
    target: Target,
    operands: Operands,
    tile: _Tile,
    row: Expr,
    rows: int,
    *,
    narrow: bool,
) -> None:
    """Multiply a block of rows by a tile, two vectors at a time if `narrow`, else all of them."""
    packing, lanes = spec.packing, spec.packing.lanes
    biased = _is_biased(spec)
    factors = _prepare_rows(spec, operands, row, rows, biased=biased)
    vectors = min(2, packing.vectors) if narrow else packing.vectors
    cells = [(r, v) for r in range(rows) for v in range(vectors)]
    totals = scratch(len(cells) * lanes, "float32")

    def emit_part(part: Expr) -> None:
        first_vector = part * vectors
        with serial(len(cells)) as cell:
            store(totals, splat(0.0, lanes), cell * lanes)

        def add_group(group: Expr, first: Expr, inputs: int) -> None:
            dots = byte_dots(target, packing.bits, len(cells))
            for r in range(rows):
                initial = bind(broadcast(load(factors.initial, group + r * packing.groups), lanes))
                for v in range(vectors):
                    dots[r * vectors + v] = initial
            start = bind(tile.start + (first * packing.vectors + first_vector * 4) * lanes)

            def add_run(run: Expr, steps: int) -> None:
                for step in range(steps):
                    k4 = run + step
                    weights = []
                    for v in range(vectors):
                        place = start + (k4 * packing.vectors + v) * 4 * lanes
                        vector = load(tile.weights, place, lanes=4 * lanes)
                        weights.append(dots.weight(reinterpret(vector, "int32", lanes)))
                    for r in range(rows):
                        codes = operands.four_codes(row + r, first + k4 * 4)
                        activation = dots.activation(codes)
                        for v in range(vectors):
                            dots.add(r * vectors + v, weights[v], activation)
                dots.flush()

            over_runs(inputs // 4, dots.longest_run, add_run)
            places = [
                ((group * packing.vectors + first_vector + v) * lanes) for v in range(vectors)
            ]
            scales = [bind(load(tile.scales, place, lanes=lanes)) for place in places]
            for r, v in cells:
                cell = r * vectors + v
                index = group + r * packing.groups
                sums = dots[cell]
                total = reinterpret(sums, "float32", lanes) if biased else cast(sums, "float32")
                if tile.zero_points is not None:
                    zero = load(tile.zero_points, places[v], lanes=lanes)
                    total = fma(zero, broadcast(load(factors.minus_sums, index), lanes), total)
                if biased:
                    scale = broadcast(load(factors.scales, index), lanes)
                    minus_bias = broadcast(load(factors.minus_biases, index), lanes)
                    total = fma(total, scale, minus_bias)
                elif spec.scale_per_group:
                    total = total * broadcast(load(operands.scales, row + r, group), lanes)
                kept = load(totals, cell * lanes, lanes=lanes)
                store(totals, fma(total, scales[v], kept), cell * lanes)

        over_groups(packing, add_group)
        with serial(rows) as r:
            values = [load(totals, (r * vectors + v) * lanes, lanes=lanes) for v in range(vectors)]
            if not spec.scale_per_group:
                scale = broadcast(load(operands.scales, row + r, 0), lanes)
                values = [value * scale for value in values]
            values = [bind(value) for value in values]
            operands.output.finish(row + r, tile.index, first_vector, values)

    over_runs(packing.vectors // vectors, 1, lambda part, _: emit_part(part))
