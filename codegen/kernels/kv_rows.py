"""Rows of caches in few bits: written as keys and values arrive, read back as floats.

The arithmetic is `qcompiler.core.kv_rows`, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from codegen.kernels.builder import (
    Expr,
    bind,
    broadcast,
    cast,
    constant,
    fma,
    lanes_of,
    low_bits,
    maximum,
    minimum,
    reinterpret,
    select,
    settle,
    shift_left,
    shift_right,
    shuffle,
    splat,
)
from codegen.kernels.isa import round_to_int32
from codegen.kernels.rotary import Row
from codegen.kernels.row import pieces
from codegen.kernels.vector_math import horizontal_max
from qcompiler.core.kv_format import KvFormat

_LARGEST = 65504.0  # of float16


def rotate_heads(row: Row, d: int, lanes: int) -> None:
    """Multiply a row of `d` float32 numbers, in place, by an orthogonal Hadamard matrix."""
    block = d & -d
    vectors = {at: row.load(at, width) for at, width, _ in pieces(d, lanes)}
    step = 1
    while step < block:
        vectors = _butterflies(vectors, pieces(d, lanes), step)
        step *= 2
    for at, width, _ in pieces(d, lanes):
        row.store(vectors[at] * splat(1.0 / math.sqrt(block), width), at)


def _butterflies(
    vectors: dict[int, Expr], cut: list[tuple[int, int, int]], step: int
) -> dict[int, Expr]:
    """Replace features i and i + step by their sum and their difference."""
    turned = {}
    for at, width, _ in cut:
        x = vectors[at]
        if step >= width:
            first = not at & step
            a, b = (x, vectors[at + step]) if first else (vectors[at - step], x)
            turned[at] = bind(a + b if first else a - b)
            continue
        partner = bind(shuffle(x, x, [i ^ step for i in range(width)]))
        both = splat(1.0, width), splat(-1.0, width)
        signs = shuffle(*both, [i + (width if i & step else 0) for i in range(width)])
        turned[at] = bind(fma(x, bind(signs), partner))
    return turned


def write_row(numbers: Row, to: Row, form: KvFormat, d: int, lanes: int) -> None:
    """Quantise a row of `d` float32 numbers into a row of a cache."""
    groups, size, end = form.groups(d), form.group_size(d), form.code_bytes(d)
    scales, leasts = [], []
    for group in range(groups):
        cut = [(group * size + at, width) for at, width, _ in pieces(size, lanes)]
        vectors = [numbers.load(at, width) for at, width in cut]
        if form.bits == 8:
            sizes = [
                bind(maximum(x, bind(splat(0.0, w) - x)))
                for x, (_, w) in zip(vectors, cut, strict=True)
            ]
            scale = _store_half(_largest(sizes) / constant(127.0, "float32"), to, end + 2 * group)
        else:
            negated = [bind(splat(0.0, w) - x) for x, (_, w) in zip(vectors, cut, strict=True)]
            lowest = constant(0.0, "float32") - _largest(negated)
            least = _store_half(lowest, to, end + 2 * (groups + group))
            span = (_largest(vectors) - least) / constant(15.0, "float32")
            scale = _store_half(span, to, end + 2 * group)
            leasts.append(least)
        zero = constant(0.0, "float32")
        scales.append(settle(select(scale > zero, constant(1.0, "float32") / scale, zero)))

    def code(at: int, width: int, low: int, high: int) -> Expr:
        x, group = numbers.load(at, width), at // size
        if form.bits == 4:
            x = bind(x - broadcast(leasts[group], width))
        whole = bind(round_to_int32(bind(x * broadcast(scales[group], width))))
        above = bind(maximum(whole, splat(low, width, "int32")))
        return bind(minimum(above, splat(high, width, "int32")))

    if form.bits == 8:
        for at, width, _ in pieces(d, lanes):
            to.store(_bytes(code(at, width, -127, 127)), at)
        return
    for at, width, _ in pieces(d // 2, lanes):
        high = shift_left(code(d // 2 + at, width, 0, 15), 4)
        to.store(_bytes(bind(code(at, width, 0, 15) + high)), at)


@dataclass(frozen=True)
class StoredRow:
    """A row of a cache, to be read like one of floats."""

    row: Row
    form: KvFormat
    d: int
    _factors: dict[tuple[int, int], Expr] = field(default_factory=dict)

    def load(self, at: int, lanes: int = 1) -> Expr:
        """Read `lanes` numbers of one group at a place of the row."""
        form, half = self.form, self.d // 2
        group = at // form.group_size(self.d)
        scale = broadcast(self._factor(0, group), lanes)
        if form.bits == 8:
            codes = cast(reinterpret(self.row.load(at, lanes), "int8", lanes), "int32")
            return bind(bind(cast(bind(codes), "float32")) * scale)
        codes = bind(cast(self.row.load(at % half, lanes), "int32"))
        codes = low_bits(codes, 15) if at < half else shift_right(codes, 4)
        least = broadcast(self._factor(1, group), lanes)
        product = bind(bind(cast(bind(codes), "float32")) * scale)
        return bind(product + least)

    def codes(self, at: int, lanes: int) -> Expr:
        """Read `lanes` codes of 8 bits, as floats; all of the row are to be multiplied by `scale`.

        That is left to whoever reads many rows.
        """
        signed = reinterpret(self.row.load(at, lanes), "int8", lanes)
        return bind(cast(bind(cast(signed, "int32")), "float32"))

    def scale(self) -> Expr:
        """Read the scale of a row that has one."""
        return self._factor(0, 0)

    def fours(self, at: int, lanes: int) -> Expr:
        """Read 4 · `lanes` codes of 8 bits, as int32 of four bytes each."""
        return bind(reinterpret(self.row.load(at, 4 * lanes), "int32", lanes))

    def _factor(self, which: int, group: int) -> Expr:
        """Read a scale (0) or a least (1), once."""
        if (which, group) not in self._factors:
            groups = self.form.groups(self.d)
            place = self.form.code_bytes(self.d) + 2 * (which * groups + group)
            half = reinterpret(self.row.load(place, 2), "float16")
            self._factors[which, group] = settle(cast(half, "float32"))
        return self._factors[which, group]


def _store_half(value: Expr, to: Row, at: int) -> Expr:
    """Store a number as float16, and return what was stored."""
    limit = constant(_LARGEST, "float32")
    bounded = bind(minimum(bind(maximum(bind(value), constant(-_LARGEST, "float32"))), limit))
    half = settle(cast(bounded, "float16"))
    to.store(reinterpret(half, "uint8", 2), at)
    return settle(cast(half, "float32"))


def _largest(vectors: list[Expr]) -> Expr:
    """The largest number of vectors of one width or of several."""
    found: dict[int, Expr] = {}
    for x in vectors:
        width = lanes_of(x)
        found[width] = bind(maximum(found[width], x)) if width in found else x
    numbers = [horizontal_max(x, width) for width, x in found.items()]
    result = numbers[0]
    for other in numbers[1:]:
        result = bind(maximum(result, other))
    return settle(result)


def _bytes(codes: Expr) -> Expr:
    return bind(cast(codes, "uint8"))
