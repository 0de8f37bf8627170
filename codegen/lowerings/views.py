"""Shapes seen otherwise, transposes and repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from tvm import topi

from codegen.function_lowering import FunctionLowering, Size, Value
from codegen.lowerings.arguments import arguments, axis_of, is_one


def view(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a reshape, whatever it is called; one size may be −1."""
    x, shape = (f.argument(a) for a in node.args[:2])
    if any(map(_is_open, shape)):
        rest = f.product([size for size in shape if not _is_open(size)])
        inferred = f.quotient(f.product(x.shape), rest)
        shape = [inferred if _is_open(size) else size for size in shape]
    return Value(x.var, tuple(f.simplified(size) for size in shape))


def _is_open(size: Size) -> bool:
    return isinstance(size, int) and size == -1


def flatten(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the merging of neighbouring axes."""
    a = arguments(f, node)
    x: Value = a.self
    start, end = axis_of(x, a.start_dim), axis_of(x, a.end_dim) + 1
    return Value(x.var, (*x.shape[:start], f.product(x.shape[start:end]), *x.shape[end:]))


def unsqueeze(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a new axis of size one."""
    a = arguments(f, node)
    return with_axis(a.self, a.dim % (len(a.self.shape) + 1))


def with_axis(x: Value, axis: int, size: Size = 1) -> Value:
    """Return a view with one more axis, of size one, or of the size that x makes room for."""
    return Value(x.var, (*x.shape[:axis], size, *x.shape[axis:]))


def squeeze(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the removal of axes of size one."""
    a = arguments(f, node)
    x: Value = a.self
    axes = getattr(a, "dim", range(len(x.shape)))
    axes = {axis_of(x, i) for i in ([axes] if isinstance(axes, int) else axes)}
    keep = [size for i, size in enumerate(x.shape) if i not in axes or not is_one(size)]
    return Value(x.var, tuple(keep))


def permuted(f: FunctionLowering, x: Value, order: Sequence[int]) -> Value:
    """Return x with its axes in another order; numbers move only if they must."""
    shape = tuple(x.shape[i] for i in order)
    moved = [i for i in order if not is_one(x.shape[i])]
    if moved == sorted(moved):
        return Value(x.var, shape)
    return Value(f.compute(topi.transpose, x, axes=tuple(order)).var, shape)


def transpose(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the exchange of two axes."""
    a = arguments(f, node)
    order = list(range(len(a.self.shape)))
    one, other = axis_of(a.self, a.dim0), axis_of(a.self, a.dim1)
    order[one], order[other] = order[other], order[one]
    return permuted(f, a.self, order)


def permute(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a new order of axes."""
    a = arguments(f, node)
    return permuted(f, a.self, [axis_of(a.self, i) for i in a.dims])


def transpose_matrix(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower `t`, which transposes a matrix and leaves a vector alone."""
    x = arguments(f, node).self
    return permuted(f, x, list(range(len(x.shape)))[::-1])


def expand(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the repetition of axes of size one."""
    a = arguments(f, node)
    return broadcast(f, a.self, a.size)


def broadcast(f: FunctionLowering, x: Value, shape: Sequence[Any]) -> Value:
    """Repeat axes of size one, and new ones in front, to reach a shape; −1 leaves an axis alone."""
    padded = (1,) * (len(shape) - len(x.shape)) + x.shape
    goal = tuple(p if _is_open(s) else s for p, s in zip(padded, shape, strict=True))
    if f.equal(f.product(padded), f.product(goal)):
        return Value(x.var, goal)
    return f.compute(topi.broadcast_to, Value(x.var, padded), shape=goal)


def repeat(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower copies of the whole, one after the other, along each axis."""
    a = arguments(f, node)
    shape = (1,) * (len(a.repeats) - len(a.self.shape)) + a.self.shape
    each = [size for pair in zip(a.repeats, shape, strict=True) for size in pair]
    x = Value(a.self.var, tuple(size for extent in shape for size in (1, extent)))
    copies = broadcast(f, x, each)
    merged = (f.product(pair) for pair in zip(a.repeats, shape, strict=True))
    return Value(copies.var, tuple(merged))


def repeat_interleave(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower copies of each element, next to it, along one axis."""
    a = arguments(f, node)
    x = a.self if a.dim is not None else Value(a.self.var, (f.product(a.self.shape),))
    axis = axis_of(x, a.dim or 0)
    # A new axis, so that no kernel has to divide its indices.
    apart = with_axis(x, axis + 1)
    copies = broadcast(f, apart, (*x.shape[: axis + 1], a.repeats, *x.shape[axis + 1 :]))
    merged = f.product((x.shape[axis], a.repeats))
    return Value(copies.var, (*x.shape[:axis], merged, *x.shape[axis + 1 :]))
