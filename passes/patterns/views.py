"""Write every change of shape as a reshape, a permute, a slice or a cat, and run those together.

The forms that are left:
`aten.reshape.default(x, sizes)`, where a single dynamic size is −1 and several are sizes of inputs;
`aten.permute.default(x, order)`; `aten.slice.Tensor(x, axis, start[, end[, step]])`;
`aten.cat.default(tensors, axis)`. Axes count from the front.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from passes.rewrite import arguments, calls, emit, emit_like, is_tensor, shape, size
from qcompiler.core import shapes

aten = torch.ops.aten

RESHAPES = (
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
PERMUTES = (
    aten.adjoint.default,
    aten.mH.default,
    aten.mT.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.numpy_T.default,
    aten.permute.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.t.default,
    aten.transpose.int,
)
SPLITS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
)
END = 2**63 - 1
"""What torch writes for the end of a slice that goes to the end."""

Dim = int | torch.SymInt


# -- what rules use to add a change of shape -------------------------------------------------------


def reshaped(
    before: fx.Node, source: fx.Node, sizes: Sequence[Dim], *, like: fx.Node | None = None
) -> fx.Node | None:
    """Add reshape(source, sizes) if it changes anything, or decline if a size cannot be named.

    `like` is a value of those sizes, if there is one: working a shape out takes time.
    """
    if tuple(map(size, sizes)) == shape(source):
        return source
    named = _named_sizes(before, sizes)
    if named is None:
        return None
    with before.graph.inserting_before(before):
        node = before.graph.call_function(aten.reshape.default, (source, named))
    if like is None:
        node.meta["val"] = shapes.infer(aten.reshape.default, source, list(sizes))
    else:
        node.meta["val"] = like.meta["val"]
    return node


def reshaped_like(before: fx.Node, source: fx.Node, like: fx.Node) -> fx.Node | None:
    """Add a reshape of `source` to the sizes of `like` if it changes anything."""
    return reshaped(before, source, like.meta["val"].shape, like=like)


def permuted(
    before: fx.Node, source: fx.Node, order: Sequence[int], *, like: fx.Node | None = None
) -> fx.Node | None:
    """Add permute(source, order); a reshape does where only dimensions of size one move."""
    if list(order) == sorted(order):
        return source
    if not moves(source, order):
        sizes = source.meta["val"].shape
        return reshaped(before, source, [sizes[axis] for axis in order], like=like)
    if like is None:
        return emit(before, aten.permute.default, source, list(order))
    return emit(before, aten.permute.default, source, list(order), val=like.meta["val"])


def moves(source: fx.Node, order: Sequence[int]) -> bool:
    """Tell whether a permutation changes more than the places of dimensions of size one."""
    moved = [axis for axis in order if shape(source)[axis] != 1]
    return moved != sorted(moved)


def sliced(before: fx.Node, source: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    """Add slice(source, axis, start, end) if it leaves anything out."""
    if start == 0 and end == shape(source)[axis]:
        return source
    return emit(before, aten.slice.Tensor, source, axis, start, end)


def unpermuted(order: Sequence[int]) -> list[int]:
    """Return the order that undoes `order`.

    >>> unpermuted([2, 0, 1])
    [1, 2, 0]
    """
    return [list(order).index(axis) for axis in range(len(order))]


def last_axis(node: fx.Node) -> int:
    """Return the number of a value's last dimension."""
    return len(shape(node)) - 1


def _named_sizes(before: fx.Node, sizes: Sequence[Dim]) -> list[Any] | None:
    """Write sizes as arguments of a reshape: ints, −1 for one that is dynamic, or nodes."""
    plain = [size(dim) for dim in sizes]
    dynamic = [i for i, dim in enumerate(plain) if not isinstance(dim, int)]
    named: list[Any] = list(plain)
    if len(dynamic) == 1 and 0 not in plain:
        named[dynamic[0]] = -1
        return named
    for i in dynamic:
        named[i] = _size_of_input(before, plain[i])
    unnamed = [i for i in dynamic if named[i] is None]
    if len(unnamed) > 1 or (unnamed and 0 in plain):
        return None
    for i in unnamed:
        named[i] = -1
    return named


