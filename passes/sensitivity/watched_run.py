"""Run a segment so that gradients can be had of what each product and table gives and reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from passes.activations import Values
from passes.segments import TABLES, Segment, Weights, arguments, evaluate
from qcompiler.core import ops
from qcompiler.core.program import LINEARS, weight_of


@dataclass(frozen=True)
class Reading:
    """One product or table with a stored weight as it was run on a sample.

    `weight` is the name of the weight. `x` is what a product reads, [..., k], a tensor of its own
    for each product; of a table, the row numbers [...]. `change` [..., n] is zero and was added to
    what it gives, before any bias or activation: the gradient with respect to it is that with
    respect to the output.
    """

    node: fx.Node
    weight: str
    x: torch.Tensor
    change: torch.Tensor

    @property
    def is_table(self) -> bool:
        return self.node.target in TABLES


def watched_run(segment: Segment, values: Values, weights: Weights) -> tuple[Values, list[Reading]]:
    """Run a float segment on what was live before it; return what is live after it, and readings.

    Gradients are recorded if they are enabled.
    """
    env = dict(values)
    readings: list[Reading] = []
    for place, node in enumerate(segment.nodes, start=segment.begin):
        segment.order.provide_caches(node, env)
        env[node.name] = _call(node, env, weights, readings)
        for name in segment.order.dead_after[place]:
            env.pop(name, None)
    return env, readings


def _call(node: fx.Node, env: Values, weights: Weights, readings: list[Reading]) -> Any:
    args, kwargs = arguments(node, env, weights)
    name = weight_of(node) if node.target in LINEARS | TABLES else None
    if name is None:
        return evaluate(node, args, kwargs)
    if node.target in TABLES:
        rows = evaluate(node, args, kwargs)
        change = torch.zeros_like(rows, requires_grad=True)
        readings.append(Reading(node, name, args[0], change))
        return rows + change
    x, weight, *rest = args
    x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    change = x.new_zeros((*x.shape[:-1], len(weight)), requires_grad=True)
    if rest and rest[0] is not None:
        bias, rest = rest[0] + change, rest[1:]
    elif kwargs.get("bias") is not None:
        bias = kwargs.pop("bias") + change
    else:
        bias, rest = change, rest[1:]
    kwargs.pop("bias", None)
    readings.append(Reading(node, name, x, change))
    return ops.linear(x, weight, bias, *rest, **kwargs)
