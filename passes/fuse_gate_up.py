"""One product for the two halves of a gated feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from passes.activation_functions import activation_of
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
from passes.rewrite import both_orders, calls, is_tensor
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FuseGateUp(Pass):
    """Compute activation(x·gate) · (x·up) with one product whose epilogue is the gate.

    The two products become one, rows of the gate first; so does one product that was sliced into
    its halves. Exact: every output feature is computed, and was quantised, by itself.
    """

    name: ClassVar[str] = "fuse-gate-up"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED, Stage.QUANTIZED})

    def run(self, program: Program, context: PassContext) -> None:
        for node in list(program.graph.nodes):
            found = match_gate(node)
            if found is None:
                continue
            products = [part.product for part in (found.gate, found.up)]
            names = " and ".join(dict.fromkeys(product.name for product in products))
            if (why := obstacle(program, products)) is not None:
                context.note(self.name, f"{names}: kept apart, {why}")
                continue
            context.note(self.name, f"{names}: gated in one product")
            _fuse(program, node, found)


@dataclass(frozen=True)
class Gate:
    activation: str
    gate: Rows
    up: Rows


def match_gate(node: fx.Node) -> Gate | None:
    """Recognise activation(gate) · up, in either order, of rows of one or two products."""
    if not calls(node, aten.mul.Tensor):
        return None
    for left, right in both_orders(node):
        activated = _activated(left)
        up = _rows(right)
        if activated is None or up is None:
            continue
        activation, gate = activated
        if gate.product.inputs == up.product.inputs and len(gate) == len(up) and _all(gate, up):
            return Gate(activation, gate, up)
    return None


def _activated(node: Any) -> tuple[str, Rows] | None:
    """Return the activation and the rows of a product that it is applied to."""
    if not is_tensor(node) or len(node.users) > 1:
        return None
    found = activation_of(node)
    if found is not None:
        rows = _rows(found[1])
        return None if rows is None else (found[0], rows)
    # A product may have taken the activation into its epilogue already.
    rows = _rows(node)
    if rows is None or rows.product.activation == "none" or calls(node, aten.slice.Tensor):
        return None
    return rows.product.activation, replace(rows, product=replace(rows.product, activation="none"))


def _rows(node: Any) -> Rows | None:
    """Return which rows of which product a value is, if nothing else uses it."""
    if not is_tensor(node) or len(node.users) > 1:
        return None
    if calls(node, aten.slice.Tensor) and len(node.args) == 4:
        source, axis, start, stop = node.args
        if not is_tensor(source) or axis != last_axis(source) or len(source.users) > 2:
            return None
        product = Product.of(source)
        if product is None or not (isinstance(start, int) and isinstance(stop, int)):
            return None
        return Rows(product, start, stop)
    product = Product.of(node)
    return None if product is None else Rows.all(product)


def _all(gate: Rows, up: Rows) -> bool:
    """Tell whether the rows are two whole products, or the two halves of one."""
    whole = len(Rows.all(gate.product))
    if gate.product.weight is not up.product.weight:
        return len(gate) == whole and len(up) == len(Rows.all(up.product))
    return {gate.start, up.start} == {0, whole // 2} and 2 * len(gate) == whole


def _fuse(program: Program, node: fx.Node, found: Gate) -> None:
    gate, up = found.gate, found.up
    product = gate.product
    if gate.product.weight is not up.product.weight or gate.start > 0:
        names = [gate.product.name, up.product.name]
        name = unused_name(program, f"{common_parent(names)}gate_up_proj")
        product = stack(program, [gate, up], name, node)
    fused = replace(product, activation=found.activation, gated=True).emit(node)
    node.replace_all_uses_with(fused)
    forget_unread(program, [gate.product, up.product])
