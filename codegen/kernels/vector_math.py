"""Elementary functions of whole vectors, as TIR expressions.

Each function takes float32 vectors of `lanes` numbers and must be called inside a kernel being
built (intermediate values are bound to names, so that nothing is computed twice). Products and sums
are written as explicit fused multiply-adds: their rounding does not depend on the code generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from codegen.kernels.builder import (
    Expr,
    bind,
    fma,
    intrinsic,
    lane,
    maximum,
    minimum,
    reinterpret,
    select,
    shift_left,
    shuffle,
    splat,
)
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
_SOFTMAX_LOWEST_LOG2 = -92.0
# (eʳ − 1 − r) / r² on |r| ≤ ln(2)/2; with it eʳ is within 1e-7 (minimax fit).
_EXP = (0.499992311000824, 0.16667115688323975, 0.041890330612659454, 0.008312501013278961)
# 2ʳ on |r| ≤ 1/2, within 1e-7 (minimax fit).
_EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022240936756134,
    0.0555073507130146,
    0.009671619161963463,
    0.0013264591107144952,
)
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


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's scheme; coefficients from the constant upwards."""
    result = splat(coefficients[-1], lanes)
    for c in reversed(coefficients[:-1]):
        result = fma(result, x, splat(c, lanes))
    return result


def _clamp_below(x: Expr, limit: float, lanes: int) -> Expr:
    """max(limit, x); the order of the operands lets a NaN through."""
    return bind(maximum(splat(limit, lanes), x))


def _clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    return bind(minimum(splat(high, lanes), _clamp_below(bind(x), low, lanes)))


