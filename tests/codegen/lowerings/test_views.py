"""Shapes, transposes and repetition give what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from codegen.lower import lower
from qcompiler.core.program import Program
from targets import find

pytestmark = pytest.mark.tvm

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
Y = torch.linspace(-2, 2, 16).reshape(1, 1, 16)

CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "an open size": (lambda x: x.view(2, x.shape[1], 4, -1) * 2, (X,)),
    "an open size that varies": (lambda x: x.reshape(-1, 4) * 2, (X,)),
    "flatten": (lambda x: (x.flatten(1), x.flatten(0, 1), x.flatten()), (X,)),
    "squeeze": (lambda x, y: (y.squeeze(0) + x, y.squeeze() + x, y.squeeze((0, 1)) * x), (X, Y)),
    "unsqueeze": (lambda x: (x.unsqueeze(1) + x.unsqueeze(0), x.unsqueeze(-1) * 2), (X,)),
    "transpose": (lambda x: (x.transpose(1, 2), x.transpose(0, -1) * 2), (X,)),
    "permute": (lambda x: x.permute(2, 0, 1).flatten(1), (X,)),
    "transpose of ones": (lambda x, y: (y.permute(2, 0, 1), y.transpose(0, 1)), (X, Y)),
    "transpose of a matrix": (lambda x: x[0].t() + x[0].t().t().sum(), (X,)),
    "expand": (
        lambda x, y: (
            y.expand(2, x.shape[1], 16) * x,
            y.expand(3, -1, -1),
            x.unsqueeze(2).expand(-1, -1, 3, -1),
        ),
        (X, Y),
    ),
    "repeat": (lambda x, y: (y.repeat(2, 3, 2), y.repeat(2, 1, 1, 2), x.repeat(1, 2, 1)), (X, Y)),
    "repeat each": (
        lambda x: (
            x.repeat_interleave(3, 1),
            x.repeat_interleave(2, 0),
            x.repeat_interleave(2, -1),
            x.repeat_interleave(2),
        ),
        (X,),
    ),
    "heads": (
        lambda x: x.view(2, x.shape[1], 4, 4).transpose(1, 2).reshape(8, -1, 4) * 2,
        (X,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = CASES[name]
    agrees(function, *inputs)


def test_views_need_no_kernel(captured: Callable[..., Program]) -> None:
    program = captured(lambda x, y: x.view(-1, 4).unsqueeze(0).flatten() + y.squeeze()[0], X, Y)
    functions = lower(program, find("native")).module.functions
    kernels = {var.name_hint for var in functions} - {"forward"}
    assert kernels == {"slice", "add"}
