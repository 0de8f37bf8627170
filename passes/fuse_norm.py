"""Normalise and quantise activations at once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from passes.input_scales import scale_bits
from passes.products import Product
from passes.rewrite import calls, emit, remove_unused
from qcompiler.core import ops, shapes
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
    formats, with different static scales, or sum it over different groups of inputs. Does nothing
    to a float program. Exact.
    """

    name: ClassVar[str] = "fuse-norm"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            if not calls(node, *QUANTIZING):
                continue
            products = {user: Product.of(user) for user in node.users}
            wanted = [
                found
                for product in products.values()
                if (found := wanted_codes(program, product)) is not None
            ]
            if not wanted:
                continue
            if (why := _obstacle(program, node, products)) is not None:
                context.note(self.name, f"{node.name}: not fused, {why}")
                continue
            _fuse(program, node, wanted[0].form, products)
        remove_unused(program.graph)


def _fuse(
    program: Program, norm: fx.Node, form: TensorFormat, products: Mapping[fx.Node, Product | None]
) -> None:
    options: dict[str, Any] = {**norm.kwargs, "form": form}
    read = next((p.input_scale for p in products.values() if p is not None), None)
    if read is not None:
        with norm.graph.inserting_before(norm):
            options["scale"] = shapes.add_weight(norm.graph, program.weights, str(read.target))
    fused = emit(norm, QUANTIZING[norm.target], *norm.args, **options)
    quantized = (
        emit(norm, operator.getitem, fused, 0),
        emit(norm, operator.getitem, fused, 1),
    )
    for user, product in products.items():
        if product is not None:
            feed_quantized(user, product, quantized)


@dataclass(frozen=True)
class WantedCodes:
    """How a product wants activations quantised, and over how many of them it sums.

    Kernels add up the codes of each group of the weight once, where they are made; so all of this
    must agree for products to share them. `scale` are the bits of one that is static.
    """

    form: TensorFormat
    summed: int
    scale: bytes | None


def wanted_codes(program: Program, product: Product | None) -> WantedCodes | None:
    """Return what codes a product wants; None if its activations are float, or codes already."""
    if product is None or product.target is not ops.quantized_linear:
        return None
    scheme = QuantScheme.parse(str(product.options["scheme"]))
    if scheme.activation is None:
        return None
    k = int(product.weight.meta["val"].shape[1])
    scale = product.static_scale(program)
    return WantedCodes(
        scheme.activation,
        scheme.weight.group_size(k),
        None if scale is None else scale_bits(scale),
    )


def feed_quantized(node: fx.Node, product: Product, quantized: tuple[fx.Node, fx.Node]) -> None:
    """Replace a `quantized_linear` by the product of activations that are quantised already."""
    fused = replace(product, target=ops.quantized_matmul, inputs=quantized, input_scale=None).emit(
        node
    )
    node.replace_all_uses_with(fused)
    node.graph.erase_node(node)


def _obstacle(
    program: Program, norm: fx.Node, products: Mapping[fx.Node, Product | None]
) -> str | None:
    found = set()
    for user, product in products.items():
        wanted = wanted_codes(program, product)
        if product is None or wanted is None or product.residual is norm:
            return f"{user.name} uses it unquantised"
        found.add(wanted)
    return "its users quantise it in different ways" if len(found) > 1 else None
