"""The core of attention: a block's rows of queries meet keys, 32 at a time, by online softmax.

Four warps share the rows; lane l of each has key l of a tile when scores are computed, and features
l, l + 32, … when values are added up (FlashAttention, arXiv 2205.14135). All is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from codegen.kernels.builder import (
    Buffer,
    Expr,
    bind,
    ceil_div,
    constant,
    load,
    serial,
    store,
    when,
)
from codegen.kernels.cuda.instructions import fma
from codegen.kernels.cuda.kv_rows import SharedRow
from codegen.kernels.cuda.threads import (
    WARP,
    call,
    keep,
    larger,
    plus,
    registers,
    shared,
    strided,
    sync,
    warp_reduce,
)
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Gpu

WARPS = 4
THREADS = WARPS * WARP
KEYS = WARP
"""Keys of a tile."""
HIDDEN = -1e30
"""The score of a key that a query does not see: finite, so that differences are numbers."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What becomes of the product of a query and a key.

    `hidden(row, key)` tells whether a query does not see a key, `added(row, key)` is added to its
    score; either may be None.
    """

    scale: float
    softcap: float = 0.0
    hidden: Callable[[Expr, Expr], Expr] | None = None
    added: Callable[[Expr, Expr], Expr] | None = None


@dataclass(frozen=True)
class AttentionTile:
    """The memory of a block, and the rows of a warp: `rows` in all, a multiple of four."""

    rows: int
    d: int
    lane: Expr
    warp: Expr
    thread: Expr
    queries: Buffer
    keys: Buffer
    values: Buffer
    weights: Buffer
    largest: Buffer
    sums: Buffer
    totals: Buffer

    @classmethod
    def allocate(cls, rows: int, d: int, thread: Expr) -> AttentionTile:
        """Allocate what a block needs, at its beginning."""
        own = rows // WARPS
        parts = ceil_div(d, WARP)
        # One more number in a row of keys puts the lanes' rows in different banks.
        keys = shared((KEYS, d + 1))
        tile = cls(
            rows,
            d,
            bind(thread % WARP),
            bind(thread // WARP),
            thread,
            shared((rows, d)),
            keys,
            shared((KEYS, d)) if not _crowded(rows, d) else keys,
            shared((rows, KEYS)),
            registers(own),
            registers(own),
            registers(own * parts),
        )
        for i in range(own):
            store(tile.largest, constant(HIDDEN, "float32"), i)
            store(tile.sums, constant(0.0, "float32"), i)
        for i in range(own * parts):
            store(tile.totals, constant(0.0, "float32"), i)
        return tile

    @property
    def own(self) -> int:
        """Rows of a warp."""
        return self.rows // WARPS

    def stage_queries(self, stage: Callable[[Expr, SharedRow, Expr], None]) -> None:
        """Have stage(row, where to, lane) write the queries; each row is a warp's."""
        with serial(self.own) as i:
            row = bind(self.warp * self.own + i)
            stage(row, SharedRow(self.queries, row, self.d), self.lane)
        sync()

    def attend(
        self,
        first: Expr,
        end: Expr,
        key: Callable[[Expr, Expr], Expr],
        value: Callable[[Expr, Expr], Expr],
        scores: Scores,
    ) -> None:
        """Meet the keys from `first` to before `end`; key(k, i) and value(k, i) are features."""
        tiles = bind(tirx.floordiv(end - first + (KEYS - 1), KEYS))
        apart = self.keys is not self.values
        with serial(tirx.max(tiles, tirx.const(0, "int64"))) as tile:
            start = bind(first + tile * KEYS)
            sync()
            self._stage(self.keys, key, start, end)
            if apart:
                self._stage(self.values, value, start, end)
            sync()
            for i in range(self.own):
                self._score(i, start, end, scores)
            sync()
            if not apart:
                sync()
                self._stage(self.values, value, start, end)
                sync()
            self._add_values()

    def finish(
        self, write: Callable[[Expr, Expr, Expr], None], valid: Callable[[Expr], Expr]
    ) -> None:
        """Have write(row, feature, result) store the results of rows that are `valid`."""
        for i in range(self.own):
            row = bind(self.warp * self.own + i)

            def row_results(i: int = i, row: Expr = row) -> None:
                for part, feature, inside in self._features():
                    y = load(self.totals, self._place(i, part)) / load(self.sums, i)
                    when(inside, partial(write, row, feature, y))

            when(valid(row), row_results)

    def leave(
        self,
        write: Callable[[Expr, Expr, Expr], None],
        write_scale: Callable[[Expr, Expr, Expr], None],
        valid: Callable[[Expr], Expr],
    ) -> None:
        """Have what is needed to go on stored: totals, and largest score and sum of each row."""
        for i in range(self.own):
            row = bind(self.warp * self.own + i)

            def row_results(i: int = i, row: Expr = row) -> None:
                for part, feature, inside in self._features():
                    y = load(self.totals, self._place(i, part))
                    when(inside, partial(write, row, feature, y))
                when(
                    self.lane.equal(0),
                    lambda: write_scale(row, load(self.largest, i), load(self.sums, i)),
                )

            when(valid(row), row_results)

    def _features(self) -> list[tuple[int, Expr, Expr]]:
        """The features of a lane: part, feature, and whether there is one."""
        found = []
        for part in range(ceil_div(self.d, WARP)):
            feature = bind(self.lane + part * WARP)
            found.append((part, feature, feature < self.d))
        return found

    def _place(self, row: int, part: int) -> int:
        return row * ceil_div(self.d, WARP) + part

    def _stage(
        self, to: Buffer, read: Callable[[Expr, Expr], Expr], start: Expr, end: Expr
    ) -> None:
        """Put a tile of rows into shared memory; zeros behind the last, where nothing may be."""

        def one(item: Expr) -> None:
            place, feature = bind(item // self.d), bind(item % self.d)
            when(
                start + place < end,
                lambda: store(to, read(start + place, feature), place, feature),
                lambda: store(to, constant(0.0, "float32"), place, feature),
            )

        strided(KEYS * self.d, self.thread, THREADS, one)

    def _score(self, i: int, start: Expr, end: Expr, scores: Scores) -> None:
        """Compute one row's weights for a tile, and take the others' share back accordingly."""
        row, key = bind(self.warp * self.own + i), bind(start + self.lane)
        dot = registers(1)
        store(dot, constant(0.0, "float32"), 0)
        with serial(self.d) as f:
            product = fma(load(self.queries, row, f), load(self.keys, self.lane, f), load(dot, 0))
            store(dot, product, 0)
        score = keep(load(dot, 0) * constant(scores.scale, "float32"))
        if scores.softcap > 0:
            cap = constant(scores.softcap, "float32")
            score = keep(cap * call("float32", "tanhf", score / cap))
        outside = key >= end
        if scores.added is not None:
            more = registers(1)
            store(more, constant(0.0, "float32"), 0)
            added = scores.added
            when(key < end, lambda: store(more, added(row, key), 0))
            score = keep(score + load(more, 0))
        if scores.hidden is not None:
            outside = tirx.Or(outside, scores.hidden(row, key))
        hidden = constant(HIDDEN, "float32")
        # A mask that adds −∞ hides a key too.
        score = keep(tirx.max(tirx.Select(outside, hidden, score), hidden))
        before = keep(load(self.largest, i))
        largest = keep(tirx.max(before, warp_reduce(score, larger)))
        seen = score > constant(HIDDEN / 2, "float32")
        weight = keep(tirx.Select(seen, tirx.exp(score - largest), constant(0.0, "float32")))
        factor = keep(tirx.exp(before - largest))
        store(self.largest, largest, i)
        total = warp_reduce(weight, plus)
        store(self.sums, fma(load(self.sums, i), factor, total), i)
        for part in range(ceil_div(self.d, WARP)):
            place = self._place(i, part)
            store(self.totals, load(self.totals, place) * factor, place)
        store(self.weights, weight, row, self.lane)

    def _add_values(self) -> None:
        with serial(KEYS) as j:
            for part, feature, _ in self._features():
                # The last lanes read a feature again where d is no multiple of 32.
                number = keep(
                    load(self.values, j, tirx.min(feature, tirx.IntImm("int64", self.d - 1)))
                )
                for i in range(self.own):
                    place = self._place(i, part)
                    weight = load(self.weights, bind(self.warp * self.own + i), j)
                    store(self.totals, fma(weight, number, load(self.totals, place)), place)


def rows_for(wanted: int, d: int, gpu: Gpu) -> int:
    """Return how many rows of `d` features a block takes: at most `wanted`, as memory allows.

    Raises:
        UnsupportedError: not even four fit.
    """
    rows = ceil_div(wanted, WARPS) * WARPS
    while rows >= WARPS:
        if _bytes(rows, d, apart=False) <= gpu.shared_bytes:
            return rows
        rows -= WARPS
    raise UnsupportedError(
        f"no attention kernel for heads of {d} features on a GPU: a block has "
        f"{gpu.shared_bytes} bytes of shared memory; use heads of at most 256"
    )


def _bytes(rows: int, d: int, *, apart: bool) -> int:
    keys = KEYS * (d + 1) + (KEYS * d if apart else 0)
    return 4 * (keys + rows * d + rows * KEYS)


def _crowded(rows: int, d: int) -> bool:
    """Tell whether keys and values have to take turns in memory."""
    return _bytes(rows, d, apart=True) > 48 << 10
