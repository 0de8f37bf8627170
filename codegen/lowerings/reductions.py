"""Sums, means, extremes, softmax and the largest few, along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx
from tvm import te, topi

from codegen.function_lowering import FunctionLowering, Value
from codegen.kernels.top_k import TopKSpec
from codegen.lowerings.arguments import Lowering, arguments, axis_of, cast_to_node, rows_of
from codegen.lowerings.views import permuted


def reduction(function: Callable[..., te.Tensor]) -> Lowering:
    """Lower a reduction along given axes, all of them by default."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a = arguments(f, node)
        x = cast_to_node(f, a.self, node)
        axes = getattr(a, "dim", None)
        axes = [axes] if isinstance(axes, int) else axes
        axes = tuple(axis_of(x, i) for i in axes or range(len(x.shape)))
        return f.compute(function, x, axis=axes, keepdims=getattr(a, "keepdim", False))

    return lowering


def mean(x: te.Tensor, axis: Sequence[int], keepdims: bool) -> te.Tensor:
    """Divide the sum along axes by the number of elements."""
    count: Any = 1
    for i in axis:
        count = count * x.shape[i]
    total = topi.sum(x, axis=axis, keepdims=keepdims)
    return te.compute(total.shape, lambda *i: total(*i) / count.astype(x.dtype), name="mean")


def softmax(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower softmax along one axis."""
    a = arguments(f, node)
    x = cast_to_node(f, a.self, node)
    return f.compute(topi.nn.softmax, x, axis=axis_of(x, a.dim))


def largest(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    """Lower the largest or smallest few along one axis, with their places."""
    a = arguments(f, node)
    axis = axis_of(a.self, a.dim)
    last = len(a.self.shape) - 1
    order = [i for i in range(last + 1) if i != axis] + [axis]
    x = permuted(f, a.self, order)
    m = f.row_count(x)
    spec = TopKSpec(k=a.k, dtype=x.dtype, largest=a.largest)
    rows = rows_of(m)
    values, places = f.kernel(
        ("top_k", spec, rows),
        lambda: f.kernel_set.top_k(spec, f.target, rows),
        f"top_k_{rows}",
        [f.rows(x)],
        [((m, a.k), x.dtype), ((m, a.k), "int64")],
    )
    shape = (*x.shape[:-1], a.k)
    back = [order.index(i) for i in range(last + 1)]
    return tuple(permuted(f, Value(var, shape), back) for var in (values, places))
