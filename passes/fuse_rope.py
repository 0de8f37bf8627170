"""Attention with rotary embedding, straight from the product of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from passes.patterns.views import last_axis, reshaped
from passes.rewrite import calls, emit, is_tensor, is_weight, remove_unused, shape
from qcompiler.core import ops
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FuseRope(Pass):
    """Rotate queries and keys inside the attention that reads them.

    Applies where one value holds queries, keys and values, in that order, and queries and keys are
    rotated by the same angles: after fuse-qkv. Exact.
    """

    name: ClassVar[str] = "fuse-rope"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            if not calls(node, ops.attention) or not calls(_centred(node.args[1])[0], ops.rotary):
                continue
            found = _match(node)
            if isinstance(found, str):
                context.note(self.name, f"{node.name}: not fused, {found}")
                continue
            _fuse(node, found)
        remove_unused(program.graph)


@dataclass(frozen=True)
class _Rope:
    qkv: fx.Node
    angles: tuple[Any, Any]
    options: dict[str, Any]
    heads: int
    key_mean: fx.Node | None


def _match(attention: fx.Node) -> _Rope | str:
    """Take apart an attention over rotated slices, or say what it is instead."""
    q, keys, v = attention.args[:3]
    k, mean = _centred(keys)
    if not (calls(q, ops.rotary) and calls(k, ops.rotary)):
        return "its queries are not rotated"
    if q.args[1:] != k.args[1:] or q.kwargs != k.kwargs:
        return "queries and keys are rotated by different angles"
    parts = [_heads_of(node) for node in (q.args[0], k.args[0], v)]
    if any(part is None for part in parts):
        return "queries, keys and values are not plain slices of a product"
    (x, q_start, q_end), (y, k_start, k_end), (z, v_start, v_end) = parts  # type: ignore[misc]
    if not (x is y is z):
        return "queries, keys and values come from several products"
    width = shape(x)[last_axis(x)]
    if (q_start, q_end, k_end, v_end) != (0, k_start, v_start, width):
        return "queries, keys and values are not stored in that order"
    if len({shape(node)[3] for node in (q, k, v)}) > 1:  # type: ignore[arg-type]
        return "heads of queries, keys and values differ in size"
    heads = int(shape(q)[2])
    return _Rope(x, q.args[1:3], dict(q.kwargs), heads, mean)  # type: ignore[arg-type]


def _centred(keys: Any) -> tuple[Any, fx.Node | None]:
    """Return keys as they were before a stored mean [hk, d] was subtracted, and that mean."""
    if not calls(keys, aten.sub.Tensor) or not is_weight(keys.args[1]) or keys.kwargs:
        return keys, None
    mean = keys.args[1]
    return (keys.args[0], mean) if shape(mean) == shape(keys)[2:] else (keys, None)


def _heads_of(node: Any) -> tuple[fx.Node, int, int] | None:
    """Return which features of which value are heads: reshape(slice(x)), or slice(reshape(x))."""
    if calls(node, aten.slice.Tensor) and node.args[1] == 2 and len(node.args) == 4:
        whole, start, end = node.args[0], node.args[2], node.args[3]
        source = _split_heads(whole)
        if source is None or not (isinstance(start, int) and isinstance(end, int)):
            return None
        size = shape(node)[3]
        return source, start * size, end * size
    source = _split_heads(node)
    if source is None:
        return None
    if not calls(source, aten.slice.Tensor):
        return source, 0, shape(source)[2]
    if len(source.args) != 4 or source.args[1] != 2 or not is_tensor(source.args[0]):
        return None
    return source.args[0], source.args[2], source.args[3]  # type: ignore[return-value]


def _split_heads(node: Any) -> fx.Node | None:
    """Return x [b, s, f] of reshape(x) [b, s, h, d]."""
    if not calls(node, aten.reshape.default) or not is_tensor(node.args[0]):
        return None
    outer, inner = shape(node), shape(node.args[0])
    if len(outer) != 4 or len(inner) != 3 or outer[:2] != inner[:2]:
        return None
    return node.args[0]


def _fuse(attention: fx.Node, found: _Rope) -> None:
    """Put `rope_attention` in the place of an attention and the reshapes that join its heads."""
    k_cache, v_cache, position = attention.args[3:6]
    options = {**attention.kwargs, **found.options}
    fused = emit(
        attention,
        ops.rope_attention,
        found.qkv,
        *found.angles,
        k_cache,
        v_cache,
        position,
        *([] if found.key_mean is None else [found.key_mean]),
        heads=found.heads,
        **options,
    )
    for user in list(attention.users):
        if calls(user, aten.reshape.default) and shape(user) == shape(fused):
            user.replace_all_uses_with(fused)
            attention.graph.erase_node(user)
    if attention.users:
        heads = reshaped(attention, fused, attention.meta["val"].shape)
        attention.replace_all_uses_with(heads)  # type: ignore[arg-type]
    attention.graph.erase_node(attention)
