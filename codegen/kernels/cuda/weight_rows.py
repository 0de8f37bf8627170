"""How threads read a packed weight: rows of a tile, sixteen bytes at a time.

A tile is 32 outputs, twice that when gated: `vectors` of 32. A *row* of it is what one word of four
bytes of each output holds: 8 inputs of 4 bits, 4 of 8 bits, or 1 of float32. Sixteen bytes are a
row's words of four outputs that follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    cast,
    load,
    low_bits,
    reinterpret,
    shift_right,
)
from codegen.kernels.cuda.instructions import half_to_float, words
from codegen.kernels.cuda.threads import WARP, int32
from codegen.packing import Packing

QUAD = 4
"""Outputs in sixteen bytes of a row."""

_LOW_HALVES = 0x0F0F0F0F


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The buffers of a packed weight."""

    packing: Packing
    codes: Buffer
    scales: Buffer | None
    zero_points: Buffer | None

    @classmethod
    def arguments(cls, packing: Packing) -> PackedWeight:
        """Add the buffers to the function's arguments, as `codegen.packing` lays them out."""
        assert packing.lanes == WARP, packing
        assert packing.vectors == 1 + packing.gated, packing
        if packing.bits == 32:
            codes = argument("weights", (packing.code_bytes // 4,), "float32")
            return cls(packing, codes, None, None)
        return cls(
            packing,
            argument("weights", (packing.code_bytes,), "uint8"),
            argument("weight_scales", (packing.scale_count,), "float16"),
            None
            if packing.symmetric
            else argument("zero_points", (packing.zero_point_count,), "uint8"),
        )

    @property
    def inputs(self) -> int:
        """Inputs of a row."""
        return 32 // self.packing.bits

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.packing.padded_k // self.inputs

    def words(self, tile: Expr, row: Expr, vector: int, quad: Expr) -> list[Expr]:
        """The words of four outputs, as int32, or as float32 numbers where the weight is such."""
        packing = self.packing
        place = ((tile * self.rows + row) * packing.vectors + vector) * WARP + quad * QUAD
        if packing.bits == 32:
            return words(load(self.codes, place, lanes=4))
        return words(reinterpret(load(self.codes, place * 4, lanes=16), "int32", 4))

    def group_of(self, row: Expr) -> Expr:
        """The group of scales that a row belongs to."""
        if self.packing.groups == 1:
            return tirx.IntImm("int64", 0)  # rows behind the last input belong to it too
        return row * self.inputs // self.packing.group

    def _first(self, tile: Expr, group: Expr, vector: int, output: Expr) -> Expr:
        packing = self.packing
        return ((tile * packing.groups + group) * packing.vectors + vector) * WARP + output

    def weight_scales(
        self, tile: Expr, group: Expr, vector: int, output: Expr, count: int
    ) -> list[Expr]:
        """The scales of 4 or 8 outputs of a tile that follow each other, float32."""
        place = self._first(tile, group, vector, output)
        pairs = words(reinterpret(load(self.scales, place, lanes=count), "int32", count // 2))
        halves = [half for pair in pairs for half in (pair, shift_right(pair, 16))]
        return [half_to_float(half) for half in halves]

    def zeros(self, tile: Expr, group: Expr, vector: int, output: Expr, count: int) -> list[Expr]:
        """What stands for zero, in codes, of outputs that follow each other; int32."""
        if self.zero_points is None:
            return [int32(self.packing.offset)] * count
        place = self._first(tile, group, vector, output)
        return [cast(load(self.zero_points, place + i), "int32") for i in range(count)]


def split_halves(word: Expr) -> tuple[Expr, Expr]:
    """Separate the 4-bit codes in the low and the high halves of a word's bytes."""
    return low_bits(word, _LOW_HALVES), low_bits(shift_right(word, 4), _LOW_HALVES)
