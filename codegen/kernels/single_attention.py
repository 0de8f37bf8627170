"""Attention of one token, limited by how fast keys and values arrive from memory.

All query heads of one key head share each key and value that is read. A score is a sum across
lanes: the products of as many keys as a vector has lanes are folded together pairwise, which leaves
one vector of scores. A long context is cut into parts, so that the threads have the same to do, and
the parts are merged at the end (flash decoding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from tvm import tirx

from codegen.kernels.ahead import Ahead, Share
from codegen.kernels.builder import (
    Buffer,
    Expr,
    Registers,
    bind,
    broadcast,
    cast,
    consecutive,
    constant,
    dtype_of,
    fma,
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
from codegen.kernels.kv_rows import StoredRow
from codegen.kernels.query_codes import ByteProducts, QueryCodes
from codegen.kernels.rotary import Row
from codegen.kernels.row import pieces
from codegen.kernels.tiled_attention import HIDDEN, LOG2E, score_factor
from codegen.kernels.vector_math import exp2_nonpositive, horizontal_max, horizontal_sum, tanh

_KEYS = 240
"""Keys whose scores are kept at a time. Their scales fit on the stack."""
_SERIAL_BYTES = 1 << 17
"""Keys and values below this size are read by one thread before two have started."""


@dataclass(frozen=True, kw_only=True)
class SingleAttention:
    """Attention of one token with `heads` query heads over rows of keys and values.

    `write_query(head, to)` writes a query row; `key(head, k)` and `value(head, k)` are rows of a
    key head; `output(head)` is where the result goes. `products`: keys are codes, and so are
    queries then, multiplied like this; `byte_values`: values are codes that have one scale a row.
    `ahead`: what is to be asked for meanwhile, as computing takes longer here than reading.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    softcap: float
    lanes: int
    registers: int
    write_query: Callable[[Expr, Row], None]
    key: Callable[[Expr, Expr], Row | StoredRow]
    value: Callable[[Expr, Expr], Row | StoredRow]
    output: Callable[[Expr], Row]
    products: ByteProducts | None = None
    byte_values: bool = False
    ahead: Sequence[Ahead] = ()

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def team(self) -> int:
        """Query heads whose products are in registers at once; divides the group.

        Folding leaves log2(lanes) + 1 vectors of each head alive.
        """
        most = self.registers * 3 // 4 // (int(math.log2(self.lanes)) + 1)
        return max(n for n in range(1, most + 1) if self.group % n == 0)

    @property
    def parts(self) -> int:
        """Parts of the context of one head: at least 8 tasks, and a multiple of 4."""
        parts = 4 // math.gcd(self.kv_heads, 4)
        return parts * 2 if self.kv_heads * parts < 8 else parts

    def emit(self, first: Expr, last: Expr) -> None:
        """Attend to keys [first, last)."""
        d = self.head_size
        queries = self._codes() if self.products else self._floats()

        def run(parts: int, loop: Callable[[Expr], AbstractContextManager[Expr]]) -> None:
            # Parts are whole vectors of keys, so that only the last vector of all is short.
            step = parts * self.lanes
            span = settle((last - first + (step - 1)) // step * self.lanes)
            records = scratch(self.heads * parts * _Record.length(self), "float32")
            with loop(self.kv_heads * parts) as task:
                start = settle(first + task % parts * span)
                stop = settle(tirx.Min(start + span, last))
                scores = scratch(self.team * _KEYS, "float32")
                part = _Part(self, queries, records, parts, task, scores)
                part.emit(start, stop)
            with serial(self.heads) as head:
                self._merge(records, head, parts)

        few = last - first < _SERIAL_BYTES // (self.kv_heads * d * 8)
        when(few, lambda: run(1, serial), lambda: run(self.parts, parallel))

    def _floats(self) -> Buffer:
        """Write the queries, with the factor of the scores in them."""
        d = self.head_size
        queries = scratch(self.heads * d, "float32")
        factor = score_factor(self.scale, self.softcap)
        with serial(self.heads) as head:
            row = Row(queries, (head * d,))
            self.write_query(head, row)
            for at, width, _ in pieces(d, self.lanes):
                row.store(row.load(at, width) * splat(factor, width), at)
        return queries

    def _codes(self) -> QueryCodes:
        """Write the queries as codes."""
        codes = QueryCodes.make(self.heads, self.head_size, self.lanes)
        numbers = Row(scratch(self.head_size, "float32"), (constant(0, "int64"),))
        with serial(self.heads) as head:
            self.write_query(head, numbers)
            codes.quantize(numbers, head)
        return codes

    def _merge(self, records: Buffer, head: Expr, parts: int) -> None:
        """Weigh the parts of a query head by how their largest scores compare."""
        lanes = self.lanes
        group = self.group
        tasks = [head // group * parts + part for part in range(parts)]
        merged = [_Record(self, records, task * group + head % group) for task in tasks]
        tops = [record.largest.load(0, lanes) for record in merged]
        top = tops[0]
        for other in tops[1:]:
            top = bind(maximum(top, other))
        weights = [exp2_nonpositive(other - top, lanes) for other in tops]
        total = splat(0.0, lanes)
        for record, weight in zip(merged, weights, strict=True):
            total = bind(fma(record.total.load(0, lanes), weight, total))
        weights = [bind(weight / total) for weight in weights]
        out = self.output(head)
        for at, width, _ in pieces(self.head_size, lanes):
            result = splat(0.0, width)
            for record, weight in zip(merged, weights, strict=True):
                result = bind(fma(record.result.load(at, width), _narrow(weight, width), result))
            out.store(result, at)


@dataclass(frozen=True)
class _Record:
    """What is known of one query head in one part of the context.

    The sum of weighted values so far; and a vector each for the largest score, the sum of the
    weights, and what corrects both for a new largest.
    """

    whole: SingleAttention
    buffer: Buffer
    place: Expr

    @staticmethod
    def length(whole: SingleAttention) -> int:
        """Numbers of a record, a multiple of a vector."""
        vectors = -(-whole.head_size // whole.lanes) + 3
        return vectors * whole.lanes

    def _row(self, offset: int) -> Row:
        return Row(self.buffer, (self.place * self.length(self.whole) + offset,))

    @property
    def largest(self) -> Row:
        return self._row(0)

    @property
    def total(self) -> Row:
        return self._row(self.whole.lanes)

    @property
    def correction(self) -> Row:
        return self._row(2 * self.whole.lanes)

    @property
    def result(self) -> Row:
        return self._row(3 * self.whole.lanes)


@dataclass(frozen=True)
class _Part:
    """One part of the context of one key head: task = head · parts + part."""

    whole: SingleAttention
    queries: Buffer | QueryCodes
    records: Buffer
    parts: int
    task: Expr
    scores: Buffer
    """The scores, then weights, of the keys at hand, for each query head of a team."""
    key_scales: Buffer = field(default_factory=lambda: scratch(_KEYS, "float32"))
    value_scales: Buffer = field(default_factory=lambda: scratch(_KEYS, "float32"))

    @property
    def head(self) -> Expr:
        """The key head."""
        return self.task // self.parts

    def emit(self, start: Expr, stop: Expr) -> None:
        """Attend to keys [start, stop), with one team of query heads after the other."""
        lanes = self.whole.lanes
        with serial(self.whole.group) as j:
            record = self._record(j)
            record.largest.store(splat(HIDDEN, lanes), 0)
            record.total.store(splat(0.0, lanes), 0)
            for at, width, _ in pieces(self.whole.head_size, lanes):
                record.result.store(splat(0.0, width), at)
        tasks, teams = self.whole.kv_heads * self.parts, self.whole.group // self.whole.team
        turns = (stop - start) // lanes * teams
        asking = [ahead.share(self.task, tasks, turns) for ahead in self.whole.ahead]
        with serial((stop - start + (_KEYS - 1)) // _KEYS) as i:
            first = settle(start + i * _KEYS)
            count = settle(tirx.Min(constant(_KEYS, "int64"), stop - first))
            vectors = settle((count + (lanes - 1)) // lanes)
            self._read_scales(first, count)
            with serial(teams) as team:
                turn = bind(i * (_KEYS // lanes * teams) + team * vectors)
                self._score(team, first, stop, vectors, asking, turn)
                self._accumulate(team, first, count)
        with serial(self.whole.group) as j:
            record = self._record(j)
            total = horizontal_sum(record.total.load(0, lanes), lanes)
            record.total.store(broadcast(total, lanes), 0)

    def _read_scales(self, first: Expr, count: Expr) -> None:
        """Read the scales of keys and values at hand, for all query heads."""
        whole = self.whole
        ends = []
        if whole.products:
            ends.append((whole.key, self.key_scales))
        if whole.byte_values:
            ends.append((whole.value, self.value_scales))
        if ends:
            with serial(count) as n:
                for read, scales in ends:
                    row = read(self.head, first + n)
                    assert isinstance(row, StoredRow)
                    store(scales, row.scale(), n)

    def _record(self, member: Expr) -> _Record:
        """The record of a query head of the group."""
        return _Record(self.whole, self.records, self.task * self.whole.group + member)

    def _scores(self, j: int) -> Row:
        """The scores of number j of a team."""
        return Row(self.scores, (j * _KEYS,))

    def _team(self, team: Expr) -> list[_Record]:
        return [self._record(team * self.whole.team + j) for j in range(self.whole.team)]

    def _score(
        self,
        team: Expr,
        first: Expr,
        stop: Expr,
        vectors: Expr,
        asking: list[Share],
        turn: Expr,
    ) -> None:
        """Turn the keys at hand into weights, and correct what came before."""
        whole, lanes = self.whole, self.whole.lanes
        members = self._team(team)
        seen, total = Registers(whole.team, lanes), Registers(whole.team, lanes)
        for j in range(whole.team):
            seen[j] = splat(HIDDEN, lanes)
        with serial(vectors) as n:
            place = bind(first + n * lanes)
            for share in asking:
                share.ask(turn + n)
            index = bind(consecutive(cast(place, "int32"), lanes))
            inside = index < bind(broadcast(cast(stop, "int32"), lanes))
            for j, score in enumerate(self._products(team, n, place, stop)):
                if whole.softcap:
                    score = tanh(score, lanes) * splat(whole.softcap * LOG2E, lanes)
                score = bind(select(inside, bind(score), splat(HIDDEN, lanes)))
                self._scores(j).store(score, n * lanes)
                seen[j] = maximum(bind(seen[j]), score)
        tops = []
        for j, record in enumerate(members):
            before = record.largest.load(0, lanes)
            now = bind(broadcast(horizontal_max(seen[j], lanes), lanes))
            top = bind(maximum(before, now))
            correction = exp2_nonpositive(before - top, lanes)
            record.largest.store(top, 0)
            record.correction.store(correction, 0)
            total[j] = record.total.load(0, lanes) * correction
            tops.append(top)
        with serial(vectors) as n:
            for j in range(whole.team):
                score = self._scores(j).load(n * lanes, lanes)
                weight = exp2_nonpositive(score - tops[j], lanes)
                total[j] = total[j] + weight
                if whole.byte_values:
                    weight = bind(weight * load(self.value_scales, n * lanes, lanes=lanes))
                self._scores(j).store(weight, n * lanes)
        for j, record in enumerate(members):
            record.total.store(total[j], 0)

    def _products(self, team: Expr, n: Expr, first: Expr, stop: Expr) -> list[Expr]:
        """Products of each query of the team with a vector of keys, as floats to be scores."""
        lanes, dots = self.whole.lanes, self._dots(team, first, self.whole.lanes, stop)
        products = self.whole.products
        if products is None or not isinstance(self.queries, QueryCodes):
            return dots
        key_scales = bind(load(self.key_scales, n * lanes, lanes=lanes))
        factor = score_factor(self.whole.scale, self.whole.softcap)
        scores = []
        for j, dot in enumerate(dots):
            query = self._query(team, j)
            exact = bind(dot - broadcast(self.queries.too_much(query, products), lanes))
            scale = self.queries.scale(query) * constant(factor, "float32")
            number = bind(bind(cast(exact, "float32")) * broadcast(bind(scale), lanes))
            scores.append(bind(number * key_scales))
        return scores

    def _query(self, team: Expr, j: int) -> Expr:
        """The query head that is number j of a team."""
        return self.head * self.whole.group + team * self.whole.team + j

    def _dots(self, team: Expr, first: Expr, count: int, stop: Expr) -> list[Expr]:
        """Products of each query of the team with `count` keys, in as many segments of a vector."""
        whole, lanes = self.whole, self.whole.lanes
        if count > 1:
            low = self._dots(team, first, count // 2, stop)
            high = self._dots(team, first + count // 2, count // 2, stop)
            return [_fold(a, b, count // 2) for a, b in zip(low, high, strict=True)]
        # Keys behind the last one are hidden later; the last one is read in their place.
        row = whole.key(self.head, bind(tirx.Min(first, stop - 1)))
        if isinstance(self.queries, QueryCodes):
            return [self._byte_dot(self.queries, team, j, row) for j in range(whole.team)]
        cut = pieces(whole.head_size, lanes)
        key = [_widen(row.load(at, width), lanes) for at, width, _ in cut]
        products = []
        for j in range(whole.team):
            query = self._query(team, j) * whole.head_size
            total = None
            for x, (at, width, _) in zip(key, cut, strict=True):
                q = _widen(load(self.queries, query + at, lanes=width), lanes)
                total = x * q if total is None else fma(x, q, total)
            products.append(bind(total))
        return products

    def _byte_dot(self, queries: QueryCodes, team: Expr, j: int, row: Row | StoredRow) -> Expr:
        """Integer products of a query with one key, which is raised."""
        lanes, products = self.whole.lanes, self.whole.products
        assert products is not None
        assert isinstance(row, StoredRow)
        total = splat(0, lanes, "int32")
        for at, width, _ in pieces(self.whole.head_size // 4, lanes):
            key = products.keys(row, 4 * at, width)
            query = queries.fours(self._query(team, j), at, width)
            start = total if width == lanes else splat(0, width, "int32")
            part = bind(products.add(start, key, query))
            total = part if width == lanes else bind(total + _widen(part, lanes))
        return total

    def _accumulate(self, team: Expr, first: Expr, count: Expr) -> None:
        """result = correction · result + weights · values, as many columns as fit at once."""
        whole, lanes = self.whole, self.whole.lanes
        members = self._team(team)
        cut = pieces(whole.head_size, lanes)
        at_once = max(1, whole.registers * 3 // 4 // whole.team)
        for c in range(0, len(cut), at_once):
            columns = cut[c : c + at_once]
            sums = [
                {at: Registers(1, width) for at, width, _ in columns} for _ in range(whole.team)
            ]
            for record, mine in zip(members, sums, strict=True):
                correction = record.correction.load(0, lanes)
                for at, width, _ in columns:
                    mine[at][0] = record.result.load(at, width) * _narrow(correction, width)
            with serial(count) as n:
                row = whole.value(self.head, first + n)
                if whole.byte_values:
                    assert isinstance(row, StoredRow)
                    value = {at: row.codes(at, width) for at, width, _ in columns}
                else:
                    value = {at: row.load(at, width) for at, width, _ in columns}
                for j, mine in enumerate(sums):
                    weight = self._scores(j).load(n)
                    for at, width, _ in columns:
                        mine[at][0] = fma(value[at], broadcast(weight, width), mine[at][0])
            for record, mine in zip(members, sums, strict=True):
                for at, _, _ in columns:
                    record.result.store(mine[at][0], at)


def _fold(a: Expr, b: Expr, segments: int) -> Expr:
    """Halve the segments of two vectors by adding their halves; those of b follow those of a."""
    lanes = lanes_of(a)
    width = lanes // segments
    low = [start + i for start in range(0, 2 * lanes, width) for i in range(width // 2)]
    high = [i + width // 2 for i in low]
    return bind(bind(shuffle(a, b, low)) + bind(shuffle(a, b, high)))


def _widen(x: Expr, lanes: int) -> Expr:
    """Append zeros."""
    width = lanes_of(x)
    zeros = splat(0, width, dtype_of(x))
    return x if width == lanes else bind(shuffle(x, zeros, range(lanes)))


def _narrow(x: Expr, lanes: int) -> Expr:
    """Keep the first lanes."""
    return x if lanes_of(x) == lanes else bind(shuffle(x, x, range(lanes)))
