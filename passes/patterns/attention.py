"""Attention without a cache, and factors that belong into the scale of attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from passes.patterns.views import permuted
from passes.rewrite import (
    arguments,
    both_orders,
    calls,
    emit,
    emit_again,
    is_number,
    is_tensor,
    shape,
)
from qcompiler.core import ops

aten = torch.ops.aten

HEADS_FIRST = [0, 2, 1, 3]
"""Swap [b, h, s, d] and [b, s, h, d]."""


def recognize_sdpa(node: fx.Node) -> fx.Node | None:
    """scaled_dot_product_attention(q, k, v, mask) → dense_attention."""
    if not calls(node, aten.scaled_dot_product_attention.default):
        return None
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("dropout_p") or given.get("is_causal") or given.get("enable_gqa"):
        return None
    q, k, v = given["query"], given["key"], given["value"]
    return _dense(node, q, k, v, given.get("attn_mask"), given.get("scale"))


def recognize_softmax_attention(node: fx.Node) -> fx.Node | None:
    """softmax(q·kᵀ·scale + mask)·v → dense_attention."""
    if not calls(node, aten.matmul.default):
        return None
    weights, v = arguments(node)
    if not calls(weights, aten.softmax.int) or weights.args[1] not in (-1, 3):
        return None
    scores: Any = weights.args[0]
    mask = None
    if calls(scores, aten.add.Tensor) and not scores.kwargs:
        for scaled, added in both_orders(scores):
            if _scaled_product(scaled) is not None:
                scores, mask = scaled, added
                break
    found = _scaled_product(scores)
    if found is None:
        return None
    q, k, scale = found
    return _dense(node, q, k, v, mask, scale)


def _scaled_product(scores: Any) -> tuple[fx.Node, fx.Node, float] | None:
    """Return (q, k, scale) of q·kᵀ·scale."""
    scale = 1.0
    if calls(scores, aten.mul.Tensor, aten.div.Tensor) and is_number(scores.args[1]):
        factor = float(scores.args[1])
        scale = factor if scores.target is aten.mul.Tensor else 1 / factor
        scores = scores.args[0]
    if not calls(scores, aten.matmul.default):
        return None
    q, k = arguments(scores)
    if not calls(k, aten.permute.default) or not is_tensor(q) or len(shape(q)) != 4:
        return None
    keys, order = arguments(k)
    # Keys that were [b, s, h, d] go to [b, h, d, s] in one permute.
    if list(order) == [0, 1, 3, 2]:
        return q, keys, scale
    if list(order) == [0, 2, 3, 1]:
        return q, emit(scores, aten.permute.default, keys, HEADS_FIRST), scale
    return None


def _dense(node: fx.Node, q: Any, k: Any, v: Any, mask: Any, scale: Any) -> fx.Node | None:
    if not all(is_tensor(x) and len(shape(x)) == 4 for x in (q, k, v)):
        return None
    if shape(q)[1] != shape(k)[1]:
        return None  # grouped queries
    scale = 1 / math.sqrt(shape(q)[-1]) if scale is None else float(scale)
    moved = [permuted(node, x, HEADS_FIRST) for x in (q, k, v)]
    if None in moved:
        return None
    result = emit(node, ops.dense_attention, *moved, mask, scale=scale)
    return permuted(node, result, HEADS_FIRST, like=node)


def fold_query_scale(node: fx.Node) -> fx.Node | None:
    """attention(q·c, k, v, …, scale) → attention(q, k, v, …, scale·c)."""
    if not calls(node, ops.attention, ops.dense_attention):
        return None
    q, *others = arguments(node)
    changes: list[fx.Node] = []
    while calls(q, aten.reshape.default, aten.permute.default):
        changes.append(q)
        q = q.args[0]
    if not calls(q, aten.mul.Tensor) or not is_number(q.args[1]):
        return None
    inner, factor = q.args
    for change in reversed(changes):
        inner = emit_again(node, change, inner, *change.args[1:])
    scale: Any = node.kwargs["scale"]
    return emit_again(node, node, inner, *others, val=node.meta["val"], scale=scale * factor)


ATTENTIONS = (recognize_sdpa, recognize_softmax_attention, fold_query_scale)
