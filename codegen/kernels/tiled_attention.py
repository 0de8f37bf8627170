"""Attention of many queries, tile by tile, in memory that does not grow with the context.

A tile holds the queries of `Tile.queries` rows, transposed: each lane of a vector is a query, so
that scores, maxima and sums need no operation across lanes, and keys and values are read where they
lie, one number broadcast to all queries. Scores are kept for `Tile.keys` keys at a time; their
maximum and sum are corrected as further keys arrive (online softmax, arXiv 1805.02867; tiles as in
FlashAttention, arXiv 2205.14135).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from codegen.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    bind,
    broadcast,
    cast,
    constant,
    fma,
    load,
    maximum,
    scratch,
    serial,
    settle,
    splat,
    store,
    when,
)
from codegen.kernels.query_codes import ByteProducts, KeyCodes, QueryCodes
from codegen.kernels.rotary import Row
from codegen.kernels.transpose import transpose
from codegen.kernels.vector_math import exp2_nonpositive, tanh
from qcompiler.core.target import Target

LOG2E = math.log2(math.e)
HIDDEN = -1e30
"""The score of a key that is not seen; finite, so that a difference of two is a number."""


def score_factor(scale: float, softcap: float) -> float:
    """Return what products are multiplied by to be scores in base 2, or what `tanh` takes."""
    return scale / softcap if softcap else scale * LOG2E


@dataclass(frozen=True)
class Tile:
    """How a tile is cut: what is held in vector registers at once.

    `vectors` of queries times `at_once` keys (or features) accumulators, the query vectors and one
    broadcast number must fit.
    """

    lanes: int
    vectors: int
    at_once: int
    keys: int

    @property
    def queries(self) -> int:
        """Rows of a tile."""
        return self.vectors * self.lanes

    @classmethod
    def choose(cls, target: Target) -> Tile:
        """Three query vectors: 24 accumulators of 32 registers, or 12 of 16."""
        at_once = 8 if target.vector_registers >= 32 else 4
        return cls(lanes=target.lanes, vectors=3, at_once=at_once, keys=64)


Products = Callable[[list[Expr]], list[Expr]]
"""Gives the scores of keys, numbered as they were made ready: for each, its vectors of queries."""


@dataclass(frozen=True, kw_only=True)
class TiledAttention:
    """What one tile of queries attends to.

    `write_query(row, buffer, offset)` writes the features of a query row into a buffer, and
    `read_result(row, buffer, offset)` takes its result from one. `keys(start, count)` makes so many
    rows ready, until other rows are, and returns what reads feature f of the i-th of them; so does
    `values`. With `products`, scores are such products of codes, which `byte_keys` makes ready.
    `adjust(scores, first_key, vector)` changes the scores of one key for
    one vector of queries: it hides keys, adds a mask; None where nothing is to be done.
    """

    tile: Tile
    head_size: int
    scale: float
    softcap: float
    write_query: Callable[[Expr, Buffer, Expr], None]
    keys: Callable[[Expr, Expr], Callable[[Expr, Expr], Expr]]
    values: Callable[[Expr, Expr], Callable[[Expr, Expr], Expr]]
    byte_keys: Callable[[Expr, Expr], KeyCodes] | None = None
    products: ByteProducts | None = None
    read_result: Callable[[Expr, Buffer, Expr], None]

    def emit(
        self,
        first_row: Expr,
        rows: Expr,
        first_key: Expr,
        last_key: Expr,
        adjust: Callable[[Expr, Expr, int], Expr] | None,
        needs_adjusting: Callable[[Expr, Expr], Expr] | None,
    ) -> None:
        """Attend with rows [first_row, first_row + queries) below `rows` to keys [first, last)."""
        tile, d = self.tile, self.head_size
        queries = _Queries.make(tile, d, self.products)
        scores = scratch(tile.keys * tile.queries, "float32")
        results = scratch(d * tile.queries, "float32")
        state = _State(tile)
        self._gather(first_row, rows, queries)
        with serial(d) as f:
            for v in range(tile.vectors):
                store(results, splat(0.0, tile.lanes), f * tile.queries + v * tile.lanes)
        with serial(_ceil_div(last_key - first_key, tile.keys)) as i:
            start = settle(first_key + i * tile.keys)
            count = settle(tirx.Min(constant(tile.keys, "int64"), last_key - start))
            self._score(start, count, queries, scores)
            self._adjust(start, count, scores, state, adjust, needs_adjusting)
            self._exponentiate(count, scores, state)
            self._accumulate(start, count, scores, results, state)
        self._scatter(first_row, rows, results, state)

    def _gather(self, first_row: Expr, rows: Expr, queries: _Queries) -> None:
        """Read the queries, transpose them, and fold the scale of the scores in."""
        tile, d = self.tile, self.head_size
        lanes = tile.lanes
        scale = score_factor(self.scale, self.softcap)
        rowwise = scratch(lanes * d, "float32")
        codes = QueryCodes.make(lanes, d, lanes) if self.products is not None else None
        with serial(tile.vectors) as v:
            with serial(lanes) as i:
                # Lanes behind the last query repeat it; their results are never stored.
                row = settle(tirx.Min(first_row + v * lanes + i, rows - 1))
                self.write_query(row, rowwise, i * d)
                if codes is not None:
                    codes.quantize(Row(rowwise, (i * d,)), i)
            if codes is not None:
                queries.take_codes(codes, v, scale)
                return

            def turn(at: Expr, width: int) -> None:
                for top in range(0, lanes, width):
                    block = [
                        bind(load(rowwise, (top + r) * d + at, lanes=width)) for r in range(width)
                    ]
                    for f, column in enumerate(transpose(block)):
                        place = (at + f) * tile.queries + v * lanes + top
                        store(queries.numbers, column * splat(scale, width), place)

            _squares(d, lanes, turn)

    def _score(self, start: Expr, count: Expr, queries: _Queries, scores: Buffer) -> None:
        """scores[key, query] = key · query, `at_once` keys at a time."""
        tile = self.tile
        multiply = self._multiply_bytes if self.products is not None else self._multiply_floats
        products = multiply(start, count, queries)
        whole = settle(count // tile.at_once)

        def block(first: Expr, limit: Expr | None) -> None:
            rows = [first + r for r in range(tile.at_once)]
            if limit is not None:
                rows = [settle(tirx.Min(row, limit)) for row in rows]
            for j, product in enumerate(products(rows)):
                r, v = divmod(j, tile.vectors)
                store(scores, product, (first + r) * tile.queries + v * tile.lanes)

        with serial(whole) as i:
            block(i * tile.at_once, None)
        # The last keys are read again in place of those behind them.
        when(
            count % tile.at_once > 0,
            lambda: block(whole * tile.at_once, settle(count - 1)),
        )

    def _multiply_floats(self, start: Expr, count: Expr, queries: _Queries) -> Products:
        tile, key = self.tile, self.keys(start, count)

        def products(rows: list[Expr]) -> list[Expr]:
            sums = Registers(len(rows) * tile.vectors, tile.lanes)
            for j in range(len(rows) * tile.vectors):
                sums[j] = splat(0.0, tile.lanes)
            with serial(self.head_size) as f:
                q = _vectors(queries.numbers, f, tile)
                for r, row in enumerate(rows):
                    k = bind(broadcast(key(row, f), tile.lanes))
                    for v in range(tile.vectors):
                        j = r * tile.vectors + v
                        sums[j] = fma(k, q[v], sums[j])
            return [sums[j] for j in range(len(rows) * tile.vectors)]

        return products

    def _multiply_bytes(self, start: Expr, count: Expr, queries: _Queries) -> Products:
        tile = self.tile
        assert self.byte_keys is not None
        assert queries.too_much is not None
        assert queries.factors is not None
        keys, factors, too_much = self.byte_keys(start, count), queries.factors, queries.too_much
        zero = constant(0, "int64")

        def products(rows: list[Expr]) -> list[Expr]:
            sums = Registers(len(rows) * tile.vectors, tile.lanes, "int32")
            for r in range(len(rows)):
                for v, much in enumerate(_vectors(too_much, zero, tile)):
                    sums[r * tile.vectors + v] = splat(0, tile.lanes, "int32") - much
            with serial(self.head_size // 4) as f:
                q = _vectors(queries.numbers, f, tile)
                for r, row in enumerate(rows):
                    k = bind(broadcast(keys.four(row, f), tile.lanes))
                    for v in range(tile.vectors):
                        j = r * tile.vectors + v
                        sums[j] = keys.products.add(sums[j], k, q[v])
            found = []
            for r, row in enumerate(rows):
                scale = bind(broadcast(keys.scale(row), tile.lanes))
                for v, factor in enumerate(_vectors(factors, zero, tile)):
                    number = bind(cast(sums[r * tile.vectors + v], "float32"))
                    found.append(bind(bind(number * factor) * scale))
            return found

        return products

    def _adjust(
        self,
        start: Expr,
        count: Expr,
        scores: Buffer,
        state: _State,
        adjust: Callable[[Expr, Expr, int], Expr] | None,
        needs_adjusting: Callable[[Expr, Expr], Expr] | None,
    ) -> None:
        """Cap and mask the scores, and find the largest of each query."""
        tile = self.tile
        for v in range(tile.vectors):
            state.before[v] = state.largest[v]

        def sweep(change: Callable[[Expr, Expr, int], Expr] | None) -> None:
            with serial(count) as key:
                for v in range(tile.vectors):
                    place = bind(key * tile.queries + v * tile.lanes)
                    score = bind(load(scores, place, lanes=tile.lanes))
                    if self.softcap:
                        cap = splat(self.softcap * LOG2E, tile.lanes)
                        score = bind(tanh(score, tile.lanes) * cap)
                    if change is not None:
                        score = bind(change(score, start + key, v))
                    if self.softcap or change is not None:
                        store(scores, score, place)
                    state.largest[v] = maximum(bind(state.largest[v]), score)

        if adjust is None or needs_adjusting is None:
            sweep(adjust)
        else:
            when(needs_adjusting(start, count), lambda: sweep(adjust), lambda: sweep(None))

    def _exponentiate(self, count: Expr, scores: Buffer, state: _State) -> None:
        """Turn scores into weights, relative to the largest score so far, and add them up."""
        tile = self.tile
        for v in range(tile.vectors):
            largest = bind(state.largest[v])
            correction = exp2_nonpositive(bind(state.before[v]) - largest, tile.lanes)
            state.correction[v] = correction
            state.total[v] = bind(state.total[v]) * correction
        with serial(count) as key:
            for v in range(tile.vectors):
                place = bind(key * tile.queries + v * tile.lanes)
                score = bind(load(scores, place, lanes=tile.lanes))
                weight = exp2_nonpositive(score - bind(state.largest[v]), tile.lanes)
                state.total[v] = state.total[v] + weight
                store(scores, weight, place)

    def _accumulate(
        self, start: Expr, count: Expr, weights: Buffer, results: Buffer, state: _State
    ) -> None:
        """results[feature, query] = correction · results + value · weights, features at once."""
        tile = self.tile
        value = self.values(start, count)

        def block(first: Expr, features: int) -> None:
            sums = Registers(features * tile.vectors, tile.lanes)
            for v in range(tile.vectors):
                correction = bind(state.correction[v])
                for r in range(features):
                    place = (first + r) * tile.queries + v * tile.lanes
                    old = load(results, place, lanes=tile.lanes)
                    sums[r * tile.vectors + v] = old * correction
            with serial(count) as key:
                w = _vectors(weights, key, tile)
                for r in range(features):
                    x = bind(broadcast(value(key, first + r), tile.lanes))
                    for v in range(tile.vectors):
                        j = r * tile.vectors + v
                        sums[j] = fma(x, w[v], sums[j])
            for r in range(features):
                for v in range(tile.vectors):
                    place = (first + r) * tile.queries + v * tile.lanes
                    store(results, sums[r * tile.vectors + v], place)

        with serial(self.head_size // tile.at_once) as i:
            block(i * tile.at_once, tile.at_once)

    def _scatter(self, first_row: Expr, rows: Expr, results: Buffer, state: _State) -> None:
        """Divide by the sums, transpose back and store the rows that exist."""
        tile, d = self.tile, self.head_size
        lanes = tile.lanes
        inverse = scratch(tile.queries, "float32")
        for v in range(tile.vectors):
            one = splat(1.0, lanes)
            store(inverse, one / bind(state.total[v]), v * lanes)
        rowwise = scratch(lanes * d, "float32")
        with serial(tile.vectors) as v:

            def turn(at: Expr, width: int) -> None:
                for top in range(0, lanes, width):
                    factor = bind(load(inverse, v * lanes + top, lanes=width))
                    places = [(at + f) * tile.queries + v * lanes + top for f in range(width)]
                    block = [bind(load(results, p, lanes=width) * factor) for p in places]
                    for r, values in enumerate(transpose(block)):
                        store(rowwise, values, (top + r) * d + at)

            _squares(d, lanes, turn)
            existing = settle(tirx.Min(constant(lanes, "int64"), rows - first_row - v * lanes))
            with serial(tirx.Max(constant(0, "int64"), existing)) as i:
                self.read_result(settle(first_row + v * lanes + i), rowwise, i * d)


@dataclass(frozen=True)
class _Queries:
    """The queries of a tile, transposed: float32 [feature][query] with the factor of the scores; or
    int32 of four codes [four][query], with a factor and what raised keys add to products [query].
    """

    tile: Tile
    numbers: Buffer
    products: ByteProducts | None = None
    factors: Buffer | None = None
    too_much: Buffer | None = None

    @classmethod
    def make(cls, tile: Tile, d: int, products: ByteProducts | None) -> _Queries:
        """Allocate them."""
        if products is None:
            return cls(tile, scratch(d * tile.queries, "float32"))
        numbers = scratch(d // 4 * tile.queries, "int32")
        factors = scratch(tile.queries, "float32")
        return cls(tile, numbers, products, factors, scratch(tile.queries, "int32"))

    def take_codes(self, codes: QueryCodes, v: Expr, factor: float) -> None:
        """Take a vector of rows."""
        tile, lanes = self.tile, self.tile.lanes
        assert self.products is not None
        assert self.factors is not None
        assert self.too_much is not None

        def turn(at: Expr, width: int) -> None:
            for top in range(0, lanes, width):
                for f, column in enumerate(codes.turned(top, at, width)):
                    store(self.numbers, column, (at + f) * tile.queries + v * lanes + top)

        _squares(codes.d // 4, lanes, turn)
        with serial(lanes) as i:
            scale = codes.scale(i) * constant(factor, "float32")
            store(self.factors, bind(scale), v * lanes + i)
            store(self.too_much, codes.too_much(i, self.products), v * lanes + i)


class _State:
    """What is known of each query's scores so far, one vector per vector of queries."""

    def __init__(self, tile: Tile) -> None:
        self.largest = Registers(tile.vectors, tile.lanes)
        self.before = Registers(tile.vectors, tile.lanes)
        self.total = Registers(tile.vectors, tile.lanes)
        self.correction = Registers(tile.vectors, tile.lanes)
        for v in range(tile.vectors):
            self.largest[v] = splat(HIDDEN, tile.lanes)
            self.total[v] = splat(0.0, tile.lanes)


def _vectors(buffer: Buffer, row: Expr, tile: Tile) -> list[Expr]:
    return [
        bind(load(buffer, row * tile.queries + v * tile.lanes, lanes=tile.lanes))
        for v in range(tile.vectors)
    ]


def _squares(length: int, lanes: int, visit: Callable[[Expr, int], None]) -> None:
    """Visit the squares that a row is cut into: full ones, then one of 8."""
    with serial(length // lanes) as i:
        visit(i * lanes, lanes)
    if length % lanes:
        visit(constant(length - 8, "int64"), 8)


def _ceil_div(a: Expr, b: int) -> Expr:
    return settle((a + (b - 1)) // b)
