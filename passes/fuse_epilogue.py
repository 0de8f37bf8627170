"""Let products apply activation functions and add residuals to their results themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from passes.activation_functions import activation_of
from passes.products import Product
from passes.rewrite import both_orders, calls, is_tensor, remove_unused, same_type
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FuseEpilogue(Pass):
    """Take an activation function, and a sum of equal shape, into the product before it.

    Only where nothing else uses the product. Of two products that are added, the later one takes
    the other. Exact: a product's epilogue does the same operations in the same order.
    """

    name: ClassVar[str] = "fuse-epilogue"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            fused = _with_activation(node) or _with_residual(node)
            if fused is not None:
                node.replace_all_uses_with(fused.emit(node))
        remove_unused(program.graph)


def _with_activation(node: fx.Node) -> Product | None:
    found = activation_of(node)
    if found is None:
        return None
    activation, source = found
    product = Product.of(source)
    if product is None or not product.is_bare or len(source.users) > 1:
        return None
    return replace(product, activation=activation)


def _with_residual(node: fx.Node) -> Product | None:
    if not calls(node, aten.add.Tensor) or node.kwargs:
        return None
    for source, residual in sorted(_sums(node), reverse=True):
        product = Product.of(source)
        if product is None or product.residual is not None or len(source.users) > 1:
            continue
        if source is not residual and same_type(source, node) and same_type(residual, node):
            return replace(product, residual=residual)
    return None


def _sums(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    for a, b in both_orders(node):
        if is_tensor(a) and is_tensor(b):
            yield a, b