def _size_of_input(before: fx.Node, wanted: Any) -> fx.Node | None:
    """Return a node for a dynamic size that an input has."""
    for source in before.graph.find_nodes(op="placeholder"):
        if not is_tensor(source) or wanted not in shape(source):
            continue
        axis = shape(source).index(wanted)
        for user in source.users:
            if calls(user, aten.sym_size.int) and user.args[1] == axis and user < before:
                return user
        return emit(before, aten.sym_size.int, source, axis)
    return None


# -- rules -----------------------------------------------------------------------------------------


def to_reshape(node: fx.Node) -> fx.Node | None:
    """view, unsqueeze, flatten, …(x) → reshape(x); one for several in a row, none for no effect."""
    if not calls(node, *RESHAPES) or not is_tensor(node.args[0]):
        return None
    source, sizes = node.args[0], node.meta["val"].shape
    if calls(source, aten.reshape.default) and is_tensor(source.args[0]):
        return reshaped(node, source.args[0], sizes, like=node)
    if shape(source) == shape(node):
        return source
    named = _named_sizes(node, sizes)
    if named is None:
        return None
    if node.target is aten.reshape.default and list(arguments(node)[1]) == named:
        return None
    return emit_like(node, aten.reshape.default, source, named)


def to_permute(node: fx.Node) -> fx.Node | None:
    """transpose, t, …(x) → permute(x), one for several in a row, none if it changes nothing."""
    if not calls(node, *PERMUTES) or not is_tensor(node.args[0]):
        return None
    source = node.args[0]
    order = _order(node, len(shape(source)))
    if calls(source, aten.permute.default):
        base, inner = arguments(source)
        return permuted(node, base, [inner[axis] for axis in order], like=node)
    if not moves(source, order):
        return permuted(node, source, order, like=node)
    if node.target is aten.permute.default and list(arguments(node)[1]) == order:
        return None
    return emit_like(node, aten.permute.default, source, order)


def _order(node: fx.Node, rank: int) -> list[int]:
    """Return which dimension of its operand each dimension of a permutation is."""
    probe = torch.empty(tuple(range(1, rank + 1)), device="meta")
    assert callable(node.target)
    return [size - 1 for size in node.target(probe, *node.args[1:], **node.kwargs).shape]


def to_slice(node: fx.Node) -> fx.Node | None:
    """slice, narrow(x) → slice with bounds counted from the front, none if it takes all."""
    if not calls(node, aten.slice.Tensor, aten.narrow.default) or not is_tensor(node.args[0]):
        return None
    source = node.args[0]
    if shape(source) == shape(node):
        return source
    given: list[Any] = [*node.args[1:], *[0, None, None, 1][len(node.args) - 1 :]]
    axis, start, end, step = given[0] % len(shape(source)), given[1] or 0, given[2], given[3]
    if node.target is aten.narrow.default:
        if not (isinstance(start, int) and isinstance(end, int)) or start < 0:
            return None
        end = start + end
    total = shape(source)[axis]
    if isinstance(total, int) and isinstance(start, int) and (end is None or isinstance(end, int)):
        start, end, step = slice(start, end, step).indices(total)
        if step == 1 and (inner := _plain_slice(source)) is not None and inner[1] == axis:
            base, _, offset, _ = inner
            return emit_like(node, aten.slice.Tensor, base, axis, start + offset, end + offset)
    elif end == END:
        end = None
    wanted = [source, axis, start]
    if end is not None or step != 1:
        wanted.append(end)
    if step != 1:
        wanted.append(step)
    if node.target is aten.slice.Tensor and list(node.args) == wanted:
        return None
    return emit_like(node, aten.slice.Tensor, *wanted)


