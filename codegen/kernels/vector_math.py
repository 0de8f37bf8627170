"""Elementary functions of whole vectors, as TIR expressions.

Each function takes float32 vectors of `lanes` numbers and must be called inside a function being
built (intermediate values are bound to names, so that nothing is computed twice). Products and sums
are written as explicit fused multiply-adds: their rounding does not depend on the code generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as build
from tvm.tirx import op

from qcompiler.core.errors import UsageError, suggest

_LOG2E = math.log2(math.e)
# ln 2 in two parts: the first has so few bits that its product with an exponent is exact.
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682030941723212e-06
# 1.5 · 2²³: adding it leaves a rounded integer in the low bits of the sum.
_ROUND = 12582912.0
_EXP_LOWEST, _EXP_HIGHEST = -87.328125, 88.375
# Lowest argument of a softmax's exponential: its 1e-28 is lost beside the 1 of the largest score,
# and products with it are not denormal.
_SOFTMAX_LOWEST = -64.0
# (eʳ − 1 − r) / r² on |r| ≤ ln(2)/2; with it eʳ is within 1e-7 (minimax fit).
_EXP = (0.499992311000824, 0.16667115688323975, 0.041890330612659454, 0.008312501013278961)
# eᶻ² · erfc(z) / 2 = t · polynomial(t) with t = 1 / (1 + 0.375 z), for z ≥ 0, within 3.3e-8
# (minimax fit).
_ERFC_SLOPE = 0.375
_ERFC = (
    0.10579939931631088,
    0.10545594245195389,
    0.10167694091796875,
    0.06475701183080673,
    0.1270521730184555,
    -0.09992004930973053,
    0.20277193188667297,
    -0.136930450797081,
    0.029337085783481598,
)


def broadcast(value: float | Expr, lanes: int) -> Expr:
    """A vector of one float32 number."""
    scalar = tirx.const(value, "float32") if isinstance(value, (int, float)) else value
    return build.broadcast(scalar, lanes)


def fused_multiply_add(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """a · b + c, rounded once."""
    return op.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.fma", a, b, c)


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's scheme; coefficients from the constant upwards."""
    result = broadcast(coefficients[-1], lanes)
    for c in reversed(coefficients[:-1]):
        result = fused_multiply_add(result, x, broadcast(c, lanes), lanes)
    return result


def _split_exponent(x: Expr, lanes: int) -> tuple[Expr, Expr, Expr]:
    """Write x as n · ln 2 + r: returns the sum that holds n in its low bits, n and r."""
    holder = build.bind(
        fused_multiply_add(x, broadcast(_LOG2E, lanes), broadcast(_ROUND, lanes), lanes)
    )
    n = build.bind(holder - broadcast(_ROUND, lanes))
    r = fused_multiply_add(n, broadcast(-_LN2_HIGH, lanes), x, lanes)
    r = build.bind(fused_multiply_add(n, broadcast(-_LN2_LOW, lanes), r, lanes))
    return holder, n, r


def _times_power_of_two(value: Expr, holder: Expr, lanes: int) -> Expr:
    """value · 2ⁿ by adding n to the exponent bits; n sits in the low bits of `holder`."""
    ints = f"int32x{lanes}"
    shift = build.broadcast(tirx.const(23, "int32"), lanes)
    exponent = op.shift_left(op.reinterpret(ints, holder), shift)
    return op.reinterpret(f"float32x{lanes}", op.reinterpret(ints, value) + exponent)


def exp_bounded(x: Expr, lanes: int) -> Expr:
    """e^x within 2 ulp, x clamped to [−87.33, 88.375] so that the result is finite and positive.

    The cheap form, for sigmoids, where 1e-38 is as good as 0.
    """
    x = tirx.Max(x, broadcast(_EXP_LOWEST, lanes))
    x = build.bind(tirx.Min(x, broadcast(_EXP_HIGHEST, lanes)))
    return _exp_in_range(x, lanes)


def exp_nonpositive(x: Expr, lanes: int) -> Expr:
    """e^x for x ≤ 0, clamped below at e^−64: for softmax, after its maximum is subtracted."""
    return _exp_in_range(build.bind(tirx.Max(x, broadcast(_SOFTMAX_LOWEST, lanes))), lanes)


def _exp_in_range(x: Expr, lanes: int) -> Expr:
    holder, _, r = _split_exponent(x, lanes)
    value = build.bind(_polynomial(r, (1.0, 1.0, *_EXP), lanes))
    return build.bind(_times_power_of_two(value, holder, lanes))


