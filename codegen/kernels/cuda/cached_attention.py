"""Causal attention with a cache, from queries, keys and values, or from a fused product.

The first launch appends the new keys and values to the caches. A prompt's queries are then shared
out among blocks, sixteen of a head to each. A single token's context is: each block has the query
heads that share a key head and a part of the context, and a third launch combines the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.attention import AttentionSpec, Cache
from codegen.kernels.builder import (
    Expr,
    argument,
    bind,
    ceil_div,
    constant,
    kernel,
    load,
    serial,
    size,
    store,
    when,
)
from codegen.kernels.cuda.attention_tile import THREADS, AttentionTile, Scores, rows_for
from codegen.kernels.cuda.instructions import fma
from codegen.kernels.cuda.kv_rows import CacheRows, SharedRow
from codegen.kernels.cuda.lookup import rotated
from codegen.kernels.cuda.threads import (
    WARP,
    device_scratch,
    keep,
    launch,
    registers,
    shared,
    strided,
)
from codegen.kernels.rope_attention import RopeAttentionSpec
from codegen.kernels.row import Rows
from qcompiler.core.target import Gpu, Target

QUERIES = 16
"""Rows of queries of a block."""
PART = 256
"""Tokens of the context that one block meets, of a single token's."""


@dataclass(frozen=True)
class NewTokens:
    """Where the new tokens' queries, keys and values come from, feature by feature.

    Each of query, key and value is a function of token, head and feature; `write` takes token,
    head, feature and result.
    """

    tokens: Expr
    query: Callable[[Expr, Expr, Expr], Expr]
    key: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]
    write: Callable[[Expr, Expr, Expr, Expr], None]


def attention(spec: AttentionSpec, target: Target, rows: Rows) -> PrimFunc:
    """q [1, s, h, d], k, v [1, s, hk, d], both caches [1, hk, c, r], position → out as q."""
    with kernel("attention") as built:
        s = 1 if rows == "one" else size("s")
        heads = (1, s, spec.heads, spec.head_size)
        few = (1, s, spec.kv_heads, spec.head_size)
        q = argument("q", heads, "float32")
        k, v = (argument(name, few, "float32") for name in ("k", "v"))
        cache = Cache.declare(spec)
        out = argument("out", heads, "float32")
        new = NewTokens(
            tokens=s,
            query=lambda t, h, i: load(q, 0, t, h, i),
            key=lambda t, h, i: load(k, 0, t, h, i),
            value=lambda t, h, i: load(v, 0, t, h, i),
            write=lambda t, h, i, y: store(out, y, 0, t, h, i),
        )
        _attend(spec, _gpu(target), rows, new, cache)
    return built.get()


