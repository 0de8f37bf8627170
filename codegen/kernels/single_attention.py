"""Attention of one token, limited by how fast keys and values arrive from memory.

All query heads of one key head share each key and value that is read. Scores need a sum across
lanes: the products of as many keys as a vector has lanes are folded together pairwise, which leaves
one vector of scores. The context is cut into parts so that the threads have the same to do; the
parts' results are merged at the end (flash decoding).
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
    consecutive,
    constant,
    fma,
    lane,
    lanes_of,
    load,
    maximum,
    parallel,
    scratch,
    select,
    serial,
    settle,
    shuffle,
    splat,
    store,
    when,
)
from codegen.kernels.rotary import Row
from codegen.kernels.row import pieces
from codegen.kernels.tiled_attention import HIDDEN, LOG2E
from codegen.kernels.vector_math import (
    exp2_nonpositive,
    horizontal_max,
    horizontal_sum,
    tanh,
)

_KEYS = 128
"""Keys whose scores are kept at a time."""
_SERIAL_BYTES = 1 << 18
"""Keys and values below this size are read by one thread before two have started."""


@dataclass(frozen=True, kw_only=True)
class SingleAttention:
    """Attention of one token with grouped heads."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    softcap: float
    lanes: int
    registers: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def parts(self) -> int:
        """Parts of the context of one head: at least 8 tasks, a multiple of 4, where it can be."""
        parts = 4 // math.gcd(self.kv_heads, 4)
        return parts * 2 if self.kv_heads * parts < 8 else parts

    def emit(
        self,
        write_query: Callable[[Expr, Row], None],
        key: Callable[[Expr, Expr], Row],
        value: Callable[[Expr, Expr], Row],
        output: Callable[[Expr], Row],
        first: Expr,
        last: Expr,
    ) -> None:
        """Attend to keys [first, last); `key` and `value` give the row of a head and a key."""
        d = self.head_size
        queries = scratch(self.heads * d, "float32")
        results = scratch(self.heads * self.parts * d, "float32")
        largest = scratch(self.heads * self.parts, "float32")
        totals = scratch(self.heads * self.parts, "float32")
        scale = self.scale / self.softcap if self.softcap else self.scale * LOG2E
        with serial(self.heads) as head:
            row = Row(queries, (head * d,))
            write_query(head, row)
            for at, width, _ in pieces(d, self.lanes):
                row.store(row.load(at, width) * splat(scale, width), at)
        # Parts are whole vectors of keys, so that only the last vector of all is short.
        step = self.parts * self.lanes
        span = settle((last - first + (step - 1)) // step * self.lanes)

        def task(index: Expr) -> None:
            part = bind(index % self.parts)
            head = bind(index // self.parts)
            start = settle(first + part * span)
            stop = settle(tirx.Min(start + span, last))
            _Part(self, queries, results, largest, totals).emit(head, part, start, stop, key, value)

        tasks = self.kv_heads * self.parts

        def run(loop: Callable[[Expr], object]) -> None:
            with loop(tasks) as index:
                task(index)

        few = last - first < _SERIAL_BYTES // (self.kv_heads * d * 8)
        when(few, lambda: run(serial), lambda: run(parallel))
        with serial(self.heads) as head:
            self._merge(head, results, largest, totals, output(head))

    def _merge(
        self, head: Expr, results: Buffer, largest: Buffer, totals: Buffer, out: Row
    ) -> None:
        """Weigh the parts by how their largest scores compare."""
        lanes, d = self.lanes, self.head_size
        places = [head * self.parts + part for part in range(self.parts)]
        tops = [bind(broadcast(load(largest, place), lanes)) for place in places]
        top = tops[0]
        for other in tops[1:]:
            top = bind(maximum(top, other))
        weights = [exp2_nonpositive(other - top, lanes) for other in tops]
        total = splat(0.0, lanes)
        for place, weight in zip(places, weights, strict=True):
            total = bind(fma(bind(broadcast(load(totals, place), lanes)), weight, total))
        weights = [bind(weight / total) for weight in weights]
        for at, width, _ in pieces(d, lanes):
            result = splat(0.0, width)
            for place, weight in zip(places, weights, strict=True):
                part = bind(load(results, place * d + at, lanes=width))
                w = weight if width == lanes else bind(shuffle(weight, weight, range(width)))
                result = bind(fma(part, w, result))
            out.store(result, at)


@dataclass(frozen=True)
class _Part:
    """One part of the context of one key head."""

    whole: SingleAttention
    queries: Buffer
    results: Buffer
    largest: Buffer
    totals: Buffer

    def emit(
        self,
        head: Expr,
        part: Expr,
        start: Expr,
        stop: Expr,
        key: Callable[[Expr, Expr], Row],
        value: Callable[[Expr, Expr], Row],
    ) -> None:
        whole, lanes, group = self.whole, self.whole.lanes, self.whole.group
        places = [(head * group + j) * whole.parts + part for j in range(group)]
        scores = [scratch(_KEYS, "float32") for _ in range(group)]
        largest, seen, total, correction = (Registers(group, lanes) for _ in range(4))
        for j in range(group):
            largest[j] = splat(HIDDEN, lanes)
            total[j] = splat(0.0, lanes)
            for at, width, _ in pieces(whole.head_size, lanes):
                store(self.results, splat(0.0, width), places[j] * whole.head_size + at)
        with serial((stop - start + (_KEYS - 1)) // _KEYS) as i:
            first = settle(start + i * _KEYS)
            count = settle(tirx.Min(constant(_KEYS, "int64"), stop - first))
            vectors = settle((count + (lanes - 1)) // lanes)
            for j in range(group):
                seen[j] = splat(HIDDEN, lanes)
            with serial(vectors) as n:
                self._score(head, bind(first + n * lanes), stop, n * lanes, scores, seen, key)
            for j in range(group):
                before = bind(largest[j])
                top = maximum(before, bind(broadcast(horizontal_max(seen[j], lanes), lanes)))
                top = bind(top)
                correction[j] = exp2_nonpositive(before - top, lanes)
                total[j] = bind(total[j]) * bind(correction[j])
                largest[j] = top
            with serial(vectors) as n:
                for j in range(group):
                    score = bind(load(scores[j], n * lanes, lanes=lanes))
                    weight = exp2_nonpositive(score - bind(largest[j]), lanes)
                    total[j] = total[j] + weight
                    store(scores[j], weight, n * lanes)
            self._accumulate(head, first, count, places, scores, correction, value)
        for j in range(group):
            store(self.largest, lane(bind(largest[j]), 0), places[j])
            store(self.totals, horizontal_sum(total[j], lanes), places[j])

    def _score(
        self,
        head: Expr,
        first: Expr,
        stop: Expr,
        place: Expr,
        scores: list[Buffer],
        seen: Registers,
        key: Callable[[Expr, Expr], Row],
    ) -> None:
        """Scores of as many keys as a vector has lanes, for each head of the group."""
        whole, lanes = self.whole, self.whole.lanes
        d = whole.head_size
        cut = pieces(d, lanes)

        def dots(offset: int, count: int, heads: range) -> list[Expr]:
            if count > 1:
                low = dots(offset, count // 2, heads)
                high = dots(offset + count // 2, count // 2, heads)
                return [_fold(a, b, count // 2, lanes) for a, b in zip(low, high, strict=True)]
            # Keys behind the last one are hidden below; the last one is read in their place.
            row = key(head, settle(tirx.Min(first + offset, stop - 1)))
            k = [_widen(row.load(at, width), lanes) for at, width, _ in cut]
            products = []
            for j in heads:
                total = None
                for x, (at, width, _) in zip(k, cut, strict=True):
                    start = (head * whole.group + j) * d + at
                    q = _widen(load(self.queries, start, lanes=width), lanes)
                    total = bind(x * q if total is None else fma(x, q, total))
                products.append(total)
            return products

        # The partial sums of one head of the group take log2(lanes) registers.
        at_once = max(1, whole.registers // 8)
        index = bind(consecutive(cast(first, "int32"), lanes))
        inside = index < bind(broadcast(cast(stop, "int32"), lanes))
        for j0 in range(0, whole.group, at_once):
            heads = range(j0, min(whole.group, j0 + at_once))
            for j, score in zip(heads, dots(0, lanes, heads), strict=True):
                if whole.softcap:
                    score = tanh(score, lanes) * splat(whole.softcap * LOG2E, lanes)
                score = bind(select(inside, bind(score), splat(HIDDEN, lanes)))
                store(scores[j], score, place)
                seen[j] = maximum(bind(seen[j]), score)

    def _accumulate(
        self,
        head: Expr,
        first: Expr,
        count: Expr,
        places: list[Expr],
        weights: list[Buffer],
        correction: Registers,
        value: Callable[[Expr, Expr], Row],
    ) -> None:
        """results = correction · results + weights · values, some columns of some heads at once."""
        whole, lanes, group = self.whole, self.whole.lanes, self.whole.group
        d = whole.head_size
        cut = pieces(d, lanes)
        budget = whole.registers * 3 // 4
        heads_at_once = min(group, budget)
        columns_at_once = max(1, budget // heads_at_once)
        for j0 in range(0, group, heads_at_once):
            heads = range(j0, min(group, j0 + heads_at_once))
            for c0 in range(0, len(cut), columns_at_once):
                columns = cut[c0 : c0 + columns_at_once]
                sums = {(j, at): Registers(1, width) for j in heads for at, width, _ in columns}
                for j in heads:
                    for at, width, _ in columns:
                        factor = bind(correction[j])
                        if width < lanes:
                            factor = bind(shuffle(factor, factor, range(width)))
                        old = load(self.results, places[j] * d + at, lanes=width)
                        sums[j, at][0] = old * factor
                with serial(count) as n:
                    row = value(head, first + n)
                    x = {at: row.load(at, width) for at, width, _ in columns}
                    for j in heads:
                        weight = bind(load(weights[j], n))
                        for at, width, _ in columns:
                            w = broadcast(weight, width)
                            sums[j, at][0] = fma(x[at], w, sums[j, at][0])
                for j in heads:
                    for at, _, _ in columns:
                        store(self.results, sums[j, at][0], places[j] * d + at)


def _fold(a: Expr, b: Expr, segments: int, lanes: int) -> Expr:
    """Halve the segments of two vectors by adding their halves; those of b follow those of a."""
    width = lanes // segments
    low = [
        source * lanes + segment * width + i
        for source in range(2)
        for segment in range(segments)
        for i in range(width // 2)
    ]
    high = [i + width // 2 for i in low]
    return bind(bind(shuffle(a, b, low)) + bind(shuffle(a, b, high)))


def _widen(x: Expr, lanes: int) -> Expr:
    """Append zeros."""
    width = lanes_of(x)
    return x if width == lanes else bind(shuffle(x, splat(0.0, width), range(lanes)))
