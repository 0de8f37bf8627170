"""What differs between instruction sets: how bytes are multiplied, how floats are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from codegen.kernels.builder import (
    Expr,
    Registers,
    bind,
    call_impure,
    intrinsic,
    lanes_of,
    low_bits,
    reinterpret,
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


def vpdpbusd(total: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """Add the products of four bytes to each int32 lane of a total."""
    lanes = lanes_of(total)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return intrinsic(vector_type("int32", lanes), name, total, unsigned, signed)


class Vpdpbusd(ByteDots):
    """The one instruction of AVX-512 VNNI; it never saturates."""

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "uint8", 4 * self.lanes)),)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        self[index] = vpdpbusd(self[index], *weight, *activation)


class Vpmaddubsw(ByteDots):
    """AVX2: products of four-bit numbers are summed in int16 for a while, then widened.

    Two products are at most 2 · 15 · 128 = 3840, so that the eight additions of a run fit. A weight
    code of more than four bits is taken as two numbers, high · 16 + low, each with sums of its own.
    """

    def __init__(self, count: int, lanes: int, *, halves: int) -> None:
        super().__init__(count, lanes)
        self._halves = halves
        self._short = Registers(count * halves, 2 * lanes, "int16")
        self._started: set[int] = set()

    def weight(self, packed: Expr) -> Operand:
        parts = [packed]
        if self._halves == 2:
            packed = bind(packed)
            parts = [low_bits(packed, 0x0F0F0F0F), low_bits(shift_right(packed, 4), 0x0F0F0F0F)]
        return tuple(bind(reinterpret(part, "uint8", 4 * self.lanes)) for part in parts)

    def activation(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        dtype = vector_type("int16", 2 * self.lanes)
        for half, codes in enumerate(weight):
            short = index * self._halves + half
            products = intrinsic(dtype, "llvm.x86.avx2.pmadd.ub.sw", codes, *activation)
            if index in self._started:
                products = self._short[short] + products
            self._short[short] = products
        self._started.add(index)

    def flush(self) -> None:
        dtype = vector_type("int32", self.lanes)
        for index in sorted(self._started):
            for half in range(self._halves):
                place = splat(16**half, 2 * self.lanes, "int16")
                short = self._short[index * self._halves + half]
                self[index] += intrinsic(dtype, "llvm.x86.avx2.pmadd.wd", short, place)
        self._started.clear()


def cycle_counter(target: Target) -> Expr | None:
    """Read a counter that runs at an even pace, the same on all processors.

    None where programs are not let to read one, as on aarch64, whose counter of cycles is the
    system's.
    """
    if target.arch != "x86_64":
        return None
    return call_impure("int64", "llvm.readcyclecounter")


def byte_dots(target: Target, bits: int, count: int) -> ByteDots:
    """Choose how this target multiplies weight codes of `bits` bits by int8 activations."""
    if target.dot == "vpdpbusd":
        return Vpdpbusd(count, target.lanes)
    if target.dot == "vpmaddubsw":
        return Vpmaddubsw(count, target.lanes, halves=1 if bits <= 4 else 2)
    raise UnsupportedError(suggest("byte product", target.dot, ["vpdpbusd", "vpmaddubsw"]))