def rope_attention(spec: RopeAttentionSpec, target: Target, rows: Rows) -> PrimFunc:
    """qkv [1, s, (h + 2·hk)·d], cos, sin [1, s, r/2], both caches, position → [1, s, h·d].

    Between sin and the caches come the means of keys that are centred, [hk, d].
    """
    shape = spec.attention
    heads, few, d = shape.heads, shape.kv_heads, shape.head_size
    with kernel("rope_attention") as built:
        s = 1 if rows == "one" else size("s")
        qkv = argument("qkv", (1, s, (heads + 2 * few) * d), "float32")
        cos = argument("cos", (1, s, spec.rotated // 2), "float32")
        sin = argument("sin", (1, s, spec.rotated // 2), "float32")
        mean = argument("key_mean", (few, d), "float32") if spec.centred else None
        cache = Cache.declare(shape)
        out = argument("out", (1, s, heads * d), "float32")

        def turned(t: Expr, head: Expr, i: Expr) -> Expr:
            return rotated(
                lambda f: load(qkv, 0, t, head * d + f),
                lambda p: load(cos, 0, t, p),
                lambda p: load(sin, 0, t, p),
                i,
                spec.rotary,
            )

        def key(t: Expr, head: Expr, i: Expr) -> Expr:
            row = turned(t, heads + head, i)
            return row if mean is None else row - load(mean, head, i)

        new = NewTokens(
            tokens=s,
            query=turned,
            key=key,
            value=lambda t, h, i: load(qkv, 0, t, (heads + few + h) * d + i),
            write=lambda t, h, i, y: store(out, y, 0, t, h * d + i),
        )
        _attend(shape, _gpu(target), rows, new, cache)
    return built.get()


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None, target.name
    return target.gpu


def _attend(spec: AttentionSpec, gpu: Gpu, rows: Rows, new: NewTokens, cache: Cache) -> None:
    _append(spec, new, cache)
    if rows == "one":
        _one_token(spec, gpu, new, cache)
    else:
        _prompt(spec, gpu, new, cache)


def _append(spec: AttentionSpec, new: NewTokens, cache: Cache) -> None:
    """Write the new keys and values into the caches, a warp for each row."""
    d = spec.head_size
    with launch(new.tokens, spec.kv_heads, 2, threads=WARP) as (token, head, which, lane):
        row = SharedRow(shared((1, d)), tirx.IntImm("int64", 0), d)
        place = bind(load(cache.position, 0) + token)

        def key() -> None:
            row.fill(lambda i: new.key(token, head, i), lane)
            if spec.keys is not None and spec.keys.rotated:
                row.rotate(lane)
            row.write_to(cache.keys, (0, head, place), spec.keys, lane)

        def value() -> None:
            row.fill(lambda i: new.value(token, head, i), lane)
            row.write_to(cache.values, (0, head, place), spec.values, lane)

        when(which.equal(0), key, value)


def _stage_query(
    spec: AttentionSpec, read: Callable[[Expr], Expr], to: SharedRow, lane: Expr
) -> None:
    """Write a query as it meets the cache's keys."""
    to.fill(read, lane)
    if spec.keys is not None and spec.keys.rotated:
        to.rotate(lane)
    if spec.keys is not None and spec.keys.meets_codes:
        to.round_to_codes(lane)


def _prompt(spec: AttentionSpec, gpu: Gpu, new: NewTokens, cache: Cache) -> None:
    """Attend with the queries of many tokens."""
    rows = rows_for(QUERIES, spec.head_size, gpu)
    tokens = new.tokens
    bands = tirx.floordiv(tokens + (rows - 1), rows)
    with launch(bands, spec.heads, threads=THREADS) as (band, head, thread):
        tile = AttentionTile.allocate(rows, spec.head_size, thread)
        first = bind(band * rows)
        position = keep(load(cache.position, 0))
        shared_head = bind(head // spec.group)
        keys, values = _rows_of(spec, cache)

        def stage(row: Expr, to: SharedRow, lane: Expr) -> None:
            token = bind(tirx.min(first + row, tokens - 1))
            _stage_query(spec, lambda i: new.query(token, head, i), to, lane)

        tile.stage_queries(stage)
        begin: Expr = tirx.const(0, "int64")
        if spec.window > 0:
            begin = bind(tirx.max(position + first + (1 - spec.window), begin))
        end = bind(position + tirx.min(first + rows, tokens))

        def hidden(row: Expr, key: Expr) -> Expr:
            own = position + first + row
            later = key > own
            return tirx.Or(later, key <= own - spec.window) if spec.window > 0 else later

        tile.attend(
            begin,
            end,
            lambda k, i: keys.read(shared_head, k, i),
            lambda k, i: values.read(shared_head, k, i),
            Scores(scale=spec.scale, softcap=spec.softcap, hidden=hidden),
        )
        tile.finish(
            lambda row, i, y: new.write(first + row, head, i, y), lambda row: first + row < tokens
        )


def _rows_of(spec: AttentionSpec, cache: Cache) -> tuple[CacheRows, CacheRows]:
    return (
        CacheRows(cache.keys, spec.keys, spec.head_size),
        CacheRows(cache.values, spec.values, spec.head_size),
    )


def _one_token(spec: AttentionSpec, gpu: Gpu, new: NewTokens, cache: Cache) -> None:
    """Attend with the query of one token, its context shared out among blocks."""
    d, token = spec.head_size, tirx.IntImm("int64", 0)
    rows = rows_for(min(spec.group, QUERIES), d, gpu)
    crowds = ceil_div(spec.group, rows)
    context = cache.keys.ty.shape[2]
    parts = tirx.floordiv(context + (PART - 1), PART)
    totals = device_scratch((spec.heads, parts, d))
    scales = device_scratch((spec.heads, parts, 2))
    with launch(parts, crowds, spec.kv_heads, threads=THREADS) as (part, crowd, head, thread):
        position = keep(load(cache.position, 0))
        first, end = _part(spec, part, position)

        def some() -> None:
            tile = AttentionTile.allocate(rows, d, thread)
            keys, values = _rows_of(spec, cache)

            def query_head(row: Expr) -> Expr:
                return bind(head * spec.group + crowd * rows + row)

            def valid(row: Expr) -> Expr:
                return crowd * rows + row < spec.group

            def stage(row: Expr, to: SharedRow, lane: Expr) -> None:
                last = tirx.IntImm("int64", spec.heads - 1)
                own = bind(tirx.min(query_head(row), last))
                _stage_query(spec, lambda i: new.query(token, own, i), to, lane)

            tile.stage_queries(stage)
            tile.attend(
                first,
                end,
                lambda k, i: keys.read(head, k, i),
                lambda k, i: values.read(head, k, i),
                Scores(scale=spec.scale, softcap=spec.softcap),
            )

            def write_scale(row: Expr, largest: Expr, total: Expr) -> None:
                store(scales, largest, query_head(row), part, 0)
                store(scales, total, query_head(row), part, 1)

            tile.leave(
                lambda row, i, y: store(totals, y, query_head(row), part, i), write_scale, valid
            )

        when(first < end, some)
    threads = ceil_div(d, WARP) * WARP
    with launch(spec.heads, threads=threads) as (head, thread):
        position = keep(load(cache.position, 0))
        least = _first_seen(spec, position) // PART
        count = bind(position // PART + 1 - least)
        # Every thread needs all scales; they are few, and close by.
        largest, total = registers(1), registers(1)
        store(largest, load(scales, head, least, 0), 0)
        store(total, constant(0.0, "float32"), 0)
        with serial(count) as part:
            store(largest, tirx.max(load(largest, 0), load(scales, head, least + part, 0)), 0)

        def share(part: Expr) -> Expr:
            return tirx.exp(load(scales, head, least + part, 0) - load(largest, 0))

        with serial(count) as part:
            store(total, fma(share(part), load(scales, head, least + part, 1), load(total, 0)), 0)

        def feature(i: Expr) -> None:
            y = registers(1)
            store(y, constant(0.0, "float32"), 0)
            with serial(count) as part:
                store(y, fma(keep(share(part)), load(totals, head, least + part, i), load(y, 0)), 0)
            new.write(token, head, i, load(y, 0) / load(total, 0))

        strided(d, thread, threads, feature)


def _first_seen(spec: AttentionSpec, position: Expr) -> Expr:
    """The first token that one at `position` sees."""
    zero = tirx.const(0, "int64")
    return bind(tirx.max(position + (1 - spec.window), zero)) if spec.window > 0 else zero


def _part(spec: AttentionSpec, part: Expr, position: Expr) -> tuple[Expr, Expr]:
    """Where a part of the context begins and ends, of what is seen."""
    first = bind(tirx.max(part * PART, _first_seen(spec, position)))
    return first, bind(tirx.min(part * PART + PART, position + 1))
