"""Rows of an embedding table, read straight from the packed weight that the head multiplies by.

Arguments: ids [m] int64, all in [0, n); the weight's arrays as `codegen.packing` lays them out; out
[m, k] float32. Quantised rows are scale · (code - zero point), as in `core.qtensor`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    broadcast,
    cast,
    kernel,
    load,
    load_half,
    low_bits,
    parallel,
    quotient,
    reinterpret,
    serial,
    shift_right,
    size,
    splat,
    store,
    store_first,
    when,
)
from codegen.packing import Packing
from qcompiler.core.target import Target

_FEW_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """A table of n rows of k numbers."""

    packing: Packing

    def __post_init__(self) -> None:
        assert not self.packing.gated, self.packing


@dataclass(frozen=True, slots=True)
class _Table:
    packing: Packing
    weights: Buffer
    scales: Buffer | None
    zero_points: Buffer | None

    @classmethod
    def arguments(cls, packing: Packing) -> _Table:
        if packing.bits == 32:
            weights = argument("weights", (packing.code_bytes // 4,), "float32")
            return cls(packing, weights, None, None)
        return cls(
            packing,
            argument("weights", (packing.code_bytes,), "uint8"),
            argument("weight_scales", (packing.scale_count,), "float16"),
            None
            if packing.symmetric
            else argument("zero_points", (packing.zero_point_count,), "uint8"),
        )


def embedding(spec: EmbeddingSpec, target: Target) -> PrimFunc:
    """Build the look-up of any number m of rows."""
    with kernel("embedding") as built:
        rows = size("m")
        ids = argument("ids", (rows,), "int64")
        table = _Table.arguments(spec.packing)
        out = argument("out", (rows, spec.packing.k), "float32")

        def emit_row(row: Expr) -> None:
            # Its tile, and its place within it.
            index = bind(load(ids, row))
            tile = bind(quotient(index, spec.packing.rows_per_tile))
            place = bind(index - tile * spec.packing.rows_per_tile)
            (_emit_floats if spec.packing.bits == 32 else _emit_codes)(table, tile, place, out, row)

        def one_after_the_other() -> None:
            with serial(rows) as row:
                emit_row(row)

        def in_parallel() -> None:
            with parallel(rows) as row:
                emit_row(row)

        when(rows < _FEW_ROWS, one_after_the_other, in_parallel)
    return built.get()


def _emit_floats(table: _Table, tile: Expr, place: Expr, out: Buffer, row: Expr) -> None:
    packing = table.packing
    with serial(packing.k) as k:
        value = load(table.weights, (tile * packing.k + k) * packing.rows_per_tile + place)
        store(out, value, row, k)


def _emit_codes(table: _Table, tile: Expr, place: Expr, out: Buffer, row: Expr) -> None:
    """Unpack one row, four numbers at a time."""
    packing = table.packing
    width = packing.rows_per_tile

    def emit_group(group: Expr, first: Expr, inputs: int) -> None:
        factor = (tile * packing.groups + group) * width + place
        scale = bind(broadcast(load_half(table.scales, factor), 4))
        zero = splat(packing.offset, 4)
        if table.zero_points is not None:
            zero_point = broadcast(cast(load(table.zero_points, factor), "float32"), 4)
            zero = bind(zero_point + zero) if packing.offset else bind(zero_point)

        def emit_four(codes: Expr, k: Expr, count: int) -> None:
            value = scale * (cast(codes, "float32") - zero)
            store_first(out, value, row, k, count=count)

        def emit_eight(step: Expr, count: int) -> None:
            start = first + step * 8
            if packing.bits == 4:
                four = ((tile * packing.padded_k + start) * width // 2) + place * 4
                both = bind(load(table.weights, four, lanes=4))
                halves = low_bits(both, 15), shift_right(both, 4)
            else:
                four = (tile * packing.padded_k + start) * width + place * 4
                later = four + 4 * width
                halves = load(table.weights, four, lanes=4), load(table.weights, later, lanes=4)
                if packing.signed:
                    halves = tuple(reinterpret(half, "int8", 4) for half in halves)
            emit_four(halves[0], start, min(count, 4))
            if count > 4:
                emit_four(halves[1], start + 4, count - 4)

        if inputs // 8:
            with serial(inputs // 8) as step:
                emit_eight(step, 8)
        if inputs % 8:
            emit_eight(inputs // 8, inputs % 8)

    whole = packing.k // packing.group
    with serial(whole) as group:
        emit_group(group, group * packing.group, packing.group)
    if packing.k % packing.group:
        emit_group(whole, whole * packing.group, packing.k % packing.group)