def _split_exponent(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Write x as n · ln 2 + r; returns r and the sum that holds n in its low bits."""
    holder = bind(fma(x, splat(_LOG2E, lanes), splat(_ROUND, lanes)))
    n = bind(holder - splat(_ROUND, lanes))
    r = fma(n, splat(-_LN2_HIGH, lanes), x)
    return bind(fma(n, splat(-_LN2_LOW, lanes), r)), holder


def _times_power_of_two(value: Expr, holder: Expr, lanes: int) -> Expr:
    """value · 2ⁿ by adding n to the exponent bits; n sits in the low bits of `holder`."""
    exponent = shift_left(reinterpret(holder, "int32", lanes), 23)
    return bind(reinterpret(reinterpret(value, "int32", lanes) + exponent, "float32", lanes))


def _exp_in_range(x: Expr, lanes: int) -> Expr:
    r, holder = _split_exponent(x, lanes)
    return _times_power_of_two(_polynomial(r, (1.0, 1.0, *_EXP), lanes), holder, lanes)


def exp_bounded(x: Expr, lanes: int) -> Expr:
    """e^x within 2 ulp, x clamped to [−87.33, 88.375] so that the result is finite and positive.

    The cheap form, for sigmoids, where 1e-38 is as good as 0.
    """
    return _exp_in_range(_clamp(x, _EXP_LOWEST, _EXP_HIGHEST, lanes), lanes)


def exp_nonpositive(x: Expr, lanes: int) -> Expr:
    """e^x for x ≤ 0, clamped below at e^−64: for softmax, after its maximum is subtracted."""
    return _exp_in_range(_clamp_below(bind(x), _SOFTMAX_LOWEST, lanes), lanes)


def exp2_nonpositive(x: Expr, lanes: int) -> Expr:
    """2^x for x ≤ 0, clamped below at 2^−92: two operations less than `exp_nonpositive`."""
    x = _clamp_below(bind(x), _SOFTMAX_LOWEST_LOG2, lanes)
    # Not a plain sum: TVM would simplify (x + c) − c to x.
    holder = bind(fma(x, splat(1.0, lanes), splat(_ROUND, lanes)))
    r = bind(x - bind(holder - splat(_ROUND, lanes)))
    return _times_power_of_two(_polynomial(r, _EXP2, lanes), holder, lanes)


def exp(x: Expr, lanes: int) -> Expr:
    """e^x within 2 ulp, with the right limits: 0 far below, infinity above 88.72."""
    x = bind(x)
    near = exp_bounded(x, lanes)
    # The square reaches both ends of the range but is less accurate, so it is taken only there.
    half = exp_bounded(x * splat(0.5, lanes), lanes)
    above_lowest = select(x < splat(_EXP_LOWEST, lanes), half * half, near)
    return bind(select(x > splat(_EXP_HIGHEST, lanes), half * half, bind(above_lowest)))


def tanh(x: Expr, lanes: int) -> Expr:
    """(e²ˣ − 1) / (e²ˣ + 1), accurate near 0 too: e²ˣ − 1 is formed without cancellation."""
    # Beyond 9.1 the result is ±1 in float32.
    limited = _clamp(x, -10.0, 10.0, lanes)
    r, holder = _split_exponent(bind(limited + limited), lanes)
    power = _times_power_of_two(splat(1.0, lanes), holder, lanes)
    small = fma(_polynomial(r, _EXP, lanes), bind(r * r), r)
    minus_one = bind(fma(small, power, power - splat(1.0, lanes)))
    return bind(minus_one / (minus_one + splat(2.0, lanes)))


def _times_sigmoid(x: Expr, argument: Expr, lanes: int) -> Expr:
    """x / (1 + e^−argument)."""
    negative = splat(0.0, lanes) - argument
    return bind(x / (splat(1.0, lanes) + exp_bounded(negative, lanes)))


def silu(x: Expr, lanes: int) -> Expr:
    """x · sigmoid(x)."""
    x = bind(x)
    return _times_sigmoid(x, x, lanes)


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π) · (x + 0.044715 x³) (arXiv 1606.08415)."""
    x = bind(x)
    slope = 2 * math.sqrt(2 / math.pi)
    inner = _polynomial(bind(x * x), (slope, slope * 0.044715), lanes)
    return _times_sigmoid(x, bind(x * inner), lanes)


def gelu(x: Expr, lanes: int) -> Expr:
    """x · Φ(x) = max(x, 0) − |x| · erfc(|x| / √2) / 2, which stays accurate in the left tail."""
    x = bind(x)
    size = bind(maximum(bind(splat(0.0, lanes) - x), x))
    # Beyond z = 9 the tail is below 1e-36: stopping there keeps slow denormal numbers away.
    z = bind(minimum(splat(9.0, lanes), bind(size * splat(math.sqrt(0.5), lanes))))
    one = splat(1.0, lanes)
    t = bind(one / fma(z, splat(_ERFC_SLOPE, lanes), one))
    tail = bind(_polynomial(t, _ERFC, lanes) * t)
    density = _exp_in_range(bind(splat(0.0, lanes) - z * z), lanes)
    return bind(relu(x, lanes) - bind(size * density) * tail)


def relu(x: Expr, lanes: int) -> Expr:
    """max(x, 0)."""
    return bind(maximum(splat(0.0, lanes), bind(x)))


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


def _reduce(x: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine the halves of a vector until one number is left."""
    x = bind(x)
    while lanes > 2:
        lanes //= 2
        lower, upper = range(lanes), range(lanes, 2 * lanes)
        x = bind(combine(bind(shuffle(x, x, lower)), bind(shuffle(x, x, upper))))
    return bind(combine(bind(lane(x, 0)), bind(lane(x, 1))))


def horizontal_sum(x: Expr, lanes: int) -> Expr:
    """Sum of a float32 vector, pairwise."""
    return _reduce(x, lanes, lambda a, b: a + b)


def horizontal_max(x: Expr, lanes: int) -> Expr:
    """Largest number of a float32 vector."""
    return _reduce(x, lanes, maximum)


def horizontal_sum_int32(x: Expr, lanes: int) -> Expr:
    """Sum of an int32 vector."""
    return bind(intrinsic("int32", "llvm.vector.reduce.add", x))


def horizontal_max_int32(x: Expr, lanes: int) -> Expr:
    """Largest number of an int32 vector."""
    return bind(intrinsic("int32", "llvm.vector.reduce.smax", x))
