"""Rotary position embedding of heads (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    fma,
    kernel,
    load,
    parallel,
    serial,
    shuffle,
    size,
    splat,
    store,
)
from codegen.kernels.row import pieces
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Target


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Heads of `head_size` features, of which the first `rotated` turn in pairs.

    Feature i pairs with i + rotated/2, or with its neighbour when interleaved.
    """

    heads: int
    head_size: int
    rotated: int
    interleaved: bool = False

    def __post_init__(self) -> None:
        if self.rotated % 2 or not 0 < self.rotated <= self.head_size:
            raise UnsupportedError(
                f"{self.rotated} of {self.head_size} features cannot turn in pairs; "
                "use an even number of them"
            )


@dataclass(frozen=True)
class Row:
    """Consecutive numbers of a buffer, from an index on."""

    buffer: Buffer
    index: tuple[Expr, ...]

    def load(self, at: Expr, lanes: int = 1) -> Expr:
        """Read `lanes` numbers at a place of the row."""
        *lead, start = self.index
        return bind(load(self.buffer, *lead, start + at, lanes=lanes))

    def store(self, value: Expr, at: Expr) -> None:
        """Write a vector at a place of the row."""
        *lead, start = self.index
        store(self.buffer, value, *lead, start + at)


def rotary(spec: RotarySpec, target: Target) -> PrimFunc:
    """x [b, s, h, d], cos and sin [b, s, r/2] → y [b, s, h, d], all float32."""
    with kernel("rotary") as built:
        b, s = size("b"), size("s")
        shape = (b, s, spec.heads, spec.head_size)
        x = argument("x", shape, "float32")
        cos = argument("cos", (b, s, spec.rotated // 2), "float32")
        sin = argument("sin", (b, s, spec.rotated // 2), "float32")
        y = argument("y", shape, "float32")
        with parallel(b * s) as token, serial(spec.heads) as head:
            where = (token // s, token % s)
            rotate_row(
                Row(x, (*where, head, 0)),
                Row(y, (*where, head, 0)),
                Row(cos, (*where, 0)),
                Row(sin, (*where, 0)),
                spec,
                target.lanes,
            )
    return built.get()


def copy_row(source: Row, destination: Row, length: int, lanes: int, start: int = 0) -> None:
    """Copy the features of a row from `start` to `length`."""
    for at, width, count in pieces(length - start, lanes):
        if count == width:
            destination.store(source.load(start + at, width), start + at)
        else:
            for i in range(count):
                destination.store(source.load(start + at + i), start + at + i)


def subtract_row(amount: Row, destination: Row, length: int, lanes: int) -> None:
    """Subtract the features of one row from those of another."""
    for at, width, count in pieces(length, lanes):
        steps = [(at, width)] if count == width else [(at + i, 1) for i in range(count)]
        for start, numbers in steps:
            destination.store(destination.load(start, numbers) - amount.load(start, numbers), start)


def rotate_row(
    source: Row, destination: Row, cos: Row, sin: Row, spec: RotarySpec, lanes: int
) -> None:
    """Write one head, rotated by the angles of its token, and its other features as they are."""
    if spec.interleaved:
        _rotate_neighbours(source, destination, cos, sin, spec.rotated, lanes)
    else:
        _rotate_halves(source, destination, cos, sin, spec.rotated // 2, lanes)
    copy_row(source, destination, spec.head_size, lanes, start=spec.rotated)


def _rotate_halves(
    source: Row, destination: Row, cos: Row, sin: Row, half: int, lanes: int
) -> None:
    for at, width in _cut(half, lanes):
        a, b = source.load(at, width), source.load(half + at, width)
        c, s = cos.load(at, width), sin.load(at, width)
        destination.store(a * c - b * s, at)
        destination.store(b * c + a * s, half + at)


def _rotate_neighbours(
    source: Row, destination: Row, cos: Row, sin: Row, rotated: int, lanes: int
) -> None:
    for at, width in _cut(rotated // 2, lanes // 2):
        if width == 1:
            a, b = source.load(2 * at), source.load(2 * at + 1)
            c, s = cos.load(at), sin.load(at)
            destination.store(a * c - b * s, 2 * at)
            destination.store(b * c + a * s, 2 * at + 1)
            continue
        x = source.load(2 * at, 2 * width)
        twice = [i // 2 for i in range(2 * width)]
        c, s = (bind(shuffle(v, v, twice)) for v in (cos.load(at, width), sin.load(at, width)))
        # The partner of an even feature enters with a minus.
        both = splat(-1.0, 2 * width), splat(1.0, 2 * width)
        signs = shuffle(*both, [i + i % 2 * 2 * width for i in range(2 * width)])
        partner = bind(shuffle(x, x, [i ^ 1 for i in range(2 * width)]))
        destination.store(fma(x, c, partner * bind(s * signs)), 2 * at)


def _cut(length: int, lanes: int) -> Sequence[tuple[int, int]]:
    """Places and widths that cover a length: whole vectors, halves of one, then single numbers."""
    cut, at = [], 0
    for width in (lanes, lanes // 2, 1) if lanes > 4 else (lanes, 1):
        while length - at >= width:
            cut.append((at, width))
            at += width
    return cut
