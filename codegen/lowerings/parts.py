"""Parts of a value, values put together, and what indices choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx
from tvm import te, tirx, topi

from codegen.function_lowering import FunctionLowering, Size, Value
from codegen.lowerings.arguments import arguments, axis_of, cast, cast_to_node, is_one
from codegen.lowerings.views import with_axis
from qcompiler.core.errors import UnsupportedError

_UNBOUNDED = 2**62
"""What exported graphs write for the end of an axis is no smaller."""


def slice_axis(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower a range of one axis."""
    a = arguments(f, node)
    x: Value = a.self
    axis = axis_of(x, a.dim)
    size = x.shape[axis]
    start = 0 if a.start is None else _bound(f, a.start, size)
    end = size if a.end is None else _bound(f, a.end, size)
    length = node.meta["val"].shape[axis]
    if not isinstance(length, int):  # what torch knows of sizes that vary is not known here
        length = f.quotient(end - start + (a.step - 1), a.step)
    return _range(f, x, axis, start, length, a.step)


def _bound(f: FunctionLowering, bound: Size, size: Size) -> Size:
    """Return the place that a bound means: from the back when negative, at most the size."""
    if not isinstance(bound, int):
        return f.simplified(bound)
    if bound >= _UNBOUNDED:
        return size
    if bound < 0:
        return f.simplified(tirx.max(size + bound, 0)) if bound < -1 else size - 1
    return min(bound, size) if isinstance(size, int) else f.simplified(tirx.min(size, bound))


def _range(
    f: FunctionLowering, x: Value, axis: int, start: Size, length: Size, step: int = 1
) -> Value:
    if step == 1 and f.equal(length, x.shape[axis]):
        return x

    # Sizes go in as arguments, because the expression is made over copies of the symbols.
    def slice(t: te.Tensor, start: Size, length: Size) -> te.Tensor:
        return te.compute(
            (*t.shape[:axis], length, *t.shape[axis + 1 :]),
            lambda *i: t(*i[:axis], start + i[axis] * step, *i[axis + 1 :]),
            name="slice",
        )

    return f.compute(slice, x, start, length)


