"""Every aten lowering against torch, with one size symbolic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx

tvm = pytest.importorskip("tvm")
from tvm import relax  # noqa: E402

from codegen.aten import ATEN  # noqa: E402
from codegen.build import compile_module  # noqa: E402
from codegen.function_lowering import FunctionLowering, Phase  # noqa: E402
from codegen.weights import PackedWeights  # noqa: E402
from qcompiler.core.program import ModelInfo, Program  # noqa: E402
from qcompiler.core.weights import WeightStore  # noqa: E402
from targets import find  # noqa: E402

pytestmark = pytest.mark.tvm
aten = torch.ops.aten


def exported(function: Callable[..., object], *inputs: torch.Tensor) -> fx.Graph:
    """Export a function with the second dimension of its first input symbolic."""

    class Module(torch.nn.Module):
        def forward(self, *arguments: torch.Tensor) -> object:
            return function(*arguments)

    shapes = ({1: torch.export.Dim("s", min=2, max=64)}, *[None] * (len(inputs) - 1))
    program = torch.export.export(Module(), inputs, dynamic_shapes=(shapes,), strict=False)
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if "assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return graph


def run(graph: fx.Graph, *inputs: torch.Tensor) -> list[np.ndarray]:
    info = ModelInfo(name="test", kind="module", architecture="test")
    program = Program(graph=graph, weights=WeightStore(), info=info)
    target = find("native")
    builder = relax.BlockBuilder()
    lowering = FunctionLowering(
        builder, program, target, PackedWeights(program, target), {}, dict(ATEN)
    )
    lowering.lower("forward", Phase())
    machine = relax.VirtualMachine(compile_module(builder.finalize(), target), tvm.cpu())
    out = machine["forward"](*(tvm.runtime.tensor(i.numpy()) for i in inputs), [])
    return [o.numpy() for o in out] if not hasattr(out, "numpy") else [out.numpy()]


X = torch.randn(2, 5, 16)
Y = torch.randn(1, 1, 16)
IDS = torch.randint(0, 7, (2, 5))

CASES: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = {
    "add": (lambda x, y: x + y, (X, Y)),
    "sub with alpha": (lambda x, y: torch.sub(x, y, alpha=2), (X, Y)),
    "multiply by a number": (lambda x: x * 3, (X,)),
    "number minus tensor": (lambda x: 1.0 - x, (X,)),
    "divide": (lambda x: x / 7.0, (X,)),
    "integers times a float": (lambda i: i * 0.5, (IDS,)),
    "compare and choose": (lambda x: torch.where(x > 0, x, -x * 2), (X,)),
    "logic": (lambda x: torch.logical_not((x > 0) & (x < 1)).to(torch.float32), (X,)),
    "masked fill": (lambda x: x.masked_fill(x > 0.5, -1.0), (X,)),
    "elementary functions": (
        lambda x: torch.cos(x) + torch.sin(x) * torch.tanh(x) + torch.exp(x) + torch.sigmoid(x),
        (X,),
    ),
    "activations": (
        lambda x: (
            torch.nn.functional.silu(x)
            + torch.nn.functional.gelu(x)
            + torch.nn.functional.gelu(x, approximate="tanh")
            + torch.relu(x)
        ),
        (X,),
    ),
    "powers": (lambda x: x.pow(2) + x.pow(3), (X,)),
    "root mean square": (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), (X,)),
    "view with a hole": (lambda x: x.view(2, x.shape[1], 4, -1).transpose(1, 2), (X,)),
    "permute and flatten": (lambda x: x.permute(2, 0, 1).flatten(1), (X,)),
    "slices": (lambda x: torch.cat((-x[..., 8:], x[..., :8]), -1), (X,)),
    "strided slice": (lambda x: x[:, :, 1::2], (X,)),
    "split and chunk": (lambda x: x.split([4, 12], -1)[1].chunk(3, -1)[2], (X,)),
    "select": (lambda x: x[:, 0] + x[:, -1], (X,)),
    "expand": (lambda x, y: y.expand(2, x.shape[1], 16) * x, (X, Y)),
    "squeeze": (lambda x, y: y.squeeze(0).unsqueeze(1) + x, (X, Y)),
    "gather rows": (lambda x, r: x[:, r], (X, torch.tensor([1, 0, 1]))),
    "arange": (lambda x: (torch.arange(x.shape[1]) + 2)[None, :, None] * x, (X,)),
    "ones and zeros": (lambda x: torch.ones_like(x) + torch.zeros(2, x.shape[1], 16), (X,)),
    "sums": (lambda x: x.sum(-1) + x.amax(-1) + x.mean(-1), (X,)),
    "softmax": (lambda x: x.softmax(-1), (X,)),
    "batched product": (lambda x, y: x @ y, (X, torch.randn(2, 16, 3))),
    "casts": (lambda i: i.to(torch.float32) + i.to(torch.int32), (IDS,)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str) -> None:
    function, inputs = CASES[name]
    graph = exported(function, *inputs)
    for length in (5, 2, 17):
        fresh = [torch.cat([inputs[0]] * 4, 1)[:, :length].contiguous(), *inputs[1:]]
        (actual,) = run(graph, *fresh)
        expected = function(*fresh)
        assert isinstance(expected, torch.Tensor)
        assert tuple(actual.shape) == tuple(expected.shape)
        np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-5, atol=2e-6)
