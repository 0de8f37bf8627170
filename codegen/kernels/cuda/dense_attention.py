"""Attention without a cache, of every token to every token, as encoders use it."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.builder import Expr, argument, bind, kernel, load, size, store
from codegen.kernels.cuda.attention_tile import THREADS, AttentionTile, Scores, rows_for
from codegen.kernels.cuda.cached_attention import QUERIES
from codegen.kernels.cuda.kv_rows import SharedRow
from codegen.kernels.cuda.threads import launch
from codegen.kernels.dense_attention import DenseAttentionSpec
from qcompiler.core.target import Target


def dense_attention(spec: DenseAttentionSpec, target: Target) -> PrimFunc:
    """q, k, v [b, s, h, d] and the mask if there is one → out as q; b and s are dynamic."""
    assert target.gpu is not None, target.name
    rows = rows_for(QUERIES, spec.head_size, target.gpu)
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
        bands = tirx.floordiv(s + (rows - 1), rows)
        with launch(bands, spec.heads, b, threads=THREADS) as (band, head, batch, thread):
            tile = AttentionTile.allocate(rows, spec.head_size, thread)
            first = bind(band * rows)

            def query(row: Expr) -> Expr:
                return bind(tirx.min(first + row, s - 1))

            def stage(row: Expr, to: SharedRow, lane: Expr) -> None:
                token = query(row)
                to.fill(lambda i: load(q, batch, token, head, i), lane)

            def masked(row: Expr, key: Expr) -> Expr:
                return load(
                    mask,
                    batch if spec.mask_batch else 0,
                    head if spec.mask_heads else 0,
                    query(row) if spec.mask_queries else 0,
                    key,
                )

            tile.stage_queries(stage)
            zero = tirx.const(0, "int64")
            tile.attend(
                zero,
                s,
                lambda key, i: load(k, batch, key, head, i),
                lambda key, i: load(v, batch, key, head, i),
                Scores(
                    scale=spec.scale,
                    added=masked if spec.mask == "added" else None,
                    hidden=(
                        (lambda row, key: tirx.Not(masked(row, tirx.min(key, s - 1))))
                        if spec.mask == "seen"
                        else None
                    ),
                ),
            )
            tile.finish(
                lambda row, i, y: store(out, y, batch, first + row, head, i),
                lambda row: first + row < s,
            )
    return built.get()
