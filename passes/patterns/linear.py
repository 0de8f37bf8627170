"""Products with a stored weight, and rows of a stored table, whatever they were written as."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from passes.rewrite import calls, emit, emit_like, is_tensor, is_weight, shape
from qcompiler.core import ops

aten = torch.ops.aten


def recognize_linear(node: fx.Node) -> fx.Node | None:
    """aten.linear(x, @weight, bias) → linear."""
    if not calls(node, aten.linear.default):
        return None
    x, weight, *bias = node.args
    return _linear(node, x, weight, *bias) if _is_matrix(weight) else None


def recognize_matmul(node: fx.Node) -> fx.Node | None:
    """mm, matmul(x, @weight), addmm(bias, x, @weight) → linear of the weight transposed."""
    bias: Any = None
    if calls(node, aten.addmm.default):
        if set(node.kwargs.values()) - {1}:
            return None  # alpha and beta
        bias, x, weight = node.args
        if not (is_tensor(bias) and shape(bias) == shape(node)[-1:]):
            return None
    elif calls(node, aten.mm.default, aten.matmul.default):
        x, weight = node.args
    else:
        return None
    if not _is_matrix(weight) or not is_tensor(x) or len(shape(x)) < 2:
        return None
    return _linear(node, x, emit(node, aten.permute.default, weight, [1, 0]), bias)


def _is_matrix(weight: Any) -> bool:
    """Tell whether a value is a stored matrix, or one transposed."""
    if calls(weight, aten.permute.default):
        weight = weight.args[0]
    return is_weight(weight) and len(shape(weight)) == 2


def _linear(node: fx.Node, x: Any, weight: Any, bias: Any = None) -> fx.Node:
    return emit_like(node, ops.linear, x, weight, *([] if bias is None else [bias]))


def recognize_bias(node: fx.Node) -> fx.Node | None:
    """linear(x, w) + @bias → linear(x, w, bias)."""
    if not calls(node, aten.add.Tensor) or node.kwargs:
        return None
    for product, bias in (node.args, node.args[::-1]):
        if not calls(product, ops.linear) or len(product.args) > 2 or len(product.users) > 1:
            continue
        if is_weight(bias) and shape(bias) == shape(product)[-1:] and not product.kwargs:
            return emit_like(node, ops.linear, *product.args, bias)
    return None


def recognize_embedding(node: fx.Node) -> fx.Node | None:
    """aten.embedding(@table, ids) → embedding; the padding token matters to training only."""
    if not calls(node, aten.embedding.default) or not is_weight(node.args[0]):
        return None
    return emit_like(node, ops.embedding, node.args[1], node.args[0])


LINEARS = (recognize_linear, recognize_matmul, recognize_bias, recognize_embedding)
