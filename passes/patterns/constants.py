"""Stored scalars and indices written into the graph, and stored matrices turned round."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from passes.rewrite import (
    arguments,
    calls,
    emit_again,
    emit_like,
    is_tensor,
    is_weight,
    same_type,
    shape,
)
from qcompiler.core import ops, shapes
from qcompiler.core.weights import WeightStore

aten = torch.ops.aten

COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)
TAKES_NUMBER = (*COMMUTATIVE, aten.div.Tensor, aten.sub.Tensor)


def write_scalars(graph: fx.Graph, weights: WeightStore) -> None:
    """x · @scalar → x · 8.0, for stored tensors without dimensions."""
    for node in list(graph.nodes):
        if not calls(node, *TAKES_NUMBER) or len(node.args) != 2:
            continue
        x, scalar = arguments(node)
        if node.target in COMMUTATIVE and _is_scalar(x):
            x, scalar = scalar, x
        if not _is_scalar(scalar) or not is_tensor(x) or not same_type(x, node):
            continue
        number = weights.tensor(str(scalar.target)).item()
        new = emit_again(node, node, x, number, val=node.meta["val"])
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _is_scalar(node: object) -> bool:
    return is_weight(node) and shape(node) == ()


def write_ranges(graph: fx.Graph, weights: WeightStore) -> None:
    """x[:, @indices] → slice(x, 1, i, j), for stored indices that are i, i + 1, … j − 1."""
    for node in list(graph.nodes):
        if not calls(node, aten.index.Tensor) or not is_tensor(node.args[0]):
            continue
        source, indices = arguments(node)
        used = [(i, index) for i, index in enumerate(indices) if index is not None]
        axis, index = used[0]
        total = shape(source)[axis]
        if len(used) > 1 or not is_weight(index) or len(shape(index)) != 1:
            continue
        stored = weights.tensor(str(index.target))
        if stored.dtype == torch.bool or not isinstance(total, int):
            continue
        places = [i % total for i in stored.tolist()]
        if not places or places != list(range(places[0], places[0] + len(places))):
            continue
        part = emit_like(node, aten.slice.Tensor, source, axis, places[0], places[0] + len(places))
        node.replace_all_uses_with(part)
        graph.erase_node(node)


class Transposed:
    """A source of the transposes of some matrices of a store, each made when it is read."""

    def __init__(self, weights: WeightStore, names: Iterable[str]) -> None:
        self._weights = weights.copy()
        self._names = tuple(names)

    def names(self) -> Iterable[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)[::-1]

    def dtype(self, name: str) -> torch.dtype:
        return self._weights.dtype(name)

    def read(self, name: str) -> torch.Tensor:
        return self._weights.tensor(name).t().contiguous()


def store_transposed(graph: fx.Graph, weights: WeightStore) -> None:
    """linear(x, permute(@w)) → linear(x, @w), with w stored the other way round.

    A weight that something else reads as it is stays as it is.
    """
    turned = [
        source
        for source in graph.nodes
        if is_weight(source) and all(map(_is_turned_product, source.users))
    ]
    names = [weights.resolve(str(source.target)) for source in turned]
    stored = Transposed(weights, names)
    for source, name in zip(turned, names, strict=True):
        weights.place(name, stored)
        with graph.inserting_before(source):
            new = shapes.add_weight(graph, weights, str(source.target))
        for permute in list(source.users):
            permute.replace_all_uses_with(new)
            graph.erase_node(permute)
        graph.erase_node(source)


def _is_turned_product(node: fx.Node) -> bool:
    """Tell whether a node turns a matrix for nothing but products that have it as weight."""
    if not calls(node, aten.permute.default) or node.args[1] != [1, 0]:
        return False
    return all(calls(user, ops.linear) and user.args[1] is node for user in node.users)
