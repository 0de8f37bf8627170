"""Activations, recognised by what they compute, and gated ones in one order.

A subgraph of pointwise operators with one input is a function of one number. It is evaluated at a
few points and compared with the functions there are operators for, so that it does not matter how,
or with how many digits, a model spells its GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from passes.patterns.pointwise import is_pointwise, tensor_operands
from passes.rewrite import calls, dtype, emit_like, shape

aten = torch.ops.aten

ACTIVATIONS: tuple[tuple[Callable[..., Any], dict[str, Any], Callable[..., torch.Tensor]], ...] = (
    (aten.silu.default, {}, functional.silu),
    (aten.gelu.default, {}, functional.gelu),
    (aten.gelu.default, {"approximate": "tanh"}, lambda x: functional.gelu(x, approximate="tanh")),
    (aten.sigmoid.default, {}, torch.sigmoid),
    (aten.tanh.default, {}, torch.tanh),
)
GATES = (
    aten.silu.default,
    aten.gelu.default,
    aten.relu.default,
    aten.sigmoid.default,
    aten.tanh.default,
)
POINTS = torch.linspace(-6, 6, 61, dtype=torch.float64)
TOLERANCE = 1e-6
"""Spellings of one activation differ by the digits of √(2/π), or 1e−10; different ones by 1e−4."""
LONGEST = 16
"""Operators in the longest spelling worth looking at."""


def recognize_activation(node: fx.Node) -> fx.Node | None:
    """0.5·x·(1 + tanh(…)), x·sigmoid(x), … → one operator of aten."""
    if not calls(node, aten.mul.Tensor, aten.div.Tensor, aten.reciprocal.default):
        return None  # each known spelling ends in one of these
    for source, part in _functions_of_one(node):
        if shape(source) != shape(node) or dtype(source) != dtype(node):
            continue
        values = _evaluate(part, source, node)
        for target, kwargs, function in ACTIVATIONS:
            if torch.allclose(values, function(POINTS), rtol=TOLERANCE, atol=TOLERANCE):
                return emit_like(node, target, source, **kwargs)
    return None


def _functions_of_one(node: fx.Node) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Yield (x, part), shortest first: `part`, in graph order, computes `node` from `x` alone."""
    frontier, part = {node}, list[fx.Node]()
    while len(part) < LONGEST:
        latest = max(frontier)  # nodes compare by their place in the graph
        if not is_pointwise(latest) or not dtype(latest).is_floating_point:
            return
        frontier.remove(latest)
        part.insert(0, latest)
        frontier.update(tensor_operands(latest))
        if not frontier:
            return
        if len(frontier) == 1 and len(part) > 1:
            yield next(iter(frontier)), part


def _evaluate(part: list[fx.Node], source: fx.Node, result: fx.Node) -> torch.Tensor:
    """Compute `result` from values of `source` at the points."""
    values = {source: POINTS}
    for node in part:
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        is_cast = node.target is aten.to.dtype  # which would lose digits of the points
        values[node] = args[0] if is_cast else node.target(*args, **node.kwargs)  # type: ignore[operator]
    return values[result]


def order_gate(node: fx.Node) -> fx.Node | None:
    """up · act(gate) → act(gate) · up, the order fusing passes look for.

    The gate and what it gates stay what they are: two products, or two slices of one.
    """
    if not calls(node, aten.mul.Tensor):
        return None
    up, gate = node.args
    if not calls(gate, *GATES) or calls(up, *GATES) or not isinstance(up, fx.Node):
        return None
    return emit_like(node, aten.mul.Tensor, gate, up)


ACTIVATION_RULES = (recognize_activation, order_gate)
