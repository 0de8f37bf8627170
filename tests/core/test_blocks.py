"""Repeated layers are found in the graph, and told apart where they differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.blocks import find_blocks
from qcompiler.core.builder import ProgramBuilder

aten = torch.ops.aten

Layer = Callable[[ProgramBuilder, fx.Node, int], fx.Node]


def stack(layers: int, layer: Layer, *, head: int = 8) -> fx.Graph:
    """Build an embedding, some layers over [1, s, 8], a norm and a head."""
    weights = {"table.weight": torch.ones(5, 8), "norm.weight": torch.ones(8)}
    weights["head.weight"] = torch.ones(head, 8)
    for i in range(layers):
        weights |= {f"{i}.{name}.weight": torch.ones(8, 8) for name in ("a", "b")}
        weights[f"{i}.norm.weight"] = torch.ones(8)
    build = ProgramBuilder(weights)
    x = build.call(
        ops.embedding, build.input("ids", (1, "s"), torch.int64), build.weight("table.weight")
    )
    for i in range(layers):
        x = layer(build, x, i)
    x = build.call(ops.rms_norm, x, build.weight("norm.weight"), eps=1e-5)
    build.graph.output(build.call(ops.linear, x, build.weight("head.weight")))
    return build.graph


def plain(build: ProgramBuilder, x: fx.Node, i: int, *, eps: float = 1e-5) -> fx.Node:
    h = build.call(ops.rms_norm, x, build.weight(f"{i}.norm.weight"), eps=eps)
    h = build.call(aten.silu.default, build.call(ops.linear, h, build.weight(f"{i}.a.weight")))
    h = build.call(ops.linear, h, build.weight(f"{i}.b.weight"))
    return build.call(aten.add.Tensor, x, h)


def targets(graph: fx.Graph, names: tuple[str, ...]) -> list[object]:
    nodes = {n.name: n for n in graph.nodes}
    return [nodes[name].target for name in names]


LAYER = [ops.rms_norm, ops.linear, aten.silu.default, ops.linear, aten.add.Tensor]


def test_layers_are_found_whole() -> None:
    graph = stack(4, plain)
    blocks = find_blocks(graph)
    assert [b.index for b in blocks] == [0, 1, 2, 3]
    assert len({b.kind for b in blocks}) == 1
    for block in blocks:
        assert targets(graph, block.nodes) == LAYER
    weights = [n.target for n in graph.nodes if n.op == "get_attr"]
    assert weights[1:4] == ["0.norm.weight", "0.a.weight", "0.b.weight"]


def test_two_layers_are_enough() -> None:
    assert len(find_blocks(stack(2, plain))) == 2


def test_one_layer_is_no_repetition() -> None:
    assert find_blocks(stack(1, plain, head=5)) == ()


def test_products_of_one_shape_in_a_layer_are_no_layers() -> None:
    def layer(build: ProgramBuilder, x: fx.Node, i: int) -> fx.Node:
        a = build.call(ops.linear, x, build.weight(f"{i}.a.weight"))
        b = build.call(ops.linear, x, build.weight(f"{i}.b.weight"))
        h = build.call(ops.rms_norm, b, build.weight(f"{i}.norm.weight"), eps=1e-5)
        return build.call(aten.add.Tensor, build.call(aten.mul.Tensor, a, h), x)

    assert find_blocks(stack(1, layer, head=5)) == ()
    assert [len(b.nodes) for b in find_blocks(stack(3, layer))] == [5, 5, 5]


def test_a_graph_without_weights_has_none() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8))
    build.graph.output(build.call(aten.neg.default, build.call(aten.exp.default, x)))
    assert find_blocks(build.graph) == ()


def test_attributes_make_kinds_but_not_blocks() -> None:
    graph = stack(4, lambda build, x, i: plain(build, x, i, eps=(1e-5, 1e-6)[i % 2]))
    kinds = [b.kind for b in find_blocks(graph)]
    assert len(kinds) == 4
    assert kinds[0] == kinds[2] != kinds[1] == kinds[3]


def test_layers_may_differ_in_what_reads_no_weight() -> None:
    def layer(build: ProgramBuilder, x: fx.Node, i: int) -> fx.Node:
        return build.call(aten.tanh.default, plain(build, x, i)) if i == 2 else plain(build, x, i)

    graph = stack(4, layer)
    blocks = find_blocks(graph)
    assert [len(b.nodes) for b in blocks] == [5, 5, 6, 5]
    assert [b.kind == blocks[0].kind for b in blocks] == [True, True, False, True]


def test_how_values_connect_makes_a_kind() -> None:
    def layer(build: ProgramBuilder, x: fx.Node, i: int) -> fx.Node:
        h = build.call(ops.rms_norm, x, build.weight(f"{i}.norm.weight"), eps=1e-5)
        a = build.call(ops.linear, h, build.weight(f"{i}.a.weight"))
        b = build.call(ops.linear, a if i == 1 else h, build.weight(f"{i}.b.weight"))
        return build.call(aten.add.Tensor, a, b)

    kinds = [b.kind for b in find_blocks(stack(3, layer))]
    assert kinds[0] == kinds[2] != kinds[1]


def test_what_comes_from_outside_makes_a_kind() -> None:
    def layer(build: ProgramBuilder, x: fx.Node, i: int) -> fx.Node:
        h = plain(build, x, i)
        # The same shapes and operators, but once a value of before the layers is used.
        other = next(n for n in build.graph.nodes if n.target is ops.embedding) if i == 2 else x
        return build.call(aten.mul.Tensor, h, other)

    kinds = [b.kind for b in find_blocks(stack(4, layer))]
    assert kinds[1] == kinds[3] != kinds[2]


def test_every_node_belongs_to_one_block_at_most() -> None:
    blocks = find_blocks(stack(5, plain))
    names = [name for b in blocks for name in b.nodes]
    assert len(names) == len(set(names)) == 25
