"""Queries as 8-bit codes, where keys are multiplied as integers.

Where one factor of a byte product is unsigned, keys are raised by 128, so that a product is
Σ (k + 128) · q − 128 · Σ q; else they are as they are. The arithmetic is
`qcompiler.core.kv_rows.asked`.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    broadcast,
    cast,
    constant,
    flip_bits,
    lanes_of,
    load,
    reinterpret,
    scratch,
    store,
)
from codegen.kernels.isa import sdot, vpdpbusd
from codegen.kernels.kv_rows import StoredRow
from codegen.kernels.quantize import QuantizedRows, QuantizeSpec, quantize_row
from codegen.kernels.rotary import Row
from codegen.kernels.row import pieces
from codegen.kernels.transpose import transpose
from qcompiler.core.kv_format import KvFormat
from qcompiler.core.kv_rows import QUERY
from qcompiler.core.target import Target

_SIGNS = -0x7F7F7F80  # the highest bit of each byte


@dataclass(frozen=True)
class ByteProducts:
    """How keys are multiplied as bytes. raised: what is added to their codes before."""

    raised: int

    @classmethod
    def choose(cls, form: KvFormat | None, d: int, target: Target) -> ByteProducts | None:
        """Return how products with keys of a format are taken of bytes on this target.

        None: they are taken of floats that stand for the same numbers.
        """
        whole_vectors = d % 32 == 0  # of four features a lane, and of eight lanes
        if form is None or not form.meets_codes or not whole_vectors:
            return None
        if target.dot == "vpdpbusd":
            return cls(raised=128)
        return cls(raised=0) if target.signed_bytes else None

    def keys(self, row: StoredRow, at: int, lanes: int) -> Expr:
        """Read 4 · `lanes` codes of a row of a cache, raised, as int32 of four bytes each."""
        codes = row.fours(at, lanes)
        return bind(flip_bits(codes, _SIGNS)) if self.raised else codes

    def add(self, total: Expr, keys: Expr, queries: Expr) -> Expr:
        """Add products of bytes, given as int32 of four each, to each int32 lane of a total."""
        width = 4 * lanes_of(total)
        key = bind(reinterpret(keys, "uint8" if self.raised else "int8", width))
        query = bind(reinterpret(queries, "int8", width))
        return vpdpbusd(total, key, query) if self.raised else sdot(total, key, query)


@dataclass(frozen=True)
class QueryCodes:
    """Room for the codes of `count` rows of `d` features, with their scales and sums."""

    d: int
    lanes: int
    rows: QuantizedRows

    @classmethod
    def make(cls, count: int, d: int, lanes: int) -> QueryCodes:
        """Allocate them."""
        shapes = ((count, d), "int8"), ((count, 1), "float32"), ((count, 1), "int32")
        return cls(d, lanes, QuantizedRows(*(scratch(*shape) for shape in shapes)))

    def quantize(self, numbers: Row, index: Expr) -> None:
        """Quantise a row of float32 numbers."""
        spec = QuantizeSpec(k=self.d, form=QUERY, weight_group=self.d)
        quantize_row(
            lambda at, width, _: numbers.load(at, width), spec, self.rows, index, self.lanes
        )

    def fours(self, index: Expr, at: Expr, lanes: int) -> Expr:
        """Read 4 · `lanes` codes of a row, from 4 · `at` on, as int32 of four bytes each."""
        codes = load(self.rows.codes, index, at * 4, lanes=4 * lanes)
        return bind(reinterpret(codes, "int32", lanes))

    def scale(self, index: Expr) -> Expr:
        """Read the scale of a row."""
        return bind(load(self.rows.scales, index, 0))

    def too_much(self, index: Expr, products: ByteProducts) -> Expr:
        """Return what raised keys make a row's products larger by."""
        return bind(load(self.rows.sums, index, 0) * constant(products.raised, "int32"))

    def turned(self, first: Expr, at: Expr, count: int) -> list[Expr]:
        """Read `count` fours of `count` rows, from row `first` and four `at` on: a vector of each
        four, in which the rows are lanes.
        """
        return transpose([self.fours(first + row, at, count) for row in range(count)])

    def restore(self, index: Expr, to: Row) -> None:
        """Write the numbers that a row's codes stand for."""
        for at, width, _ in pieces(self.d, self.lanes):
            codes = cast(bind(load(self.rows.codes, index, at, lanes=width)), "int32")
            numbers = bind(cast(bind(codes), "float32"))
            to.store(numbers * broadcast(self.scale(index), width), at)


@dataclass(frozen=True)
class KeyCodes:
    """Keys that many queries will meet: their codes, raised, fours of them as int32; and scales."""

    products: ByteProducts
    d: int
    lanes: int
    codes: Buffer
    scales: Buffer

    @classmethod
    def make(cls, products: ByteProducts, count: int, d: int, lanes: int) -> KeyCodes:
        """Allocate room for `count` keys of `d` features."""
        codes = scratch(count * (d // 4), "int32")
        return cls(products, d, lanes, codes, scratch(count, "float32"))

    def put(self, row: StoredRow, index: Expr) -> None:
        """Keep a row of a cache."""
        for at, width, _ in pieces(self.d // 4, self.lanes):
            store(self.codes, self.products.keys(row, 4 * at, width), index * (self.d // 4) + at)
        store(self.scales, row.scale(), index)

    def four(self, index: Expr, at: Expr) -> Expr:
        """Read the features from 4 · `at` on of a key, as an int32."""
        return load(self.codes, index * (self.d // 4) + at)

    def scale(self, index: Expr) -> Expr:
        """Read a key's scale."""
        return load(self.scales, index)
