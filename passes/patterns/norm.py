"""RMSNorm and LayerNorm, as one operator of torch or spelled out.

A norm that is spelled out is recognised in steps, each a rule of its own: first what is divided by
the root of its mean square, then the subtracted mean, then the weight, then the bias.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from passes.patterns.views import last_axis
from passes.rewrite import (
    arguments,
    both_orders,
    calls,
    dtype,
    emit_like,
    is_number,
    is_tensor,
    is_weight,
    shape,
)
from qcompiler.core import ops

aten = torch.ops.aten


def recognize_rms_norm(node: fx.Node) -> fx.Node | None:
    """aten.rms_norm → rms_norm."""
    if not calls(node, aten.rms_norm.default):
        return None
    x, sizes, weight, eps = (*arguments(node), None, None)[:4]
    if not is_tensor(x) or len(sizes) != 1:
        return None
    if eps is None:
        eps = torch.finfo(dtype(x)).eps
    return emit_like(node, ops.rms_norm, x, weight, eps=eps)


def recognize_layer_norm(node: fx.Node) -> fx.Node | None:
    """aten.layer_norm, native_layer_norm(…)[0] → layer_norm."""
    call = node
    if calls(node, operator.getitem) and node.args[1] == 0 and isinstance(node.args[0], fx.Node):
        call = node.args[0]
        if call.target is not aten.native_layer_norm.default:
            return None
    elif not calls(node, aten.layer_norm.default):
        return None
    x, sizes, weight, bias, eps = (*arguments(call), *(None, None, 1e-5)[len(call.args) - 2 :])[:5]
    if len(sizes) != 1:
        return None
    return emit_like(node, ops.layer_norm, x, weight, bias, eps=eps)


def recognize_norm(node: fx.Node) -> fx.Node | None:
    """x / √(mean(x²) + ε) → rms_norm; x − mean(x) over its root mean square → layer_norm."""
    found = _normalised(node)
    if found is None:
        return None
    x, root = found
    shifted = _inverse_root(root)
    if shifted is None or not is_tensor(x) or not _float_like(x, node):
        return None
    square, eps = shifted
    centred = _centred(x)
    if centred is not None and (_is_variance(square, centred) or _is_mean_square(square, x)):
        return emit_like(node, ops.layer_norm, centred, None, None, eps=eps)
    if _is_mean_square(square, x):
        return emit_like(node, ops.rms_norm, x, None, eps=eps)
    return None


def _normalised(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return (x, 1/root) of x · 1/root or x / root, the second as the node that says so."""
    if calls(node, aten.mul.Tensor):
        for x, root in both_orders(node):
            if calls(root, aten.rsqrt.default, aten.pow.Tensor_Scalar, aten.reciprocal.default):
                return x, root
    if calls(node, aten.div.Tensor) and calls(node.args[1], aten.sqrt.default):
        x, root = arguments(node)
        return x, root
    return None


def _inverse_root(root: fx.Node) -> tuple[Any, float] | None:
    """Return (m, ε) of rsqrt(m + ε) or what means the same."""
    if calls(root, aten.pow.Tensor_Scalar) and root.args[1] != -0.5:
        return None
    if calls(root, aten.reciprocal.default):
        if not calls(root.args[0], aten.sqrt.default):
            return None
        root = root.args[0]
    total = root.args[0]
    if not calls(total, aten.add.Tensor, aten.add.Scalar) or total.kwargs:
        return None
    mean, eps = total.args
    return (mean, float(eps)) if is_number(eps) else None


def _is_mean_square(node: Any, x: fx.Node) -> bool:
    """Tell whether a value is mean(x²) over the last dimension."""
    if not _reduces_last(node, aten.mean.dim):
        return False
    square = node.args[0]
    if calls(square, aten.pow.Tensor_Scalar):
        return square.args == (x, 2)
    if calls(square, aten.square.default):
        return square.args[0] is x
    return calls(square, aten.mul.Tensor) and square.args == (x, x)


def _is_variance(node: Any, x: fx.Node) -> bool:
    """Tell whether a value is the biased variance of x over the last dimension."""
    if _reduces_last(node, aten.var.correction):
        return node.args[0] is x and node.kwargs.get("correction") == 0
    if _reduces_last(node, aten.var.dim):
        return node.args[0] is x and node.args[2:3] == (False,)
    return False


def _centred(node: fx.Node) -> fx.Node | None:
    """Return x of x − mean(x)."""
    if not calls(node, aten.sub.Tensor) or node.kwargs:
        return None
    x, mean = arguments(node)
    if is_tensor(x) and _reduces_last(mean, aten.mean.dim) and mean.args[0] is x:
        return x
    return None


def _reduces_last(node: Any, target: Any) -> bool:
    """Tell whether a value is a reduction over the last dimension that keeps it."""
    if not calls(node, target) or not is_tensor(node.args[0]):
        return False
    axes = arguments(node)[1]
    kept = shape(node) == (*shape(node.args[0])[:-1], 1)
    return kept and list(axes) in ([-1], [last_axis(node.args[0])])


def _float_like(x: fx.Node, node: fx.Node) -> bool:
    return dtype(x) == dtype(node) and shape(x) == shape(node)


def recognize_norm_weight(node: fx.Node) -> fx.Node | None:
    """norm(x) · @weight → norm(x, weight); an RMSNorm's may be stored less one, as Gemma's is."""
    if not calls(node, aten.mul.Tensor):
        return None
    for norm, weight in both_orders(node):
        if not calls(norm, ops.rms_norm, ops.layer_norm) or norm.args[1] is not None:
            continue
        offset = 0.0
        if calls(weight, aten.add.Tensor) and is_number(weight.args[1]) and not weight.kwargs:
            weight, offset = arguments(weight)
        if not is_weight(weight) or shape(weight) != shape(norm)[-1:]:
            continue
        if calls(norm, ops.rms_norm):
            shifted = {"offset": float(offset)} if offset else {}
            return emit_like(node, ops.rms_norm, norm.args[0], weight, **norm.kwargs, **shifted)
        if not offset and norm.args[2] is None:
            return emit_like(node, ops.layer_norm, norm.args[0], weight, None, **norm.kwargs)
    return None


def recognize_norm_bias(node: fx.Node) -> fx.Node | None:
    """layer_norm(x, weight) + @bias → layer_norm(x, weight, bias)."""
    if not calls(node, aten.add.Tensor) or node.kwargs:
        return None
    for norm, bias in both_orders(node):
        if not calls(norm, ops.layer_norm) or norm.args[2] is not None or norm.args[1] is None:
            continue
        if is_weight(bias) and shape(bias) == shape(norm)[-1:]:
            return emit_like(node, ops.layer_norm, *norm.args[:2], bias, **norm.kwargs)
    return None


NORMS = (
    recognize_rms_norm,
    recognize_layer_norm,
    recognize_norm,
    recognize_norm_weight,
    recognize_norm_bias,
)
