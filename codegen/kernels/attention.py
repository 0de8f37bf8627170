"""Causal attention with a cache: append the new keys and values, then attend to what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.ahead import Ahead
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
from codegen.kernels.kv_rows import StoredRow, rotate_heads, write_row
from codegen.kernels.query_codes import ByteProducts, KeyCodes, QueryCodes
from codegen.kernels.rotary import Row, copy_row
from codegen.kernels.row import Rows, over_rows, pieces
from codegen.kernels.single_attention import SingleAttention
from codegen.kernels.tiled_attention import HIDDEN, Tile, TiledAttention
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.kv_format import KvFormat, row_of
from qcompiler.core.target import Target


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """`heads` query heads share `kv_heads` heads of keys and values, of `head_size` features.

    A token sees itself and what came before, at most `window` tokens where that is positive; scores
    pass softcap · tanh(score / softcap) where that is positive. `keys` and `values` are the formats
    of the caches' rows; None: float32. A single token asks for weights of `ahead` bytes each,
    which are read next.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    keys: KvFormat | None = None
    values: KvFormat | None = None
    ahead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UnsupportedError(
                f"{self.heads} query heads cannot share {self.kv_heads} key heads evenly; "
                "repeat the keys for each query head"
            )
        if self.head_size % 8:
            raise UnsupportedError(
                f"no attention kernel for heads of {self.head_size} features; "
                "pad them to a multiple of 8"
            )
        for form in (self.keys, self.values):
            if form is not None:
                form.check(self.head_size)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Cache:
    """Keys and values so far, each [1, hk, c, r], and the place of the first new token."""

    keys: Buffer
    values: Buffer
    position: Buffer
    ahead: list[Buffer]
    """Weights that are read next."""

    @classmethod
    def declare(cls, spec: AttentionSpec) -> Cache:
        """Add the buffers to the function's arguments."""
        context = size("c")

        def cache(name: str, form: KvFormat | None) -> Buffer:
            numbers, dtype = row_of("" if form is None else str(form), spec.head_size)
            return argument(name, (1, spec.kv_heads, context, numbers), dtype)

        return cls(
            cache("k_cache", spec.keys),
            cache("v_cache", spec.values),
            argument("position", (1,), "int64"),
            [argument(f"ahead{i}", (size,), "uint8") for i, size in enumerate(spec.ahead)],
        )


@dataclass(frozen=True)
class NewTokens:
    """Where the queries, keys and values of the new tokens come from.

    `write_query(token, head, to)` writes a query row; `append(token, head, key, value)` the key and
    the value of one head into rows of the cache. `output(token, head)` is where a result goes.
    """

    tokens: Expr
    write_query: Callable[[Expr, Expr, Row], None]
    append: Callable[[Expr, Expr, Row, Row], None]
    output: Callable[[Expr, Expr], Row]


def attention(spec: AttentionSpec, target: Target, rows: Rows) -> PrimFunc:
    """q [1, s, h, d], k and v [1, s, hk, d], both caches [1, hk, c, r], position, ahead → out as q.

    Position is int64, caches are float32 or bytes, all else is float32. The caches change in place.
    One row is the schedule for a single new token, many for a prompt.
    """
    with kernel("attention") as built:
        s = 1 if rows == "one" else size("s")
        heads = (1, s, spec.heads, spec.head_size)
        shared = (1, s, spec.kv_heads, spec.head_size)
        q = argument("q", heads, "float32")
        k, v = (argument(name, shared, "float32") for name in ("k", "v"))
        cache = Cache.declare(spec)
        out = argument("out", heads, "float32")

        def copy(source: Row, to: Row) -> None:
            copy_row(source, to, spec.head_size, target.lanes)

        def append(token: Expr, head: Expr, key: Row, value: Row) -> None:
            copy(Row(k, (0, token, head, 0)), key)
            copy(Row(v, (0, token, head, 0)), value)

        new = NewTokens(
            tokens=s,
            write_query=lambda token, head, to: copy(Row(q, (0, token, head, 0)), to),
            append=append,
            output=lambda token, head: Row(out, (0, token, head, 0)),
        )
        attend(spec, target, rows, new, cache)
    return built.get()


