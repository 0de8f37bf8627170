"""What differs between instruction sets: how bytes are multiplied, how floats are rounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from codegen.kernels.builder import (
    Expr,
    Registers,
    bind,
    broadcast,
    call_impure,
    intrinsic,
    lanes_of,
    low_bits,
    reinterpret,
    shift_right,
    shuffle,
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
    """Sums of products of weight bytes and signed activation bytes, exact in int32.

    Weight bytes are unsigned, or signed where the target multiplies signed bytes.

    There are `count` vectors of sums; each int32 lane takes some products at a time. Weights and
    activations are handed over as int32 vectors of four bytes a lane. What has to be done to them
    before they are multiplied is done by `weight` and `activation`, once for all the products that
    one of them takes part in. `flush` ends each run of at most `longest_run` products per sum; it
    comes before a sum is read and before a loop turns.
    """

    longest_run = 8
    products = 4
    """Those that each lane takes at a time."""

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
        """Add products to each lane of a sum."""

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


class Sdot(ByteDots):
    """The one instruction of Armv8.4, which many have had since Armv8.2: both factors are signed.

    Four-bit codes are positive as they are; wider ones are stored as signed bytes.
    """

    def weight(self, packed: Expr) -> Operand:
        return (bind(reinterpret(packed, "int8", 4 * self.lanes)),)

    activation = weight

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        self[index] = sdot(self[index], *weight, *activation)


def sdot(total: Expr, a: Expr, b: Expr) -> Expr:
    """Add the products of four signed bytes to each of four int32 lanes of a total."""
    return intrinsic("int32x4", "llvm.aarch64.neon.sdot", total, a, b)


class Smmla(Sdot):
    """Products of byte matrices, eight in each lane: of two rows and two outputs, eight inputs."""

    products = 8

    def add(self, index: int, weight: Operand, activation: Operand) -> None:
        self[index] = smmla(self[index], *activation, *weight)


def smmla(total: Expr, a: Expr, b: Expr) -> Expr:
    """Add the products [2, 2] of signed bytes a [2, 8] and b [2, 8], transposed, to a total."""
    return intrinsic("int32x4", "llvm.aarch64.neon.smmla", total, a, b)


class PairSums:
    """Sums for two rows and two outputs at a time, of Arm's products of byte matrices.

    One instruction adds eight products to each of the four sums in a vector. A vector of four
    outputs takes two such vectors for two rows; where rows are odd, the last is taken twice.
    """

    def __init__(self, starts: Sequence[Expr], vectors: int) -> None:
        """starts: the int32 that all sums of a row begin with."""
        self._rows, self._vectors = len(starts), vectors
        pairs = _pairs(len(starts))
        self._sums = Registers(len(pairs) * vectors * 2, 4, "int32")
        for p, (first, second) in enumerate(pairs):
            upper, lower = bind(broadcast(starts[first], 4)), bind(broadcast(starts[second], 4))
            start = bind(shuffle(upper, lower, [0, 1, 4, 5]))
            for place in range(p * vectors * 2, (p + 1) * vectors * 2):
                self._sums[place] = start

    @staticmethod
    def activations(rows: Sequence[Expr], count: int) -> list[list[Expr]]:
        """Put `count` eights of bytes of each row together for pairs: [eight][pair], int8x16."""
        pairs = _pairs(len(rows))
        taken = [[*range(8 * i, 8 * i + 8)] for i in range(count)]
        return [
            [bind(shuffle(rows[a], rows[b], [*of, *(8 * count + n for n in of)])) for a, b in pairs]
            for of in taken
        ]

    def add(self, vector: int, half: int, weight: Expr, activations: Sequence[Expr]) -> None:
        """Add the products of eight inputs. weight: int8x16, eight of each of two outputs, the
        first or the last ones (half) of a vector; activations: of each pair of rows.
        """
        for p, pair in enumerate(activations):
            place = (p * self._vectors + vector) * 2 + half
            self._sums[place] = smmla(self._sums[place], pair, weight)

    def __getitem__(self, cell: int) -> Expr:
        """Read the sums of a row and a vector: cell = row · vectors + vector."""
        row, vector = divmod(cell, self._vectors)
        place = (row // 2 * self._vectors + vector) * 2
        lanes = [2, 3, 6, 7] if row % 2 else [0, 1, 4, 5]
        return bind(shuffle(bind(self._sums[place]), bind(self._sums[place + 1]), lanes))


def _pairs(rows: int) -> list[tuple[int, int]]:
    return [(row, min(row + 1, rows - 1)) for row in range(0, rows, 2)]


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
    if target.signed_bytes:
        return Sdot(count, target.lanes)
    raise UnsupportedError(suggest("byte product", target.dot, ["vpdpbusd", "vpmaddubsw", "sdot"]))


def fastest_dots(target: Target, bits: int, count: int) -> ByteDots:
    """Choose what multiplies most bytes in a second on this target, in whatever order they lie."""
    return Smmla(count, target.lanes) if target.dot == "smmla" else byte_dots(target, bits, count)
