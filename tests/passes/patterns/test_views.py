"""Changes of shape come in four forms, and as few of them as will do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import fx

from passes.patterns.views import permuted, reshaped, shape, sliced
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]
aten = torch.ops.aten

X = torch.randn(2, 5, 16)
RESHAPE, PERMUTE = "aten.reshape.default", "aten.permute.default"
SLICE, CAT = "aten.slice.Tensor", "aten.cat.default"


def calls(program: Program) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.op == "call_function"]


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "unsqueeze, squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "view, flatten": lambda x: x.view(2, -1, 4, 4).flatten(2),
    "unflatten, view": lambda x: x.unflatten(-1, (4, 4)).view(2, -1, 16),
    "transposes": lambda x: x.transpose(1, 2).transpose(-1, -2),
    "permutes": lambda x: x.permute(1, 2, 0).permute(2, 0, 1),
    "there and back": lambda x: (
        x.view(2, -1, 4, 4).transpose(1, 2).mT.mT.transpose(2, 1).flatten(2)
    ),
    "whole slice": lambda x: x[:, :, 0:16],
    "empty end": lambda x: torch.cat((x, x[:, :, 16:]), -1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_goes(name: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x: torch.exp(NOTHING[name](x)), X)
    assert operators(program) == {"aten.exp.default": 1}


ONE: dict[str, tuple[str, tuple[object, ...], Callable[[Tensor], Tensor]]] = {
    "views": (RESHAPE, ([-1, 4, 4],), lambda x: x.view(2, -1, 4, 4).flatten(0, 1)),
    "unsqueeze": (RESHAPE, ([2, 1, -1, 16, 1],), lambda x: x.unsqueeze(1).unsqueeze(-1)),
    "transpose": (PERMUTE, ([0, 2, 1],), lambda x: x.transpose(-1, 1)),
    "permutes": (PERMUTE, ([2, 1, 0],), lambda x: x.permute(1, 2, 0).transpose(0, 1)),
    "transposed ones": (RESHAPE, ([2, -1, 1, 16],), lambda x: x.unsqueeze(1).transpose(1, 2)),
    "negative bounds": (SLICE, (2, 8, 15), lambda x: x[..., -8:-1]),
    "slices": (SLICE, (2, 5, 8), lambda x: x[..., 4:12][..., 1:4]),
    "open end": (SLICE, (1, 1), lambda x: x[:, 1:]),
    "step": (SLICE, (2, 1, 16, 2), lambda x: x[..., 1::2]),
    "narrow": (SLICE, (2, 3, 7), lambda x: x.narrow(-1, 3, 4)),
    "chunk": (SLICE, (2, 8, 16), lambda x: x.chunk(2, -1)[1]),
    "split": (SLICE, (2, 12, 16), lambda x: x.split(6, 2)[2]),
    "split with sizes": (SLICE, (2, 3, 8), lambda x: x.split((3, 5, 8), 2)[1]),
}


@pytest.mark.parametrize("name", ONE)
def test_one_form_is_left(name: str, canonical: Canonical) -> None:
    operator, arguments, function = ONE[name]
    program = canonical(lambda x: torch.exp(function(x)), X)
    changes = [n for n in calls(program) if n.target is not aten.exp.default]
    assert [str(n.target) for n in changes] == [operator]
    assert changes[0].args[1:] == arguments


@pytest.mark.parametrize(
    "function", [lambda x: x[..., 3], lambda x: x.select(2, -2), lambda x: x.unbind(-1)[5]]
)
def test_one_index_is_a_slice(
    function: Callable[[Tensor], Tensor], canonical: Canonical, operators: Operators
) -> None:
    program = canonical(function, X)
    assert operators(program) == {SLICE: 1, RESHAPE: 1}


def test_stack_is_a_cat(canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x: torch.stack((x, torch.exp(x)), -1), X)
    assert operators(program) == {"aten.exp.default": 1, RESHAPE: 2, CAT: 1}
    assert calls(program)[-1].args[1] == 3


def test_every_dynamic_size_is_that_of_an_input() -> None:
    build = ProgramBuilder({})
    x = build.input("x", ("b", "s", 16))
    y = build.call(aten.exp.default, x)
    before = build.call(aten.exp.default, y)
    node = reshaped(before, y, [*y.meta["val"].shape[:2], 4, 4])
    assert node is not None
    sizes = node.args[1]
    assert [n.args for n in sizes[:2]] == [(x, 0), (x, 1)]
    assert list(sizes[2:]) == [4, 4]
    assert shape(node)[:2] == shape(x)[:2]


def test_a_size_that_no_input_has_is_left_open() -> None:
    build = ProgramBuilder({})
    x = build.input("x", ("b", "s", 16))
    b, s, _ = x.meta["val"].shape
    before = build.call(aten.exp.default, x)
    joined = reshaped(before, x, [b * s, 16])
    assert joined is not None
    assert joined.args[1] == [-1, 16]
    assert reshaped(before, x, [s * 2, b * 2, 4]) is None, "two sizes without a name"


def test_helpers_add_nothing_where_nothing_changes() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (2, "s", 16))
    before = build.call(aten.exp.default, x)
    count = len(build.graph.nodes)
    assert reshaped(before, x, list(x.meta["val"].shape)) is x
    assert permuted(before, x, [0, 1, 2]) is x
    assert sliced(before, x, 2, 0, 16) is x
    assert len(build.graph.nodes) == count