def attend(spec: AttentionSpec, target: Target, rows: Rows, new: NewTokens, cache: Cache) -> None:
    """Append the new tokens to the cache, then let them attend."""
    position = settle(load(cache.position, 0))
    products = ByteProducts.choose(spec.keys, spec.head_size, target)

    def append(token: Expr) -> None:
        d, lanes = spec.head_size, target.lanes
        forms = (spec.keys, spec.values)
        numbers = [None if form is None else scratch(d, "float32") for form in forms]
        with serial(spec.kv_heads) as head:
            place = (0, head, position + token, 0)
            ends = Row(cache.keys, place), Row(cache.values, place)
            rows = [
                end if n is None else Row(n, (0,)) for n, end in zip(numbers, ends, strict=True)
            ]
            new.append(token, head, rows[0], rows[1])
            if _turns(spec):
                rotate_heads(rows[0], d, lanes)
            for row, end, form in zip(rows, ends, forms, strict=True):
                if form is not None:
                    write_row(row, end, form, d, lanes)

    def write_query(token: Expr, head: Expr, to: Row) -> None:
        plain.write_query(token, head, to)
        if _turns(spec):
            rotate_heads(to, spec.head_size, target.lanes)
        if spec.keys is not None and spec.keys.meets_codes and products is None:
            codes = QueryCodes.make(1, spec.head_size, target.lanes)
            codes.quantize(to, 0)
            codes.restore(0, to)

    plain, new = new, replace(new, write_query=write_query)

    over_rows(new.tokens, 2 * spec.kv_heads * spec.head_size, append)
    if rows == "one":
        _attend_one(spec, target, new, cache, position, products)
    else:
        _attend_many(spec, target, new, cache, position, products)


def _attend_one(
    spec: AttentionSpec,
    target: Target,
    new: NewTokens,
    cache: Cache,
    position: Expr,
    products: ByteProducts | None,
) -> None:
    zero = constant(0, "int64")
    first = tirx.Max(zero, position - (spec.window - 1)) if spec.window else zero
    SingleAttention(
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        scale=spec.scale,
        softcap=spec.softcap,
        lanes=target.lanes,
        registers=target.vector_registers,
        write_query=lambda head, to: new.write_query(zero, head, to),
        key=lambda head, key: _row(spec, spec.keys, cache.keys, head, key),
        value=lambda head, key: _row(spec, spec.values, cache.values, head, key),
        output=lambda head: new.output(zero, head),
        products=products,
        byte_values=spec.values is not None and spec.values.meets_codes,
        ahead=_ahead(spec, target, cache),
    ).emit(settle(first), settle(position + 1))


