"""Activations are recognised by what they compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from passes.patterns.activation import ACTIVATIONS, POINTS, TOLERANCE
from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]

X = torch.randn(2, 5, 16)
C = math.sqrt(2 / math.pi)

SPELLINGS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu of transformers": (
        "aten.gelu.default",
        lambda x: 0.5 * x * (1.0 + torch.tanh(C * (x + 0.044715 * torch.pow(x, 3.0)))),
    ),
    "fast gelu": (
        "aten.gelu.default",
        lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    ),
    "gelu with erf": (
        "aten.gelu.default",
        lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    ),
    "swish": ("aten.silu.default", lambda x: x * torch.sigmoid(x)),
    "swish with exp": ("aten.silu.default", lambda x: x / (1 + torch.exp(-x))),
    "logistic": ("aten.sigmoid.default", lambda x: torch.reciprocal(1 + torch.exp(-x))),
    "silu": ("aten.silu.default", functional.silu),
    "relu": ("aten.relu.default", functional.relu),
    "tanh": ("aten.tanh.default", torch.tanh),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_activation(spelling: str, canonical: Canonical, operators: Operators) -> None:
    name, function = SPELLINGS[spelling]
    # The sum before it is pointwise as well, and must not be taken for a part of it.
    program = canonical(lambda x, y: function(x + y), X, torch.randn_like(X))
    assert operators(program) == {"aten.add.Tensor": 1, name: 1}


def test_both_kinds_of_gelu_are_told_apart(canonical: Canonical) -> None:
    for spelling, approximate in (("fast gelu", "tanh"), ("gelu with erf", "none")):
        program = canonical(SPELLINGS[spelling][1], X)
        gelu = list(program.graph.nodes)[-2]
        assert gelu.kwargs.get("approximate", "none") == approximate


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x * x * x))),
        lambda x: x * torch.sigmoid(x + 1e-3),
        lambda x: torch.relu(x) * torch.relu(x),
    ],
)
def test_what_only_looks_alike_stays(
    function: Callable[[Tensor], Tensor], canonical: Canonical, operators: Operators
) -> None:
    found = operators(canonical(function, X))
    assert not {"aten.gelu.default", "aten.silu.default"} & set(found)


def test_known_activations_differ_by_far_more_than_the_tolerance() -> None:
    values = [function(POINTS) for _, _, function in ACTIVATIONS]
    for i, a in enumerate(values):
        for b in values[:i]:
            assert (a - b).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, v: functional.silu(x @ w) * (x @ v),
        lambda x, w, v: (x @ v) * functional.silu(x @ w),
    ],
)
def test_a_gate_comes_first(function: Callable[..., Tensor], canonical: Canonical) -> None:
    program = canonical(function, X, w=torch.randn(16, 8), v=torch.randn(16, 8))
    product = list(program.graph.nodes)[-2]
    gate, up = product.args
    assert gate.target is torch.ops.aten.silu.default
    assert str(gate.args[0].args[1].target) == "w"
    assert str(up.args[1].target) == "v"
