"""Reductions, softmax and the largest few give what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.tvm

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(-4, 6).reshape(2, 5)
MASK = IDS % 3 == 0

CASES: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "sums": (lambda x: (x.sum(-1), x.sum((0, 2)), x.sum(1, keepdim=True), x.sum()), X),
    "sums of what varies": (lambda x: (x.sum(1), x.mean(1), x.amax(1)), X),
    "sums of integers": (lambda i: (i.sum(-1), i.sum(), i.sum(0, dtype=torch.float32)), IDS),
    "sums of truth values": (lambda m: (m.sum(-1), m.sum()), MASK),
    "means": (lambda x: (x.mean(-1), x.mean((1, 2), keepdim=True), x.mean()), X),
    "mean of integers": (lambda i: i.mean(-1, dtype=torch.float32), IDS),
    "extremes": (lambda x: (x.amax(-1), x.amin((0, 1)), x.amax()), X),
    "softmax": (lambda x: (x.softmax(-1), x.softmax(0)), X),
    "softmax of what varies": (lambda x: x.softmax(1), X),
    "softmax of integers": (lambda i: i.softmax(1, dtype=torch.float32), IDS),
    "softmax of masked rows": (
        lambda x: x.masked_fill(x < 0, float("-inf")).softmax(-1) * x.amax(-1, keepdim=True),
        X.abs() - 0.3,
    ),
    "root mean square": (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), X),
    "variance": (lambda x: (x - x.mean(-1, keepdim=True)).pow(2).mean(-1), X),
    "largest": (lambda x: (*x.topk(3), *x.topk(1, largest=False), *x.topk(16)), X),
    "largest along another axis": (lambda x: (*x.topk(2, 0), *x.topk(1, 1)), X),
    "largest of integers": (lambda i: (i.topk(1).values, i.topk(1, largest=False).values), IDS),
    "largest of infinities": (lambda x: (x * 1e38 * 1e38).topk(1).values, X),
    "largest of a row": (lambda x: x[0, 0].topk(4), X),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    agrees(*CASES[name])
