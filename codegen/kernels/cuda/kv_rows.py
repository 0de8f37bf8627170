"""Rows of caches, a warp for each: written as keys and values arrive, read back as floats.

The arithmetic is `qcompiler.core.kv_rows`, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    cast,
    ceil_div,
    constant,
    load,
    low_bits,
    select,
    serial,
    shift_right,
    store,
    when,
)
from codegen.kernels.cuda.instructions import float_to_half, fma, half_to_float, round_to_int
from codegen.kernels.cuda.threads import (
    WARP,
    int32,
    keep,
    larger,
    registers,
    smaller,
    strided,
    sync,
    warp_reduce,
)
from qcompiler.core.kv_format import KvFormat

_LARGEST = 65504.0  # of float16


@dataclass(frozen=True, slots=True)
class SharedRow:
    """A row of float32 numbers in shared memory, that one warp works on."""

    buffer: Buffer
    row: Expr
    d: int

    def load(self, i: Expr) -> Expr:
        """Read a feature."""
        return load(self.buffer, self.row, i)

    def store(self, value: Expr, i: Expr) -> None:
        """Write a feature."""
        store(self.buffer, value, self.row, i)

    def fill(self, read: Callable[[Expr], Expr], lane: Expr) -> None:
        """Write every feature that `read` yields."""
        strided(self.d, lane, WARP, lambda i: self.store(read(i), i))
        sync()

    def rotate(self, lane: Expr) -> None:
        """Multiply the row by an orthogonal Hadamard matrix."""
        block, step = self.d & -self.d, 1
        count = ceil_div(self.d // 2, WARP)
        sums, differences = registers(count), registers(count)
        while step < block:
            half = step

            def first_of(pair: Expr, half: int = half) -> Expr:
                return bind(pair // half * (2 * half) + pair % half)

            def read(pair: Expr, half: int = half) -> None:
                first = first_of(pair)
                a, b = keep(self.load(first)), keep(self.load(first + half))
                store(sums, a + b, pair // WARP)
                store(differences, a - b, pair // WARP)

            def write(pair: Expr, half: int = half) -> None:
                first = first_of(pair)
                self.store(load(sums, pair // WARP), first)
                self.store(load(differences, pair // WARP), first + half)

            strided(self.d // 2, lane, WARP, read)
            sync()
            strided(self.d // 2, lane, WARP, write)
            sync()
            step *= 2
        factor = constant(1.0 / math.sqrt(block), "float32")
        self._replace(lambda x: x * factor, 0, self.d, lane)

    def round_to_codes(self, lane: Expr) -> None:
        """Put the multiples of a scale of the row in place of its numbers, as 8-bit codes do."""
        top = self._reduce(lambda i: tirx.abs(self.load(i)), larger, 0.0, 0, self.d, lane)
        one, most = constant(1.0, "float32"), constant(127.0, "float32")
        inverse = keep(select(top > 0.0, one / top * most, constant(0.0, "float32")))
        scale = keep(top / most)

        self._replace(lambda x: cast(round_to_int(x * inverse), "float32") * scale, 0, self.d, lane)

    def _replace(
        self, function: Callable[[Expr], Expr], first: Expr | int, count: int, lane: Expr
    ) -> None:
        """Put function(number) in the place of numbers.

        All are read before one is written: TVM does not see that threads keep to their own.
        """
        kept = registers(ceil_div(count, WARP))
        strided(count, lane, WARP, lambda i: store(kept, function(self.load(first + i)), i // WARP))
        sync()
        strided(count, lane, WARP, lambda i: self.store(load(kept, i // WARP), first + i))
        sync()

    def _reduce(
        self,
        read: Callable[[Expr], Expr],
        combine: Callable[[Expr, Expr], Expr],
        start: float,
        first: Expr | int,
        count: int,
        lane: Expr,
    ) -> Expr:
        found = registers(1)
        store(found, constant(start, "float32"), 0)
        strided(
            count, lane, WARP, lambda i: store(found, combine(load(found, 0), read(first + i)), 0)
        )
        return warp_reduce(load(found, 0), combine)

    def write_to(
        self, cache: Buffer, at: tuple[Expr, ...], form: KvFormat | None, lane: Expr
    ) -> None:
        """Write the row into a cache's row, in the cache's format; the row is used up."""
        if form is None:
            strided(self.d, lane, WARP, lambda i: store(cache, self.load(i), *at, i))
            return
        size, end = form.group_size(self.d), form.code_bytes(self.d)
        groups = form.groups(self.d)
        with serial(groups) as group:
            first = bind(group * size)
            if form.bits == 8:
                top = self._reduce(lambda i: tirx.abs(self.load(i)), larger, 0.0, first, size, lane)
                scale = self._half(top / constant(127.0, "float32"))
                least = None
            else:
                low = self._reduce(self.load, smaller, math.inf, first, size, lane)
                high = self._reduce(self.load, larger, -math.inf, first, size, lane)
                least = self._half(low)
                scale = self._half((high - half_to_float(least)) / constant(15.0, "float32"))
                self._store_half(cache, at, end + 2 * (groups + group), least, lane)
            self._store_half(cache, at, end + 2 * group, scale, lane)
            sync()
            self._to_codes(scale, least, first, size, lane)
            sync()
        if form.bits == 8:
            strided(
                self.d,
                lane,
                WARP,
                lambda i: store(cache, cast(cast(self.load(i), "int32"), "uint8"), *at, i),
            )
            return

        def two(i: Expr) -> None:
            low, high = (cast(self.load(p), "int32") for p in (i, i + self.d // 2))
            store(cache, cast(low + high * 16, "uint8"), *at, i)

        strided(self.d // 2, lane, WARP, two)

    def _half(self, value: Expr) -> Expr:
        """Round to float16, at most its largest number; the bits."""
        most = constant(_LARGEST, "float32")
        least = constant(-_LARGEST, "float32")
        return keep(float_to_half(tirx.max(tirx.min(value, most), least)))

    def _store_half(
        self, cache: Buffer, at: tuple[Expr, ...], place: Expr, bits: Expr, lane: Expr
    ) -> None:
        """Store two bytes: rows need not begin at even addresses."""

        def byte(i: Expr) -> None:
            part = tirx.Select(i.equal(0), bits, shift_right(bits, 8))
            store(cache, cast(low_bits(part, 255), "uint8"), *at, place + i)

        when(lane < 2, lambda: byte(lane))

    def _to_codes(
        self, scale: Expr, least: Expr | None, first: Expr, size: int, lane: Expr
    ) -> None:
        """Put the codes of a group in place of its numbers."""
        wide = keep(half_to_float(scale))
        zero, one = constant(0.0, "float32"), constant(1.0, "float32")
        inverse = keep(select(wide > 0.0, one / wide, zero))
        low, high = (-127, 127) if least is None else (0, 15)
        start = zero if least is None else keep(half_to_float(least))

        def code(x: Expr) -> Expr:
            steps = x if least is None else x - start
            # Beyond what an int32 holds the conversion stops at its ends, which are cut off here.
            rounded = round_to_int(steps * inverse)
            return cast(tirx.max(tirx.min(rounded, int32(high)), int32(low)), "float32")

        self._replace(code, first, size, lane)


@dataclass(frozen=True, slots=True)
class CacheRows:
    """The rows of a cache, read number by number."""

    cache: Buffer
    form: KvFormat | None
    d: int

    def read(self, head: Expr, token: Expr, i: Expr) -> Expr:
        """Return feature i of a head's row for a token."""
        at = (0, head, token)
        if self.form is None:
            return load(self.cache, *at, i)
        form, d = self.form, self.d
        end, group = form.code_bytes(d), i // form.group_size(d)
        scale = self._half(at, end + 2 * group)
        if form.bits == 8:
            code = cast(cast(load(self.cache, *at, i), "int8"), "float32")
            return code * scale
        second = i >= d // 2
        both = cast(load(self.cache, *at, tirx.Select(second, i - d // 2, i)), "int32")
        code = cast(tirx.Select(second, shift_right(both, 4), low_bits(both, 15)), "float32")
        return fma(code, scale, self._half(at, end + 2 * (form.groups(d) + group)))

    def _half(self, at: tuple[Expr, ...], place: Expr) -> Expr:
        low, high = (cast(load(self.cache, *at, place + i), "int32") for i in range(2))
        return half_to_float(low + high * 256)
