"""Some columns of a packed weight, made ready for many rows, and those that come next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    prefetch,
    quotient,
    reinterpret,
    scratch,
    serial,
    shuffle,
    smaller,
    store,
)
from codegen.kernels.quantized_operands import Operands, split_halves
from codegen.packing import Packing
from qcompiler.core.artifact import LINE_BYTES

INPUTS_PER_RUN = 32
# Shorter rows of weights come from a cache soon enough, and asking beforehand only disturbs.
_LONG_ROW = 1024


@dataclass(frozen=True, slots=True)
class Columns:
    """Some vectors of a tile, ready to be multiplied by block after block of rows.

    weights: 8-bit codes; those of inputs k..k+3 and vector v at start + (k / 4 · stride + v) · 4 ·
    lanes. paired: in the place of those of k..k+3 are those of k..k+7 and the first two outputs of
    the four, in the place of those of k+4..k+7 those of the last two.
    scales, zero_points: float32, [group][vector][lane].
    """

    tile: Expr
    first: Expr
    vectors: int
    weights: Buffer
    start: Expr
    stride: int
    paired: bool
    scales: Buffer
    zero_points: Buffer | None


@dataclass(frozen=True, slots=True)
class Coming:
    """The packed vectors that are multiplied after those at hand, from byte `start`.

    They are asked for while others are multiplied: to wait for main memory would take up to a sixth
    of the time.
    """

    operands: Operands
    vectors: int
    start: Expr
    turn: Expr = 0

    @classmethod
    def after(cls, operands: Operands, tile: Expr, first: Expr, vectors: int) -> Coming:
        """Those after vector `first` of a tile and its neighbours, perhaps in the next tile."""
        packing = operands.packing
        whole = bind(quotient(first + vectors, packing.vectors))
        place = (tile + whole) * (cls._steps(packing) * packing.vectors)
        vector = first + vectors - whole * packing.vectors
        return cls(operands, vectors, bind((place + vector) * (4 * packing.lanes)))

    @staticmethod
    def _steps(packing: Packing) -> int:
        """Vectors of bytes that the weights of one vector of outputs are."""
        return packing.padded_k * packing.bits // 32

    def from_block(self, number: Expr) -> Coming:
        """Go on where the blocks before have stopped."""
        runs = self.operands.packing.padded_k // INPUTS_PER_RUN
        return replace(self, turn=bind(number * runs))

    def ask(self, first_input: Expr) -> None:
        """Ask for some more, in the run from an input of the block."""
        packing = self.operands.packing
        if packing.padded_k < _LONG_ROW:
            return
        width = 4 * packing.lanes
        turn = self.turn + quotient(first_input, INPUTS_PER_RUN)
        step = bind(smaller(turn, self._steps(packing) - 1))
        for line in range(0, self.vectors * width, LINE_BYTES):
            place = self.start + (step * (packing.vectors * width) + line)
            prefetch(self.operands.weights, place)


def _eight_inputs(operands: Operands, step: Expr, vector: Expr) -> tuple[Expr, Expr]:
    """Read the codes of inputs k..k+3 and of k+4..k+7, as int32; step: k / 8, over all tiles."""
    packing, width = operands.packing, 4 * operands.packing.lanes
    if packing.bits == 4:
        place = (step * packing.vectors + vector) * width
        low, high = split_halves(bind(operands.weight_bytes(place)))
    else:
        low, high = (
            operands.weight_bytes(((step * 2 + half) * packing.vectors + vector) * width)
            for half in range(2)
        )
    return bind(low), bind(high)


def _paired(low: Expr, high: Expr) -> tuple[Expr, Expr]:
    """Of fours of inputs of four outputs, and their next fours, make eights of two outputs each."""
    return bind(shuffle(low, high, (0, 4, 1, 5))), bind(shuffle(low, high, (2, 6, 3, 7)))


def prepare_columns(
    operands: Operands, tile: Expr, first: Expr, vectors: int, *, paired: bool = False
) -> Columns:
    """Widen what is narrow, once for all blocks of rows."""
    packing, lanes = operands.packing, operands.packing.lanes
    width = 4 * lanes
    weights, stride = operands.weights, packing.vectors
    start = bind((tile * (packing.padded_k * packing.vectors) + first * 4) * lanes)
    if packing.bits == 4 or paired:
        weights, start, stride = scratch(packing.padded_k * vectors * lanes, "uint8"), 0, vectors
        steps = packing.padded_k // 8
        with serial(steps) as step:
            for v in range(vectors):
                halves = _eight_inputs(operands, tile * steps + step, first + v)
                if paired:
                    halves = _paired(*halves)
                for half, codes in enumerate(halves):
                    place = ((step * 2 + half) * vectors + v) * width
                    store(weights, reinterpret(codes, "uint8", width), place)
    scales = scratch(packing.groups * vectors * lanes, "float32")
    zero_points = None
    if not packing.symmetric:
        zero_points = scratch(packing.groups * vectors * lanes, "float32")
    with serial(packing.groups) as group:
        for v in range(vectors):
            place = ((tile * packing.groups + group) * packing.vectors + first + v) * lanes
            to = (group * vectors + v) * lanes
            store(scales, operands.weight_scale(place), to)
            if zero_points is not None:
                store(zero_points, operands.zero_point(place), to)
    return Columns(tile, first, vectors, weights, start, stride, paired, scales, zero_points)
