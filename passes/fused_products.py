"""Which products will be one when a program is fused, found before anything is fused."""

from __future__ import annotations

from dataclasses import dataclass

from passes.fuse_gate_up import match_gate
from passes.fuse_qkv import joinable
from passes.products import Product, obstacle
from passes.rewrite import calls
from qcompiler.core import ops
from qcompiler.core.program import Program, operator_name


@dataclass(frozen=True)
class FusedProduct:
    """Operators, named as facts name them, that become one product; `gated`: a gate and its half.

    They become one only if they have one scheme.
    """

    operators: tuple[str, ...]
    gated: bool


def fused_products(program: Program) -> list[FusedProduct]:
    """Return what `fuse-qkv` and `fuse-gate-up` would join, in graph order."""
    found = []
    for node in program.graph.nodes:
        if calls(node, ops.attention, ops.dense_attention):
            found += [(list(group.values()), False) for group in joinable(node)]
        elif (gate := match_gate(node)) is not None:
            found.append(([gate.gate.product, gate.up.product], True))
    return [
        FusedProduct(tuple(_names(program, products)), gated)
        for products, gated in found
        if obstacle(program, products) is None
    ]


def _names(program: Program, products: list[Product]) -> list[str]:
    """Name each weight once: one product may be a gate and what it scales."""
    entries = (program.weights.resolve(str(product.weight.target)) for product in products)
    return list(dict.fromkeys(operator_name(entry) for entry in entries))
