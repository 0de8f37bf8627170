"""Rotary embedding (RoFormer, arXiv 2104.09864), whatever it was written as.

Two spellings are in use, each with pairs of halves or of neighbours (interleaved):
x·cos + turn(x)·sin, where turn swaps the two features of each pair and negates one, and cos and sin
have every angle twice; and cat(a·cos − b·sin, b·cos + a·sin), with a and b the features of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from passes.patterns.pointwise import is_pointwise
from passes.patterns.views import last_axis, reshaped, reshaped_like, sliced
from passes.rewrite import (
    arguments,
    both_orders,
    calls,
    emit,
    emit_again,
    emit_like,
    is_tensor,
    shape,
)
from qcompiler.core import ops

aten = torch.ops.aten

HEADS_FIRST = [0, 2, 1, 3]


class Features(NamedTuple):
    """Features start, start + step, … before end of the last dimension of a value."""

    source: fx.Node
    start: int
    end: int
    step: int


def features(node: Any) -> Features | None:
    """Read a value as features of another, or all of its own."""
    if not is_tensor(node) or not shape(node) or not isinstance(shape(node)[-1], int):
        return None
    if calls(node, aten.slice.Tensor) and node.args[1] == last_axis(node) and len(node.args) > 3:
        source, _, start, end, *step = arguments(node)
        return Features(source, start, end, *(step or [1]))
    return Features(node, 0, shape(node)[-1], 1)


class Turn(NamedTuple):
    """Which features are rotated, and whether neighbours make a pair."""

    source: Features
    interleaved: bool


def recognize_turned_sum(node: fx.Node) -> fx.Node | None:
    """x·cos + turn(x)·sin → rotary."""
    if not calls(node, aten.add.Tensor) or node.kwargs:
        return None
    for straight, crossed in both_orders(node):
        if not calls(straight, aten.mul.Tensor) or not calls(crossed, aten.mul.Tensor):
            continue
        for turned, sin in both_orders(crossed):
            turn = _turn(turned)
            if turn is None:
                continue
            for x, cos in both_orders(straight):
                if features(x) == turn.source and is_tensor(cos) and is_tensor(sin):
                    single = _neighbours if turn.interleaved else _halves
                    cos, sin = _single(cos, single), _single(sin, single)
                    if cos is None or sin is None:
                        return None
                    return _rotary(node, x, cos, sin, turn.interleaved)
    return None


def _turn(node: Any) -> Turn | None:
    """Read cat(−b, a): b and a the halves of some features; or the same of neighbours."""
    pair = _pair(node)
    if pair is None:
        return None
    minus, a, interleaved = pair
    if not calls(minus, aten.neg.default):
        return None
    source = _joined(a, minus.args[0], interleaved)
    return None if source is None else Turn(source, interleaved)


def _pair(node: Any) -> tuple[fx.Node, fx.Node, bool] | None:
    """Read two values put together along the last dimension, one after the other or alternately."""
    if calls(node, aten.cat.default):
        halves, axis = arguments(node)
        return (*halves, False) if len(halves) == 2 and axis == last_axis(node) else None
    if not calls(node, aten.reshape.default) or not calls(node.args[0], aten.cat.default):
        return None
    both = node.args[0]
    pieces, axis = arguments(both)
    if len(pieces) != 2 or axis != last_axis(both):
        return None
    if shape(node)[-1] != 2 * shape(both)[-2] or _long(both)[:-2] != _long(node)[:-1]:
        return None
    if any(shape(piece)[-1] != 1 for piece in pieces):
        return None
    inner = [_without_last(piece) for piece in pieces]
    if inner[0] is None or inner[1] is None:
        return None
    return inner[0], inner[1], True


def _long(node: fx.Node) -> list[Any]:
    """Return the sizes of a value that are not one."""
    return [size for size in shape(node) if size != 1]


def _without_last(piece: fx.Node) -> fx.Node | None:
    """Take the last dimension, of size one, away again."""
    if calls(piece, aten.reshape.default):
        source: fx.Node = arguments(piece)[0]
        if shape(source) == shape(piece)[:-1]:
            return source
    return reshaped(piece, piece, piece.meta["val"].shape[:-1])


def _joined(a: Any, b: Any, interleaved: bool) -> Features | None:
    """Return the features of which `a` and `b` are the first and second of each pair."""
    first, second = features(a), features(b)
    if first is None or second is None or first.source is not second.source:
        return None
    if interleaved:
        if (first.step, second.step, second.start) != (2, 2, first.start + 1):
            return None
        count = 2 * shape(a)[-1]
        return Features(first.source, first.start, first.start + count, 1)
    width = first.end - first.start
    if (first.step, second.step, second.start) != (1, 1, first.end):
        return None
    return (
        Features(first.source, first.start, second.end, 1)
        if second.end == first.end + width
        else None
    )


def recognize_pair_of_sums(node: fx.Node) -> fx.Node | None:
    """cat(a·cos − b·sin, b·cos + a·sin) → rotary."""
    pair = _pair(node)
    if pair is None:
        return None
    minus, plus, interleaved = pair
    if not calls(minus, aten.sub.Tensor) or not calls(plus, aten.add.Tensor):
        return None
    if minus.kwargs or plus.kwargs:
        return None
    products = (*arguments(minus), *arguments(plus))
    if not all(calls(product, aten.mul.Tensor) for product in products):
        return None
    a_cos, b_sin, *added = products
    for a, cos in both_orders(a_cos):
        for b, sin in both_orders(b_sin):
            source = _joined(a, b, interleaved)
            wanted = {frozenset((b, cos)), frozenset((a, sin))}
            if source is None or {frozenset(p.args) for p in added} != wanted:
                continue
            x = sliced(node, source.source, last_axis(a), source.start, source.end)
            return _rotary(node, x, cos, sin, interleaved)
    return None


def _rotary(
    node: fx.Node, x: fx.Node, cos: fx.Node, sin: fx.Node, interleaved: bool
) -> fx.Node | None:
    """Add a rotary embedding in its layout, [b, s, h, d]; `cos`, `sin` broadcast to half of x."""
    if len(shape(x)) != 4 or not isinstance(shape(x)[-1], int):
        return None
    tables = [_table(node, table, x) for table in (cos, sin)]
    if tables[0] is None or tables[1] is None or tables[0][1] != tables[1][1]:
        return None
    heads_first = tables[0][1]
    kwargs = {"interleaved": True} if interleaved else {}
    if not heads_first:
        return emit_like(node, ops.rotary, x, tables[0][0], tables[1][0], **kwargs)
    moved = emit(node, aten.permute.default, x, HEADS_FIRST)
    result = emit(
        node, ops.rotary, moved, tables[0][0], tables[1][0], val=moved.meta["val"], **kwargs
    )
    return emit_like(node, aten.permute.default, result, HEADS_FIRST)


def _table(node: fx.Node, table: fx.Node, x: fx.Node) -> tuple[fx.Node, bool] | None:
    """Return a table as [b, s, r/2], and whether heads come before tokens in what it turns."""
    sizes = table.meta["val"].shape
    known = (1,) * (4 - len(sizes)) + shape(table)
    padded = [1] * (4 - len(sizes)) + list(sizes)
    if 2 * known[3] != shape(x)[3]:
        return None
    if known[1] == 1 and known[2] == shape(x)[2]:
        heads_first = True
    elif known[2] == 1 and known[1] == shape(x)[1]:
        heads_first = False
    else:
        return None
    del padded[1 if heads_first else 2]
    flat = reshaped(node, table, padded)
    return None if flat is None else (flat, heads_first)


def _single(table: fx.Node, base: Callable[[fx.Node], fx.Node | None]) -> fx.Node | None:
    """Return a table with each angle once, of one that has each twice in the way `base` undoes."""
    found = base(table)
    if found is not None:
        return found
    width = shape(table)[-1]
    if calls(table, aten.reshape.default) and is_tensor(source := table.args[0]):
        if not shape(source) or shape(source)[-1] != width:
            return None
        half = _single(source, base)
        return half and reshaped(table, half, [*table.meta["val"].shape[:-1], width // 2])
    if not is_pointwise(table):
        return None
    operands: list[Any] = []
    for operand in table.args:
        if is_tensor(operand) and shape(operand) and shape(operand)[-1] == width:
            operand = _single(operand, base)
            if operand is None:
                return None
        elif isinstance(operand, fx.Node) and shape(operand)[-1:] not in ((), (1,)):
            return None
        operands.append(operand)
    return emit_again(table, table, *operands)


def _halves(table: fx.Node) -> fx.Node | None:
    """cat(f, f) → f."""
    pair = _pair(table)
    return pair[0] if pair is not None and pair[0] is pair[1] and not pair[2] else None


def _neighbours(table: fx.Node) -> fx.Node | None:
    """repeat_interleave(f, 2), or f stacked on itself → f."""
    if calls(table, aten.repeat_interleave.self_int):
        source, count, axis = [*table.args, table.kwargs.get("dim")][:3]
        last = (-1, last_axis(table))
        return source if count == 2 and axis in last and is_tensor(source) else None
    pair = _pair(table)
    if pair is None or pair[0] is not pair[1] or not pair[2]:
        return None
    sizes = table.meta["val"].shape
    return reshaped(table, pair[0], [*sizes[:-1], sizes[-1] // 2])


def recognize_partial(node: fx.Node) -> fx.Node | None:
    """cat(rotary(x[:r]), x[r:]) → rotary(x)."""
    pair = _pair(node)
    if pair is None or pair[2]:
        return None
    turned = _rows(pair[0])
    if not calls(turned, ops.rotary):
        return None
    first, second = features(_rows(turned.args[0])), features(_rows(pair[1]))
    if first is None or second is None or first.source is not second.source:
        return None
    if (first.step, second.step, second.start) != (1, 1, first.end):
        return None
    rows = sliced(node, first.source, last_axis(first.source), first.start, second.end)
    x = reshaped(node, rows, [*turned.meta["val"].shape[:-1], second.end - first.start])
    if x is None:
        return None
    return reshaped_like(node, emit_again(node, turned, x, *turned.args[1:]), node)


def _rows(node: Any) -> Any:
    """See through reshapes that leave rows whole: a single head may come before or after tokens."""
    while calls(node, aten.reshape.default):
        source = arguments(node)[0]
        if shape(source)[-1:] != shape(node)[-1:]:
            break
        node = source
    return node


ROTARIES = (recognize_turned_sum, recognize_pair_of_sums, recognize_partial)