def select(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower one place of an axis, which disappears."""
    a = arguments(f, node)
    x: Value = a.self
    axis, index = axis_of(x, a.dim), a.index
    if isinstance(index, int) and index < 0:
        index = x.shape[axis] + index
    part = _range(f, x, axis, index, 1)
    return Value(part.var, (*x.shape[:axis], *x.shape[axis + 1 :]))


def split(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    """Lower the cut into parts of given sizes, or all of one size but the last."""
    a = arguments(f, node)
    axis = axis_of(a.self, a.dim)
    if hasattr(a, "split_sizes"):
        return _parts(f, a.self, axis, a.split_sizes)
    return _equal_parts(f, a.self, axis, _known(a.self.shape[axis], node), a.split_size)


def chunk(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    """Lower the cut into a number of parts, the last of which may be smaller."""
    a = arguments(f, node)
    axis = axis_of(a.self, a.dim)
    total = _known(a.self.shape[axis], node)
    return _equal_parts(f, a.self, axis, total, -(-total // a.chunks))


def _equal_parts(
    f: FunctionLowering, x: Value, axis: int, total: int, size: int
) -> tuple[Value, ...]:
    whole, rest = divmod(total, size)
    return _parts(f, x, axis, [size] * whole + [rest] * (rest > 0))


def _known(size: Size, node: fx.Node) -> int:
    if not isinstance(size, int):
        raise UnsupportedError(
            f"operator {node.target} ({node.name}) cuts an axis whose size varies into parts, "
            "which has no kernel; cut with slices, or export with a fixed size"
        )
    return size


def _parts(f: FunctionLowering, x: Value, axis: int, sizes: Sequence[Size]) -> tuple[Value, ...]:
    parts, start = [], 0
    for size in sizes:
        parts.append(_range(f, x, axis, start, size))
        start = start + size
    return tuple(parts)


def concatenate(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower tensors one after the other along an axis."""
    a = arguments(f, node)
    tensors = [cast_to_node(f, t, node) for t in a.tensors]
    return _concatenated(f, tensors, axis_of(tensors[0], a.dim))


def stack(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower tensors one after the other along a new axis."""
    a = arguments(f, node)
    tensors = [cast_to_node(f, t, node) for t in a.tensors]
    axis = a.dim % (len(tensors[0].shape) + 1)
    return _concatenated(f, [with_axis(t, axis) for t in tensors], axis)


def _concatenated(f: FunctionLowering, tensors: Sequence[Value], axis: int) -> Value:
    if len(tensors) == 1:
        return tensors[0]

    def concatenate(*parts: te.Tensor) -> te.Tensor:
        return topi.concatenate(parts, axis=axis)

    return f.compute(concatenate, *tensors)


# -- indices that are tensors ----------------------------------------------------------------------


def index(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower x[:, …, i, j], where i and j broadcast against each other.

    Numbers below zero count from the back; the others must be in range.
    """
    a = arguments(f, node)
    x: Value = a.self
    chosen = {axis: i for axis, i in enumerate(a.indices) if i is not None}
    if any(i.dtype == "bool" for i in chosen.values()):
        raise UnsupportedError(
            f"operator {node.target} ({node.name}) chooses by a mask, so that the size of its "
            "result is known only when it has run, which has no kernel; use where() instead"
        )
    only = next(iter(chosen)) if len(chosen) == 1 else None
    if only is not None and is_one(x.shape[only]) and chosen[only].shape == (1,):
        return x  # one row to choose from
    numbers = [cast(f, i, "int64") for i in chosen.values()]
    return f.compute(_choose(list(chosen), [i.shape for i in numbers]), x, *numbers)


def _choose(axes: list[int], shapes: list[tuple[Size, ...]]) -> Callable[..., te.Tensor]:
    """Return the expression of x[…] with index tensors of given shapes on some of its axes.

    Axes side by side are replaced by those of the indices; if they are apart, these come first.
    """
    together = axes == list(range(axes[0], axes[-1] + 1))
    place = axes[0] if together else 0
    rank = max(map(len, shapes))

    def gather(x: te.Tensor, *indices: te.Tensor) -> te.Tensor:
        common = [_common(shapes, indices, k - rank) for k in range(rank)]
        kept = [x.shape[axis] for axis in range(len(x.shape)) if axis not in axes]

        def element(*at: tirx.PrimExpr) -> tirx.PrimExpr:
            numbers = {}
            for axis, shape, tensor in zip(axes, shapes, indices, strict=True):
                own = at[place + rank - len(shape) : place + rank]
                where = (0 if is_one(size) else k for size, k in zip(shape, own, strict=True))
                numbers[axis] = _from_front(tensor(*where), x.shape[axis])
            rest = iter((*at[:place], *at[place + rank :]))
            return x(*(numbers.get(a) if a in numbers else next(rest) for a in range(x.ndim)))

        return te.compute((*kept[:place], *common, *kept[place:]), element, name="gather")

    return gather


def _common(shapes: list[tuple[Size, ...]], tensors: Sequence[te.Tensor], axis: int) -> Size:
    """Return the size, along an axis counted from the back, that shapes broadcast to."""
    sizes = [
        tensor.shape[axis]
        for shape, tensor in zip(shapes, tensors, strict=True)
        if len(shape) >= -axis and not is_one(shape[axis])
    ]
    return sizes[0] if sizes else 1


def _from_front(number: tirx.PrimExpr, size: Size) -> tirx.PrimExpr:
    return tirx.Select(number < 0, number + size, number)


def index_select(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the choice of places of one axis by a vector of numbers, which must be in range."""
    a = arguments(f, node)
    x: Value = a.self
    axis = axis_of(x, a.dim)
    if is_one(x.shape[axis]) and is_one(a.index.shape[0]):
        return x

    def gather(x: te.Tensor, numbers: te.Tensor) -> te.Tensor:
        return te.compute(
            (*x.shape[:axis], numbers.shape[0], *x.shape[axis + 1 :]),
            lambda *i: x(*i[:axis], numbers(i[axis]), *i[axis + 1 :]),
            name="gather",
        )

    return f.compute(gather, x, cast(f, a.index, "int64"))


def gather(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the choice of a place of one axis for every element of the result."""
    a = arguments(f, node)
    axis = axis_of(a.self, a.dim)

    def gather(x: te.Tensor, numbers: te.Tensor) -> te.Tensor:
        return te.compute(
            numbers.shape,
            lambda *i: x(*i[:axis], numbers(*i), *i[axis + 1 :]),
            name="gather",
        )

    return f.compute(gather, a.self, cast(f, a.index, "int64"))
