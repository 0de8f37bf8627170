"""Rows of tables, rotation of heads, and the largest few of a row."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    cast,
    constant,
    kernel,
    load,
    low_bits,
    serial,
    shift_right,
    size,
    store,
    when,
)
from codegen.kernels.cuda.threads import WARP, keep, launch, registers, strided
from codegen.kernels.cuda.weight_rows import PackedWeight
from codegen.kernels.embedding import EmbeddingSpec
from codegen.kernels.rotary import RotarySpec
from codegen.kernels.row import Rows
from codegen.kernels.top_k import TopKSpec
from qcompiler.core.target import Target

_THREADS = 128


def embedding(spec: EmbeddingSpec, target: Target) -> PrimFunc:
    """ids [m] int64, the table as packed weights are → out [m, k] float32."""
    packing = spec.packing
    with kernel("embedding") as built:
        rows = size("m")
        ids = argument("ids", (rows,), "int64")
        table = PackedWeight.arguments(packing)
        out = argument("out", (rows, packing.k), "float32")
        with launch(rows, threads=_THREADS) as (row, thread):
            index = bind(load(ids, row))
            tile, place = bind(index // WARP), bind(index % WARP)

            def number(k: Expr) -> None:
                store(out, _number(table, tile, place, k), row, k)

            strided(packing.k, thread, _THREADS, number)
    return built.get()


def _number(table: PackedWeight, tile: Expr, place: Expr, k: Expr) -> Expr:
    """Return one number of a table's row, which is output `place` of a tile."""
    packing = table.packing
    row = bind(k // table.inputs)
    word = bind(((tile * table.rows + row) * packing.vectors) * WARP + place)
    if packing.bits == 32:
        return load(table.codes, word)
    within = bind(k % table.inputs)
    code = cast(load(table.codes, word * 4 + within % 4), "int32")
    if packing.bits == 4:
        code = low_bits(tirx.Select(within < 4, code, shift_right(code, 4)), 15)
    group = tirx.IntImm("int64", 0) if packing.groups == 1 else k // packing.group
    at = bind(((tile * packing.groups + group) * packing.vectors) * WARP + place)
    if table.zero_points is None:
        zero: Expr = tirx.const(packing.offset, "int32")
    else:
        zero = cast(load(table.zero_points, at), "int32")
    return cast(load(table.scales, at), "float32") * cast(code - zero, "float32")


def rotary(spec: RotarySpec, target: Target) -> PrimFunc:
    """x [b, s, h, d], cos and sin [b, s, r/2] → y as x."""
    with kernel("rotary") as built:
        b, s = size("b"), size("s")
        shape = (b, s, spec.heads, spec.head_size)
        x = argument("x", shape, "float32")
        cos = argument("cos", (b, s, spec.rotated // 2), "float32")
        sin = argument("sin", (b, s, spec.rotated // 2), "float32")
        y = argument("y", shape, "float32")
        items = spec.heads * spec.head_size
        with launch(s, b, threads=_THREADS) as (token, batch, thread):

            def one(item: Expr) -> None:
                head, feature = bind(item // spec.head_size), bind(item % spec.head_size)
                turned = rotated(
                    lambda f: load(x, batch, token, head, f),
                    lambda i: load(cos, batch, token, i),
                    lambda i: load(sin, batch, token, i),
                    feature,
                    spec,
                )
                store(y, turned, batch, token, head, feature)

            strided(items, thread, _THREADS, one)
    return built.get()


Read = Callable[[Expr], Expr]


def rotated(read: Read, cos: Read, sin: Read, feature: Expr, spec: RotarySpec) -> Expr:
    """Return a feature of a head that `read` yields, turned by angles that the others yield."""
    half = spec.rotated // 2
    if spec.interleaved:
        pair, second = bind(feature // 2), (feature % 2).equal(1)
        other = tirx.Select(second, feature - 1, feature + 1)
    else:
        second = feature >= half
        pair = bind(tirx.Select(second, feature - half, feature))
        other = tirx.Select(second, feature - half, feature + half)
    if spec.rotated == spec.head_size:
        return _turn(read, cos, sin, feature, pair, other, second)
    result = registers(1)
    when(
        feature < spec.rotated,
        lambda: store(result, _turn(read, cos, sin, feature, pair, other, second), 0),
        lambda: store(result, read(feature), 0),
    )
    return load(result, 0)


def _turn(
    read: Read, cos: Read, sin: Read, feature: Expr, pair: Expr, other: Expr, second: Expr
) -> Expr:
    mine, theirs = keep(read(feature)), keep(read(bind(other)))
    c, s = keep(cos(pair)), keep(sin(pair))
    # a·cos − b·sin for the first of a pair, b·cos + a·sin for the second.
    return keep(mine * c + tirx.Select(second, theirs * s, constant(0.0, "float32") - theirs * s))


def top_k(spec: TopKSpec, target: Target, rows: Rows) -> PrimFunc:
    """x [m, n] → values [m, k], places [m, k] int64; of equal numbers the first comes first.

    A thread for each row, which it reads k times: right for a few of not too many.
    """
    with kernel("top_k") as built:
        m, n = 1 if rows == "one" else size("m"), size("n")
        x = argument("x", (m, n), spec.dtype)
        values = argument("values", (m, spec.k), spec.dtype)
        places = argument("places", (m, spec.k), "int64")
        blocks = 1 if rows == "one" else tirx.floordiv(m + (WARP - 1), WARP)
        with launch(blocks, threads=WARP) as (block, thread):
            row = bind(block * WARP + thread)
            when(row < m, lambda: _largest_few(spec, x, values, places, row, n))
    return built.get()


def _largest_few(
    spec: TopKSpec, x: Buffer, values: Buffer, places: Buffer, row: Expr, n: Expr
) -> None:
    last, best = registers(1, spec.dtype), registers(1, spec.dtype)
    last_place, best_place = registers(1, "int64"), registers(1, "int64")
    store(last, spec.summit(), 0)
    store(last_place, constant(-1, "int64"), 0)
    with serial(spec.k) as rank:
        store(best_place, constant(-1, "int64"), 0)
        with serial(n) as i:
            v = keep(load(x, row, i))
            after_last = tirx.Or(
                spec.above(load(last, 0), v),
                tirx.And(v.equal(load(last, 0)), i > load(last_place, 0)),
            )
            before_best = tirx.Or(load(best_place, 0) < 0, spec.above(v, load(best, 0)))

            def take(v: Expr = v, i: Expr = i) -> None:
                store(best, v, 0)
                store(best_place, i, 0)

            when(tirx.And(after_last, before_best), take)
        place = keep(tirx.max(load(best_place, 0), constant(0, "int64")))
        store(last, load(x, row, place), 0)
        store(last_place, place, 0)
        store(values, load(x, row, place), row, rank)
        store(places, place, row, rank)