def _ahead(spec: AttentionSpec, target: Target, cache: Cache) -> list[Ahead]:
    """Ask for what the second-level cache holds of the first weight, and an eighth of that of the
    next: twice or half as much gained less (SmolLM2 after 512 tokens).
    """
    most = (target.l2_bytes, target.l2_bytes // 8)
    sizes = zip(cache.ahead, spec.ahead, most, strict=False)
    return [Ahead(buffer, size, limit) for buffer, size, limit in sizes]


def _attend_many(
    spec: AttentionSpec,
    target: Target,
    new: NewTokens,
    cache: Cache,
    position: Expr,
    products: ByteProducts | None,
) -> None:
    """Cut the rows (token, head of the group) of each key head, which share keys, into tiles."""
    tile = Tile.choose(target)
    rows = settle(new.tokens * spec.group)
    tiles = settle((rows + (tile.queries - 1)) // tile.queries)
    with parallel(spec.kv_heads * tiles) as task:
        head = settle(task // tiles)
        first_row = settle(_balanced(task % tiles, tiles) * tile.queries)
        oldest = settle(position + first_row // spec.group)
        last_row = tirx.Min(first_row + (tile.queries - 1), rows - 1)
        newest = settle(position + last_row // spec.group)
        # Rows in few bits are read once for all queries of a tile.
        floats = (
            scratch(tile.keys * spec.head_size, "float32") if spec.keys or spec.values else None
        )
        codes = None
        if products is not None:
            codes = KeyCodes.make(products, tile.keys, spec.head_size, target.lanes)
        places = scratch(tile.queries, "int32")
        with serial(tile.queries) as i:
            store(places, cast(position + (first_row + i) // spec.group, "int32"), i)

        def hide(score: Expr, key: Expr, v: int) -> Expr:
            lanes = tile.lanes
            place = bind(load(places, v * lanes, lanes=lanes))
            at = bind(broadcast(cast(key, "int32"), lanes))
            score = select(at > place, splat(HIDDEN, lanes), score)
            if spec.window:
                gone = at <= place - splat(spec.window, lanes, "int32")
                score = select(gone, splat(HIDDEN, lanes), bind(score))
            return bind(score)

        def partly_hidden(start: Expr, count: Expr) -> Expr:
            future = start + count - 1 > oldest
            return tirx.any(future, start <= newest - spec.window) if spec.window else future

        def write_query(row: Expr, buffer: Buffer, offset: Expr) -> None:
            new.write_query(
                row // spec.group, head * spec.group + row % spec.group, Row(buffer, (offset,))
            )

        def read_result(row: Expr, buffer: Buffer, offset: Expr) -> None:
            to = new.output(row // spec.group, head * spec.group + row % spec.group)
            copy_row(Row(buffer, (offset,)), to, spec.head_size, target.lanes)

        zero = constant(0, "int64")
        first_key = tirx.Max(zero, oldest - (spec.window - 1)) if spec.window else zero
        TiledAttention(
            tile=tile,
            head_size=spec.head_size,
            scale=spec.scale,
            softcap=spec.softcap,
            write_query=write_query,
            keys=partial(_tile_rows, spec, spec.keys, target, cache.keys, head, floats),
            byte_keys=partial(_tile_bytes, spec, cache.keys, head, codes) if codes else None,
            products=products,
            values=partial(_tile_rows, spec, spec.values, target, cache.values, head, floats),
            read_result=read_result,
        ).emit(first_row, rows, settle(first_key), settle(newest + 1), hide, partly_hidden)


def _turns(spec: AttentionSpec) -> bool:
    return spec.keys is not None and spec.keys.rotated


def _row(
    spec: AttentionSpec, form: KvFormat | None, cache: Buffer, head: Expr, key: Expr
) -> Row | StoredRow:
    row = Row(cache, (0, head, key, 0))
    return row if form is None else StoredRow(row, form, spec.head_size)


def _tile_rows(
    spec: AttentionSpec,
    form: KvFormat | None,
    target: Target,
    cache: Buffer,
    head: Expr,
    floats: Buffer | None,
    start: Expr,
    count: Expr,
) -> Callable[[Expr, Expr], Expr]:
    """Make `count` rows ready from `start` on, and return what reads a feature of one of them."""
    if form is None or floats is None:
        return lambda i, f: load(cache, 0, head, start + i, f)
    d = spec.head_size
    with serial(count) as i:
        row = _row(spec, form, cache, head, start + i)
        for at, width, _ in pieces(d, target.lanes):
            store(floats, row.load(at, width), i * d + at)
    return lambda i, f: load(floats, i * d + f)


def _tile_bytes(
    spec: AttentionSpec, cache: Buffer, head: Expr, codes: KeyCodes, start: Expr, count: Expr
) -> KeyCodes:
    """Make `count` keys ready from `start` on, to be multiplied as integers."""
    with serial(count) as i:
        row = _row(spec, spec.keys, cache, head, start + i)
        assert isinstance(row, StoredRow)
        codes.put(row, i)
    return codes


def _balanced(i: Expr, count: Expr) -> Expr:
    """Reorder tiles, of which later ones see more keys, so that each pair costs the same.

    0, n − 1, 1, n − 2, …: any run of them that a thread gets is then about as long as another.
    """
    return tirx.Select(i % 2 == 0, i // 2, count - 1 - i // 2)
