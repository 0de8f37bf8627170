"""Lowerings of the aten operators that remain after the passes, as tensor expressions.

They get the generic schedule. Each takes the function being built and an FX node, and returns a
Value (or a size, or a tuple of either).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import te, tirx, topi

from codegen.function_lowering import DTYPES, FunctionLowering, Size, Value
from qcompiler.core.errors import UnsupportedError

aten = torch.ops.aten

Lowering = Callable[[FunctionLowering, fx.Node], Any]


def _arguments(f: FunctionLowering, node: fx.Node, *defaults: Any) -> list[Any]:
    """Return a node's positional arguments, in order, with defaults for missing ones."""
    given = [f.argument(a) for a in node.args]
    return given + list(defaults[len(given) :])


def _promote(f: FunctionLowering, node: fx.Node, *operands: Any) -> list[Any]:
    """Cast operands to the type torch computes in, and numbers to constants of it."""
    tensors = [o for o in operands if isinstance(o, Value)]
    # Comparisons give bool but compare in the operands' type.
    kinds = [t.dtype for t in tensors]
    numbers = [o for o in operands if not isinstance(o, Value)]
    rank = {"bool": 0, "uint8": 1, "int8": 1, "int32": 2, "int64": 3, "float16": 4, "float32": 5}
    kind = max(kinds, key=lambda k: rank[k])
    if any(isinstance(n, float) for n in numbers) and not kind.startswith("float"):
        kind = "float32"
    return [
        (o if o.dtype == kind else f.compute(topi.cast, o, dtype=kind))
        if isinstance(o, Value)
        else tirx.const(o, kind)
        if isinstance(o, int | float | bool)
        else o.astype(kind)
        for o in operands
    ]


def binary(function: Callable[..., Any]) -> Lowering:
    """Lower a broadcasting operator of two operands."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        a, b = _promote(f, node, *(f.argument(x) for x in node.args[:2]))
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1:
            b = f.compute(topi.multiply, b, tirx.const(alpha, b.dtype))
        if not isinstance(a, Value):
            return f.compute(lambda y: function(_full_like(y, a), y), b)
        return f.compute(function, a, b)

    return lowering


def _full_like(tensor: te.Tensor, number: Any) -> te.Tensor:
    return te.compute(tensor.shape, lambda *_: number, name="full")


def unary(function: Callable[..., Any]) -> Lowering:
    """Lower a function of each element; integers are computed in float32, as torch does."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        x = f.argument(node.args[0])
        if not x.dtype.startswith("float"):
            x = f.compute(topi.cast, x, dtype="float32")
        return f.compute(function, x)

    return lowering


def elementwise(expression: Callable[[Any], Any]) -> Callable[[te.Tensor], te.Tensor]:
    """Apply a scalar expression to every element."""
    return lambda x: te.compute(x.shape, lambda *i: expression(x(*i)), name="elementwise")


def _gelu(f: FunctionLowering, node: fx.Node) -> Value:
    x = f.argument(node.args[0])
    if node.kwargs.get("approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        return f.compute(
            elementwise(lambda v: 0.5 * v * (1 + tirx.tanh(c * (v + 0.044715 * v * v * v)))), x
        )
    return f.compute(elementwise(lambda v: 0.5 * v * (1 + tirx.erf(v * math.sqrt(0.5)))), x)


def _pow(f: FunctionLowering, node: fx.Node) -> Value:
    x, exponent = _arguments(f, node)
    if isinstance(exponent, Value):
        return f.compute(topi.power, x, exponent)
    if exponent in (2, 3):
        return f.compute(elementwise(lambda v: v * v if exponent == 2 else v * v * v), x)
    return f.compute(elementwise(lambda v: tirx.pow(v, tirx.const(exponent, x.dtype))), x)


# -- shapes ----------------------------------------------------------------------------------------


def _axis(value: Value, axis: int) -> int:
    return axis % len(value.shape)


