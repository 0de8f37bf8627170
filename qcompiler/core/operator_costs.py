"""What operators take, as formulas: bytes from main memory, and operations.

They are sympy expressions: `n` output and `k` input features, `t` tokens, `b` bytes of a weight,
`c` tokens in the context, `e` bytes that the caches keep of each of them, `m` numbers that come
out. A multiplication and an addition are an operation each. What one operator hands to the next
stays in a cache, and its bytes do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

n, k, t, b, c, e, m = sympy.symbols("n k t b c e m", positive=True)
memory, compute = sympy.symbols("memory compute", positive=True)


@dataclass(frozen=True)
class Formula:
    """Bytes from main memory and operations of a kind of operator."""

    bytes: sympy.Expr
    ops: sympy.Expr

    @property
    def seconds(self) -> sympy.Expr:
        """Seconds at `memory` bytes and `compute` operations per second: whatever takes longer."""
        return sympy.Max(self.bytes / memory, self.ops / compute)


PRODUCT = Formula(bytes=b, ops=2 * n * k * t)
"""The whole weight is read, once."""

ATTENTION = Formula(bytes=e * c, ops=4 * m * (c - (t - 1) / 2))
"""Keys and values of the context; a token sees itself and what came before it."""

EMBEDDING = Formula(bytes=b * t / n, ops=m)
"""A row of the table for each token."""

POINTWISE = Formula(bytes=b, ops=4 * m)
"""Norms, activations, sums and the like: a few operations a number."""


def count(val: torch.Tensor, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """Return how many numbers a tensor of the graph has; `sizes` says what symbolic sizes are."""
    total: sympy.Expr = sympy.Integer(1)
    for size in val.shape:
        total *= extent(size, sizes)
    return total


def extent(size: int | torch.SymInt, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """Return a size of the graph as an expression."""
    if isinstance(size, int):
        return sympy.Integer(size)
    given: Any = size.node.expr
    return given.xreplace({s: sizes[str(s)] for s in given.free_symbols})
