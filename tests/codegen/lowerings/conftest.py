"""Functions of torch, lowered, compiled and compared with torch at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.core.program import Program
from qcompiler.frontend import capture
from targets import find

Function = Callable[..., Any]
LENGTHS = (5, 1, 17)
"""Of the axis that varies, the first for its capture."""


class Computes(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture
def captured() -> Callable[..., Program]:
    """Capture a function of tensors; the second axis of the first one may have any size from
    `shortest` on.
    """

    def capture_function(function: Function, *inputs: torch.Tensor, shortest: int = 1) -> Program:
        sizes = ({1: torch.export.Dim("s", min=shortest, max=64)}, *[None] * (len(inputs) - 1))
        return capture(Computes(function), example_inputs=inputs, dynamic_shapes=(sizes,))

    return capture_function


@pytest.fixture
def agrees(captured: Callable[..., Program], compiled: Callable[..., Any]) -> Callable[..., None]:
    """Assert that a function gives when compiled what it gives in torch, with types and shapes."""

    def check(function: Function, *inputs: torch.Tensor, shortest: int = 1) -> None:
        program = captured(function, *inputs, shortest=shortest)
        run = compiled(program, find("native"))
        for length in (max(length, shortest) for length in LENGTHS):
            first = resized(inputs[0], length)
            expected = function(first, *inputs[1:])
            expected = expected if isinstance(expected, tuple) else (expected,)
            actual = run(first, *inputs[1:])
            assert len(actual) == len(expected)
            for ours, theirs in zip(actual, expected, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-5, atol=2e-6)
                assert ours.shape == theirs.shape

    return check


def resized(x: torch.Tensor, length: int) -> torch.Tensor:
    """Return x with another size of its second axis, where new numbers are needed to fill it."""
    generator = torch.Generator().manual_seed(length)
    noise = torch.randn(3, *x.shape, generator=generator) if x.is_floating_point() else [x] * 3
    return torch.cat([x, *noise], 1)[:, :length].contiguous()
