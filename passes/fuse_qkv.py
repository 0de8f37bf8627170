"""One product for queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from passes.patterns.views import last_axis
from passes.products import (
    Product,
    Rows,
    common_parent,
    forget_unread,
    obstacle,
    stack,
    unused_name,
)
from passes.rewrite import calls, emit, is_tensor, is_weight
from qcompiler.core import ops
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten

BETWEEN = (
    aten.reshape.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.to.dtype,
    aten.clamp.default,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.sub.Tensor,
    ops.rotary,
    ops.rms_norm,
    ops.layer_norm,
)
"""What may stand between a product and the attention that it feeds."""


@dataclass(frozen=True, kw_only=True)
class FuseQkv(Pass):
    """Compute the queries, keys and values of an attention with one product, then slice it.

    Joins the two or three products that feed one attention if they read the same activations, in
    the same scheme, and do nothing beyond adding a bias; those without one get zeros. Exact: every
    output feature is computed, and was quantised, by itself.
    """

    name: ClassVar[str] = "fuse-qkv"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            if not calls(node, ops.attention, ops.dense_attention):
                continue
            for group in joinable(node):
                products = list(group.values())
                names = ", ".join(product.name for product in products)
                if (why := obstacle(program, products)) is not None:
                    context.note(self.name, f"{names}: kept apart, {why}")
                    continue
                joined = _join(program, group, letters=_letters(node, group))
                context.note(self.name, f"{names}: joined as {joined}")


def joinable(attention: fx.Node) -> list[dict[fx.Node, Product]]:
    """Return the products that feed an attention and read the same, where there are several."""
    found: dict[tuple[fx.Node, ...], dict[fx.Node, Product]] = {}
    for argument in attention.args[:3]:
        source = _source(argument)  # type: ignore[arg-type]
        product = Product.of(source)
        if product is not None:
            found.setdefault(product.inputs, {})[source] = product
    return [group for group in found.values() if len(group) > 1]


def _source(node: fx.Node) -> fx.Node:
    """Walk back to the product that a query, key or value comes from."""
    while calls(node, *BETWEEN):
        others = [a for a in node.args[1:] if is_tensor(a)]
        if calls(node, aten.mul.Tensor, aten.div.Tensor) and others:
            return node
        if calls(node, aten.sub.Tensor) and not all(map(is_weight, others)):
            return node
        node = node.args[0]  # type: ignore[assignment]
    return node


def _letters(attention: fx.Node, group: dict[fx.Node, Product]) -> str:
    """Say which of q, k and v a group computes."""
    pairs = zip("qkv", attention.args[:3], strict=True)
    return "".join(letter for letter, a in pairs if _source(a) in group)  # type: ignore[arg-type]


def _join(program: Program, group: dict[fx.Node, Product], *, letters: str) -> str:
    """Put one product and a slice for each in the place of several; return its name."""
    products = list(group.values())
    first = min(group)
    parent = common_parent([product.name for product in products])
    name = unused_name(program, f"{parent}{letters}_proj")
    parts = [Rows.all(product) for product in products]
    joined = stack(program, parts, name, first).emit(first)
    start = 0
    for node, part in zip(group, parts, strict=True):
        stop = start + len(part)
        piece = emit(first, aten.slice.Tensor, joined, last_axis(joined), start, stop)
        node.replace_all_uses_with(piece)
        start = stop
    forget_unread(program, products)
    return name