def _view(f: FunctionLowering, node: fx.Node) -> Value:
    x, shape = f.argument(node.args[0]), f.argument(node.args[1])
    if any(isinstance(d, int) and d == -1 for d in shape):
        rest = f.product([d for d in shape if not (isinstance(d, int) and d == -1)])
        inferred = f.simplified(tirx.floordiv(f.product(x.shape) + tirx.const(0, "int64"), rest))
        shape = [inferred if isinstance(d, int) and d == -1 else d for d in shape]
    return Value(x.var, tuple(f.simplified(d) for d in shape))


def _flatten(f: FunctionLowering, node: fx.Node) -> Value:
    x, start, end = _arguments(f, node, None, 0, -1)
    start, end = _axis(x, start), _axis(x, end)
    shape = (*x.shape[:start], f.product(x.shape[start : end + 1]), *x.shape[end + 1 :])
    return Value(x.var, shape)


def _unsqueeze(f: FunctionLowering, node: fx.Node) -> Value:
    x, axis = _arguments(f, node)
    axis = axis % (len(x.shape) + 1)
    return Value(x.var, (*x.shape[:axis], 1, *x.shape[axis:]))


def _squeeze(f: FunctionLowering, node: fx.Node) -> Value:
    x, axes = _arguments(f, node, None, list(range(len(f.argument(node.args[0]).shape))))
    axes = {_axis(x, a) for a in (axes if isinstance(axes, list) else [axes])}
    keep = [
        d for i, d in enumerate(x.shape) if i not in axes or not (isinstance(d, int) and d == 1)
    ]
    return Value(x.var, tuple(keep))


def _permute(f: FunctionLowering, x: Value, order: list[int]) -> Value:
    shape = tuple(x.shape[i] for i in order)
    moved = [i for i in order if not (isinstance(x.shape[i], int) and x.shape[i] == 1)]
    if moved == sorted(moved):
        return Value(x.var, shape)  # only dimensions of size one change places
    result = f.compute(topi.transpose, x, axes=tuple(order))
    return Value(result.var, shape)


def _transpose(f: FunctionLowering, node: fx.Node) -> Value:
    x, a, b = _arguments(f, node)
    order = list(range(len(x.shape)))
    a, b = _axis(x, a), _axis(x, b)
    order[a], order[b] = order[b], order[a]
    return _permute(f, x, order)


def _permute_dims(f: FunctionLowering, node: fx.Node) -> Value:
    x, order = _arguments(f, node)
    return _permute(f, x, [_axis(x, i) for i in order])


def _transpose_2d(f: FunctionLowering, node: fx.Node) -> Value:
    x = f.argument(node.args[0])
    return _permute(f, x, list(range(len(x.shape)))[::-1])


def _expand(f: FunctionLowering, node: fx.Node) -> Value:
    x, shape = f.argument(node.args[0]), f.argument(node.args[1])
    padded = (1,) * (len(shape) - len(x.shape)) + x.shape
    goal = tuple(
        p if isinstance(s, int) and s == -1 else s for p, s in zip(padded, shape, strict=True)
    )
    if f.product(padded) is f.product(goal) or str(f.product(padded)) == str(f.product(goal)):
        return Value(x.var, goal)
    return f.compute(topi.broadcast_to, x, shape=goal)


def _slice(f: FunctionLowering, node: fx.Node) -> Value:
    x, axis, start, end, step = _arguments(f, node, None, 0, None, None, 1)
    axis = _axis(x, axis)
    size = x.shape[axis]
    start = _bound(f, start, size, 0)
    end = _bound(f, end, size, size)
    return _take_range(f, x, axis, start, end, step)


def _bound(f: FunctionLowering, bound: Any, size: Size, default: Size) -> Size:
    if bound is None or (isinstance(bound, int) and bound >= 2**62):
        return default
    if isinstance(bound, int):
        if bound < 0:
            return f.simplified(size + bound)
        return min(bound, size) if isinstance(size, int) else bound
    return f.simplified(bound)


