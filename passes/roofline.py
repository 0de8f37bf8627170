"""Estimate seconds from bytes and operations: the roofline (Williams et al., 2009).

Whatever takes longer, moving the bytes or doing the operations, is what an operator takes. The
formulas are `qcompiler.core.operator_costs`'.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sympy
import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.operator_costs import (
    ATTENTION,
    POINTWISE,
    PRODUCT,
    Formula,
    compute,
    count,
    extent,
    memory,
)
from qcompiler.core.program import LINEARS, Program
from qcompiler.core.target import Speeds, Target


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
    known = {str(symbol): sympy.Integer(size) for symbol, size in sizes.items()}
    for node in program.graph.nodes:
        val = node.meta.get("val")
        if node.op != "call_function" or node.target in LINEARS or not _is_float(val):
            continue
        numbers = int(count(val, known))
        if node.target in (ops.attention, ops.rope_attention):
            q = node.args[0].meta["val"]
            total += _evaluate(
                ATTENTION,
                speeds.float_ops,
                speeds,
                m=numbers,
                t=int(extent(q.shape[1], known)),
                c=context,
                e=sum(_token_bytes(cache) for cache in node.args[3:5]),
            )
        else:
            total += _evaluate(POINTWISE, speeds.float_ops, speeds, m=numbers, b=0)
    return total


def count_rows(node: fx.Node, sizes: dict[Any, int]) -> int:
    """Return the rows that a product has where symbolic sizes are as given."""
    val = node.meta["val"]
    known = {str(symbol): sympy.Integer(size) for symbol, size in sizes.items()}
    return int(count(val, known) / extent(val.shape[-1], known))


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


def _token_bytes(cache: Any) -> int:
    """Return the bytes that a cache, [1, hk, c, r], keeps of a token."""
    val = cache.meta["val"]
    size: int = val.dtype.itemsize
    return size * int(val.shape[1]) * int(val.shape[3])
