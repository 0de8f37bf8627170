"""Normalise and quantise activations at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from passes.products import Product
from passes.rewrite import calls, emit, remove_unused
from qcompiler.core import ops
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

QUANTIZING: dict[Any, Callable[..., Any]] = {
    ops.rms_norm: ops.rms_norm_quantize,
    ops.layer_norm: ops.layer_norm_quantize,
}


@dataclass(frozen=True, kw_only=True)
class FuseNorm(Pass):
    """Let a norm that feeds quantised products alone quantise its result, once for all of them.

    Declines where the result is also used as it is, or where the products want it in different
    formats or sum it over different groups of inputs. Does nothing to a float program. Exact.
    """

    name: ClassVar[str] = "fuse-norm"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            if not calls(node, *QUANTIZING):
                continue
            products = {user: Product.of(user) for user in node.users}
            if not any(map(activation_format, products.values())):
                continue
            if (why := _obstacle(node, products)) is not None:
                context.note(self.name, f"{node.name}: not fused, {why}")
                continue
            forms = [
                found[0] for product in products.values() if (found := activation_format(product))
            ]
            target = QUANTIZING[node.target]
            fused = emit(node, target, *node.args, **node.kwargs, form=forms[0])
            quantized = (
                emit(node, operator.getitem, fused, 0),
                emit(node, operator.getitem, fused, 1),
            )
            for user, product in products.items():
                if product is not None:
                    feed_quantized(user, product, quantized)
        remove_unused(program.graph)


def activation_format(product: Product | None) -> tuple[TensorFormat, int] | None:
    """Return how a product quantises its activations, and over how many of them it sums.

    Kernels add up the codes of each group of the weight once, where they are made; so both must
    agree for products to share them. None for products of float activations, or quantised already.
    """
    if product is None or product.target is not ops.quantized_linear:
        return None
    scheme = QuantScheme.parse(str(product.options["scheme"]))
    if scheme.activation is None:
        return None
    k = int(product.weight.meta["val"].shape[1])
    return scheme.activation, scheme.weight.group_size(k)


def feed_quantized(node: fx.Node, product: Product, quantized: tuple[fx.Node, fx.Node]) -> None:
    """Replace a `quantized_linear` by the product of activations that are quantised already."""
    fused = replace(product, target=ops.quantized_matmul, inputs=quantized).emit(node)
    node.replace_all_uses_with(fused)
    node.graph.erase_node(node)


def _obstacle(norm: fx.Node, products: dict[fx.Node, Product | None]) -> str | None:
    formats = set()
    for user, product in products.items():
        form = activation_format(product)
        if product is None or form is None or product.residual is norm:
            return f"{user.name} uses it unquantised"
        formats.add(form)
    return "its users quantise it in different ways" if len(formats) > 1 else None
