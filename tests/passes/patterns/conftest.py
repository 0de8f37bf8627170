"""Capture a small module, make it canonical, and see that it computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from passes.canonicalize import Canonicalize
from qcompiler.core.interpreter import ProgramInterpreter
from qcompiler.core.pass_base import PassContext
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program
from qcompiler.frontend import capture

Run = Callable[..., PassContext]


class Module(nn.Module):
    """A function of tensors, and the weights it is given by name as further arguments."""

    def __init__(self, function: Callable[..., Any], weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, tensor in weights.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.function(*inputs, **dict(self.named_parameters()))
        return result


Canonical = Callable[..., Program]


@pytest.fixture
def canonical(run_pass: Run) -> Canonical:
    """Return a function that captures `function(*inputs, **weights)` and makes it canonical.

    Dimension one of every input with more than one is dynamic, unless `fixed`. Inputs of another
    length must give what the function gives.
    """

    def make(
        function: Callable[..., Any],
        *inputs: torch.Tensor,
        fixed: bool = False,
        **weights: torch.Tensor,
    ) -> Program:
        module = Module(function, weights)
        length = Dim("length", min=4, max=64)
        sizes = tuple({1: length} if x.dim() > 1 and not fixed else {} for x in inputs)
        program = capture(module, example_inputs=inputs, dynamic_shapes=(sizes,))
        run_pass(program, Canonicalize())
        for length_of_test in (inputs[0].shape[1],) if fixed else (inputs[0].shape[1], 9):
            fresh = [_resized(x, length_of_test) for x in inputs]
            actual = ProgramInterpreter(program).run(*fresh)
            torch.testing.assert_close(actual, module(*fresh), atol=2e-6, rtol=2e-5)
        return program

    return make


def _resized(x: torch.Tensor, length: int) -> torch.Tensor:
    if x.dim() < 2:
        return x
    return torch.randn(x.shape[0], length, *x.shape[2:])


@pytest.fixture
def operators() -> Callable[[Program], Counter[str]]:
    """Return a function that counts what a program calls, sizes left out."""

    def count(program: Program) -> Counter[str]:
        names = [target_name(n) for n in program.graph.nodes if n.op == "call_function"]
        return Counter(name for name in names if name != "aten.sym_size.int")

    return count
