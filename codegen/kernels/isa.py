"""What differs between instruction sets: how bytes are multiplied, how floats are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from codegen.kernels.builder import (
    Expr,
    Registers,
    bind,
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


class ByteDots(ABC):
    """Sums of products of unsigned weight bytes and signed activation bytes, exact in int32.

    There are `count` vectors of sums; each int32 lane takes four products at a time. Weights and
    activations are handed over as int32 vectors of four bytes a lane. What has to be done to them
    before they are multiplied is done by `weight` and `activation`, once for all the products that
    one of them takes part in. `flush` ends each run of at most `longest_run` products per sum; it
    comes before a sum is read and before a loop turns.
    """

    longest_run = 8

    def __init__(self, count: int, lanes: int) -> None:
        self.lanes = lanes
        self._sums = Registers(count, lanes, "int32")

    def __setitem__(self, index: int, value: Expr) -> None:
        """Set a sum."""
        self._sums[index] = value

    def __getitem__(self, index: int) -> Expr:
        """Read a sum."""
        return self._sums[index]

    @abstractmethod
    def weight(self, packed: Expr) -> Operand:
        """Make a weight vector ready."""

    @abstractmethod
    def activation(self, packed: Expr) -> Operand:
        """Make an activation vector ready."""

    @abstractmethod
    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        """Add four products to each lane of a sum."""

    def flush(self) -> None:
        """Complete the sums."""
        return


class Vpdpbusd(ByteDots):
    """The one instruction of AVX-512 VNNI; it never saturates."""

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "uint8", 4 * self.lanes)),)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        dtype = vector_type("int32", self.lanes)
        self[index] = intrinsic(dtype, name, self[index], *weight, *activation)


class Vpmaddubsw(ByteDots):
    """AVX2 for weight codes of at most four bits: products are summed in int16 for a while.

    Two products are at most 2 · 15 · 128 = 3840, so that the eight additions of a run fit.
    """

    def __init__(self, count: int, lanes: int) -> None:
        super().__init__(count, lanes)
        self._short = Registers(count, 2 * lanes, "int16")
        self._started: set[int] = set()

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "uint8", 4 * self.lanes)),)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        dtype = vector_type("int16", 2 * self.lanes)
        products = intrinsic(dtype, "llvm.x86.avx2.pmadd.ub.sw", *weight, *activation)
        if index in self._started:
            products = self._short[index] + products
        self._started.add(index)
        self._short[index] = products

    def flush(self) -> None:
        for index in sorted(self._started):
            pairs = _multiply_int16(self._short[index], splat(1, 2 * self.lanes, "int16"))
            self[index] = self[index] + pairs
        self._started.clear()


class Vpmaddwd(ByteDots):
    """AVX2 for weight codes of up to eight bits: even and odd bytes are widened to int16."""

    def weight(self, packed: Expr) -> Operand:
        words = bind(reinterpret(packed, "uint16", 2 * self.lanes))
        even, odd = low_bits(words, 0xFF), shift_right(words, 8)
        return tuple(bind(reinterpret(half, "int16", 2 * self.lanes)) for half in (even, odd))

    def activation(self, packed: Expr) -> Operand:
        words = bind(reinterpret(packed, "int16", 2 * self.lanes))
        return bind(shift_right(shift_left(words, 8), 8)), bind(shift_right(words, 8))

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        even, odd = (_multiply_int16(w, a) for w, a in zip(weight, activation, strict=True))
        self[index] = self[index] + even + odd


def byte_dots(target: Target, bits: int, count: int) -> ByteDots:
    """Choose how this target multiplies weight codes of `bits` bits by int8 activations."""
    if target.dot == "vpdpbusd":
        return Vpdpbusd(count, target.lanes)
    if target.dot == "vpmaddubsw":
        return (Vpmaddubsw if bits <= 4 else Vpmaddwd)(count, target.lanes)
    raise UnsupportedError(suggest("byte product", target.dot, ["vpdpbusd", "vpmaddubsw"]))


def _multiply_int16(a: Expr, b: Expr) -> Expr:
    """Multiply int16 lanes and add neighbours, as int32."""
    dtype = vector_type("int32", lanes_of(a) // 2)
    return intrinsic(dtype, "llvm.x86.avx2.pmadd.wd", a, b)
