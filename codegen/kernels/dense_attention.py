"""Attention without a cache, of every token to every token, as encoders use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    broadcast,
    cast,
    constant,
    kernel,
    load,
    parallel,
    scratch,
    select,
    serial,
    settle,
    size,
    splat,
    store,
)
from codegen.kernels.rotary import Row, copy_row
from codegen.kernels.tiled_attention import HIDDEN, LOG2E, Tile, TiledAttention
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Target


@dataclass(frozen=True, kw_only=True)
class DenseAttentionSpec:
    """`heads` heads of `head_size` features, and what hides keys from queries.

    `mask` is "none", "added" (float32, added to the scores) or "seen" (boolean, true where a key is
    seen). It is [b, h, s, s], but each of the first three sizes is 1 unless `mask_batch`,
    `mask_heads` and `mask_queries` say otherwise.
    """

    heads: int
    head_size: int
    scale: float
    mask: Literal["none", "added", "seen"] = "none"
    mask_batch: bool = True
    mask_heads: bool = False
    mask_queries: bool = False

    def __post_init__(self) -> None:
        if self.head_size % 8:
            raise UnsupportedError(
                f"no attention kernel for heads of {self.head_size} features; "
                "pad them to a multiple of 8"
            )


def dense_attention(spec: DenseAttentionSpec, target: Target) -> PrimFunc:
    """q, k, v [b, s, h, d] and the mask if there is one → out as q; b and s are dynamic."""
    with kernel("dense_attention") as built:
        b, s = size("b"), size("s")
        shape = (b, s, spec.heads, spec.head_size)
        q, k, v = (argument(name, shape, "float32") for name in ("q", "k", "v"))
        mask = None
        if spec.mask != "none":
            extents = (
                b if spec.mask_batch else 1,
                spec.heads if spec.mask_heads else 1,
                s if spec.mask_queries else 1,
                s,
            )
            mask = argument("mask", extents, "float32" if spec.mask == "added" else "bool")
        out = argument("out", shape, "float32")
        tile = Tile.choose(target)
        tiles = settle((s + (tile.queries - 1)) // tile.queries)
        with parallel(b * spec.heads * tiles) as task:
            batch = settle(task // (spec.heads * tiles))
            head = settle(task // tiles % spec.heads)
            first_row = settle(task % tiles * tile.queries)

            def write_query(row: Expr, buffer: Buffer, offset: Expr) -> None:
                source = Row(q, (batch, row, head, 0))
                copy_row(source, Row(buffer, (offset,)), spec.head_size, target.lanes)

            def read_result(row: Expr, buffer: Buffer, offset: Expr) -> None:
                to = Row(out, (batch, row, head, 0))
                copy_row(Row(buffer, (offset,)), to, spec.head_size, target.lanes)

            masking = None
            if mask is not None:
                masking = _Mask(spec, tile, mask, batch, head, first_row, s).apply
            TiledAttention(
                tile=tile,
                head_size=spec.head_size,
                scale=spec.scale,
                softcap=0.0,
                write_query=write_query,
                keys=lambda start, _: lambda i, f: load(k, batch, start + i, head, f),
                values=lambda start, _: lambda i, f: load(v, batch, start + i, head, f),
                read_result=read_result,
            ).emit(first_row, s, constant(0, "int64"), s, masking, None)
    return built.get()


@dataclass(frozen=True)
class _Mask:
    """The mask of the queries of one tile."""

    spec: DenseAttentionSpec
    tile: Tile
    mask: Buffer
    batch: Expr
    head: Expr
    first_row: Expr
    rows: Expr

    def apply(self, score: Expr, key: Expr, v: int) -> Expr:
        """Mask the scores of a key for one vector of queries."""
        lanes = self.tile.lanes
        batch = self.batch if self.spec.mask_batch else 0
        head = self.head if self.spec.mask_heads else 0
        if not self.spec.mask_queries:
            values = broadcast(load(self.mask, batch, head, 0, key), lanes)
        else:
            column = scratch(lanes, "float32")
            with serial(lanes) as i:
                row = _smaller(self.first_row + v * lanes + i, self.rows - 1)
                store(column, cast(load(self.mask, batch, head, row, key), "float32"), i)
            values = load(column, 0, lanes=lanes)
        if self.spec.mask == "added":
            return bind(score + bind(values) * splat(LOG2E, lanes))
        seen = bind(cast(values, "float32")) > splat(0.5, lanes)
        return bind(select(seen, score, splat(HIDDEN, lanes)))


def _smaller(a: Expr, b: Expr) -> Expr:
    return select(a < b, a, b)
