"""Both halves of a gated feed-forward network from one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from passes.fuse_epilogue import FuseEpilogue
from passes.fuse_gate_up import FuseGateUp
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

MLP = "model.layers.0.mlp"
K, N = 16, 24
PROBE = probe_inputs(torch.randn(1, 5, K, generator=torch.Generator().manual_seed(9)))
W8 = SetBits(rules=(Rule(scheme="w8a8"),))


def gated(
    activation: Callable[..., Any] = aten.silu.default,
    *,
    swapped: bool = False,
    biases: str = "",
    used_twice: bool = False,
    **options: Any,
) -> Program:
    """activation(gate(x)) · up(x)."""
    generator = torch.Generator().manual_seed(1)
    weights = {f"mlp.{n}.weight": torch.randn(N, K, generator=generator) for n in ("gate", "up")}
    weights |= {f"mlp.{n}.bias": torch.randn(N, generator=generator) for n in biases.split()}
    build = ProgramBuilder(weights)
    x = build.input("x", (1, "s", K))
    halves = {}
    for name in ("gate", "up"):
        arguments = [build.weight(f"mlp.{name}.weight")]
        if f"mlp.{name}.bias" in weights:
            arguments.append(build.weight(f"mlp.{name}.bias"))
        halves[name] = build.call(ops.linear, x, *arguments)
    gate = build.call(activation, halves["gate"], **options)
    operands = (halves["up"], gate) if swapped else (gate, halves["up"])
    y = build.call(aten.mul.Tensor, *operands)
    return build.finish(build.call(aten.add.Tensor, y, halves["up"]) if used_twice else y)


def halved(*, gate_first: bool = True, biased: bool = False) -> Program:
    """One product, sliced into the gate and what it gates."""
    generator = torch.Generator().manual_seed(1)
    weights = {"mlp.gate_up_proj.weight": torch.randn(2 * N, K, generator=generator)}
    if biased:
        weights["mlp.gate_up_proj.bias"] = torch.randn(2 * N, generator=generator)
    build = ProgramBuilder(weights)
    x = build.input("x", (1, "s", K))
    both = build.call(ops.linear, x, *[build.weight(name) for name in weights])
    first = build.call(aten.slice.Tensor, both, 2, 0, N)
    second = build.call(aten.slice.Tensor, both, 2, N, 2 * N)
    gate, up = (first, second) if gate_first else (second, first)
    return build.finish(build.call(aten.mul.Tensor, up, build.call(aten.silu.default, gate)))


def fused(program: Program) -> tuple[str, dict[str, Any]]:
    """Return the only product there is, and its options."""
    ((name, node),) = program.linears()
    return name, dict(node.kwargs)


def test_two_products_become_one(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="g")
    before = logits(program)
    context = run_pass(program, FuseGateUp())
    golden(program)
    torch.testing.assert_close(logits(program), before, rtol=1e-5, atol=1e-5)
    assert context.notes["fuse-gate-up"] == [
        f"{MLP}.gate_proj and {MLP}.up_proj: gated in one product"
    ]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("biases", ["", "gate", "up", "gate up"])
@pytest.mark.parametrize(
    ("activation", "options", "name"),
    [
        (aten.silu.default, {}, "silu"),
        (aten.gelu.default, {}, "gelu"),
        (aten.gelu.default, {"approximate": "none"}, "gelu"),
        (aten.gelu.default, {"approximate": "tanh"}, "gelu_tanh"),
        (aten.relu.default, {}, "relu"),
    ],
)
def test_every_activation_in_either_order(
    swapped: bool,
    biases: str,
    activation: Callable[..., Any],
    options: dict[str, Any],
    name: str,
    run_pass: Run,
) -> None:
    program = gated(activation, swapped=swapped, biases=biases, **options)
    before = PROBE(program)
    run_pass(program, FuseGateUp())
    assert fused(program) == ("mlp.gate_up_proj", {"activation": name, "gated": True})
    torch.testing.assert_close(PROBE(program), before, rtol=1e-5, atol=1e-5)
    stored = {"mlp.gate_up_proj.weight"} | ({"mlp.gate_up_proj.bias"} if biases else set())
    assert set(program.weights) == stored


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("quantize", [True, False])
def test_one_sliced_product_is_gated_in_place(
    gate_first: bool, biased: bool, quantize: bool, run_pass: Run
) -> None:
    program = halved(gate_first=gate_first, biased=biased)
    if quantize:
        run_pass(program, W8, QuantizeRtn())
    before = PROBE(program)
    run_pass(program, FuseGateUp())
    name, options = fused(program)
    # Rows of the gate come first, so a weight that has them last is stored anew.
    assert name == ("mlp.gate_up_proj" if gate_first else "mlp.gate_up_proj_2")
    assert options["gated"]
    assert len(program.weights) == (2 if biased else 1)
    if quantize:
        assert torch.equal(PROBE(program), before)
    else:
        torch.testing.assert_close(PROBE(program), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["w4a8g8", "w4a8g8z", "w8a8"])
def test_quantised_products_are_gated_exactly(scheme: str, run_pass: Run) -> None:
    # torch's exp gives another last bit where the memory it reads lies apart; relu does not.
    program = gated(aten.relu.default, biases="up")
    run_pass(program, SetBits(rules=(Rule(scheme=scheme),)), QuantizeRtn())
    before = PROBE(program)
    run_pass(program, FuseGateUp())
    assert fused(program)[1]["scheme"] == scheme
    assert list(program.plan) == ["mlp.gate_up_proj"]
    assert torch.equal(PROBE(program), before)


def test_it_may_come_after_the_epilogue(run_pass: Run) -> None:
    first, second = gated(), gated()
    run_pass(first, FuseGateUp(), FuseEpilogue())
    run_pass(second, FuseEpilogue(), FuseGateUp())
    assert fused(first) == fused(second)
    assert torch.equal(PROBE(first), PROBE(second))


def test_a_half_that_is_used_elsewhere_is_not_taken(run_pass: Run) -> None:
    program = gated(used_twice=True)
    before = PROBE(program)
    run_pass(program, FuseGateUp())
    assert [name for name, _ in program.linears()] == ["mlp.gate", "mlp.up"]
    assert torch.equal(PROBE(program), before)


def test_schemes_that_differ_keep_products_apart(run_pass: Run) -> None:
    program = gated()
    run_pass(program, SetBits(rules=(Rule(scheme="w8a8"), Rule(pattern="*.up", scheme="float"))))
    context = run_pass(program, QuantizeRtn(), FuseGateUp())
    assert context.notes["fuse-gate-up"] == [
        "mlp.gate and mlp.up: kept apart, their schemes differ (float, w8a8)"
    ]
    assert len(list(program.linears())) == 2
