"""Queries, keys and values from one product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.fuse_norm import FuseNorm
from passes.fuse_qkv import FuseQkv
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops, shapes
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.instruments import probe_inputs
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program

aten = torch.ops.aten
Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]

ATTENTION = "model.layers.0.self_attn"
W4 = SetBits(rules=(Rule(scheme="w4a8g32"),))


def products(program: Program) -> list[str]:
    return [name for name, _ in program.linears()]


def test_three_products_become_one(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="qv")
    before = logits(program)
    context = run_pass(program, FuseQkv())
    golden(program)
    # Another shape of product may add up in another order.
    torch.testing.assert_close(logits(program), before, rtol=1e-5, atol=1e-5)
    assert context.notes["fuse-qkv"] == [
        f"{ATTENTION}.q_proj, {ATTENTION}.k_proj, {ATTENTION}.v_proj: joined as "
        f"{ATTENTION}.qkv_proj"
    ]


@pytest.mark.parametrize("biases", ["", "qkv", "k"])
def test_weights_and_biases_are_stacked(biases: str, tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(biases=biases)
    store = program.weights
    names = [f"{ATTENTION}.{letter}_proj" for letter in "qkv"]
    weights = torch.cat([store.tensor(f"{name}.weight") for name in names])
    expected = [
        store.tensor(f"{name}.bias")
        if f"{name}.bias" in store
        else torch.zeros(store.shape(f"{name}.weight")[0])
        for name in names
    ]
    run_pass(program, FuseQkv())
    assert torch.equal(store.tensor(f"{ATTENTION}.qkv_proj.weight"), weights)
    assert (f"{ATTENTION}.qkv_proj.bias" in store) == bool(biases)
    if biases:
        assert torch.equal(store.tensor(f"{ATTENTION}.qkv_proj.bias"), torch.cat(expected))
    assert not any(name.startswith(tuple(names)) for name in store)


@pytest.mark.parametrize("scheme", ["w4a8g32", "w4a8g32z", "w8a8"])
def test_quantised_products_are_joined_exactly(
    scheme: str, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama(layers=2, biases="q")
    run_pass(program, SetBits(rules=(Rule(scheme=scheme),)), QuantizeRtn())
    before = logits(program)
    run_pass(program, FuseQkv())
    assert torch.equal(logits(program), before)
    assert f"{ATTENTION}.qkv_proj" in program.plan
    assert f"{ATTENTION}.q_proj" not in program.plan


def test_the_plan_may_be_carried_out_before_or_after(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    first, second = tiny_llama(), tiny_llama()
    run_pass(first, W4, QuantizeRtn(), FuseQkv())
    run_pass(second, W4, FuseQkv(), QuantizeRtn())
    assert first.plan == second.plan
    assert torch.equal(logits(first), logits(second))


def test_products_of_quantised_activations_are_joined_too(
    tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    first, second = tiny_llama(), tiny_llama()
    run_pass(first, W4, QuantizeRtn(), FuseQkv(), FuseNorm())
    run_pass(second, W4, QuantizeRtn(), FuseNorm(), FuseQkv())
    assert products(first) == products(second)
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("quantize", [False, True])
def test_schemes_that_differ_keep_products_apart(
    quantize: bool, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama()
    run_pass(
        program,
        SetBits(rules=(Rule(scheme="w4a8g32"), Rule(pattern="*.v_proj", scheme="w8a8"))),
        *([QuantizeRtn()] if quantize else []),
    )
    before, names = logits(program), products(program)
    context = run_pass(program, FuseQkv())
    assert context.notes["fuse-qkv"] == [
        f"{ATTENTION}.q_proj, {ATTENTION}.k_proj, {ATTENTION}.v_proj: kept apart, their schemes "
        "differ (w4a8g32, w8a8)"
    ]
    assert products(program) == names
    assert torch.equal(logits(program), before)


def cross_attention() -> Program:
    """Keys and values come from elsewhere than queries, as in a decoder that reads an encoder."""
    shapes = {"q": (16, 16), "k": (16, 24), "v": (16, 24)}
    generator = torch.Generator().manual_seed(0)
    build = ProgramBuilder(
        {f"{n}.weight": torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    )
    inputs = {"q": build.input("x", (1, "s", 16)), "k": build.input("memory", (1, "t", 24))}
    inputs["v"] = inputs["k"]
    heads = {}
    for name, x in inputs.items():
        y = build.call(ops.linear, x, build.weight(f"{name}.weight"))
        if name == "q":
            y = build.call(aten.mul.Tensor, y, 0.5)
        heads[name] = build.call(aten.reshape.default, y, [1, -1, 2, 8])
    y = build.call(ops.dense_attention, *heads.values(), None, scale=1.0)
    return build.finish(y)


def test_only_products_of_the_same_input_are_joined(run_pass: Run) -> None:
    program = cross_attention()
    probe = probe_inputs(torch.randn(1, 3, 16), torch.randn(1, 5, 24))
    before = probe(program)
    run_pass(program, FuseQkv())
    assert products(program) == ["q", "kv_proj"]
    torch.testing.assert_close(probe(program), before, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_used_elsewhere_stays(run_pass: Run) -> None:
    program = cross_attention()
    store = program.weights
    store.alias("tied.weight", "k.weight")
    output = next(n for n in program.graph.nodes if n.op == "output")
    with program.graph.inserting_before(output):
        table = shapes.add_weight(program.graph, store, "tied.weight")
        memory = next(n for n in program.graph.nodes if n.target == "memory")
        other = shapes.add_call(program.graph, ops.linear, memory, table)
    output.args = ((output.args[0], other),)
    run_pass(program, FuseQkv())
    assert "tied.weight" in store
    assert "v.weight" not in store
    assert products(program) == ["q", "kv_proj", "tied"]
