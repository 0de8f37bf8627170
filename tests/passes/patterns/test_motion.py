"""Reshapes and permutes move to where they meet, and nothing moves where it would matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.nn import functional

from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]

X = torch.randn(2, 5, 16)
W = torch.randn(16, 16)


def test_rows_taken_apart_and_put_together(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        rows = x.reshape(-1, 16)
        inner = functional.gelu(functional.linear(functional.layer_norm(rows, (16,), b), w))
        return (rows + functional.linear(inner, w) * 0.5).view(x.shape)

    program = canonical(function, X, w=W, b=torch.randn(16))
    assert operators(program) == {
        "layer_norm": 1,
        "linear": 2,
        "aten.gelu.default": 1,
        "aten.mul.Tensor": 1,
        "aten.add.Tensor": 1,
    }


def test_heads_before_tokens_and_back(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        h = x.view(2, -1, 4, 4).transpose(1, 2)
        h = torch.cat((torch.exp(h[..., 2:]) * 2, h[..., :2]), -1) + h
        return functional.linear(h.transpose(1, 2).reshape(2, -1, 16), w)

    program = canonical(function, X, w=W)
    assert "aten.permute.default" not in operators(program)


def test_what_broadcasts_over_heads_follows(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        h = x.view(2, -1, 4, 4).transpose(1, 2)
        return (h * y.unsqueeze(1)).transpose(1, 2)

    program = canonical(function, X, torch.randn(2, 5, 4))
    assert operators(program) == {"aten.reshape.default": 2, "aten.mul.Tensor": 1}


def test_what_would_move_data_does_not_follow(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return x.transpose(1, 2) * y.view(2, 1, -1)

    program = canonical(function, X, torch.randn(2, 5, 1))
    assert operators(program)["aten.permute.default"] == 1


def test_rows_of_another_length_are_another_norm(
    canonical: Canonical, operators: Operators
) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return functional.rms_norm(x.view(2, -1, 4, 4), (4,), w, 1e-5).view(2, -1, 16)

    program = canonical(function, X, w=torch.randn(4))
    assert operators(program) == {"aten.reshape.default": 2, "rms_norm": 1}


def test_wanted_rows_are_taken_before_the_norm(canonical: Canonical, operators: Operators) -> None:
    rows = torch.tensor([1, 0])

    def function(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        return functional.layer_norm(x, (16,), w)[:, r]

    program = canonical(function, X, rows, w=torch.randn(16))
    assert list(operators(program)) == ["aten.index.Tensor", "layer_norm"]


def test_a_norm_that_is_wanted_whole_stays_first(
    canonical: Canonical, operators: Operators
) -> None:
    def function(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        y = functional.layer_norm(x, (16,), w)
        return y[:, r] + y.sum(1, keepdim=True)

    program = canonical(function, X, torch.tensor([1, 0]), w=torch.randn(16))
    assert next(iter(operators(program))) == "layer_norm"
