"""The largest few numbers of every row, in order, with their places."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import PrimFunc

from codegen.kernels.builder import (
    Expr,
    argument,
    bind,
    constant,
    kernel,
    larger,
    load,
    scratch,
    serial,
    size,
    store,
    when,
)
from codegen.kernels.row import Rows, over_rows


@dataclass(frozen=True, kw_only=True)
class TopKSpec:
    """The `k` largest numbers of a type, or the smallest."""

    k: int
    dtype: str
    largest: bool = True

    def above(self, a: Expr, b: Expr) -> Expr:
        """Tell whether a is to come before b."""
        return a > b if self.largest else a < b

    def summit(self) -> Expr:
        """Return what no number comes before."""
        if self.dtype.startswith("float"):
            return constant(math.inf if self.largest else -math.inf, self.dtype)
        return tirx.max_value(self.dtype) if self.largest else tirx.min_value(self.dtype)


def top_k(spec: TopKSpec, rows: Rows) -> PrimFunc:
    """x [m, n] → values [m, k], places [m, k] int64; of equal numbers the first comes first.

    A row is read k times: right for a few of not too many, such as the experts of a token. NaN is
    passed over; where a row has too few other numbers, the rest of its places are 0.
    """
    with kernel("top_k") as built:
        m, n = 1 if rows == "one" else size("m"), size("n")
        x = argument("x", (m, n), spec.dtype)
        values = argument("values", (m, spec.k), spec.dtype)
        places = argument("places", (m, spec.k), "int64")

        def visit(row: Expr) -> None:
            last, best = scratch(1, spec.dtype), scratch(1, spec.dtype)
            last_place, best_place = scratch(1, "int64"), scratch(1, "int64")
            store(last, spec.summit(), 0)
            store(last_place, constant(-1, "int64"), 0)
            with serial(spec.k) as rank:
                store(best_place, constant(-1, "int64"), 0)
                with serial(n) as i:
                    v = bind(load(x, row, i))
                    after_last = tirx.Or(
                        spec.above(load(last, 0), v),
                        tirx.And(v.equal(load(last, 0)), i > load(last_place, 0)),
                    )
                    before_best = tirx.Or(load(best_place, 0) < 0, spec.above(v, load(best, 0)))

                    def take(v: Expr = v, i: Expr = i) -> None:
                        store(best, v, 0)
                        store(best_place, i, 0)

                    when(tirx.And(after_last, before_best), take)
                place = bind(larger(load(best_place, 0), 0))
                store(last, load(x, row, place), 0)
                store(last_place, place, 0)
                store(values, load(x, row, place), row, rank)
                store(places, place, row, rank)

        over_rows(m, n * spec.k, visit)
    return built.get()
