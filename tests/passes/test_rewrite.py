"""The engine applies rules until none answers, and finds the faults of those that misbehave."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from passes.rewrite import emit, emit_like, remove_unused, rewrite, share_subexpressions
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.printer import target_name

aten = torch.ops.aten


def names(graph: fx.Graph) -> list[str]:
    return [target_name(n) for n in graph.nodes if n.op == "call_function"]


def chain(*targets: object) -> tuple[ProgramBuilder, fx.Graph]:
    build = ProgramBuilder({})
    node = build.input("x", (1, "s", 8))
    for target in targets:
        node = build.call(target, node)  # type: ignore[arg-type]
    build.graph.output(node)
    return build, build.graph


def drop_double_negation(node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    if node.target is aten.neg.default and getattr(source, "target", None) is aten.neg.default:
        return source.args[0]  # type: ignore[union-attr, return-value]
    return None


def test_rules_apply_until_none_answers() -> None:
    _, graph = chain(*[aten.neg.default] * 7, aten.exp.default)
    rewrite(graph, [drop_double_negation])
    assert names(graph) == ["aten.neg.default", "aten.exp.default"]
    graph.lint()


def test_the_first_rule_that_answers_wins() -> None:
    _, graph = chain(aten.neg.default)
    rules = [
        lambda n: emit_like(n, aten.exp.default, n.args[0]) if "neg" in n.name else None,
        lambda n: (
            pytest.fail("asked though another rule had answered") if "neg" in n.name else None
        ),
    ]
    rewrite(graph, rules)
    assert names(graph) == ["aten.exp.default"]


def test_rules_that_undo_one_another_are_found() -> None:
    _, graph = chain(aten.neg.default)
    there = {aten.neg.default: aten.exp.default, aten.exp.default: aten.neg.default}
    with pytest.raises(RuntimeError, match="still apply after 5 sweeps"):
        rewrite(graph, [lambda n: emit_like(n, there[n.target], n.args[0])], sweeps=5)


def test_a_rule_that_changes_a_shape_is_named() -> None:
    def shorten(node: fx.Node) -> fx.Node:
        return emit(node, aten.slice.Tensor, node.args[0], 2, 0, 4)

    _, graph = chain(aten.neg.default)
    with pytest.raises(RuntimeError, match=r"shorten turned neg.*8\] into slice.*4\]"):
        rewrite(graph, [shorten])


def test_equal_calls_are_one() -> None:
    build = ProgramBuilder({"w": torch.ones(8)})
    x = build.input("x", (1, "s", 8))
    parts = [build.call(aten.mul.Tensor, x, build.weight("w")) for _ in range(3)]
    parts = [build.call(aten.reshape.default, part, [1, -1, 2, 4]) for part in parts]
    build.graph.output(build.call(aten.cat.default, parts, 0))
    share_subexpressions(build.graph)
    remove_unused(build.graph)
    assert names(build.graph) == ["aten.mul.Tensor", "aten.reshape.default", "aten.cat.default"]
    assert len([n for n in build.graph.nodes if n.op == "get_attr"]) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((aten.mul.Tensor, 1), (aten.mul.Tensor, 1.0)),
        ((aten.mul.Tensor, True), (aten.mul.Tensor, 1)),
        ((aten.mul.Tensor, 2), (aten.add.Tensor, 2)),
    ],
)
def test_calls_that_differ_stay_two(a: tuple[object, object], b: tuple[object, object]) -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8), torch.int64)
    parts = [build.call(target, x, number) for target, number in (a, b)]  # type: ignore[arg-type]
    build.graph.output(tuple(parts))
    share_subexpressions(build.graph)
    remove_unused(build.graph)
    assert len(names(build.graph)) == 2


def test_random_numbers_are_drawn_each_time() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 8))
    build.graph.output(tuple(build.call(aten.rand_like.default, x) for _ in range(2)))
    share_subexpressions(build.graph)
    remove_unused(build.graph)
    assert len(names(build.graph)) == 2


def test_what_changes_a_cache_is_neither_shared_nor_removed() -> None:
    build = ProgramBuilder({})
    x = build.input("x", (1, "s", 2, 4))
    caches = [build.input(name, (1, 2, "c", 4)) for name in "kv"]
    position = build.input("position", (1,), torch.int64)
    calls = [build.call(ops.attention, x, x, x, *caches, position, scale=1.0) for _ in range(2)]
    unused = build.call(ops.attention, calls[0], x, x, *caches, position, scale=1.0)
    build.call(aten.exp.default, unused)
    build.graph.output(calls[1])
    share_subexpressions(build.graph)
    remove_unused(build.graph)
    assert names(build.graph) == ["attention"] * 3
