"""Operators on one number at a time give what torch gives, in the same type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional

pytestmark = pytest.mark.tvm

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
Y = torch.linspace(-2, 2, 16).reshape(1, 1, 16)
IDS = torch.arange(-4, 6).reshape(2, 5)
MASK = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])

CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "broadcasting": (lambda x, y: (x + y, x - y, x * y, x / y), (X, Y)),
    "scaled second operand": (lambda x, y: torch.sub(x, y, alpha=2), (X, Y)),
    "scaled second number": (lambda x: torch.add(x, 3, alpha=2.5), (X,)),
    "number first": (lambda x: (1.0 - x, torch.rsub(x, 1.0, alpha=3), 2.0 / x.abs()), (X,)),
    "integers": (lambda i: (i + 2, i * 3, -i, i - i * i, i.abs()), (IDS,)),
    "integers with fractions": (lambda i: (i * 0.5, i + 0.25, i / 2, i / (i * i + 1)), (IDS,)),
    "integers of two widths": (lambda i: i.to(torch.int32) + i, (IDS,)),
    "short integers": (lambda i: i.to(torch.int16) * 300 + i.to(torch.int8), (IDS,)),
    "functions of integers": (lambda i: (torch.cos(i), torch.exp(i), i.sigmoid()), (IDS,)),
    "truth values as numbers": (lambda m: (m * 2, m + 0.5, m * m, m + m, m.sum(-1)), (MASK,)),
    "comparisons": (lambda x, y: (x > y, x < y, x >= y, x <= y, x == y, x != y), (X, Y)),
    "comparisons with numbers": (
        lambda i: (i > 0.5, i < 2, i >= 1, i <= -1, i == 3, i != 3),
        (IDS,),
    ),
    "comparisons of truth values": (lambda m: (m == True, m != m.logical_not()), (MASK,)),  # noqa: E712
    "logic": (lambda x: ((x > 0) & (x < 1) | ~(x > -1), (x > 0).logical_not()), (X,)),
    "logic of numbers": (
        lambda i: (i.logical_and(i - 1), i.logical_or(i * 0), i.logical_not()),
        (IDS,),
    ),
    "bits": (lambda i: (i & 3, i | 4, ~i), (IDS,)),
    "choices": (
        lambda x: (
            torch.where(x > 0, x, -x * 2),
            torch.where(x > 0, x, 0.0),
            torch.where(x > 0, 1.0, x),
            torch.where(x > 0, 1.0, 0.0),
        ),
        (X,),
    ),
    "choices of two types": (lambda i: torch.where(i > 0, i, 0.5), (IDS,)),
    "choices of each row": (lambda m: torch.where(m, 1, torch.zeros(2, 1)), (MASK,)),
    "masked fill": (
        lambda x: (x.masked_fill(x > 0.5, -1.0), x.masked_fill(x > 0, float("-inf"))),
        (X,),
    ),
    "masked fill of integers": (lambda i: i.masked_fill(i > 2, 7), (IDS,)),
    "bounds": (lambda x: (x.clamp(-0.5, 1), x.clamp(min=0), x.clamp(max=0), x.clamp_min(1)), (X,)),
    "extremes": (lambda x, y: (torch.maximum(x, y), torch.minimum(x, y)), (X, Y)),
    "elementary functions": (
        lambda x: (x.cos(), x.sin(), x.tanh(), x.exp(), x.sigmoid(), x.erf(), x.floor()),
        (X,),
    ),
    "functions of what is positive": (lambda x: (x.exp().log(), x.exp().rsqrt()), (X,)),
    "activations": (
        lambda x: (
            functional.silu(x),
            functional.gelu(x),
            functional.gelu(x, approximate="tanh"),
            functional.relu(x),
        ),
        (X,),
    ),
    "activations far out": (lambda x: (functional.silu(x * 90), functional.gelu(x * 90)), (X,)),
    "powers": (lambda x: (x**2, x**3, x.exp() ** 0.5, x.exp() ** -1.7, x**4), (X,)),
    "powers of integers": (lambda i: (i**2, i**3, i**2.5), (IDS.abs(),)),
    "casts": (
        lambda i: (i.to(torch.float32), i.to(torch.int32), i.to(torch.bool), i.to(torch.int8)),
        (IDS,),
    ),
    "casts of fractions": (
        lambda x: ((x * 4).to(torch.int64), (x * 0.4).to(torch.bool), x.to(torch.float16) * 2),
        (X,),
    ),
    "copies": (lambda x: x.contiguous().clone().detach() * 2, (X,)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = CASES[name]
    agrees(function, *inputs)
