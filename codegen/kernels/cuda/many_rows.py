"""Products of many rows on tensor cores: int8 codes, or float16 for activations that are floats.

A block has four warps. Each computes one tile of outputs for the same `BLOCK` rows of activations,
whose part of a *span* of inputs lies in shared memory. Weights go from global memory straight into
the fragments of `mma`: they are read once for each block of rows, sixteen bytes at a time.

The order of inputs within a product of 32, and of outputs within a tile, is free as long as both
operands agree. Thread q of the four that share a fragment's row takes inputs 8q to 8q + 7 of 32,
which one word of 4-bit codes holds; column c of fragment j is output 4c + j of the tile, which is
word j of sixteen bytes. So a thread ends up with eight outputs in a row, of each of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    cast,
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
from codegen.kernels.cuda.fragments import Bytes, Fragments, Halves
from codegen.kernels.cuda.instructions import fma
from codegen.kernels.cuda.one_row import FloatProduct
from codegen.kernels.cuda.threads import WARP, keep, launch, registers, sync
from codegen.kernels.cuda.weight_rows import PackedWeight
from codegen.kernels.quantized_operands import QuantizedMatmul
from codegen.packing import Packing
from qcompiler.core.target import Target

_WARPS = 4
_STEP = 32
"""Inputs that are multiplied at once."""
_LONGEST_SPAN = 128
_OUTPUTS = 8
"""Outputs of a row that a thread has, of each vector of a tile."""


@dataclass(frozen=True, slots=True)
class Spans:
    """How inputs are cut: into spans, which lie in shared memory one after the other, and groups.

    A span holds whole groups of scales, or a group whole spans.
    """

    packing: Packing
    inputs: int
    """Inputs of a span."""
    groups: int
    """Groups that begin in a span."""
    per_group: int
    """Spans of a group."""
    count: int
    """Groups of spans, or spans, whichever are longer, that cover all inputs."""

    @classmethod
    def of(cls, packing: Packing) -> Spans:
        """Cut the inputs of a weight."""
        group = packing.padded_k if packing.groups == 1 else packing.group
        if group <= _LONGEST_SPAN:
            groups = 1 if packing.groups == 1 else _LONGEST_SPAN // group
            span = groups * group
            return cls(packing, span, groups, 1, ceil_div(packing.padded_k, span))
        if packing.groups == 1:
            span = _LONGEST_SPAN  # the last may be shorter
        else:
            span = next(s for s in range(_LONGEST_SPAN, 0, -8) if group % s == 0)
        return cls(packing, span, 1, ceil_div(group, span), ceil_div(packing.padded_k, group))

    @property
    def group_inputs(self) -> int:
        """Inputs of a span that belong to one group."""
        return self.inputs // self.groups

    @property
    def uneven(self) -> bool:
        """Whether the last span holds fewer inputs than the others."""
        return self.packing.padded_k % self.inputs != 0


def integer_rows(spec: QuantizedMatmul, target: Target) -> PrimFunc:
    """Build the product of m rows of int8 codes; arguments as in `quantized_matmul`."""
    packing = spec.packing
    with kernel("integer_rows") as built:
        rows = size("m")
        codes = argument("codes", (rows, packing.padded_k), "int8")
        groups = packing.groups if spec.scale_per_group else 1
        scales = argument("scales", (rows, groups), "float32")
        sums = argument("sums", (rows, packing.groups), "int32")
        weight = PackedWeight.arguments(packing)
        output = Output.arguments(packing, spec.epilogue, rows)
        fragments = Bytes(weight, codes, rows)

        def term(value: Expr, row: Expr, group: Expr, zero: Expr) -> Expr:
            # What was added to codes, or stands for zero, is taken from the exact sum.
            exact = value - zero * load(sums, row, group)
            wide = cast(exact, "float32")
            return wide * load(scales, row, group) if spec.scale_per_group else wide

        def last(value: Expr, row: Expr) -> Expr:
            return value if spec.scale_per_group else value * load(scales, row, 0)

        _emit(fragments, output, rows, term, last)
    return built.get()


def half_rows(spec: FloatProduct, target: Target) -> PrimFunc:
    """Build x [m, k] float32 times packed codes; arguments as `float_row`, with m rows.

    Activations are rounded to float16 on their way to the tensor cores; codes are exact in it, and
    sums and scales are float32.
    """
    packing = spec.packing
    with kernel("half_rows") as built:
        rows = size("m")
        x = argument("x", (rows, packing.k), "float32")
        weight = PackedWeight.arguments(packing)
        output = Output.arguments(packing, spec.epilogue, rows)
        fragments = Halves(weight, x, rows)
        _emit(
            fragments,
            output,
            rows,
            lambda value, row, group, zero: value,
            lambda value, row: value,
        )
    return built.get()


Term = Callable[[Expr, Expr, Expr, Expr], Expr]
Last = Callable[[Expr, Expr], Expr]


def _emit(fragments: Fragments, output: Output, rows: Expr, term: Term, last: Last) -> None:
    """Emit the launch.

    term(sum of a group, row, group, zero point) is what is scaled by the weight's scale and added
    up; last(sum, row) is what that becomes before the epilogue.
    """
    weight = fragments.weight
    packing = weight.packing
    spans = Spans.of(packing)
    vectors = packing.vectors
    blocks = 4 // vectors  # of 16 rows: as many as registers allow
    height = 16 * blocks
    grid = ceil_div(packing.tiles, _WARPS), tirx.floordiv(rows + (height - 1), height)
    with launch(*grid, threads=_WARPS * WARP) as (column, band, thread):
        lane, warp = bind(thread % WARP), bind(thread // WARP)
        # Warps behind the last tile do the last one again, because all have to meet.
        wanted = bind(column * _WARPS + warp)
        tile = bind(tirx.min(wanted, tirx.IntImm("int64", packing.tiles - 1)))
        first_row = bind(band * height)
        staged = fragments.stage_memory(height, spans.inputs)
        count = blocks * vectors * 16
        sums = registers(count, fragments.dtype)
        totals = registers(count)
        for i in range(count):
            store(totals, constant(0.0, "float32"), i)

        def row_of(block: int, half: int) -> Expr:
            """The row of two of a fragment's four sums; the last one again behind the last."""
            return tirx.min(first_row + (block * 16 + half * 8) + lane // 4, rows - 1)

        def clear() -> None:
            for i in range(count):
                store(sums, constant(0, fragments.dtype), i)

        def multiply(start: Expr, offset: Expr) -> None:
            """Multiply the inputs of one group, from `offset` of the span at `start` on."""
            whole, rest = divmod(spans.group_inputs, _STEP)

            def step(at: Expr, inputs: int) -> None:
                fragments.multiply(
                    sums, staged, tile, lane, start, at, inputs, blocks, spans.uneven
                )

            if whole:
                with serial(whole) as index:
                    step(offset + index * _STEP, _STEP)
            if rest:
                step(offset + whole * _STEP, rest)

        def scale(group: Expr) -> None:
            """Add the sums of a group to the totals."""
            eight = lane % 4 * _OUTPUTS
            for vector in range(vectors):
                factors = weight.weight_scales(tile, group, vector, eight, _OUTPUTS)
                zeros = weight.zeros(tile, group, vector, eight, _OUTPUTS)
                for block in range(blocks):
                    for half in range(2):
                        row = bind(row_of(block, half))
                        for place in range(_OUTPUTS):
                            at = _place(block, vector, half, place, vectors)
                            value = term(load(sums, at), row, group, zeros[place])
                            store(totals, fma(value, factors[place], load(totals, at)), at)

        def span(start: Expr) -> None:
            sync()
            fragments.stage(staged, thread, _WARPS * WARP, first_row, height, start, spans.inputs)
            sync()

        with serial(spans.count) as index:
            if spans.per_group > 1:
                clear()
                with serial(spans.per_group) as inner:
                    start = bind((index * spans.per_group + inner) * spans.inputs)
                    span(start)
                    multiply(start, 0)
                scale(index)
            else:
                start = bind(index * spans.inputs)
                span(start)
                with serial(spans.groups) as part:
                    group = bind(index * spans.groups + part)

                    def one(part: Expr = part, group: Expr = group, start: Expr = start) -> None:
                        clear()
                        multiply(start, part * spans.group_inputs)
                        scale(group)

                    if spans.groups * spans.count > packing.groups:
                        when(group < packing.groups, one)
                    else:
                        one()
        when(
            wanted < packing.tiles,
            lambda: _finish(output, totals, tile, lane, first_row, rows, blocks, last),
        )


def _place(block: int, vector: int, half: int, output: int, vectors: int) -> int:
    """Where the sum of one of a thread's eight outputs lies among its registers.

    Output 4c + j is in fragment j; of its columns a thread has 2q and 2q + 1, of each half of rows.
    """
    column, fragment = divmod(output, 4)
    return ((block * vectors + vector) * 4 + fragment) * 4 + half * 2 + column


def _finish(
    output: Output,
    totals: Buffer,
    tile: Expr,
    lane: Expr,
    first_row: Expr,
    rows: Expr,
    blocks: int,
    last: Last,
) -> None:
    """Complete a thread's results and store them, four at a time where that is possible."""
    packing = output.packing
    vectors = packing.vectors
    first = bind(tile * WARP + lane % 4 * _OUTPUTS)
    finished = registers(_OUTPUTS)

    def one(block: int, half: int) -> None:
        row = bind(first_row + (block * 16 + half * 8) + lane // 4)

        def results() -> None:
            for place in range(_OUTPUTS):

                def single(place: int = place) -> None:
                    values = [
                        keep(last(load(totals, _place(block, v, half, place, vectors)), row))
                        for v in range(vectors)
                    ]
                    y = output.finished(values, row, first + place)
                    if packing.outputs % 4:
                        store(output.out, y, row, first + place)
                    else:
                        store(finished, y, place)

                # A tile ends behind the last output; eight of them may.
                if packing.outputs % WARP:
                    when(first + place < packing.outputs, single)
                else:
                    single()
            if packing.outputs % 4 == 0:
                for quad in range(0, _OUTPUTS, 4):

                    def four(quad: int = quad) -> None:
                        store(output.out, load(finished, quad, lanes=4), row, first + quad)

                    if packing.outputs % WARP:
                        when(first + quad < packing.outputs, four)
                    else:
                        four()

        when(row < rows, results)

    for block in range(blocks):
        for half in range(2):
            one(block, half)
