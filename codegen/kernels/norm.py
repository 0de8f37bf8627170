"""Root-mean-square and layer normalisation of rows, to floats or straight to int8 codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tvm.tirx import PrimFunc
from tvm.tirx.op import sqrt

from codegen.kernels.builder import (
    Buffer,
    Expr,
    argument,
    bind,
    broadcast,
    constant,
    fma,
    kernel,
    load_first,
    shuffle,
    size,
    splat,
    store_first,
)
from codegen.kernels.quantize import QuantizedRows, QuantizeSpec, quantize_row
from codegen.kernels.row import Read, Rows, Total, over_rows, reader, sweep
from codegen.kernels.vector_math import horizontal_sum
from qcompiler.core.errors import UsageError, suggest
from qcompiler.core.target import Target

# Sums in flight at once, so that the next addition need not wait for the last.
_WAYS = 4


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """Rows of `k` features: `kind` is "rms" (x / √mean(x²)) or "layer" ((x − mean) / deviation).

    `offset` is added to the weight (1 for Gemma); only layer norms have a bias.
    """

    kind: Literal["rms", "layer"]
    k: int
    eps: float
    weight: bool = True
    bias: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise UsageError(suggest("norm", self.kind, ["rms", "layer"]))
        if self.kind == "rms" and self.bias:
            raise UsageError("an rms norm has no bias; use a layer norm, or add the bias after it")


def norm(spec: NormSpec, target: Target, rows: Rows) -> PrimFunc:
    """x [m, k], weight [k] and bias [k] where there are any → y [m, k], all float32."""
    with kernel(f"{spec.kind}_norm") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        parameters = Parameters.declare(spec)
        y = argument("y", (m, spec.k), "float32")

        def visit(row: Expr) -> None:
            read = normalized(reader(x, row), spec, parameters, target.lanes)

            def write(at: Expr, width: int, count: int) -> None:
                store_first(y, read(at, width, count), row, at, count=count)

            sweep(spec.k, target.lanes, write)

        over_rows(m, spec.k, visit)
    return built.get()


def norm_quantize(spec: NormSpec, out: QuantizeSpec, target: Target, rows: Rows) -> PrimFunc:
    """x, weight and bias as `norm`, scale, if static → codes, scales, sums as `quantize`."""
    with kernel(f"{spec.kind}_norm_quantize") as built:
        m = 1 if rows == "one" else size("m")
        x = argument("x", (m, spec.k), "float32")
        parameters = Parameters.declare(spec)
        quantized = QuantizedRows.declare(m, out)

        def visit(row: Expr) -> None:
            read = normalized(reader(x, row), spec, parameters, target.lanes)
            quantize_row(read, out, quantized, row, target.lanes)

        over_rows(m, spec.k, visit)
    return built.get()


@dataclass(frozen=True)
class Parameters:
    """The weight and bias of a norm, where it has them."""

    weight: Buffer | None
    bias: Buffer | None

    @classmethod
    def declare(cls, spec: NormSpec) -> Parameters:
        """Add the buffers to the function's arguments."""
        weight = argument("weight", (spec.k,), "float32") if spec.weight else None
        bias = argument("bias", (spec.k,), "float32") if spec.bias else None
        return cls(weight, bias)


def normalized(read: Read, spec: NormSpec, parameters: Parameters, lanes: int) -> Read:
    """Measure a row, and return what reads its normalised features."""
    length = constant(float(spec.k), "float32")
    mean = None
    if spec.kind == "layer":
        mean = bind(_sum(read, spec.k, lanes, lambda old, x: old + x) / length)
    centred = _centred(read, mean)
    squares = _sum(centred, spec.k, lanes, lambda old, x: fma(x, x, old))
    deviation = sqrt(squares / length + constant(spec.eps, "float32"))
    factor = bind(constant(1.0, "float32") / deviation)

    def result(at: Expr, width: int, count: int) -> Expr:
        y = bind(centred(at, width, count) * broadcast(factor, width))
        if parameters.weight is not None:
            weight = load_first(parameters.weight, at, count=count, lanes=width)
            y = bind(y * (weight + splat(spec.offset, width) if spec.offset else weight))
        if parameters.bias is not None:
            y = bind(y + load_first(parameters.bias, at, count=count, lanes=width))
        return y

    return result


def _centred(read: Read, mean: Expr | None) -> Read:
    """Subtract the mean from the features that exist; lanes behind the last one stay zero."""
    if mean is None:
        return read

    def result(at: Expr, width: int, count: int) -> Expr:
        x = bind(read(at, width, count) - broadcast(mean, width))
        if count == width:
            return x
        kept = [i if i < count else width + i for i in range(width)]
        return bind(shuffle(x, splat(0.0, width), kept))

    return result


def _sum(read: Read, length: int, lanes: int, add: Callable[[Expr, Expr], Expr]) -> Expr:
    """Accumulate over a row by `add(old, vector)`."""
    total = Total(length, lanes, "float32", 0.0, ways=_WAYS)

    def see(at: Expr, width: int, count: int) -> None:
        x = bind(read(at, width, count))
        total.update(width, lambda old: add(old, x))

    sweep(length, lanes, see)
    return total.reduce(horizontal_sum, lambda a, b: a + b)
