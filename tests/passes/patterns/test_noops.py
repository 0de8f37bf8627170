"""What changes nothing goes; what changes a value or its type stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from passes.patterns.noops import NOOPS
from passes.rewrite import rewrite
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program

Tensor = torch.Tensor
Canonical = Callable[..., Program]
Operators = Callable[[Program], Counter[str]]
aten = torch.ops.aten

X = torch.randn(2, 5, 16)

NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "copies": lambda x: x.clone().contiguous().detach(),
    "casts": lambda x: x.to(torch.float32).type_as(x),
    "numbers": lambda x: ((x * 1.0) / 1 + 0 - 0) ** 1,
    "expand": lambda x: x.expand(2, -1, 16),
    "repeat": lambda x: x.repeat(1, 1, 1),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_goes(name: str, canonical: Canonical, operators: Operators) -> None:
    program = canonical(lambda x: torch.exp(NOTHING[name](x)), X)
    assert operators(program) == {"aten.exp.default": 1}


SOMETHING: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "doubling": ("aten.mul.Tensor", lambda x: x * 2),
    "casting": ("aten.to.dtype", lambda x: x.double()),
    "integers times one": ("aten.mul.Tensor", lambda x: (x > 0).long() * 1.0),
    "adding to a sum": ("aten.add.Tensor", lambda x: x + x.new_zeros(()) + 1),
    "spreading": ("aten.expand.default", lambda x: x[:, :, None].expand(2, -1, 3, 16)),
    "repeating": ("aten.repeat.default", lambda x: x.repeat(1, 1, 2)),
}


@pytest.mark.parametrize("name", SOMETHING)
def test_what_changes_something_stays(
    name: str, canonical: Canonical, operators: Operators
) -> None:
    operator, function = SOMETHING[name]
    assert operators(canonical(function, X))[operator] >= 1


def test_training_dropout_stays() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8))
    build.graph.output(build.call(aten.dropout.default, x, 0.5, True))
    rewrite(build.graph, NOOPS)
    assert "aten.dropout.default" in map(target_name, build.graph.nodes)


@pytest.mark.parametrize(
    ("target", "arguments", "options"),
    [
        (aten.to.dtype, (torch.float64,), {"non_blocking": True}),
        (aten.to.dtype_layout, (), {"dtype": torch.float64, "layout": torch.strided}),
        (aten._to_copy.default, (), {"dtype": torch.float64}),
    ],
)
def test_casts_are_written_in_one_way(
    target: Callable[..., Tensor], arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8))
    build.graph.output(build.call(target, x, *arguments, **options))
    rewrite(build.graph, NOOPS)
    (cast,) = [n for n in build.graph.nodes if n.op == "call_function"]
    assert (cast.target, cast.args, cast.kwargs) == (aten.to.dtype, (x, torch.float64), {})


def test_where_a_tensor_is_made_is_left_open() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8))
    options = {"dtype": torch.int64, "device": torch.device("cpu"), "pin_memory": False}
    build.graph.output(build.call(aten.ones_like.default, x, **options))
    rewrite(build.graph, NOOPS)
    (made,) = [n for n in build.graph.nodes if n.op == "call_function"]
    assert made.kwargs == {"dtype": torch.int64}
