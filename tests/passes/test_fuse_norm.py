"""Norms that quantise what they give, for products that all want it alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.fuse_norm import FuseNorm
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.instruments import probe_inputs
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program

aten = torch.ops.aten
Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]

K = 64
PROBE = probe_inputs(torch.randn(1, 5, K, generator=torch.Generator().manual_seed(9)))


def two_products(*, layer_norm: bool = False, residual: bool = False) -> Program:
    """norm(x) read by the products a and b, and by a sum if asked for."""
    generator = torch.Generator().manual_seed(3)
    build = ProgramBuilder(
        {f"{name}.weight": torch.randn(K, K, generator=generator) for name in "ab"}
        | {"norm.weight": torch.randn(K, generator=generator), "norm.bias": torch.randn(K)}
    )
    x = build.input("x", (1, "s", K))
    if layer_norm:
        weights = build.weight("norm.weight"), build.weight("norm.bias")
        y = build.call(ops.layer_norm, x, *weights, eps=1e-5)
    else:
        y = build.call(ops.rms_norm, x, build.weight("norm.weight"), eps=1e-6, offset=1.0)
    a = build.call(ops.linear, y, build.weight("a.weight"), None, y if residual else None)
    b = build.call(ops.linear, y, build.weight("b.weight"))
    return build.finish(build.call(aten.add.Tensor, a, b))


def quantized(a: str, b: str, **options: bool) -> tuple[SetBits, QuantizeRtn]:
    return SetBits(rules=(Rule(pattern="a", scheme=a), Rule(pattern="b", scheme=b))), QuantizeRtn()


def targets(program: Program) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_norms_quantise_for_all_their_users(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="k")
    run_pass(program, SetBits(rules=(Rule(scheme="w4a8g32"),)), QuantizeRtn())
    before = logits(program)
    context = run_pass(program, FuseNorm())
    golden(program)
    assert torch.equal(logits(program), before)
    assert "fuse-norm" not in context.notes


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("schemes", [("w8a8", "w4a8"), ("w4a8g32", "w8a8g32z"), ("w8a8", "w8a8")])
def test_weights_may_differ_if_activations_and_groups_agree(
    layer_norm: bool, schemes: tuple[str, str], run_pass: Run
) -> None:
    program = two_products(layer_norm=layer_norm)
    run_pass(program, *quantized(*schemes))
    before = PROBE(program)
    run_pass(program, FuseNorm())
    fused = ops.layer_norm_quantize if layer_norm else ops.rms_norm_quantize
    assert targets(program)[0] is fused
    assert targets(program).count(ops.quantized_matmul) == 2
    assert torch.equal(PROBE(program), before)


@pytest.mark.parametrize(
    "schemes",
    [
        ("w4a8g32", "w4a8g64"),  # other groups of activations
        ("w4a8g32t", "w4a8g64t"),  # one scale per token, but other groups of the weights
        ("w4a8g32t", "w4a8"),
        ("w4a8g64", "w4a8g64t"),
    ],
)
def test_products_that_quantise_otherwise_keep_the_norm_float(
    schemes: tuple[str, str], run_pass: Run
) -> None:
    program = two_products()
    run_pass(program, *quantized(*schemes))
    before, calls = PROBE(program), targets(program)
    context = run_pass(program, FuseNorm())
    assert context.notes["fuse-norm"] == [
        "rms_norm: not fused, its users quantise it in different ways"
    ]
    assert targets(program) == calls
    assert torch.equal(PROBE(program), before)


def test_a_float_user_keeps_the_norm_float(run_pass: Run) -> None:
    program = two_products()
    run_pass(program, *quantized("w8a8", "float"))
    calls = targets(program)
    context = run_pass(program, FuseNorm())
    assert context.notes["fuse-norm"] == ["rms_norm: not fused, linear_1 uses it unquantised"]
    assert targets(program) == calls


def test_a_residual_keeps_the_norm_float(run_pass: Run) -> None:
    program = two_products(residual=True)
    run_pass(program, *quantized("w8a8", "w8a8"))
    calls = targets(program)
    context = run_pass(program, FuseNorm())
    assert context.notes["fuse-norm"] == ["rms_norm: not fused, linear uses it unquantised"]
    assert targets(program) == calls


def test_a_float_program_stays_as_it_is(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    calls = targets(program)
    context = run_pass(program, FuseNorm())
    assert targets(program) == calls
    assert context.notes == {}