def _plain_slice(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """Return (source, axis, start, end) of a slice without a step and with known bounds."""
    if not calls(node, aten.slice.Tensor) or len(node.args) != 4:
        return None
    source, axis, start, end = node.args
    if not (isinstance(axis, int) and isinstance(start, int) and isinstance(end, int)):
        return None
    return (source, axis, start, end) if is_tensor(source) and axis >= 0 and start >= 0 else None


def split_to_slice(node: fx.Node) -> fx.Node | None:
    """chunk, split, unbind(x)[i] → slice(x)."""
    if not calls(node, operator.getitem) or not isinstance(node.args[0], fx.Node):
        return None
    split, index = arguments(node)
    source = split.args[0] if split.args else None
    if not is_tensor(source) or not isinstance(index, int):
        return None
    if calls(split, aten.unbind.int):
        axis = _axis(source, split.args[1] if len(split.args) > 1 else 0)
        part = sliced(node, source, axis, index, index + 1)
        return reshaped_like(node, part, node)
    if not calls(split, *SPLITS):
        return None
    axis = _axis(source, split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0))
    parts = [size(part.shape[axis]) for part in split.meta["val"]]
    if not all(isinstance(part, int) for part in parts):
        return None
    start = sum(parts[:index])
    return sliced(node, source, axis, start, start + parts[index])


def select_to_slice(node: fx.Node) -> fx.Node | None:
    """x[:, i] → reshape(slice(x, 1, i, i+1))."""
    if not calls(node, aten.select.int) or not is_tensor(node.args[0]):
        return None
    source, axis, index = node.args[0], _axis(node.args[0], node.args[1]), node.args[2]
    total = shape(source)[axis]
    if not isinstance(index, int) or (index < 0 and not isinstance(total, int)):
        return None
    start = index if index >= 0 else index + total
    part = sliced(node, source, axis, start, start + 1)
    return reshaped_like(node, part, node)


def stack_to_cat(node: fx.Node) -> fx.Node | None:
    """stack([a, b], axis) → cat([reshape(a), reshape(b)], axis)."""
    if not calls(node, aten.stack.default):
        return None
    tensors, axis, *_ = (*arguments(node), 0)
    axis = _axis(node, axis)
    sizes = list(node.meta["val"].shape)
    sizes[axis] = 1
    parts = [reshaped(node, tensor, sizes) for tensor in tensors]
    return None if None in parts else emit_like(node, aten.cat.default, parts, axis)


def trim_cat(node: fx.Node) -> fx.Node | None:
    """cat([a, empty], axis) → a; the axis counted from the front."""
    if not calls(node, aten.cat.default, aten.concat.default):
        return None
    tensors: Any = node.args[0]
    axis = _axis(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))
    ranks = {len(shape(tensor)) for tensor in tensors}
    kept = [t for t in tensors if len(ranks) > 1 or shape(t)[axis] != 0]
    if len(kept) == 1:
        return kept[0] if isinstance(kept[0], fx.Node) else None
    if node.target is aten.cat.default and node.args[1:] == (axis,) and len(kept) == len(tensors):
        return None
    return emit_like(node, aten.cat.default, kept, axis)


def size_of_input(node: fx.Node) -> fx.Node | None:
    """sym_size(x, axis) → the same size of an input."""
    if not calls(node, aten.sym_size.int) or not is_tensor(node.args[0]):
        return None
    source, axis = arguments(node)
    return None if source.op == "placeholder" else _size_of_input(node, shape(source)[axis])


def _axis(node: fx.Node, axis: Any) -> int:
    return int(axis) % len(shape(node))


VIEWS = (
    to_reshape,
    to_permute,
    to_slice,
    split_to_slice,
    select_to_slice,
    stack_to_cat,
    trim_cat,
    size_of_input,
)
