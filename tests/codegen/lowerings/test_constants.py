"""Tensors made from nothing are those of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.tvm

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

CASES: dict[str, Callable[..., Any]] = {
    "arange": lambda x: (torch.arange(x.shape[1]) + 2)[None, :, None] * x,
    "arange from a start": lambda x: torch.arange(3, x.shape[1] + 3) + x[0, :, 0],
    "arange from a size": lambda x: torch.arange(x.shape[1], x.shape[1] * 2) + x[0, :, 0],
    "arange in steps": lambda x: torch.arange(0, x.shape[1], 3) + x.sum(),
    "arange downwards": lambda x: torch.arange(x.shape[1], 0, -2) + x.sum(),
    "arange of fractions": lambda x: torch.arange(0.5, 2, 0.25) + x.sum(),
    "arange of floats": lambda x: torch.arange(x.shape[1], dtype=torch.float32) + x[0, :, 0],
    "full": lambda x: torch.full((2, x.shape[1], 1), 3.5) * x,
    "full of infinity": lambda x: torch.full((2, x.shape[1], 1), float("-inf")) + x,
    "full_like": lambda x: torch.full_like(x, 7, dtype=torch.int64) + x,
    "ones and zeros": lambda x: torch.ones_like(x) + torch.zeros(2, x.shape[1], 16) * x,
    "ones and zeros of other types": lambda x: (
        torch.ones(x.shape[1], dtype=torch.bool).logical_and(x[0, :, 0] > 0),
        torch.zeros_like(x, dtype=torch.int32) + x.to(torch.int32),
    ),
    "new": lambda x: x.new_zeros(2, 1, 1) + x * x.new_ones(x.shape[1], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    agrees(CASES[name], X, shortest=4 if "steps" in name or "downwards" in name else 1)
