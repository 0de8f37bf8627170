"""Products of many rows of floats and a float32 weight, in float32 arithmetic.

A block has four warps, each of which computes a tile for the same rows; a lane has one output of
the tile. Activations come by way of shared memory, where all lanes read the same number at once.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Expr,
    argument,
    bind,
    ceil_div,
    constant,
    kernel,
    load,
    serial,
    size,
    store,
    when,
)
from codegen.kernels.cuda.epilogue import Output
from codegen.kernels.cuda.instructions import fma
from codegen.kernels.cuda.one_row import FloatProduct
from codegen.kernels.cuda.threads import WARP, keep, launch, registers, shared, strided, sync
from codegen.kernels.cuda.weight_rows import PackedWeight
from qcompiler.core.target import Target

_WARPS = 4
_ROWS = 16
_SPAN = 32
"""Inputs in shared memory at once."""


def float_rows(spec: FloatProduct, target: Target) -> PrimFunc:
    """Build x [m, k] times a float32 weight; arguments as `float_row`, with m rows."""
    packing = spec.packing
    assert packing.bits == 32, packing
    vectors, k_size = packing.vectors, packing.k
    with kernel("float_rows") as built:
        rows = size("m")
        x = argument("x", (rows, k_size), "float32")
        weight = PackedWeight.arguments(packing)
        output = Output.arguments(packing, spec.epilogue, rows)
        grid = ceil_div(packing.tiles, _WARPS), tirx.floordiv(rows + (_ROWS - 1), _ROWS)
        with launch(*grid, threads=_WARPS * WARP) as (column, band, thread):
            lane, wanted = bind(thread % WARP), bind(column * _WARPS + thread // WARP)
            # Warps behind the last tile do the last one again, because all have to meet.
            tile = bind(tirx.min(wanted, tirx.IntImm("int64", packing.tiles - 1)))
            first = bind(band * _ROWS)
            staged = shared((_SPAN, _ROWS))
            sums = registers(_ROWS * vectors)
            for i in range(_ROWS * vectors):
                store(sums, constant(0.0, "float32"), i)

            def stage(start: Expr, item: Expr) -> None:
                place, k = bind(item // _SPAN), bind(item % _SPAN)
                inside = tirx.And(first + place < rows, start + k < k_size)
                when(
                    inside,
                    lambda: store(staged, load(x, first + place, start + k), k, place),
                    lambda: store(staged, constant(0.0, "float32"), k, place),
                )

            with serial(ceil_div(k_size, _SPAN)) as span:
                start = bind(span * _SPAN)
                sync()
                strided(_SPAN * _ROWS, thread, _WARPS * WARP, partial(stage, start))
                sync()
                with serial(_SPAN) as k:
                    # The last inputs are read again behind the last, and meet zeros.
                    row = bind(tirx.min(start + k, tirx.IntImm("int64", k_size - 1)))
                    for vector in range(vectors):
                        place = ((tile * k_size + row) * vectors + vector) * WARP + lane
                        number = keep(load(weight.codes, place))
                        for i in range(_ROWS):
                            at = vector * _ROWS + i
                            store(sums, fma(load(staged, k, i), number, load(sums, at)), at)

            index = bind(tile * WARP + lane)

            def finish(i: int) -> None:
                values = [keep(load(sums, vector * _ROWS + i)) for vector in range(vectors)]
                store(output.out, output.finished(values, first + i, index), first + i, index)

            def finish_all() -> None:
                for i in range(_ROWS):
                    when(first + i < rows, partial(finish, i))

            when(tirx.And(wanted < packing.tiles, index < packing.outputs), finish_all)
    return built.get()
