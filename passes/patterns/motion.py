"""Move reshapes and permutes down past what does not care, so that opposite ones meet.

Attention and rotary embedding have one layout, [b, s, h, d], and products one shape, [b, s, k];
what a model computes between them in another layout is the same in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from passes.patterns.pointwise import BINARY, UNARY, is_pointwise, tensor_operands
from passes.patterns.views import last_axis, permuted, reshaped, reshaped_like, unpermuted
from passes.rewrite import arguments, calls, emit, emit_again, is_tensor, shape
from qcompiler.core import ops

aten = torch.ops.aten

ROWWISE: frozenset[Callable[..., Any]] = frozenset({ops.linear, ops.rms_norm, ops.layer_norm})
"""Operators that treat each row, the last dimension of their first operand, on its own."""

REDUCTIONS: frozenset[Callable[..., Any]] = frozenset({aten.mean.dim, aten.var.correction})


def is_rowwise(node: fx.Node) -> bool:
    """Tell whether a node treats each row of its first operand on its own."""
    if calls(node, *REDUCTIONS):
        return node.args[1] == [-1] and shape(node)[-1:] == (1,)
    if not calls(node, *ROWWISE):
        return False
    residual = node.args[3:] if node.target is ops.linear else ()
    return not any(residual)  # which has the shape of the result


def sink_reshape(node: fx.Node) -> fx.Node | None:
    """f(reshape(x)) → reshape(f(x)), where rows stay whole, for f of each element or each row."""
    if is_rowwise(node):
        operands = [arguments(node)[0]]
    elif is_pointwise(node):
        operands = tensor_operands(node)
    else:
        return None
    views = [x for x in operands if calls(x, aten.reshape.default)]
    if not views or not is_tensor(views[0].args[0]):
        return None
    outer, inner = shape(views[0]), shape(views[0].args[0])
    if inner[-1:] != outer[-1:]:
        return None
    replaced: dict[Any, Any] = {}
    for operand in operands:
        if calls(operand, aten.reshape.default):
            source = arguments(operand)[0]
            if shape(source) != inner or shape(operand) != outer:
                return None
            replaced[operand] = source
        elif shape(operand) not in ((), inner[-1:]):
            return None
    return reshaped_like(node, _with_operands(node, replaced), node)


def raise_reshape(node: fx.Node) -> fx.Node | None:
    """reshape(f(reshape(x))) → f(reshape(x)), where f sees rows that x does not have."""
    if not calls(node, aten.reshape.default):
        return None
    row = node.args[0]
    if not isinstance(row, fx.Node) or not is_rowwise(row) or len(row.users) > 1:
        return None
    inner = row.args[0]
    if not calls(inner, aten.reshape.default) or shape(row)[-1:] != shape(node)[-1:]:
        return None
    sizes = [*node.meta["val"].shape[:-1], shape(inner)[-1]]
    joined = reshaped(node, arguments(inner)[0], sizes)
    if joined is None:
        return None
    return emit_again(node, row, joined, *row.args[1:], val=node.meta["val"])


def sink_permute(node: fx.Node) -> fx.Node | None:
    """f(permute(x)) → permute(f(x)), for f of each element, or each row where rows stay whole."""
    rowwise = is_rowwise(node)
    if rowwise or calls(node, *UNARY):
        source = node.args[0]
        if not calls(source, aten.permute.default):
            return None
        order: Any = source.args[1]
        if rowwise and order[-1] != len(order) - 1:
            return None
        return permuted(node, _with_operands(node, {source: source.args[0]}), order, like=node)
    if calls(node, *BINARY):
        return _sink_permute_binary(node)
    return None


def _sink_permute_binary(node: fx.Node) -> fx.Node | None:
    operands = tensor_operands(node)
    orders = [tuple(arguments(x)[1]) for x in operands if calls(x, aten.permute.default)]
    if not orders or len(set(orders)) > 1:
        return None
    order = orders[0]
    replaced: dict[Any, Any] = {}
    for operand in operands:
        if calls(operand, aten.permute.default):
            replaced[operand] = operand.args[0]
        elif (inner := _permuted_freely(node, operand, unpermuted(order))) is not None:
            replaced[operand] = inner
        else:
            return None
    return permuted(node, _with_operands(node, replaced), order, like=node)


def _permuted_freely(before: fx.Node, operand: fx.Node, order: Sequence[int]) -> fx.Node | None:
    """Permute a broadcast operand where that moves no data."""
    rank = len(order)
    sizes = operand.meta["val"].shape
    padded = [1] * (rank - len(sizes)) + list(sizes)
    moved = [axis for axis in order if padded[axis] != 1]
    if moved != sorted(moved):
        return None
    result = [padded[axis] for axis in order]
    while len(result) > len(sizes) and result[0] == 1:
        result.pop(0)
    return reshaped(before, operand, result)


def sink_permute_past_slice(node: fx.Node) -> fx.Node | None:
    """slice(permute(x)) → permute(slice(x)), and the same for a cat of permuted values."""
    if calls(node, aten.slice.Tensor) and calls(node.args[0], aten.permute.default):
        source = node.args[0]
        order: Any = source.args[1]
        axis: Any = node.args[1]
        part = emit(node, aten.slice.Tensor, source.args[0], order[axis], *node.args[2:])
        return permuted(node, part, order, like=node)
    if calls(node, aten.cat.default):
        tensors: Any = node.args[0]
        if not all(calls(tensor, aten.permute.default) for tensor in tensors):
            return None
        order = tensors[0].args[1]
        if any(list(tensor.args[1]) != list(order) for tensor in tensors):
            return None
        axis = node.args[1]
        whole = emit(node, aten.cat.default, [tensor.args[0] for tensor in tensors], order[axis])
        return permuted(node, whole, order, like=node)
    return None


def select_rows_first(node: fx.Node) -> fx.Node | None:
    """norm(x)[:, rows] → norm(x[:, rows]): what is not wanted need not be normalised."""
    if not calls(node, aten.index.Tensor):
        return None
    source = node.args[0]
    indices: Any = node.args[1]
    if not calls(source, ops.rms_norm, ops.layer_norm) or len(source.users) > 1:
        return None
    if len(indices) > last_axis(source):
        return None
    rows = emit(node, aten.index.Tensor, source.args[0], indices)
    return _with_operands(source, {source.args[0]: rows}, before=node)


def _with_operands(
    node: fx.Node, replaced: dict[Any, Any], *, before: fx.Node | None = None
) -> fx.Node:
    """Add the same call with other operands."""
    operands = [replaced.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]
    return emit_again(before or node, node, *operands)


MOTIONS = (
    sink_reshape,
    raise_reshape,
    sink_permute,
    sink_permute_past_slice,
    select_rows_first,
)
