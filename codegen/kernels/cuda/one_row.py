"""Products of one row, as decoding needs them: as fast as the weight can be read.

A block computes a tile. Its warps share out the tile's rows: each reads 512 bytes that follow each
other at a time, four rows of 32 outputs, so that lane l has four outputs, from 4 (l mod 8) on, of
row l / 8. Codes are unpacked in registers. At the end the sums of lanes and warps are added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
    reinterpret,
    select,
    serial,
    store,
    when,
)
from codegen.kernels.cuda.epilogue import Output
from codegen.kernels.cuda.instructions import dot_bytes, fma, words
from codegen.kernels.cuda.threads import (
    WARP,
    call,
    int32,
    keep,
    launch,
    plus,
    registers,
    shared,
    sync,
    warp_reduce,
)
from codegen.kernels.cuda.weight_rows import QUAD, PackedWeight, split_halves
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.quantized_operands import QuantizedMatmul
from codegen.packing import Packing
from qcompiler.core.target import Target

_ROWS = 4
"""Rows that a warp reads at once."""

_AT_ONCE = 4
"""Loads in flight for each thread."""

_ONES = 0x01010101
_MAGIC = 0x4B000000  # as a float, 2²³: a byte in its lowest bits is added to it


def integer_row(spec: QuantizedMatmul, target: Target) -> PrimFunc:
    """Build the product of one row of int8 codes; arguments as in `quantized_matmul`."""
    packing = spec.packing
    with kernel("integer_row") as built:
        codes = argument("codes", (1, packing.padded_k), "int8")
        scales = argument("scales", (1, packing.groups if spec.scale_per_group else 1), "float32")
        argument("sums", (1, packing.groups), "int32")
        weight = PackedWeight.arguments(packing)
        output = Output.arguments(packing, spec.epilogue, 1)
        whole = packing.groups == 1

        def add(sums: Buffer, row: Expr, tile: Expr, quad: Expr, given: list[list[Expr]]) -> None:
            group = bind(weight.group_of(row))
            four = _codes_of(codes, row, weight.inputs)
            total = int32(0)
            for a in four:
                total = dot_bytes(a, int32(_ONES), total)
            total = keep(total)
            for vector, quads in enumerate(given):
                zeros = weight.zeros(tile, group, vector, quad * QUAD, QUAD)
                if not whole:
                    factors = weight.weight_scales(tile, group, vector, quad * QUAD, QUAD)
                for i, word in enumerate(quads):
                    parts = split_halves(word) if packing.bits == 4 else (word,)
                    value = int32(0) - zeros[i] * total
                    for a, part in zip(four, parts, strict=True):
                        value = dot_bytes(a, part, value)
                    place = vector * QUAD + i
                    if whole:
                        store(sums, load(sums, place) + value, place)
                        continue
                    term = cast(value, "float32")
                    if spec.scale_per_group:
                        term = term * load(scales, 0, group)
                    store(sums, fma(term, factors[i], load(sums, place)), place)

        def finish(sums: list[Expr], tile: Expr, place: Expr) -> list[Expr]:
            result = []
            for vector, value in enumerate(sums):
                y = cast(value, "float32")
                if whole:
                    (factor,) = (_scale(weight, tile, vector, place),)
                    y = (y * factor) * load(scales, 0, 0)
                elif not spec.scale_per_group:
                    y = y * load(scales, 0, 0)
                result.append(y)
            return result

        _emit(weight, output, "int32" if whole else "float32", add, finish)
    return built.get()


def _codes_of(codes: Buffer, row: Expr, inputs: int) -> list[Expr]:
    """The activations that a row meets, four to a word."""
    given = load(codes, 0, row * inputs, lanes=inputs)
    if inputs == 4:
        return [bind(reinterpret(given, "int32"))]
    return words(reinterpret(given, "int32", inputs // 4))


def _scale(weight: PackedWeight, tile: Expr, vector: int, place: Expr) -> Expr:
    at = (tile * weight.packing.vectors + vector) * WARP + place
    return cast(load(weight.scales, at), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatProduct:
    """A product of float activations and a packed weight, codes or float32, with what follows."""

    packing: Packing
    epilogue: Epilogue = field(default_factory=Epilogue)


def float_row(spec: FloatProduct, target: Target) -> PrimFunc:
    """Build x [1, k] float32 times packed codes or float32 numbers, with what follows.

    Arguments: x, then the weight as `codegen.packing` lays it out, bias [n] and residual
    [1, outputs] if asked for, out [1, outputs]. All arithmetic is float32; codes are exact in it.
    """
    packing = spec.packing
    with kernel("float_row") as built:
        x = argument("x", (1, packing.k), "float32")
        weight = PackedWeight.arguments(packing)
        output = Output.arguments(packing, spec.epilogue, 1)

        def add(sums: Buffer, row: Expr, tile: Expr, quad: Expr, given: list[list[Expr]]) -> None:
            group = bind(weight.group_of(row))
            numbers = _numbers_of(x, row, weight.inputs, packing.k)
            for vector, quads in enumerate(given):
                if packing.bits == 32:
                    factors = zeros = [None] * QUAD
                else:
                    factors = weight.weight_scales(tile, group, vector, quad * QUAD, QUAD)
                    zeros = weight.zeros(tile, group, vector, quad * QUAD, QUAD)
                for i, word in enumerate(quads):
                    place = vector * QUAD + i
                    if packing.bits == 32:
                        store(sums, fma(word, numbers[0], load(sums, place)), place)
                        continue
                    value = _dequantized_dot(word, numbers, zeros[i], packing.bits)
                    store(sums, fma(value, factors[i], load(sums, place)), place)

        _emit(weight, output, "float32", add, lambda sums, tile, place: sums)
    return built.get()


def _numbers_of(x: Buffer, row: Expr, inputs: int, k: int) -> list[Expr]:
    """The activations that a row meets; zero behind the last."""
    first = row * inputs
    if k % inputs == 0 and inputs >= 4:
        parts = [load(x, 0, first + 4 * i, lanes=4) for i in range(inputs // 4)]
        return [number for part in parts for number in words(part)]
    zero = constant(0.0, "float32")
    place = [tirx.min(first + i, tirx.IntImm("int64", k - 1)) for i in range(inputs)]
    return [keep(select(first + i < k, load(x, 0, place[i]), zero)) for i in range(inputs)]


def _dequantized_dot(word: Expr, numbers: list[Expr], zero: Expr, bits: int) -> Expr:
    """The sum of activations times what the codes of a word are, less their zero point."""
    parts = split_halves(word) if bits == 4 else (word,)
    # 2²³ + code, less 2²³ + zero: both are exact.
    base = keep(cast(int32(1 << 23) + zero, "float32"))
    total: Expr = constant(0.0, "float32")
    for part_number, part in enumerate(parts):
        packed = bind(part)
        for i in range(4):
            raised = call("int32", "__byte_perm", packed, int32(_MAGIC), int32(0x7650 + i))
            code = reinterpret(raised, "float32") - base
            total = fma(code, numbers[part_number * 4 + i], total)
    return keep(total)


Add = Callable[[Buffer, Expr, Expr, Expr, list[list[Expr]]], None]
Finish = Callable[[list[Expr], Expr, Expr], list[Expr]]


def _emit(weight: PackedWeight, output: Output, dtype: str, add: Add, finish: Finish) -> None:
    """Emit the launch.

    add(sums, row, tile, quad, words of each vector) adds a row to a thread's sums;
    finish(sums of each vector, tile, place) makes floats of the sums of one output of the tile.
    """
    packing, rows = weight.packing, weight.rows
    warps = _warps(rows)
    with launch(packing.tiles, threads=warps * WARP) as (tile, thread):
        lane, warp = bind(thread % WARP), bind(thread // WARP)
        quad, first = bind(lane % 8), bind(warp * _ROWS + lane // 8)
        count = packing.vectors * QUAD
        sums = registers(count, dtype)
        for i in range(count):
            store(sums, constant(0, dtype), i)
        stride = warps * _ROWS

        def take(places: list[Expr]) -> None:
            """Read rows, then add them: so many loads are on their way at once."""
            read = [
                [weight.words(tile, row, vector, quad) for vector in range(packing.vectors)]
                for row in places
            ]
            for row, given in zip(places, read, strict=True):
                add(sums, row, tile, quad, given)

        whole, rest = divmod(rows, stride * _AT_ONCE)
        if whole:
            with serial(whole) as step:
                start = bind(step * (stride * _AT_ONCE) + first)
                take([start + i * stride for i in range(_AT_ONCE)])
        for i in range(ceil_div(rest, stride)):
            row = bind(whole * stride * _AT_ONCE + i * stride + first)
            if (i + 1) * stride <= rest:
                take([row])
            else:
                when(row < rows, partial(take, [row]))
        # Lanes with the same outputs are 8 apart; warps leave their sums to the first.
        left = shared((warps, packing.vectors * WARP), dtype)
        for i in range(count):
            vector, place = divmod(i, QUAD)
            total = warp_reduce(load(sums, i), plus, first=8)
            when(
                lane < 8,
                partial(store, left, total, warp, vector * WARP + quad * QUAD + place),
            )
        sync()

        def complete() -> None:
            totals = []
            for vector in range(packing.vectors):
                total = load(left, 0, vector * WARP + thread)
                for other in range(1, warps):
                    total = total + load(left, other, vector * WARP + thread)
                totals.append(keep(total))
            index = bind(tile * WARP + thread)
            y = output.finished(finish(totals, tile, thread), 0, index)
            store(output.out, y, 0, index)

        last = tirx.And(thread < WARP, tile * WARP + thread < packing.outputs)
        when(last, complete)


def _warps(rows: int) -> int:
    """Warps that share out so many rows of a tile: each is to have some loads to wait for.

    >>> [_warps(rows) for rows in (8, 72, 192, 1024)]
    [1, 4, 8, 8]
    """
    return next(w for w in (8, 4, 2, 1) if w == 1 or rows >= w * _ROWS * _AT_ONCE)
