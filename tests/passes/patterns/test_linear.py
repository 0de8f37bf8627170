"""Products with stored weights, however written."""

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
B = torch.randn(8)

# With a weight [n, k], and with one [k, n].
ROWS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w, b: functional.linear(x, w, b),
    "bias added": lambda x, w, b: functional.linear(x, w) + b,
    "transposed": lambda x, w, b: x @ w.T + b,
    "transposed twice": lambda x, w, b: b + x @ w.T.transpose(0, 1).t(),
    "two dimensions": lambda x, w, b: torch.addmm(b, x.view(-1, 16), w.t()).view(2, -1, 8),
    "mm": lambda x, w, b: torch.mm(x.view(-1, 16), w.t()).view(2, -1, 8) + b,
}
COLUMNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w, b: x @ w + b,
    "addmm": lambda x, w, b: torch.addmm(b, x.view(-1, 16), w).view(2, -1, 8),
    "linear": lambda x, w, b: functional.linear(x, w.t(), b),
}


@pytest.mark.parametrize("spelling", ROWS)
def test_weight_by_rows(spelling: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(ROWS[spelling], X, w=torch.randn(8, 16), b=B)
    assert operators(program) == {"linear": 1}
    assert [str(a.target) for a in list(program.graph.nodes)[-2].args[1:]] == ["w", "b"]


@pytest.mark.parametrize("spelling", COLUMNS)
def test_weight_by_columns(spelling: str, canonical: Canonical, operators: Operators) -> None:
    w = torch.randn(16, 8)
    program = canonical(COLUMNS[spelling], X, w=w, b=B)
    assert operators(program) == {"linear": 1}
    assert program.weights.shape("w") == (8, 16)
    assert torch.equal(program.weights.tensor("w"), w.t())


def test_a_product_between_other_shapes_is_done_on_whole_rows(
    canonical: Canonical, operators: Operators
) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.mm(x.reshape(-1, 16), w).view(2, -1, 8)

    program = canonical(function, torch.randn(2, 5, 4, 4), w=torch.randn(16, 8))
    assert operators(program) == {"aten.reshape.default": 1, "linear": 1}
    assert list(program.graph.nodes)[-2].meta["val"].dim() == 3


def test_a_weight_that_is_read_both_ways_stays_as_it_is(
    canonical: Canonical, operators: Operators
) -> None:
    w = torch.randn(16, 16)
    program = canonical(lambda x, w: (x @ w) @ w.t(), X, w=w)
    assert operators(program) == {"aten.permute.default": 1, "linear": 2}
    assert torch.equal(program.weights.tensor("w"), w)


def test_a_weight_that_several_products_read_is_turned_once(
    canonical: Canonical, operators: Operators
) -> None:
    w = torch.randn(16, 16)
    program = canonical(lambda x, w: torch.tanh(x @ w) @ w, X, w=w)
    assert operators(program) == {"aten.tanh.default": 1, "linear": 2}
    assert torch.equal(program.weights.tensor("w"), w.t())


NEITHER: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "computed weight": lambda x, w, b: functional.linear(x, torch.tanh(w)),
    "scaled": lambda x, w, b: torch.addmm(b, x.view(-1, 16), w.t(), alpha=2).view(2, -1, 8),
    "bias a token": lambda x, w, b: torch.addmm(x[:, :, :8].reshape(-1, 8), x.view(-1, 16), w.t()),
}


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_no_such_product_stays(
    name: str, canonical: Canonical, operators: Operators
) -> None:
    program = canonical(NEITHER[name], X, w=torch.randn(8, 16), b=B)
    assert "linear" not in operators(program)


def test_rows_of_a_table(canonical: Canonical, operators: Operators) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return functional.embedding((x > 0).long().sum(-1), w, padding_idx=0)

    program = canonical(function, X, w=torch.randn(17, 8))
    assert operators(program)["embedding"] == 1
    assert "aten.embedding.default" not in operators(program)