def _take_range(
    f: FunctionLowering, x: Value, axis: int, start: Size, end: Size, step: int = 1
) -> Value:
    length = f.simplified(tirx.floordiv(end - start + step - 1 + tirx.const(0, "int64"), step))
    if str(length) == str(x.shape[axis]) and step == 1:
        return x

    # Symbolic sizes go in as arguments, because the expression is made over copies of them.
    def gather(t: te.Tensor, start: Size, length: Size) -> te.Tensor:
        return te.compute(
            (*t.shape[:axis], length, *t.shape[axis + 1 :]),
            lambda *i: t(*i[:axis], start + i[axis] * step, *i[axis + 1 :]),
            name="slice",
        )

    return f.compute(gather, x, start, length)


def _select(f: FunctionLowering, node: fx.Node) -> Value:
    x, axis, index = _arguments(f, node)
    axis = _axis(x, axis)
    index = _bound(f, index, x.shape[axis], 0)
    part = _take_range(f, x, axis, index, index + 1)
    return Value(part.var, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _split_with_sizes(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    x, sizes, axis = _arguments(f, node, None, None, 0)
    axis, parts, start = _axis(x, axis), [], 0
    for size in sizes:
        parts.append(_take_range(f, x, axis, start, start + size))
        start = start + size
    return tuple(parts)


def _split(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    x, size, axis = _arguments(f, node, None, None, 0)
    axis = _axis(x, axis)
    total = int(x.shape[axis])
    return tuple(
        _take_range(f, x, axis, start, min(start + size, total)) for start in range(0, total, size)
    )


def _chunk(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    x, chunks, axis = _arguments(f, node, None, None, 0)
    axis = _axis(x, axis)
    total = int(x.shape[axis])
    size = -(-total // chunks)
    return tuple(
        _take_range(f, x, axis, start, min(start + size, total)) for start in range(0, total, size)
    )


def _concatenate(f: FunctionLowering, node: fx.Node) -> Value:
    tensors, axis = _arguments(f, node, None, 0)
    inputs = [f.shaped(t) for t in tensors]
    var = f.builder.emit_te(
        lambda *t: topi.concatenate(t, axis=_axis(tensors[0], axis)),
        *inputs,
        primfunc_name_hint="concatenate",
    )
    return f.value(var)


def _index(f: FunctionLowering, node: fx.Node) -> Value:
    """Gather along one dimension: x[:, …, index]."""
    x, indices = f.argument(node.args[0]), f.argument(node.args[1])
    used = [i for i, index in enumerate(indices) if index is not None]
    if len(used) != 1 or len(indices[used[0]].shape) != 1:
        raise UnsupportedError(
            f"operator aten.index.Tensor ({node.name}) gathers along several dimensions, which has "
            "no kernel; one index tensor of one dimension does"
        )
    axis, index = used[0], indices[used[0]]
    if isinstance(x.shape[axis], int) and x.shape[axis] == 1 and index.shape[0] == 1:
        return x  # one row to choose from
    return f.compute(_gather(axis), x, index)


def _gather(axis: int) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
    """Choose along one dimension by the numbers of a vector, which must be in range."""

    def gather(t: te.Tensor, chosen: te.Tensor) -> te.Tensor:
        return te.compute(
            (*t.shape[:axis], chosen.shape[0], *t.shape[axis + 1 :]),
            lambda *i: t(*i[:axis], chosen(i[axis]), *i[axis + 1 :]),
            name="gather",
        )

    return gather


def _index_select(f: FunctionLowering, node: fx.Node) -> Value:
    x, axis, index = _arguments(f, node)
    return f.compute(_gather(_axis(x, axis)), x, index)


# -- constants -------------------------------------------------------------------------------------


def _arange(f: FunctionLowering, node: fx.Node) -> Value:
    bounds = [f.argument(a) for a in node.args]
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1)}.get(len(bounds), tuple(bounds))
    dtype = DTYPES[node.meta["val"].dtype]
    length = f.simplified(tirx.floordiv(end - start + step - 1 + tirx.const(0, "int64"), step))

    def make() -> te.Tensor:
        return te.compute((length,), lambda i: (start + i * step).astype(dtype), name="arange")

    return f.compute(make)


def _full(f: FunctionLowering, node: fx.Node) -> Value:
    shape, number = f.argument(node.args[0]), node.args[1]
    return _filled(f, node, shape, number)


def _filled(f: FunctionLowering, node: fx.Node, shape: Any, number: Any) -> Value:
    dtype = DTYPES[node.meta["val"].dtype]

    def make() -> te.Tensor:
        return te.compute(tuple(shape), lambda *_: tirx.const(number, dtype), name="full")

    return f.compute(make)


def filled_with(number: int) -> Lowering:
    """Lower zeros, ones and their like."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        like = f.argument(node.args[0])
        shape = like.shape if isinstance(like, Value) else like
        return _filled(f, node, shape, number)

    return lowering


def _cast(f: FunctionLowering, node: fx.Node) -> Value:
    x = f.argument(node.args[0])
    dtype = DTYPES[node.meta["val"].dtype]
    return x if x.dtype == dtype else Value(f.compute(topi.cast, x, dtype=dtype).var, x.shape)


# -- reductions and products -----------------------------------------------------------------------


def reduction(function: Callable[..., Any]) -> Lowering:
    """Lower a reduction over given dimensions (all of them by default)."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        x, axes, keep = _arguments(f, node, None, None, False)
        keep = node.kwargs.get("keepdim", keep)
        axes = [axes] if isinstance(axes, int) else axes
        axes = tuple(_axis(x, a) for a in (axes or range(len(x.shape))))
        return f.compute(function, x, axis=axes, keepdims=keep)

    return lowering


def _mean(x: te.Tensor, axis: tuple[int, ...], keepdims: bool) -> te.Tensor:
    count: Any = 1
    for a in axis:
        count = count * x.shape[a]
    total = topi.sum(x, axis=axis, keepdims=keepdims)
    return te.compute(total.shape, lambda *i: total(*i) / count.astype(x.dtype), name="mean")


def _softmax(f: FunctionLowering, node: fx.Node) -> Value:
    x, axis = _arguments(f, node)[:2]
    return f.compute(topi.nn.softmax, x, axis=_axis(x, axis))


def _matmul(f: FunctionLowering, node: fx.Node) -> Value:
    a, b = _arguments(f, node)
    return f.compute(topi.matmul, a, b) if len(a.shape) == 2 else _batched(f, a, b)


def _batched(f: FunctionLowering, a: Value, b: Value) -> Value:
    """Multiply stacks of matrices whose leading dimensions agree or are one."""
    if not isinstance(b.shape[-2], int):
        raise UnsupportedError("a product over a dynamic dimension has no kernel")

    def product(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        lead = [
            p if not (isinstance(p, int) and p == 1) else q
            for p, q in zip(a.shape[:-2], b.shape[:-2], strict=True)
        ]
        k = te.reduce_axis((0, b.shape[-2]), "k")

        def at(t: Value, index: tuple[Any, ...]) -> list[Any]:
            return [
                0 if isinstance(d, int) and d == 1 else i
                for d, i in zip(t.shape[:-2], index, strict=True)
            ]

        return te.compute(
            (*lead, a.shape[-2], b.shape[-1]),
            lambda *i: te.sum(x(*at(a, i[:-2]), i[-2], k) * y(*at(b, i[:-2]), k, i[-1]), axis=k),
            name="matmul",
        )

    return f.compute(product, a, b)


def _where(f: FunctionLowering, node: fx.Node) -> Value:
    condition, a, b = _arguments(f, node)
    dtype = DTYPES[node.meta["val"].dtype]
    operands = [o if isinstance(o, Value) else _scalar(f, o, dtype) for o in (a, b)]
    return f.compute(topi.where, condition, *operands)


def _scalar(f: FunctionLowering, number: Any, dtype: str) -> Value:
    return f.compute(lambda: te.compute((1,), lambda _: tirx.const(number, dtype), name="number"))


def _masked_fill(f: FunctionLowering, node: fx.Node) -> Value:
    x, mask, number = _arguments(f, node)
    filler = number if isinstance(number, Value) else _scalar(f, number, x.dtype)
    return f.compute(topi.where, mask, filler, x)


# -- sizes -----------------------------------------------------------------------------------------


def _size(f: FunctionLowering, node: fx.Node) -> Size:
    x, axis = _arguments(f, node)
    return x.shape[_axis(x, axis)]


def arithmetic(function: Callable[..., Any]) -> Lowering:
    """Lower Python arithmetic on sizes."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Size:
        return f.simplified(function(*(f.argument(a) for a in node.args)))

    return lowering


def _getitem(f: FunctionLowering, node: fx.Node) -> Any:
    return f.argument(node.args[0])[node.args[1]]


def _same(f: FunctionLowering, node: fx.Node) -> Value:
    return f.argument(node.args[0])


ATEN: dict[Any, Lowering] = {
    aten.add.Tensor: binary(topi.add),
    aten.add.Scalar: binary(topi.add),
    aten.sub.Tensor: binary(topi.subtract),
    aten.sub.Scalar: binary(topi.subtract),
    aten.rsub.Scalar: binary(lambda x, y: topi.subtract(y, x)),
    aten.mul.Tensor: binary(topi.multiply),
    aten.mul.Scalar: binary(topi.multiply),
    aten.div.Tensor: binary(topi.divide),
    aten.div.Scalar: binary(topi.divide),
    aten.maximum.default: binary(topi.maximum),
    aten.minimum.default: binary(topi.minimum),
    aten.eq.Scalar: binary(topi.equal),
    aten.eq.Tensor: binary(topi.equal),
    aten.ne.Scalar: binary(topi.not_equal),
    aten.lt.Tensor: binary(topi.less),
    aten.lt.Scalar: binary(topi.less),
    aten.le.Tensor: binary(topi.less_equal),
    aten.gt.Tensor: binary(topi.greater),
    aten.gt.Scalar: binary(topi.greater),
    aten.ge.Tensor: binary(topi.greater_equal),
    aten.ge.Scalar: binary(topi.greater_equal),
    aten.logical_and.default: binary(topi.logical_and),
    aten.bitwise_and.Tensor: binary(topi.logical_and),
    aten.__and__.Tensor: binary(topi.logical_and),
    aten.logical_not.default: lambda f, n: f.compute(topi.logical_not, f.argument(n.args[0])),
    aten.bitwise_not.default: lambda f, n: f.compute(topi.logical_not, f.argument(n.args[0])),
    aten.neg.default: lambda f, n: f.compute(topi.negative, f.argument(n.args[0])),
    aten.rsqrt.default: unary(topi.rsqrt),
    aten.sqrt.default: unary(topi.sqrt),
    aten.exp.default: unary(topi.exp),
    aten.cos.default: unary(topi.cos),
    aten.sin.default: unary(topi.sin),
    aten.tanh.default: unary(topi.tanh),
    aten.sigmoid.default: unary(topi.sigmoid),
    aten.relu.default: unary(topi.nn.relu),
    aten.silu.default: unary(elementwise(lambda v: v / (1 + tirx.exp(-v)))),
    aten.gelu.default: _gelu,
    aten.pow.Tensor_Scalar: _pow,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.flatten.using_ints: _flatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze.default: _squeeze,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute_dims,
    aten.t.default: _transpose_2d,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.chunk.default: _chunk,
    aten.cat.default: _concatenate,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.full.default: _full,
    aten.zeros.default: filled_with(0),
    aten.ones.default: filled_with(1),
    aten.zeros_like.default: filled_with(0),
    aten.ones_like.default: filled_with(1),
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten._to_copy.default: _cast,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.mean.dim: reduction(_mean),
    aten.sum.dim_IntList: reduction(topi.sum),
    aten.amax.default: reduction(topi.max),
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.matmul.default: _matmul,
    aten.bmm.default: lambda f, n: _batched(f, *_arguments(f, n)),
    aten.mm.default: lambda f, n: f.compute(topi.matmul, *_arguments(f, n)),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.sym_size.int: _size,
    operator.add: arithmetic(operator.add),
    operator.sub: arithmetic(operator.sub),
    operator.mul: arithmetic(operator.mul),
    operator.floordiv: arithmetic(operator.floordiv),
    operator.mod: arithmetic(operator.mod),
    operator.neg: arithmetic(operator.neg),
    operator.getitem: _getitem,
}
