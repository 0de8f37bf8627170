"""The printed form of a program: complete, stable, and free of what differs from run to run."""

from __future__ import annotations

import operator

import torch

from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.formats import QuantScheme
from qcompiler.core.printer import print_graph, print_program
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


def example(first: str = "s", second: str = "t") -> Program:
    build = ProgramBuilder({"a.weight": torch.zeros(6, 4), "b": torch.zeros(6)})
    x = build.input("x", (1, first, 4))
    ids = build.input("ids", (second,), torch.int64)
    form = QuantScheme.parse("w4a8g8").activation
    y = build.call(ops.linear, x, build.weight("a.weight"), build.weight("b"), activation="relu")
    z = build.call(aten.index_select.default, y, 1, ids)
    pair = build.call(ops.quantize, z, form=form)
    codes = build.call(operator.getitem, pair, 0)
    size = build.call(aten.sym_size.int, x, 1)
    double = build.call(operator.mul, size, 2)
    both = build.call(aten.cat.default, [codes, codes], 1)
    build.call(aten.full.default, [double, 3], 0)
    return build.finish(both)


EXPECTED = """\
module float
input %x: f32[1, s0, 4]
input %ids: i64[s1]
%0 = linear(%x, @a.weight, @b, activation=relu): f32[1, s0, 6]
%1 = aten.index_select.default(%0, 1, %ids): f32[1, s1, 6]
%2 = quantize(%1, form=int8 per 8): (i8[1, s1, 6], f32[1, s1, 1])
%3 = getitem(%2, 0): i8[1, s1, 6]
%4 = aten.sym_size.int(%x, 1): int
%5 = mul(%4, 2): int
%6 = aten.cat.default([%3, %3], 1): i8[1, 2*s1, 6]
%7 = aten.full.default([%5, 3], 0): i64[2*s0, 3]
return %6
"""


def test_every_node_is_a_line() -> None:
    assert print_program(example()) == EXPECTED


def test_names_of_nodes_and_symbols_do_not_show() -> None:
    other = example("u", "v")
    for number, node in enumerate(other.graph.nodes):
        if node.op == "call_function":
            node.name = f"renamed_{number}"
    assert print_program(other) == EXPECTED


def test_the_stage_shows() -> None:
    program = example()
    program.stage = Stage.QUANTIZED
    assert print_program(program).startswith("module quantized\n")
    assert print_graph(program.graph) == EXPECTED.partition("\n")[2]
