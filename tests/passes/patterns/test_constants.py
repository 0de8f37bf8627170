"""Stored scalars and indices are written into the graph where that means the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]

X = torch.randn(2, 5, 16)


def numbers(program: Program) -> list[object]:
    return [n.args[1] for n in program.graph.nodes if n.op == "call_function"]


def test_scalars_are_written_down(canonical: Canonical) -> None:
    program = canonical(lambda x, w: (w * x + w) / w - w, X, w=torch.tensor(2.5))
    assert numbers(program) == [2.5] * 4
    assert not [n for n in program.graph.nodes if n.op == "get_attr"]


def test_a_scalar_from_which_something_is_taken_stays(canonical: Canonical) -> None:
    program = canonical(lambda x, w: w - x, X, w=torch.tensor(2.5))
    assert [n.target for n in program.graph.nodes if n.op == "get_attr"] == ["w"]


def test_a_scalar_that_decides_the_dtype_stays(canonical: Canonical) -> None:
    program = canonical(lambda x, w: (x > 0).long() * w, X, w=torch.tensor(2.5))
    assert [n.target for n in program.graph.nodes if n.op == "get_attr"] == ["w"]


def test_a_vector_of_one_stays(canonical: Canonical) -> None:
    program = canonical(lambda x, w: x * w, X, w=torch.tensor([2.5]))
    assert [n.target for n in program.graph.nodes if n.op == "get_attr"] == ["w"]


def test_a_stored_range_is_a_slice(canonical: Canonical) -> None:
    program = canonical(lambda x: x[:, :, torch.tensor([-2, -1])], X)
    (part,) = [n for n in program.graph.nodes if n.op == "call_function"]
    assert part.target is torch.ops.aten.slice.Tensor
    assert part.args[1:] == (2, 14, 16)


def test_other_stored_indices_stay(canonical: Canonical, operators: Operators) -> None:
    for index in ([1, 3], [3, 2], [0, 0]):
        program = canonical(lambda x, i=index: x[:, :, torch.tensor(i)], X)
        assert operators(program) == {"aten.index.Tensor": 1}
