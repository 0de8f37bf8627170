"""Operators of aten that compute an element of the result from that element of their operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from passes.rewrite import calls, is_tensor

aten = torch.ops.aten

UNARY = frozenset(
    {
        aten.abs.default,
        aten.cos.default,
        aten.erf.default,
        aten.exp.default,
        aten.gelu.default,
        aten.leaky_relu.default,
        aten.log.default,
        aten.neg.default,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.relu.default,
        aten.rsqrt.default,
        aten.sigmoid.default,
        aten.silu.default,
        aten.sin.default,
        aten.softplus.default,
        aten.sqrt.default,
        aten.tanh.default,
        aten.to.dtype,
    }
)
BINARY = frozenset({aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor, aten.sub.Tensor})


def is_pointwise(node: Any) -> bool:
    """Tell whether a value is computed element by element."""
    return calls(node, *UNARY, *BINARY)


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """Return the operands of a pointwise operator that are tensors."""
    return [argument for argument in node.args[:2] if is_tensor(argument)]
