"""Norms and quantisation of rows: a block for each row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx import PrimFunc
from tvm.tirx.op import sqrt

from codegen.kernels.builder import (
    Expr,
    argument,
    bind,
    cast,
    ceil_div,
    constant,
    kernel,
    load,
    select,
    serial,
    size,
    store,
    when,
)
from codegen.kernels.cuda.instructions import round_to_int
from codegen.kernels.cuda.threads import (
    WARP,
    block_reduce,
    int32,
    keep,
    larger,
    launch,
    plus,
    registers,
    strided,
    warp_reduce,
)
from codegen.kernels.norm import NormSpec, Parameters
from codegen.kernels.quantize import QuantizedRows, QuantizeSpec
from codegen.kernels.row import Rows
from qcompiler.core.target import Target

Read = Callable[[Expr], Expr]
"""Return the number at a feature of the row at hand."""

_THREADS = 256
_WARP_SUMS = 512
"""Features of a group up to which one warp quantises it; longer ones take the block."""


def norm(spec: NormSpec, target: Target, rows: Rows) -> PrimFunc:
    """x [m, k], weight [k] and bias [k] where there are any → y [m, k], all float32."""
    with kernel(f"{spec.kind}_norm") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        parameters = Parameters.declare(spec)
        y = argument("y", (m, spec.k), "float32")
        threads = _threads(spec.k)
        with launch(m, threads=threads) as (row, thread):
            read = _normalized(lambda i: load(x, row, i), spec, parameters, thread, threads)
            strided(spec.k, thread, threads, lambda i: store(y, read(i), row, i))
    return built.get()


def norm_quantize(spec: NormSpec, out: QuantizeSpec, target: Target, rows: Rows) -> PrimFunc:
    """x, weight and bias as `norm`, scale, if static → codes, scales, sums as `quantize`."""
    with kernel(f"{spec.kind}_norm_quantize") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        parameters = Parameters.declare(spec)
        quantized = QuantizedRows.declare(m, out)
        threads = _threads(spec.k)
        with launch(m, threads=threads) as (row, thread):
            read = _normalized(lambda i: load(x, row, i), spec, parameters, thread, threads)
            _quantize(read, out, quantized, row, thread, threads)
    return built.get()


def quantize(spec: QuantizeSpec, target: Target, rows: Rows) -> PrimFunc:
    """x [m, k] float32 → codes [m, kp] int8, scales [m, ga] float32, sums [m, gw] int32.

    As `codegen.kernels.quantize`, bit for bit.
    """
    with kernel("quantize") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        out = QuantizedRows.declare(m, spec)
        threads = _threads(spec.k)
        with launch(m, threads=threads) as (row, thread):
            _quantize(lambda i: load(x, row, i), spec, out, row, thread, threads)
    return built.get()


def _threads(features: int) -> int:
    """Threads for a row: whole warps, and no more than have something to do."""
    return min(_THREADS, ceil_div(features, WARP) * WARP)


def _normalized(
    read: Read, spec: NormSpec, parameters: Parameters, thread: Expr, threads: int
) -> Read:
    """Measure a row, and return what reads its normalised features."""
    length = constant(float(spec.k), "float32")
    mean: Expr = constant(0.0, "float32")
    if spec.kind == "layer":
        total = _sum(read, spec.k, thread, threads)
        mean = keep(total / length)

    def centred(i: Expr) -> Expr:
        return read(i) - mean if spec.kind == "layer" else read(i)

    def square(i: Expr) -> Expr:
        x = keep(centred(i))
        return x * x

    squares = _sum(square, spec.k, thread, threads)
    factor = keep(constant(1.0, "float32") / sqrt(squares / length + constant(spec.eps, "float32")))

    def result(i: Expr) -> Expr:
        y = centred(i) * factor
        if parameters.weight is not None:
            weight = load(parameters.weight, i)
            y = y * (weight + constant(spec.offset, "float32") if spec.offset else weight)
        if parameters.bias is not None:
            y = y + load(parameters.bias, i)
        return y

    return result


def _sum(read: Read, features: int, thread: Expr, threads: int) -> Expr:
    total = registers(1)
    store(total, constant(0.0, "float32"), 0)
    strided(features, thread, threads, lambda i: store(total, load(total, 0) + read(i), 0))
    return block_reduce(load(total, 0), plus, thread, threads)


# -- quantisation ----------------------------------------------------------------------------------


def _quantize(
    read: Read, spec: QuantizeSpec, out: QuantizedRows, row: Expr, thread: Expr, threads: int
) -> None:
    """Quantise one row that `read` yields; it is read twice."""
    if spec.scale_groups == 1:
        inverse = _token_scale(read, spec, out, row, thread, threads)
        _per_group(
            spec,
            thread,
            threads,
            lambda group, first, count, crew: _codes(
                read, inverse, first, count, out, row, group, crew
            ),
        )
    else:
        _per_group(
            spec,
            thread,
            threads,
            lambda group, first, count, crew: _group(read, first, count, out, row, group, crew),
        )
    for place in range(spec.k, spec.padded_k):
        when(thread.equal(place - spec.k), partial(store, out.codes, _zero(), row, place))


def _zero() -> Expr:
    return constant(0, "int8")


class _Crew:
    """Threads that do a group together: a warp, or the block."""

    def __init__(self, place: Expr, count: int, *, whole_block: bool) -> None:
        self.place, self.count, self._whole_block = place, count, whole_block

    def each(self, count: int, body: Callable[[Expr], None]) -> None:
        """Share out `count` items."""
        strided(count, self.place, self.count, body)

    def reduce(self, value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """Combine the values of all."""
        if self._whole_block:
            return block_reduce(value, combine, self.place, self.count)
        return warp_reduce(value, combine)

    def first(self, body: Callable[[], None]) -> None:
        """Have one of them do something."""
        when(self.place.equal(0), body)


Body = Callable[[Expr, Expr, int, _Crew], None]


def _per_group(spec: QuantizeSpec, thread: Expr, threads: int, body: Body) -> None:
    """Call body(group, first feature, features, who does it) for every group of the weight."""
    group_size = spec.weight_group
    whole, rest = divmod(spec.k, group_size)
    if group_size > _WARP_SUMS:
        crew = _Crew(thread, threads, whole_block=True)
        with serial(whole) as group:
            body(group, group * group_size, group_size, crew)
        if rest:
            body(tirx.IntImm("int64", whole), tirx.IntImm("int64", whole * group_size), rest, crew)
        return
    warps = threads // WARP
    warp, crew = bind(thread // WARP), _Crew(bind(thread % WARP), WARP, whole_block=False)
    # All threads of a warp are in the same group, so that they may meet there.
    with serial(ceil_div(whole, warps)) as step:
        group = bind(step * warps + warp)
        when(group < whole, lambda: body(group, group * group_size, group_size, crew))
    if rest:
        last = tirx.IntImm("int64", whole)
        when(
            warp.equal(whole % warps),
            lambda: body(last, tirx.IntImm("int64", whole * group_size), rest, crew),
        )


def _largest(read: Read, first: Expr, count: int, crew: _Crew) -> Expr:
    top = registers(1)
    store(top, constant(0.0, "float32"), 0)
    crew.each(count, lambda i: store(top, tirx.max(load(top, 0), tirx.abs(read(first + i))), 0))
    return crew.reduce(load(top, 0), larger)


def _inverse(value: Expr) -> Expr:
    """Return 127 / value, rounded as the reference rounds it, or 0 for 0."""
    one, top = constant(1.0, "float32"), constant(127.0, "float32")
    return keep(select(value > 0.0, one / value * top, constant(0.0, "float32")))


def _token_scale(
    read: Read, spec: QuantizeSpec, out: QuantizedRows, row: Expr, thread: Expr, threads: int
) -> Expr:
    """Find and store the scale of a row; return 1 / scale."""
    if out.static is not None:
        value = keep(load(out.static, 0))
        when(thread.equal(0), lambda: store(out.scales, value, row, 0))
        return keep(constant(1.0, "float32") / value)
    crew = _Crew(thread, threads, whole_block=True)
    value = _largest(read, tirx.IntImm("int64", 0), spec.k, crew)
    crew.first(lambda: store(out.scales, value / constant(127.0, "float32"), row, 0))
    return _inverse(value)


def _group(
    read: Read, first: Expr, count: int, out: QuantizedRows, row: Expr, group: Expr, crew: _Crew
) -> None:
    """Quantise a group that has its own scale."""
    value = _largest(read, first, count, crew)
    crew.first(lambda: store(out.scales, value / constant(127.0, "float32"), row, group))
    _codes(read, _inverse(value), first, count, out, row, group, crew)


def _codes(
    read: Read,
    inverse: Expr,
    first: Expr,
    count: int,
    out: QuantizedRows,
    row: Expr,
    group: Expr,
    crew: _Crew,
) -> None:
    """Store the codes of a group, and their sum."""
    total = registers(1, "int32")
    store(total, int32(0), 0)

    def one(i: Expr) -> None:
        steps = keep(read(first + i) * inverse)
        if out.static is not None:  # else the largest one gives 127
            steps = keep(
                tirx.max(tirx.min(steps, constant(127.0, "float32")), constant(-127.0, "float32"))
            )
        code = keep(round_to_int(steps))
        store(total, load(total, 0) + code, 0)
        store(out.codes, cast(code, "int8"), row, first + i)

    crew.each(count, one)
    found = crew.reduce(load(total, 0), plus)
    crew.first(lambda: store(out.sums, found, row, group))
