"""Shape rules agree with what the operators do to real tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.core import ops, shapes
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.formats import QuantScheme
from qcompiler.core.qtensor import QuantizedTensor

aten = torch.ops.aten
SCHEME = "w4a8g8"
FORM = QuantScheme.parse(SCHEME).activation
WEIGHT = QuantScheme.parse(SCHEME).weight
WEIGHTS = {
    "fc.weight": torch.randn(12, 20),
    "bias": torch.randn(12),
    "norm": torch.randn(20),
    "scale": torch.ones(12, 3),
    "left": torch.randn(12, 2),
    "right": torch.randn(2, 20),
    "int": QuantizedTensor(
        torch.zeros(12, 20, dtype=torch.int8),
        torch.ones(12, 3).half(),
        None,
        QuantScheme.parse(SCHEME).weight,
    ),
}
INPUTS: dict[str, tuple[tuple[Any, ...], torch.dtype]] = {
    "x": ((2, "s", 20), torch.float32),
    "residual": ((2, "s", 12), torch.float32),
    "half_residual": ((2, "s", 6), torch.float32),
    "codes": ((2, "s", 20), torch.int8),
    "scales": ((2, "s", 3), torch.float32),
    "ids": ((2, "s"), torch.int64),
    "q": ((2, "s", 4, 8), torch.float32),
    "k": ((2, "s", 2, 8), torch.float32),
    "qkv": ((2, "s", 64), torch.float32),
    "cos": ((2, "s", 3), torch.float32),
    "k_cache": ((2, 2, "c", 8), torch.float32),
    "v_cache": ((2, 2, "c", 8), torch.float32),
    "position": ((1,), torch.int64),
}
CASES: list[tuple[Callable[..., Any], list[str], dict[str, Any]]] = [
    (ops.linear, ["x", "@fc.weight"], {}),
    (ops.linear, ["x", "@fc.weight", "@bias", "residual"], {"activation": "relu"}),
    (ops.linear, ["x", "@fc.weight", "@bias", "half_residual"], {"gated": True}),
    (ops.quantized_linear, ["x", "@int"], {"scheme": SCHEME}),
    (ops.quantized_linear, ["x", "@int"], {"scheme": SCHEME, "gated": True}),
    (ops.quantize, ["x"], {"form": FORM}),
    (ops.quantized_matmul, ["codes", "scales", "@int", "@bias"], {"scheme": SCHEME}),
    (ops.fake_quantize, ["x"], {"form": FORM}),
    (ops.fake_quantize_weight, ["@fc.weight", "@scale"], {"form": WEIGHT}),
    (ops.range_scale, ["@fc.weight"], {"form": WEIGHT}),
    (ops.low_rank_update, ["@fc.weight", "@left", "@right"], {}),
    (ops.embedding, ["ids", "@fc.weight"], {}),
    (ops.quantized_embedding, ["ids", "@int"], {"scheme": SCHEME}),
    (ops.rms_norm, ["x", "@norm"], {"eps": 1e-6}),
    (ops.layer_norm, ["x", "@norm", "@norm"], {"eps": 1e-6}),
    (ops.rms_norm_quantize, ["x", "@norm"], {"eps": 1e-6, "form": FORM}),
    (ops.layer_norm_quantize, ["x", "@norm", "@norm"], {"eps": 1e-6, "form": FORM}),
    (ops.rotary, ["q", "cos", "cos"], {}),
    (ops.attention, ["q", "k", "k", "k_cache", "v_cache", "position"], {"scale": 1.0}),
    (
        ops.rope_attention,
        ["qkv", "cos", "cos", "k_cache", "v_cache", "position"],
        {"scale": 1.0, "heads": 4},
    ),
    (ops.dense_attention, ["q", "q", "q"], {"scale": 1.0, "mask": None}),
    (aten.reshape.default, ["q"], {"shape": [2, -1, 32]}),
]


def test_every_operator_has_a_rule_and_a_case() -> None:
    assert set(shapes.RULES) == set(ops.OPS)
    assert set(ops.OPS) <= {target for target, _, _ in CASES}


def sizes(val: torch.Tensor) -> list[int]:
    """Return a fake tensor's sizes, those that the builder traces with where they are dynamic."""
    return [dim.node.hint if isinstance(dim, torch.SymInt) else dim for dim in val.shape]


@pytest.mark.parametrize(("target", "names", "options"), CASES)
def test_rules_agree_with_operators(
    target: Callable[..., Any], names: list[str], options: dict[str, Any]
) -> None:
    build = ProgramBuilder({k: v for k, v in WEIGHTS.items() if isinstance(v, torch.Tensor)})
    build.weights.put("int", WEIGHTS["int"])
    nodes: list[fx.Node] = []
    tensors: list[Any] = []
    for name in names:
        if name.startswith("@"):
            nodes.append(build.weight(name[1:]))
            tensors.append(WEIGHTS[name[1:]])
        else:
            nodes.append(build.input(name, *INPUTS[name]))
            val = nodes[-1].meta["val"]
            tensors.append(torch.zeros(sizes(val), dtype=val.dtype))
    inferred, actual = shapes.infer(target, *nodes, **options), target(*tensors, **options)
    if not isinstance(actual, tuple):
        inferred, actual = (inferred,), (actual,)
    found = [(val.dtype, sizes(val)) for val in inferred]
    assert found == [(tensor.dtype, list(tensor.shape)) for tensor in actual]
    # What weights alone give has no size that varies.
    varies = any(isinstance(dim, torch.SymInt) for val in inferred for dim in val.shape)
    assert varies == any(not name.startswith("@") for name in names)


def test_added_nodes_carry_their_values() -> None:
    build = ProgramBuilder({"fc.weight": torch.zeros(12, 20)})
    x = build.input("x", (2, "s", 20))
    size = shapes.add_call(build.graph, aten.sym_size.int, x, 1)
    double = shapes.add_call(build.graph, operator.mul, size, 2)
    made = shapes.add_call(build.graph, aten.arange.default, double)
    assert isinstance(size.meta["val"], torch.SymInt)
    assert str(made.meta["val"].shape[0]) == f"2*{size.meta['val']}"
    weight = shapes.add_weight(build.graph, build.weights, "fc.weight")
    assert weight.op == "get_attr"
    assert weight.meta["val"].shape == (12, 20)
    assert weight.meta["val"].fake_mode is x.meta["val"].fake_mode


def test_nothing_is_fake_about_sizes_alone() -> None:
    graph = fx.Graph()
    assert shapes.infer(operator.add, 2, 3) == 5
    with shapes.faking(graph):
        assert shapes.infer(aten.arange.default, 4).shape == (4,)
