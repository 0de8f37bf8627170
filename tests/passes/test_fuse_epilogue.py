"""Activations and sums move into the products before them where nothing else uses those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from passes.fuse_epilogue import FuseEpilogue
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

K = 8
PROBE = probe_inputs(torch.randn(1, 5, K, generator=torch.Generator().manual_seed(9)))
W8 = SetBits(rules=(Rule(scheme="w8a8"),))


class Net:
    """A builder of small networks of products of equal width."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.build = ProgramBuilder(
            {f"{name}.weight": torch.randn(K, K, generator=generator) for name in "abc"}
            | {f"{name}.bias": torch.randn(K, generator=generator) for name in "abc"}
        )
        self.x = self.build.input("x", (1, "s", K))

    def linear(self, x: fx.Node, name: str, **options: Any) -> fx.Node:
        weight, bias = self.build.weight(f"{name}.weight"), self.build.weight(f"{name}.bias")
        return self.build.call(ops.linear, x, weight, bias, **options)

    def call(self, target: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
        return self.build.call(target, *args, **options)


def calls(program: Program) -> list[str]:
    """Return what the program calls, aten's operators by their short name."""
    return [
        getattr(node.target, "_opname", None) or node.target.__name__
        for node in program.graph.nodes
        if node.op == "call_function"
    ]


def test_activations_and_residuals_are_taken(
    tiny_llama: Make, run_pass: Run, logits: Logits, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="od")
    before = logits(program)
    run_pass(program, FuseEpilogue())
    golden(program)
    assert torch.equal(logits(program), before)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(
    ("activation", "options", "name"),
    [
        (aten.silu.default, {}, "silu"),
        (aten.gelu.default, {}, "gelu"),
        (aten.gelu.default, {"approximate": "tanh"}, "gelu_tanh"),
        (aten.relu.default, {}, "relu"),
        (aten.tanh.default, {}, "tanh"),
    ],
)
def test_every_activation(
    quantize: bool,
    activation: Callable[..., Any],
    options: dict[str, Any],
    name: str,
    run_pass: Run,
) -> None:
    net = Net()
    y = net.call(activation, net.linear(net.x, "a"), **options)
    program = net.build.finish(net.linear(y, "b"))
    if quantize:
        run_pass(program, W8, QuantizeRtn())
    before = PROBE(program)
    run_pass(program, FuseEpilogue())
    assert len(calls(program)) == 2
    assert [node.kwargs.get("activation") for _, node in program.linears()] == [name, None]
    assert torch.equal(PROBE(program), before)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_in_either_order(quantize: bool, swapped: bool, run_pass: Run) -> None:
    net = Net()
    y = net.linear(net.x, "a")
    program = net.build.finish(net.call(aten.add.Tensor, *((y, net.x) if swapped else (net.x, y))))
    if quantize:
        run_pass(program, W8, QuantizeRtn())
    before = PROBE(program)
    run_pass(program, FuseEpilogue())
    assert calls(program) == ["quantized_linear" if quantize else "linear"]
    assert torch.equal(PROBE(program), before)


def test_an_activation_comes_before_the_residual(run_pass: Run) -> None:
    net = Net()
    y = net.call(aten.relu.default, net.linear(net.x, "a"))
    program = net.build.finish(net.call(aten.add.Tensor, net.x, y))
    before = PROBE(program)
    run_pass(program, FuseEpilogue())
    ((_, node),) = program.linears()
    assert node.kwargs == {"activation": "relu"}
    assert node.args[3] is net.x
    assert torch.equal(PROBE(program), before)


def test_an_activation_after_the_residual_stays(run_pass: Run) -> None:
    net = Net()
    y = net.call(aten.add.Tensor, net.x, net.linear(net.x, "a"))
    program = net.build.finish(net.call(aten.relu.default, y))
    before = PROBE(program)
    run_pass(program, FuseEpilogue())
    assert calls(program) == ["linear", "relu"]
    assert torch.equal(PROBE(program), before)


def test_of_two_products_the_later_takes_the_sum(run_pass: Run) -> None:
    net = Net()
    first, second = net.linear(net.x, "a"), net.linear(net.x, "b")
    program = net.build.finish(net.call(aten.add.Tensor, first, second))
    before = PROBE(program)
    run_pass(program, FuseEpilogue())
    assert [(name, len(node.args)) for name, node in program.linears()] == [("a", 3), ("b", 4)]
    assert torch.equal(PROBE(program), before)


def used_twice(net: Net) -> fx.Node:
    y = net.linear(net.x, "a")
    return net.call(aten.mul.Tensor, net.call(aten.add.Tensor, net.x, y), y)


def added_to_itself(net: Net) -> fx.Node:
    y = net.linear(net.x, "a")
    return net.call(aten.add.Tensor, y, y)


def broadcast(net: Net) -> fx.Node:
    row = net.call(aten.sum.dim_IntList, net.x, [1], True)
    return net.call(aten.add.Tensor, net.linear(net.x, "a"), row)


def scaled(net: Net) -> fx.Node:
    return net.call(aten.add.Tensor, net.x, net.linear(net.x, "a"), alpha=2)


def with_a_number(net: Net) -> fx.Node:
    return net.call(aten.add.Tensor, net.linear(net.x, "a"), 2.0)


def activated_twice(net: Net) -> fx.Node:
    return net.call(aten.relu.default, net.linear(net.x, "a", activation="tanh"))


def added_twice(net: Net) -> fx.Node:
    y = net.linear(net.x, "a")
    z = net.build.call(ops.linear, net.x, net.build.weight("b.weight"), None, net.x)
    return net.call(aten.mul.Tensor, net.call(aten.add.Tensor, z, net.x), y)


@pytest.mark.parametrize(
    "make",
    [used_twice, added_to_itself, broadcast, scaled, with_a_number, activated_twice, added_twice],
)
def test_what_a_product_cannot_do_stays(make: Callable[[Net], fx.Node], run_pass: Run) -> None:
    net = Net()
    program = net.build.finish(make(net))
    before, text = PROBE(program), calls(program)
    run_pass(program, FuseEpilogue())
    assert calls(program) == text
    assert torch.equal(PROBE(program), before)
