"""Take away what changes nothing, and write casts and constructors in one way."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from passes.rewrite import calls, dtype, emit_like, is_number, is_tensor, same_type

aten = torch.ops.aten

COPIES = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
CASTS = (
    aten._to_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
)
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
SPREADS = (aten.expand.default, aten.expand_as.default, aten.repeat.default)
PLACES = ("device", "layout", "pin_memory", "memory_format")


def drop_copy(node: fx.Node) -> fx.Node | None:
    """copy(x) → x."""
    return node.args[0] if calls(node, *COPIES) and is_tensor(node.args[0]) else None


def drop_cast(node: fx.Node) -> fx.Node | None:
    """to(x, …) → x where the dtype stays, else aten.to.dtype(x, dtype)."""
    if not calls(node, *CASTS):
        return None
    source = node.args[0]
    if not is_tensor(source):
        return None
    if dtype(source) == dtype(node):
        return source
    if node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs:
        return None
    return emit_like(node, aten.to.dtype, source, dtype(node))


def drop_dropout(node: fx.Node) -> fx.Node | None:
    """dropout(x, p, train=False) → x."""
    if not calls(node, *DROPOUTS) or node.args[2] is not False:
        return None
    return node.args[0] if is_tensor(node.args[0]) else None


def drop_spread(node: fx.Node) -> fx.Node | None:
    """expand(x, …) → x where it has that shape already."""
    if not calls(node, *SPREADS):
        return None
    source = node.args[0]
    return source if is_tensor(source) and same_type(source, node) else None


def drop_neutral_number(node: fx.Node) -> fx.Node | None:
    """x·1, x/1, x+0, x−0 and x¹ → x."""
    if calls(node, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar):
        neutral = 1
    elif calls(node, aten.add.Tensor, aten.sub.Tensor):
        neutral = 0
    else:
        return None
    source, other = node.args
    if not (is_number(other) and other == neutral and is_tensor(source)):
        return None
    return source if same_type(source, node) else None


def drop_place(node: fx.Node) -> fx.Node | None:
    """Forget on which device, and in what layout, a tensor is to be made."""
    kept: dict[str, Any] = {k: v for k, v in node.kwargs.items() if k not in PLACES}
    if len(kept) == len(node.kwargs) or not isinstance(node.target, torch._ops.OpOverload):
        return None
    return emit_like(node, node.target, *node.args, **kept)


NOOPS = (drop_copy, drop_cast, drop_dropout, drop_spread, drop_neutral_number, drop_place)
