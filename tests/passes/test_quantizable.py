"""What may be quantised: weights that only products and tables read, each once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from passes.quantizable import quantizable
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.program import ModelInfo, Program

Make = Callable[..., Program]
INFO = ModelInfo(name="one", kind="module", architecture="one")


def test_products_and_tables_come_in_graph_order(tiny_llama: Make) -> None:
    found = quantizable(tiny_llama(layers=1, tied=False, biases="q"))
    assert [w.operator.rpartition(".")[2] for w in found.values()] == [
        "embed_tokens",
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "lm_head",
    ]
    table, *products = found.values()
    assert (len(table.tables), len(table.products)) == (1, 0)
    assert all((len(w.tables), len(w.products)) == (0, 1) for w in products)


def test_a_tied_weight_is_one(tiny_llama: Make) -> None:
    found = quantizable(tiny_llama())
    tied = found["model.embed_tokens.weight"]
    assert (len(tied.tables), len(tied.products)) == (1, 1)
    assert tied.nodes == (*tied.tables, *tied.products)
    assert "lm_head.weight" not in found


def test_a_weight_that_something_else_reads_is_left_out() -> None:
    build = ProgramBuilder({"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 8)})
    x = build.input("x", ("t", 8))
    a, b = build.weight("a.weight"), build.weight("b.weight")
    y = build.call(ops.linear, build.call(ops.linear, x, a), b)
    y = build.call(torch.ops.aten.add.Tensor, y, build.call(torch.ops.aten.sum.default, a))
    assert list(quantizable(build.finish(y, INFO))) == ["b.weight"]


def test_a_weight_that_is_multiplied_by_another_is_left_out() -> None:
    build = ProgramBuilder({"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 8)})
    x = build.input("x", ("t", 8))
    y = build.call(ops.linear, build.weight("a.weight"), build.weight("b.weight"))
    y = build.call(torch.ops.aten.mm.default, x, y)
    assert list(quantizable(build.finish(y, INFO))) == ["b.weight"]


def test_schemes_must_fit() -> None:
    build = ProgramBuilder({"a.weight": torch.randn(8, 48), "b.weight": torch.randn(12, 8)})
    y = build.call(ops.linear, build.input("x", ("t", 48)), build.weight("a.weight"))
    y = build.call(ops.linear, y, build.weight("b.weight"))
    a, b = quantizable(build.finish(y, INFO)).values()
    choices = ("w4a8g32", "w4a8g64", "w8a8", "w4g8")
    assert list(a.schemes(choices)) == ["w4a8g32", "w8a8", "w4g8"]
    assert list(b.schemes(choices)) == ["w8a8", "w4g8"]


def test_rows_of_odd_length_have_no_scheme() -> None:
    build = ProgramBuilder({"a.weight": torch.randn(8, 20)})
    y = build.call(ops.linear, build.input("x", ("t", 20)), build.weight("a.weight"))
    (a,) = quantizable(build.finish(y, INFO)).values()
    assert a.schemes(("w4a8g8", "w8a8")) == {}
