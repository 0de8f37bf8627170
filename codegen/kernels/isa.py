"""What differs between instruction sets: how bytes are multiplied, how floats are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from codegen.kernels.builder import (
    Expr,
    bind,
    dtype_of,
    intrinsic,
    lanes_of,
    low_bits,
    reinterpret,
    shift_left,
    shift_right,
    splat,
    vector_type,
)
from qcompiler.core.errors import UnsupportedError, suggest
from qcompiler.core.target import Target

Operand = tuple[Expr, ...]


def round_to_int32(value: Expr) -> Expr:
    """Round a float32 vector to the nearest integers, ties to even, as int32."""
    return intrinsic(vector_type("int32", lanes_of(value)), "llvm.lrint", value)


class ByteDot(ABC):
    """Exact products of unsigned weight bytes and signed activation bytes, four to an int32 lane.

    Weights and activations are handed over as int32 vectors that hold four bytes a lane. What has
    to be done to them before they are multiplied is done by `weight` and `activation`, once for all
    the products that one of them takes part in.
    """

    @abstractmethod
    def weight(self, packed: Expr) -> Operand:
        """Make a weight vector ready."""

    @abstractmethod
    def activation(self, packed: Expr) -> Operand:
        """Make an activation vector ready."""

    @abstractmethod
    def add(self, total: Expr, pairs: Sequence[tuple[Operand, Operand]]) -> Expr:
        """Add to each int32 lane of `total` its four products of every pair (weight, activation)."""


@dataclass(frozen=True)
class Vpdpbusd(ByteDot):
    """The one instruction of AVX-512 VNNI; it never saturates."""

    lanes: int

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "uint8", 4 * self.lanes)),)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, total: Expr, pairs: Sequence[tuple[Operand, Operand]]) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        for (weight,), (activation,) in pairs:
            total = intrinsic(vector_type("int32", self.lanes), name, total, weight, activation)
        return total


@dataclass(frozen=True)
class Vpmaddubsw(ByteDot):
    """AVX2 for weight codes of at most four bits: pairs of products are summed in int16.

    A pair is at most 2 · 15 · 128 = 3840, so that eight of them fit before they are widened.
    """

    lanes: int
    _PAIRS_IN_INT16 = 8

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "uint8", 4 * self.lanes)),)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, total: Expr, pairs: Sequence[tuple[Operand, Operand]]) -> Expr:
        halves = vector_type("int16", 2 * self.lanes)
        for start in range(0, len(pairs), self._PAIRS_IN_INT16):
            products = [
                intrinsic(halves, "llvm.x86.avx2.pmadd.ub.sw", weight, activation)
                for (weight,), (activation,) in pairs[start : start + self._PAIRS_IN_INT16]
            ]
            short = sum(products[1:], products[0])
            total = total + _multiply_int16(short, splat(1, 2 * self.lanes, "int16"), self.lanes)
        return total


@dataclass(frozen=True)
class Vpmaddwd(ByteDot):
    """AVX2 for weight codes of up to eight bits: even and odd bytes are widened to int16."""

    lanes: int

    def weight(self, packed: Expr) -> Operand:
        words = bind(reinterpret(packed, "uint16", 2 * self.lanes))
        return tuple(
            bind(reinterpret(half, "int16", 2 * self.lanes))
            for half in (low_bits(words, 0xFF), shift_right(words, 8))
        )

    def activation(self, packed: Expr) -> Operand:
        words = bind(reinterpret(packed, "int16", 2 * self.lanes))
        return bind(shift_right(shift_left(words, 8), 8)), bind(shift_right(words, 8))

    def add(self, total: Expr, pairs: Sequence[tuple[Operand, Operand]]) -> Expr:
        for weight, activation in pairs:
            for w, a in zip(weight, activation, strict=True):
                total = total + _multiply_int16(w, a, self.lanes)
        return total


def byte_dot(target: Target, bits: int) -> ByteDot:
    """Choose how this target multiplies weight codes of `bits` bits by int8 activations."""
    if target.dot == "vpdpbusd":
        return Vpdpbusd(target.lanes)
    if target.dot == "vpmaddubsw":
        return Vpmaddubsw(target.lanes) if bits <= 4 else Vpmaddwd(target.lanes)
    raise UnsupportedError(suggest("byte product", target.dot, ["vpdpbusd", "vpmaddubsw"]))


def _multiply_int16(a: Expr, b: Expr, lanes: int) -> Expr:
    """Multiply int16 lanes and add neighbours, as int32."""
    assert dtype_of(a) == dtype_of(b) == "int16"
    return intrinsic(vector_type("int32", lanes), "llvm.x86.avx2.pmadd.wd", a, b)
