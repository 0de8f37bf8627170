"""Scales of activations that are known before a model runs: entries of the weight store.

The scale of what an operator reads is `<operator>.input_scale`, [1] float32.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from qcompiler.core import ops, shapes
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program, operator_name, weight_of


def scale_entry(operator: str) -> str:
    """Name the entry that holds the scale of what an operator reads.

    >>> scale_entry("model.layers.0.mlp.up_proj")
    'model.layers.0.mlp.up_proj.input_scale'
    """
    return f"{operator}.input_scale"


def static_products(program: Program) -> list[tuple[str, fx.Node]]:
    """Return the products that are planned with a static scale, as (operator, node), in order."""
    return [
        (operator, node)
        for operator, node in program.linears()
        if operator in program.plan and program.plan[operator].is_static
    ]


def check_scales(program: Program) -> None:
    """See that every scale that the plan calls static is known, and one that can be divided by.

    Raises:
        QCompilerError: naming the first operator of which that is not so.
    """
    for operator, _ in static_products(program):
        _check_scale(program, operator, program.plan[operator])


def read_scale(program: Program, product: fx.Node, scheme: QuantScheme) -> fx.Node | None:
    """Return a node, put before a product, that reads its scale; None where that is not static.

    Raises:
        QCompilerError: the scale is not known, or none that can be divided by.
    """
    if product.target is not ops.linear or not scheme.is_static:
        return None
    operator = operator_name(str(weight_of(product)))
    _check_scale(program, operator, scheme)
    with product.graph.inserting_before(product):
        return shapes.add_weight(program.graph, program.weights, scale_entry(operator))


def scale_bits(scale: torch.Tensor) -> bytes:
    """Return what two scales have in common only if they are the same number, bit for bit."""
    return bytes(scale.to(torch.float32).contiguous().numpy().tobytes())


def _check_scale(program: Program, operator: str, scheme: QuantScheme) -> None:
    entry = scale_entry(operator)
    if entry not in program.weights:
        raise QCompilerError(
            f"'{operator}' is planned as {scheme}, but the scale of what it reads is not known; "
            "put 'observe-activations' before its weight is quantised"
        )
    scale = program.weights.tensor(entry)
    # A reciprocal that is infinite would make of zeros what is no number.
    if scale.shape != (1,) or not torch.finfo(torch.float32).tiny <= float(scale) < math.inf:
        raise QCompilerError(
            f"the scale '{entry}' is {scale.tolist()}, which is not one positive, finite number; "
            "put 'observe-activations' after the pass that wrote it"
        )
