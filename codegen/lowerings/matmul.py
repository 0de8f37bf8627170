"""Products of two computed values; those with a stored matrix are in `products`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from tvm import te, tirx

from codegen.function_lowering import FunctionLowering, Size, Value
from codegen.lowerings.arguments import arguments, is_one
from codegen.lowerings.views import with_axis

aten = torch.ops.aten


def matmul(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a product of matrices, stacks of them or vectors; stacks broadcast."""
    x, y = (f.argument(a) for a in node.args[:2])
    left = x if len(x.shape) > 1 else with_axis(x, 0)
    right = y if len(y.shape) > 1 else with_axis(y, 1)
    product = _product(f, left, right)
    shape = product.shape
    if len(y.shape) == 1:
        shape = shape[:-1]
    if len(x.shape) == 1:
        shape = (*shape[: len(product.shape) - 2], *shape[len(product.shape) - 1 :])
    return Value(product.var, shape)


def batched_matmul(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a product of stacks of matrices.

    Matrices that are chosen from a table, as those of experts are, are read where they lie: copies
    for every token would not fit into memory.
    """
    a = arguments(f, node)
    chosen = _chosen_matrices(node.args[0])
    if chosen is None:
        return _product(f, a.self, a.mat2)

    def chosen_matmul(table: te.Tensor, places: te.Tensor, y: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, y.shape[1]), "k")
        return te.compute(
            (y.shape[0], table.shape[1], y.shape[2]),
            lambda b, i, j: te.sum(table(places(b), i, k) * y(b, k, j), axis=k),
            name="chosen_matmul",
        )

    return f.compute(chosen_matmul, *(f.argument(c) for c in chosen), a.mat2)


def _chosen_matrices(stack: Any) -> tuple[Any, Any] | None:
    """Return the table and the places that a stack of matrices is chosen from and by, if it is."""
    if not isinstance(stack, fx.Node) or stack.target is not aten.index.Tensor:
        return None
    table, indices = stack.args
    if not isinstance(indices, list | tuple) or len(indices) != 1:
        return None
    places = indices[0]
    if not isinstance(places, fx.Node) or places.meta["val"].dim() != 1:
        return None
    return table, places


def _product(f: FunctionLowering, x: Value, y: Value) -> Value:
    """Multiply stacks of matrices whose leading axes broadcast."""
    rank = max(len(x.shape), len(y.shape)) - 2
    x_one, y_one = ([is_one(size) for size in v.shape[:-2]] for v in (x, y))

    def matmul(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, x.shape[-1]), "k")

        def lead(axis: int) -> Size:
            """Return the size of a leading axis, counted from the back."""
            for t, one in ((x, x_one), (y, y_one)):
                if len(one) >= -axis and not one[axis]:
                    return t.shape[axis - 2]
            return 1

        def at(t: te.Tensor, one: list[bool], index: tuple[tirx.PrimExpr, ...]) -> list[Any]:
            own = index[rank - len(one) : rank]
            return [0 if single else i for single, i in zip(one, own, strict=True)]

        def element(*i: tirx.PrimExpr) -> tirx.PrimExpr:
            return te.sum(x(*at(x, x_one, i), i[-2], k) * y(*at(y, y_one, i), k, i[-1]), axis=k)

        shape = (*(lead(axis - rank) for axis in range(rank)), x.shape[-2], y.shape[-1])
        return te.compute(shape, element, name="matmul")

    return f.compute(matmul, x, y)
