"""Attention without a cache, as an operator or spelled out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]

X = torch.randn(2, 5, 12)
MASK = torch.randn(2, 5, 1)
W = torch.randn(36, 12) / 3


def project(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = functional.linear(x, w).view(2, -1, 9, 4).transpose(1, 2).split(3, 1)
    return q, k, v


def merge(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(2, -1, 12)


def operator(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    return merge(functional.scaled_dot_product_attention(q, k, v, m.view(2, 1, 1, -1)))


def operator_with_scale(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    mask = m.view(2, 1, 1, -1) < 0.5
    return merge(functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3))


def softmax(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    scores = q @ k.transpose(-1, -2) * 0.3 + m.view(2, 1, 1, -1)
    return merge(scores.softmax(-1) @ v)


def softmax_of_quotient(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    scores = m.view(2, 1, 1, -1) + torch.matmul(q, k.transpose(2, 3)) / 2.0
    return merge(torch.matmul(functional.softmax(scores, dim=-1, dtype=torch.float32), v))


SPELLINGS: dict[str, tuple[float, Callable[..., Tensor]]] = {
    "operator": (0.5, operator),
    "operator with a scale": (0.3, operator_with_scale),
    "softmax": (0.3, softmax),
    "softmax of a quotient": (0.5, softmax_of_quotient),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_dense_attention(spelling: str, canonical: Canonical, operators: Operators) -> None:
    scale, function = SPELLINGS[spelling]
    program = canonical(function, X, MASK, w=W)
    found = operators(program)
    assert found["dense_attention"] == 1
    assert "aten.permute.default" not in found
    (attention,) = [n for n in program.graph.nodes if n.name.startswith("dense_attention")]
    assert attention.kwargs["scale"] == scale


def test_without_mask(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        q, k, v = project(x, w)
        return merge((q @ k.transpose(-1, -2)).softmax(-1) @ v)

    program = canonical(function, X, w=W)
    assert operators(program)["dense_attention"] == 1
    (attention,) = [n for n in program.graph.nodes if n.name.startswith("dense_attention")]
    assert attention.args[3] is None
    assert attention.kwargs["scale"] == 1.0


def test_a_factor_of_the_queries_moves_into_the_scale(
    canonical: Canonical, operators: Operators
) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        q, k, v = project(x, w)
        return merge(functional.scaled_dot_product_attention(q * 0.5, k, v, scale=3.0))

    program = canonical(function, X, w=W)
    assert "aten.mul.Tensor" not in operators(program)
    (attention,) = [n for n in program.graph.nodes if n.name.startswith("dense_attention")]
    assert attention.kwargs["scale"] == 1.5


def causal(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    return merge(functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def over_queries(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
    q, k, v = project(x, w)
    return merge((q @ k.transpose(-1, -2)).softmax(-2) @ v)


@pytest.mark.parametrize("function", [causal, over_queries])
def test_what_the_operator_does_not_do_stays(
    function: Callable[..., Tensor], canonical: Canonical, operators: Operators
) -> None:
    assert "dense_attention" not in operators(canonical(function, X, MASK, w=W))
