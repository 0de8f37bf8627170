"""Estimate seconds from bytes and operations: the roofline (Williams et al., 2009).

Whatever takes longer, moving the bytes or doing the operations, is what an operator takes. Formulas
are sympy expressions: `n` output and `k` input features, `t` tokens, `b` bytes of the weight, `h`
heads, `d` head size, `hk` heads of keys, `c` tokens in the context, `m` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.program import LINEARS, Program
from qcompiler.core.target import Speeds, Target

n, k, t, b, h, d, hk, c, m = sympy.symbols("n k t b h d hk c m", positive=True)
memory, compute = sympy.symbols("memory compute", positive=True)


@dataclass(frozen=True)
class Formula:
    """Bytes from main memory and operations of a kind of operator."""

    bytes: sympy.Expr
    ops: sympy.Expr

    @property
    def seconds(self) -> sympy.Expr:
        """Seconds at `memory` bytes and `compute` operations per second."""
        return sympy.Max(self.bytes / memory, self.ops / compute)


PRODUCT = Formula(bytes=b, ops=2 * n * k * t)
"""Activations stay in a cache; what a product reads from memory is its weight."""

ATTENTION = Formula(bytes=8 * hk * d * c, ops=4 * h * d * t * (c - (t - 1) / 2))
"""float32 keys and values of the context; a token sees itself and what came before it."""

POINTWISE = Formula(bytes=sympy.Integer(0), ops=4 * m)
"""Norms, activations, sums and the like: a few operations a number."""


def speeds_of(target: Target) -> Speeds:
    """Return how fast a typical machine of the target is.

    Raises:
        UnsupportedError: the target does not say.
    """
    if target.speeds is None:
        raise UnsupportedError(
            f"the target {target.name} says nothing of a machine's speed, so that times cannot be "
            "estimated; use time = 'timer' on such a machine"
        )
    return target.speeds


def product_seconds(
    features: tuple[int, int], tokens: int, weight_bytes: int, target: Target, *, integers: bool
) -> float:
    """Estimate a product [tokens, k] × [n, k]ᵀ, of bytes or of floats; features: (n, k)."""
    speeds = speeds_of(target)
    peak = speeds.int8_ops if integers else speeds.float_ops
    return _evaluate(PRODUCT, peak, speeds, n=features[0], k=features[1], t=tokens, b=weight_bytes)


def rest_seconds(program: Program, sizes: dict[Any, int], context: int, target: Target) -> float:
    """Estimate all of a language model but its products with stored weights.

    sizes: a number for each symbolic size of the graph; context: tokens in the caches at the end.
    """
    speeds, total = speeds_of(target), 0.0
    for node in program.graph.nodes:
        val = node.meta.get("val")
        if node.op != "call_function" or node.target in LINEARS or not _is_float(val):
            continue
        if node.target in (ops.attention, ops.rope_attention):
            q, keys = node.args[0].meta["val"], _cache_of(node).meta["val"]
            total += _evaluate(
                ATTENTION,
                speeds.float_ops,
                speeds,
                h=_count(q, sizes) // (int(keys.shape[3]) * _number(q.shape[1], sizes)),
                d=int(keys.shape[3]),
                hk=int(keys.shape[1]),
                t=_number(q.shape[1], sizes),
                c=context,
            )
        else:
            total += _evaluate(POINTWISE, speeds.float_ops, speeds, m=_count(val, sizes))
    return total


def count_rows(node: fx.Node, sizes: dict[Any, int]) -> int:
    """Return the rows that a product has where symbolic sizes are as given."""
    val = node.meta["val"]
    return _count(val, sizes) // _number(val.shape[-1], sizes)


def _evaluate(formula: Formula, peak: float, speeds: Speeds, **values: int) -> float:
    """Put numbers into a formula's seconds."""
    names = tuple(sorted(values))
    function = _compiled(formula, names)
    return float(function(speeds.bytes, peak, *(values[name] for name in names)))


@cache
def _compiled(formula: Formula, names: tuple[str, ...]) -> Any:
    symbols = [sympy.Symbol(name, positive=True) for name in names]
    return sympy.lambdify([memory, compute, *symbols], formula.seconds, modules="math")


def _is_float(val: object) -> bool:
    return isinstance(val, torch.Tensor) and val.dtype.is_floating_point


def _cache_of(node: fx.Node) -> fx.Node:
    found = node.args[3]
    assert isinstance(found, fx.Node)
    return found


def _count(val: torch.Tensor, sizes: dict[Any, int]) -> int:
    total = 1
    for size in val.shape:
        total *= _number(size, sizes)
    return total


def _number(size: int | torch.SymInt, sizes: dict[Any, int]) -> int:
    """Return a size as a number."""
    if isinstance(size, int):
        return size
    return int(size.node.expr.xreplace({s: sympy.Integer(v) for s, v in sizes.items()}))
