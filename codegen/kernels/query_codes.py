"""Queries as 8-bit codes, where keys are multiplied as integers.

Keys are raised by 128, because one operand of a byte product is unsigned, so that a product is
Σ (k + 128) · q − 128 · Σ q. The arithmetic is `qcompiler.core.kv_rows.asked`.
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
    load,
    reinterpret,
    scratch,
    store,
)
from codegen.kernels.kv_rows import StoredRow
from codegen.kernels.quantize import QuantizedRows, QuantizeSpec, quantize_row
from codegen.kernels.rotary import Row
from codegen.kernels.row import pieces
from codegen.kernels.transpose import transpose
from qcompiler.core.kv_format import KvFormat
from qcompiler.core.kv_rows import QUERY
from qcompiler.core.target import Target

RAISED = 128


def multiplies_bytes(form: KvFormat | None, d: int, target: Target) -> bool:
    """Tell whether products with keys of a format are taken of bytes on this target.

    Elsewhere they are taken of floats that stand for the same numbers.
    """
    whole_vectors = d % 32 == 0  # of four features a lane, and of eight lanes
    return form is not None and form.meets_codes and target.dot == "vpdpbusd" and whole_vectors


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

    def too_much(self, index: Expr) -> Expr:
        """Return what raised keys make a row's products larger by."""
        return bind(load(self.rows.sums, index, 0) * constant(RAISED, "int32"))

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
class RaisedKeys:
    """Keys that many queries will meet: codes raised by 128, fours of them as int32; and scales."""

    d: int
    lanes: int
    codes: Buffer
    scales: Buffer

    @classmethod
    def make(cls, count: int, d: int, lanes: int) -> RaisedKeys:
        """Allocate room for `count` keys of `d` features."""
        return cls(d, lanes, scratch(count * (d // 4), "int32"), scratch(count, "float32"))

    def put(self, row: StoredRow, index: Expr) -> None:
        """Keep a row of a cache."""
        for at, width, _ in pieces(self.d // 4, self.lanes):
            store(self.codes, row.raised(4 * at, width), index * (self.d // 4) + at)
        store(self.scales, row.scale(), index)

    def four(self, index: Expr, at: Expr) -> Expr:
        """Read the features from 4 · `at` on of a key, as an int32."""
        return load(self.codes, index * (self.d // 4) + at)

    def scale(self, index: Expr) -> Expr:
        """Read a key's scale."""
        return load(self.scales, index)
