"""Norms are recognised in every spelling, and nothing else is."""

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

X = torch.randn(2, 5, 16)
W = torch.randn(16)
EPS = 1e-5


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


RMS_NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, w: w * (x * torch.rsqrt(mean_square(x) + EPS)),
    "weight last": lambda x, w: x * torch.rsqrt(mean_square(x) + EPS) * w,
    "square": lambda x, w: w * (x * torch.rsqrt(x.square().mean(2, keepdim=True) + EPS)),
    "product": lambda x, w: w * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)),
    "root": lambda x, w: w * (x / torch.sqrt(mean_square(x) + EPS)),
    "power": lambda x, w: w * (x * (mean_square(x) + EPS) ** -0.5),
    "reciprocal": lambda x, w: w * (torch.reciprocal(torch.sqrt(mean_square(x) + EPS)) * x),
    "casts": lambda x, w: (w.float() * (x.float() * torch.rsqrt(mean_square(x) + EPS))).type_as(x),
    "operator": lambda x, w: functional.rms_norm(x, (16,), w, EPS),
    "rows apart": lambda x, w: functional.rms_norm(x.view(-1, 16), (16,), w, EPS).view(x.shape),
}


@pytest.mark.parametrize("spelling", RMS_NORMS)
def test_rms_norm(spelling: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(RMS_NORMS[spelling], X, w=W)
    assert operators(program) == {"rms_norm": 1}
    (norm,) = [n for n in program.graph.nodes if n.op == "call_function" and n.users]
    assert norm.kwargs["eps"] == EPS
    assert str(norm.args[1].target) == "w"


def test_weight_stored_less_one(canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x, w: x * torch.rsqrt(mean_square(x) + EPS) * (1.0 + w), X, w=W)
    assert operators(program) == {"rms_norm": 1}
    assert list(program.graph.nodes)[-2].kwargs == {"eps": EPS, "offset": 1.0}


def test_without_weight(canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x: x * torch.rsqrt(mean_square(x) + EPS), X)
    assert operators(program) == {"rms_norm": 1}


def test_default_eps_is_that_of_the_dtype(canonical: Canonical) -> None:
    program = canonical(lambda x, w: functional.rms_norm(x, (16,), w), X, w=W)
    assert list(program.graph.nodes)[-2].kwargs == {"eps": torch.finfo(torch.float32).eps}


def test_norm_of_heads_before_tokens(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        h = x.view(2, -1, 4, 16).transpose(1, 2)
        return (w * (h * torch.rsqrt(mean_square(h) + EPS))).transpose(1, 2)

    program = canonical(function, torch.randn(2, 5, 64), w=W)
    assert operators(program) == {"aten.reshape.default": 1, "rms_norm": 1}


LAYER_NORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "operator": lambda x, w, b: functional.layer_norm(x, (16,), w, b, EPS),
    "native": lambda x, w, b: torch.native_layer_norm(x, (16,), w, b, EPS)[0],
    "mean of squares": lambda x, w, b: (
        (x - x.mean(-1, keepdim=True))
        / torch.sqrt(mean_square(x - x.mean(-1, keepdim=True)) + EPS)
        * w
        + b
    ),
    "variance": lambda x, w, b: (
        b
        + w
        * (
            (x - x.mean(-1, keepdim=True))
            * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + EPS)
        )
    ),
    "biased variance": lambda x, w, b: (
        w
        * (x - x.mean(-1, keepdim=True))
        * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + EPS)
        + b
    ),
}


@pytest.mark.parametrize("spelling", [s for s in LAYER_NORMS if s != "biased variance"])
def test_layer_norm(spelling: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(LAYER_NORMS[spelling], X, w=W, b=torch.randn(16))
    assert operators(program) == {"layer_norm": 1}
    norm = list(program.graph.nodes)[-2]
    assert [str(a.target) for a in norm.args[1:]] == ["w", "b"]


def test_layer_norm_without_parameters(canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x: functional.layer_norm(x, (16,)), X)
    assert operators(program) == {"layer_norm": 1}
    assert list(program.graph.nodes)[-2].args[1:] == (None, None)


NEITHER: dict[str, Callable[[Tensor], Tensor]] = {
    "other axis": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS),
    "cube": lambda x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + EPS),
    "sum": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS),
    "of another": lambda x: (x + 1) * torch.rsqrt(mean_square(x) + EPS),
    "no root": lambda x: x * torch.reciprocal(mean_square(x) + EPS),
    "unbiased": lambda x: (
        (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + EPS)
    ),
    "two axes": lambda x: functional.layer_norm(x, (5, 16)),
}


@pytest.mark.parametrize("name", NEITHER)
def test_what_only_looks_alike_stays(name: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(NEITHER[name], X, fixed=True)
    found = operators(program)
    assert "rms_norm" not in found
    assert "layer_norm" not in found
