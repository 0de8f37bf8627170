"""Attention and rotary embedding in one, straight from the product of all three."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops, shapes
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program

aten = torch.ops.aten
Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]


def node_of(program: Program, target: Callable[..., object], index: int = 0) -> torch.fx.Node:
    return [n for n in program.graph.nodes if n.target is target][index]


def count(program: Program, *targets: Callable[..., object]) -> list[int]:
    return [sum(n.target is target for n in program.graph.nodes) for target in targets]


def test_rotation_moves_into_attention(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama()
    run_pass(program, FuseQkv())
    before = logits(program)
    run_pass(program, FuseRope())
    golden(program)
    assert torch.equal(logits(program), before)


def test_a_quantised_program_computes_the_same(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama(layers=2)
    run_pass(program, SetBits(rules=(Rule(scheme="w4a8g32"),)), QuantizeRtn(), FuseQkv())
    before = logits(program)
    run_pass(program, FuseRope())
    assert count(program, ops.rope_attention, ops.attention, ops.rotary) == [2, 0, 0]
    assert torch.equal(logits(program), before)


def test_options_of_both_are_kept(tiny_llama: Make, run_pass: Run, logits: Logits) -> None:
    program = tiny_llama()
    run_pass(program, FuseQkv())
    attention = node_of(program, ops.attention)
    attention.kwargs = {"scale": 0.3, "window": 3, "softcap": 5.0}
    for index in range(2):
        node_of(program, ops.rotary, index).kwargs = {"interleaved": True}
    before = logits(program)
    run_pass(program, FuseRope())
    assert node_of(program, ops.rope_attention).kwargs == {
        "heads": 4,
        "scale": 0.3,
        "window": 3,
        "softcap": 5.0,
        "interleaved": True,
    }
    assert torch.equal(logits(program), before)


def test_heads_that_are_used_apart_are_split_again(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    run_pass(program, FuseQkv())
    attention = node_of(program, ops.attention)
    (joined,) = attention.users
    with program.graph.inserting_before(joined):
        doubled = program.graph.call_function(aten.mul.Tensor, (attention, 2.0))
    doubled.meta["val"] = attention.meta["val"]
    joined.replace_input_with(attention, doubled)
    before = logits(program)
    run_pass(program, FuseRope())
    assert count(program, ops.rope_attention, ops.attention) == [1, 0]
    assert torch.equal(logits(program), before)


def test_without_fuse_qkv_it_declines(tiny_llama: Make, run_pass: Run, logits: Logits) -> None:
    program = tiny_llama()
    before = logits(program)
    context = run_pass(program, FuseRope())
    assert context.notes["fuse-rope"] == [
        "attention: not fused, queries, keys and values come from several products"
    ]
    assert torch.equal(logits(program), before)


def turn_keys_otherwise(program: Program) -> None:
    rotary = node_of(program, ops.rotary, 1)
    x, cos, sin = rotary.args
    rotary.args = (x, sin, cos)


def turn_keys_alone(program: Program) -> None:
    rotary = node_of(program, ops.rotary, 0)
    rotary.replace_all_uses_with(rotary.args[0])
    program.graph.erase_node(rotary)


def normalise_keys(program: Program) -> None:
    rotary = node_of(program, ops.rotary, 1)
    with program.graph.inserting_before(rotary):
        norm = program.graph.call_function(ops.rms_norm, (rotary.args[0], None), {"eps": 1e-6})
    norm.meta["val"] = rotary.meta["val"]
    rotary.replace_input_with(rotary.args[0], norm)


def swap_keys_and_values(program: Program) -> None:
    attention, rotary = node_of(program, ops.attention), node_of(program, ops.rotary, 1)
    q, k, v, *rest = attention.args
    keys = rotary.args[0]
    rotary.args = (v, *rotary.args[1:])
    attention.args = (q, k, keys, *rest)
    # The rotation now reads what comes later in the graph.
    rotary.append(attention)
    v.append(rotary)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (turn_keys_otherwise, "queries and keys are rotated by different angles"),
        (turn_keys_alone, "its queries are not rotated"),
        (normalise_keys, "queries, keys and values are not plain slices of a product"),
        (swap_keys_and_values, "queries, keys and values are not stored in that order"),
    ],
)
def test_it_says_why_it_declines(
    change: Callable[[Program], None],
    why: str,
    tiny_llama: Make,
    run_pass: Run,
    logits: Logits,
) -> None:
    program = tiny_llama()
    run_pass(program, FuseQkv())
    change(program)
    before = logits(program)
    context = run_pass(program, FuseRope())
    assert context.notes["fuse-rope"] == [f"attention: not fused, {why}"]
    assert count(program, ops.rope_attention) == [0]
    assert torch.equal(logits(program), before)


def test_heads_may_be_split_before_the_slices(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    run_pass(program, FuseQkv())
    graph, product = program.graph, node_of(program, ops.linear)

    with graph.inserting_after(product):
        heads = shapes.add_call(graph, aten.reshape.default, product, [1, -1, 8, 16])
    for cut in [n for n in graph.nodes if n.target is aten.slice.Tensor]:
        (reshape,) = cut.users
        with graph.inserting_before(reshape):
            start, stop = int(cut.args[2]) // 16, int(cut.args[3]) // 16
            part = shapes.add_call(graph, aten.slice.Tensor, heads, 2, start, stop)
        reshape.replace_all_uses_with(part)
    before = logits(program)
    run_pass(program, FuseRope())
    assert count(program, ops.rope_attention, aten.slice.Tensor) == [1, 0]
    assert torch.equal(logits(program), before)


def test_attention_without_rotation_is_left_alone(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    for _ in range(2):
        rotary = node_of(program, ops.rotary)
        rotary.replace_all_uses_with(rotary.args[0])
        program.graph.erase_node(rotary)
    context = run_pass(program, FuseQkv(), FuseRope())
    assert "fuse-rope" not in context.notes
    assert count(program, ops.attention) == [1]
