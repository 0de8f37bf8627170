"""What a product of int8 activations and a packed integer weight is asked for, and its buffers."""

from __future__ import annotations

from dataclasses import dataclass, field

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    broadcast,
    cast,
    lanes_of,
    load,
    load_half,
    low_bits,
    reinterpret,
    shift_right,
    shuffle,
)
from codegen.kernels.epilogue import Epilogue, Output
from codegen.packing import Packing

_LOW_HALF = 0x0F


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatmul:
    """A product of quantised activations and a quantised weight, with what follows it.

    per_token: one activation scale a row, in spite of weight groups; otherwise one a group.
    """

    packing: Packing
    per_token: bool = False
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        assert self.packing.bits in (4, 8), self.packing

    @property
    def scale_per_group(self) -> bool:
        """Whether activation scales differ from group to group."""
        return not self.per_token and self.packing.groups > 1


@dataclass(frozen=True, slots=True)
class Operands:
    """The kernel's buffers, and how vectors are read from them."""

    packing: Packing
    codes: Buffer
    scales: Buffer
    sums: Buffer
    weights: Buffer
    weight_scales: Buffer
    zero_points: Buffer | None
    output: Output

    @classmethod
    def arguments(cls, spec: QuantizedMatmul, rows: Expr) -> Operands:
        """Add the kernel's arguments, in the order of the class's fields."""
        packing = spec.packing
        scales = packing.groups if spec.scale_per_group else 1
        return cls(
            packing,
            argument("codes", (rows, packing.padded_k), "int8"),
            argument("scales", (rows, scales), "float32"),
            argument("sums", (rows, packing.groups), "int32"),
            argument("weights", (packing.code_bytes,), "uint8"),
            argument("weight_scales", (packing.scale_count,), "float16"),
            None
            if packing.symmetric
            else argument("zero_points", (packing.zero_point_count,), "uint8"),
            Output.arguments(packing, spec.epilogue, rows),
        )

    def fours(self, row: Expr, k: Expr, count: int) -> list[Expr]:
        """Activation codes k..k+3 of a row, in every lane of an int32 vector; then the next ones.

        `count` is 1, or up to the lanes of a vector.
        """
        lanes = self.packing.lanes
        if count == 1 or not multiplies_by_lane(self.packing):
            places = [k + 4 * i for i in range(count)]
            four = [reinterpret(load(self.codes, row, at, lanes=4), "int32") for at in places]
            return [broadcast(each, lanes) for each in four]
        codes = bind(load(self.codes, row, k, lanes=4 * count))
        together = bind(reinterpret(codes, "int32", count))
        return [shuffle(together, together, [i] * lanes) for i in range(count)]

    def eights(self, row: Expr, k: Expr, count: int) -> Expr:
        """Activation codes k..k+7 of a row, and the next ones: `count` eights, as int8."""
        return bind(load(self.codes, row, k, lanes=8 * count))

    def weight_bytes(self, place: Expr) -> Expr:
        """A vector of the packed weight, four bytes a lane, as int32."""
        lanes = self.packing.lanes
        return reinterpret(load(self.weights, place, lanes=4 * lanes), "int32", lanes)

    def weight_scale(self, place: Expr) -> Expr:
        """A vector of weight scales, as float32."""
        return load_half(self.weight_scales, place, lanes=self.packing.lanes)

    def zero_point(self, place: Expr) -> Expr:
        """A vector of weight zero points, as float32."""
        return cast(load(self.zero_points, place, lanes=self.packing.lanes), "float32")


def multiplies_by_lane(packing: Packing) -> bool:
    """Tell whether one lane of a vector can be the factor of all, which saves to broadcast it.

    So does Arm, whose vectors have four lanes.
    """
    return packing.lanes == 4


def fours_at_once(packing: Packing) -> int:
    """Return how many fours of activations are best read together."""
    return packing.lanes if multiplies_by_lane(packing) else 1


def split_halves(packed: Expr) -> tuple[Expr, Expr]:
    """Separate the 4-bit codes in the low and the high halves of bytes."""
    lanes = lanes_of(packed)
    codes = bind(reinterpret(packed, "uint8", 4 * lanes))
    halves = low_bits(codes, _LOW_HALF), shift_right(codes, 4)
    low, high = (reinterpret(half, "int32", lanes) for half in halves)
    return low, high