def exp(x: Expr, lanes: int) -> Expr:
    """e^x within 2 ulp, with the right limits: 0 far below, infinity above 88.72."""
    # Half of the exponent at a time, so that both ends of the range are reached without overflow.
    half = build.bind(exp_bounded(x * broadcast(0.5, lanes), lanes))
    near = exp_bounded(x, lanes)
    # The square loses accuracy and is taken only where the bounded form has no answer.
    inside = op.bitwise_and(x >= broadcast(_EXP_LOWEST, lanes), x <= broadcast(_EXP_HIGHEST, lanes))
    return build.bind(tirx.Select(inside, near, half * half))


def tanh(x: Expr, lanes: int) -> Expr:
    """(e²ˣ − 1) / (e²ˣ + 1), accurate near 0 too: e²ˣ − 1 is formed without cancellation."""
    # Beyond 9.1 the result is ±1 in float32.
    limited = tirx.Min(tirx.Max(x, broadcast(-10.0, lanes)), broadcast(10.0, lanes))
    twice = build.bind(limited + limited)
    holder, _, r = _split_exponent(twice, lanes)
    power = build.bind(_times_power_of_two(broadcast(1.0, lanes), holder, lanes))
    small = fused_multiply_add(_polynomial(r, _EXP, lanes), build.bind(r * r), r, lanes)
    minus_one = build.bind(fused_multiply_add(small, power, power - broadcast(1.0, lanes), lanes))
    return build.bind(minus_one / (minus_one + broadcast(2.0, lanes)))


def _times_sigmoid(x: Expr, argument: Expr, lanes: int) -> Expr:
    """x / (1 + e^−argument)."""
    negative = broadcast(0.0, lanes) - argument
    return build.bind(x / (broadcast(1.0, lanes) + exp_bounded(negative, lanes)))


def silu(x: Expr, lanes: int) -> Expr:
    """x · sigmoid(x)."""
    x = build.bind(x)
    return _times_sigmoid(x, x, lanes)


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π) · (x + 0.044715 x³) (arXiv 1606.08415)."""
    x = build.bind(x)
    slope = 2 * math.sqrt(2 / math.pi)
    inner = _polynomial(build.bind(x * x), (slope, slope * 0.044715), lanes)
    return _times_sigmoid(x, build.bind(x * inner), lanes)


def gelu(x: Expr, lanes: int) -> Expr:
    """x · Φ(x) = max(x, 0) − |x| · erfc(|x| / √2) / 2, which stays accurate in the left tail."""
    x = build.bind(x)
    size = build.bind(tirx.Max(x, broadcast(0.0, lanes) - x))
    # Beyond z = 9 the tail is below 1e-36: stopping there keeps slow denormal numbers away.
    scaled = size * broadcast(math.sqrt(0.5), lanes)
    z = build.bind(tirx.Min(scaled, broadcast(9.0, lanes)))
    one = broadcast(1.0, lanes)
    t = build.bind(one / fused_multiply_add(z, broadcast(_ERFC_SLOPE, lanes), one, lanes))
    tail = build.bind(_polynomial(t, _ERFC, lanes) * t)
    density = _exp_in_range(build.bind(broadcast(0.0, lanes) - z * z), lanes)
    lost = build.bind(size * density)
    return build.bind(tirx.Max(x, broadcast(0.0, lanes)) - lost * tail)


def relu(x: Expr, lanes: int) -> Expr:
    """max(x, 0)."""
    return tirx.Max(x, broadcast(0.0, lanes))


def identity(x: Expr, lanes: int) -> Expr:
    """x itself."""
    return x


ACTIVATIONS: dict[str, Callable[[Expr, int], Expr]] = {
    "none": identity,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "tanh": tanh,
}


def activation(name: str, x: Expr, lanes: int) -> Expr:
    """Apply one of `qcompiler.core.ops.ACTIVATIONS` to a vector."""
    if name not in ACTIVATIONS:
        raise UsageError(suggest("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name](x, lanes)


def _halve(
    x: Expr, dtype: str, lanes: int, down_to: int, combine: Callable[[Expr, Expr], Expr]
) -> Expr:
    """Combine the two halves of a vector until `down_to` lanes are left."""
    while lanes > down_to:
        lanes //= 2
        half = f"{dtype}x{lanes}"
        x = build.bind(x)
        x = combine(op.vectorlow(half, x), op.vectorhigh(half, x))
    return build.bind(x)


def horizontal_sum(x: Expr, lanes: int) -> Expr:
    """Sum of a float32 vector, pairwise."""
    quarter = _halve(x, "float32", lanes, 2, lambda a, b: a + b)
    start = tirx.const(-0.0, "float32")
    return build.bind(
        op.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", start, quarter)
    )


def horizontal_sum_int32(x: Expr, lanes: int) -> Expr:
    """Sum of an int32 vector."""
    return build.bind(op.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", x))


def horizontal_max(x: Expr, lanes: int) -> Expr:
    """Largest number of a float32 vector."""
    return build.bind(op.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fmax", x))
