"""Operands of tensor cores: activations by way of shared memory, weights straight from memory.

Shapes of fragments and what each thread holds of them are those of the PTX ISA for
`mma.m16n8k32` of bytes and `mma.m16n8k16` of float16; `many_rows` says how inputs are ordered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    ceil_div,
    constant,
    load,
    low_bits,
    reinterpret,
    shift_right,
    store,
    when,
)
from codegen.kernels.cuda.instructions import (
    mma_bytes,
    mma_halves,
    pick_bytes,
    subtract_halves,
    two_halves,
    words,
)
from codegen.kernels.cuda.threads import int32, keep, registers, shared, strided
from codegen.kernels.cuda.weight_rows import PackedWeight, split_halves

CHUNK = 8
"""Inputs that one thread has of 32."""

_LOW_NIBBLES = 0x000F000F
_HALF_1024 = 0x6400  # 1024 in float16: a code in its lowest bits is added to it
_TWO_1024 = _HALF_1024 << 16 | _HALF_1024


@dataclass(frozen=True, slots=True)
class Fragments(ABC):
    """Activations x [m, …] and a packed weight, multiplied fragment by fragment."""

    weight: PackedWeight
    x: Buffer
    rows: Expr

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The type of the sums of a group."""

    @property
    @abstractmethod
    def chunk_words(self) -> int:
        """Words that a chunk takes in shared memory."""

    @abstractmethod
    def _read_chunk(self, row: Expr, k: Expr) -> list[Expr]:
        """Read the chunk of a row that begins at input k, as it lies in shared memory."""

    @abstractmethod
    def _multiply(
        self, sums: Buffer, place: int, low: list[Expr], high: list[Expr], b: list[Expr]
    ) -> None:
        """Multiply a chunk of two rows, 8 apart, with a fragment of the weight."""

    @abstractmethod
    def _unpack(self, given: list[list[Expr]], output: int, zero: Expr) -> list[Expr]:
        """Make a fragment of the words of one output, a list for each row of the tile."""

    def stage_memory(self, height: int, inputs: int) -> Buffer:
        """Allocate shared memory for the chunks of `height` rows and a span of inputs."""
        return shared(height * self._stride(inputs), "int32")

    def _stride(self, inputs: int) -> int:
        """Words from one row of shared memory to the next.

        Threads of eight rows, or four, read at once: their words must lie in different banks.
        """
        used = ceil_div(inputs, CHUNK) * self.chunk_words
        return ceil_div(used, 32) * 32 + 4 * self.chunk_words

    def stage(
        self,
        staged: Buffer,
        thread: Expr,
        threads: int,
        first_row: Expr,
        height: int,
        start: Expr,
        inputs: int,
    ) -> None:
        """Put a span of inputs into shared memory; zeros where there is no row or no input."""
        chunks = ceil_div(inputs, CHUNK)
        stride, padded = self._stride(inputs), self.weight.packing.padded_k

        def put(item: Expr) -> None:
            place, chunk = bind(item // chunks), bind(item % chunks)
            row, k = bind(first_row + place), bind(start + chunk * CHUNK)
            at = bind(place * stride + chunk * self.chunk_words)
            inside = tirx.And(row < self.rows, k < padded)
            words_ = registers(self.chunk_words, "int32")
            for i in range(self.chunk_words):
                store(words_, int32(0), i)

            def read() -> None:
                for i, word in enumerate(self._read_chunk(row, k)):
                    store(words_, word, i)

            when(inside, read)
            store(staged, load(words_, 0, lanes=self.chunk_words), at)

        strided(height * chunks, thread, threads, put)

    def multiply(
        self,
        sums: Buffer,
        staged: Buffer,
        tile: Expr,
        lane: Expr,
        start: Expr,
        offset: Expr,
        inputs: int,
        blocks: int,
        uneven: bool,
    ) -> None:
        """Multiply up to 32 inputs, from `offset` of the span at `start` on."""
        weight, packing = self.weight, self.weight.packing
        vectors = packing.vectors
        chunk = bind(lane % 4)
        k = bind(start + offset + chunk * CHUNK)
        conditions = []
        if inputs < 4 * CHUNK:  # the other threads' inputs belong to the next group
            conditions.append(chunk < inputs // CHUNK)
        if uneven:
            conditions.append(k < packing.padded_k)
        count = CHUNK // weight.inputs
        codes = registers(vectors * count * 4, "int32")
        if conditions:
            for i in range(vectors * count * 4):
                store(codes, int32(0), i)

        def read() -> None:
            for vector in range(vectors):
                for part in range(count):
                    row = bind(k // weight.inputs + part)
                    found = weight.words(tile, row, vector, lane // 4)
                    for i, word in enumerate(found):
                        store(codes, word, (vector * count + part) * 4 + i)

        if conditions:
            when(tirx.And(*conditions) if len(conditions) > 1 else conditions[0], read)
        else:
            read()
        stride = self._stride_of(staged, blocks)
        column = bind((offset // CHUNK + chunk) * self.chunk_words)
        used = 4 * CHUNK if inputs >= 4 * CHUNK else inputs
        activations = []
        for block in range(blocks):
            pair = []
            for half in range(2):
                at = ((block * 16 + half * 8) + lane // 4) * stride + column
                chunk_words = words(load(staged, at, lanes=self.chunk_words))
                if used < 4 * CHUNK:
                    inside = chunk < used // CHUNK
                    chunk_words = [
                        keep(tirx.Select(inside, word, int32(0))) for word in chunk_words
                    ]
                pair.append(chunk_words)
            activations.append(pair)
        group = self._group_of(k)
        for vector in range(vectors):
            zeros = self._zeros(tile, group, vector, lane)
            for output in range(4):
                given = [
                    [load(codes, (vector * count + part) * 4 + output)] for part in range(count)
                ]
                b = self._unpack(given, output, zeros[output])
                for block in range(blocks):
                    place = ((block * vectors + vector) * 4 + output) * 4
                    low, high = activations[block]
                    self._multiply(sums, place, low, high, b)

    def _stride_of(self, staged: Buffer, blocks: int) -> int:
        return int(staged.ty.shape[0]) // (16 * blocks)

    def _group_of(self, k: Expr) -> Expr:
        packing = self.weight.packing
        if packing.groups == 1:
            return tirx.IntImm("int64", 0)
        last = tirx.IntImm("int64", packing.groups - 1)
        return bind(tirx.min(k // packing.group, last))

    def _zeros(self, tile: Expr, group: Expr, vector: int, lane: Expr) -> list[Expr]:
        """What is taken from the codes of four outputs when they are unpacked."""
        return [int32(0)] * 4


class Bytes(Fragments):
    """Codes of activations, codes of weights; the weight's offset is taken off later."""

    dtype = "int32"
    chunk_words = 2

    def _read_chunk(self, row: Expr, k: Expr) -> list[Expr]:
        return words(reinterpret(load(self.x, row, k, lanes=CHUNK), "int32", 2))

    def _unpack(self, given: list[list[Expr]], output: int, zero: Expr) -> list[Expr]:
        if self.weight.packing.bits == 4:
            return [keep(half) for half in split_halves(given[0][0])]
        return [part[0] for part in given]

    def _multiply(
        self, sums: Buffer, place: int, low: list[Expr], high: list[Expr], b: list[Expr]
    ) -> None:
        mma_bytes(sums, place, [low[0], high[0], low[1], high[1]], b)


class Halves(Fragments):
    """Activations rounded to float16, codes of weights less their offset, exact in float16.

    Within a chunk, inputs come in the pairs (0, 2), (1, 3), (4, 6) and (5, 7), as masks and shifts
    take them out of a word.
    """

    dtype = "float32"
    chunk_words = 4

    def _read_chunk(self, row: Expr, k: Expr) -> list[Expr]:
        size = self.weight.packing.k
        if size % CHUNK == 0:
            x = [n for i in (0, 4) for n in words(load(self.x, row, k + i, lanes=4))]
        else:
            zero = constant(0.0, "float32")
            last = tirx.IntImm("int64", size - 1)
            x = [
                keep(tirx.Select(k + i < size, load(self.x, row, tirx.min(k + i, last)), zero))
                for i in range(CHUNK)
            ]
        return [keep(two_halves(x[a], x[b])) for a, b in ((0, 2), (1, 3), (4, 6), (5, 7))]

    def _zeros(self, tile: Expr, group: Expr, vector: int, lane: Expr) -> list[Expr]:
        """1024 and what stands for zero, twice in float16; whole numbers up to 2048 are exact."""
        zeros = self.weight.zeros(tile, group, vector, lane // 4 * 4, 4)
        # In float16 the numbers from 1024 to 2047 are 0x6400 and what is added to 1024.
        return [keep((zero + int32(_HALF_1024)) * int32(0x00010001)) for zero in zeros]

    def _unpack(self, given: list[list[Expr]], output: int, zero: Expr) -> list[Expr]:
        raised: list[Expr]
        if self.weight.packing.bits == 4:
            word = given[0][0]
            raised = [
                tirx.bitwise_or(low_bits(shift_right(word, s), _LOW_NIBBLES), int32(_TWO_1024))
                for s in (0, 8, 4, 12)
            ]
        else:
            raised = [
                pick_bytes(part[0], int32(0x64646464), selector)
                for part in given
                for selector in (0x4240, 0x4341)
            ]
        return [keep(subtract_halves(keep(pair), zero)) for pair in raised]

    def _multiply(
        self, sums: Buffer, place: int, low: list[Expr], high: list[Expr], b: list[Expr]
    ) -> None:
        for i in (0, 2):
            mma_halves(sums, place, [low[i], high[i], low[i + 1], high[i + 1]], b[i : i + 2])
