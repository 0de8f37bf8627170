"""The weights that a plan has chosen to be quantised, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from passes.input_scales import read_scale
from qcompiler.core import ops
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor

QUANTIZED: dict[Any, Callable[..., Any]] = {
    ops.linear: ops.quantized_linear,
    ops.embedding: ops.quantized_embedding,
}
"""What computes with codes, by what computes with floats."""


@dataclass(frozen=True)
class PlannedWeight:
    """An entry of the weight store, its scheme, and all products and tables that read it."""

    entry: str
    scheme: QuantScheme
    nodes: tuple[fx.Node, ...]

    @property
    def operator(self) -> str:
        """The name of the first operator that reads it."""
        return operator_name(str(weight_of(self.nodes[0])))

    @property
    def is_product_only(self) -> bool:
        """Whether one product reads it and nothing else, such as a table that is tied to it."""
        return len(self.nodes) == 1 and self.nodes[0].target is ops.linear


def planned_weights(program: Program) -> dict[str, PlannedWeight]:
    """Return what is to be quantised, by entry, in graph order."""
    nodes: dict[str, list[fx.Node]] = {}
    schemes: dict[str, QuantScheme] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in QUANTIZED:
            continue
        weight = weight_of(node)
        if weight is not None and operator_name(weight) in program.plan:
            entry = program.weights.resolve(weight)
            nodes.setdefault(entry, []).append(node)
            schemes.setdefault(entry, program.plan[operator_name(weight)])
    return {e: PlannedWeight(e, schemes[e], tuple(readers)) for e, readers in nodes.items()}


def put_codes(
    program: Program, planned: Mapping[str, PlannedWeight], codes: Mapping[str, QuantizedTensor]
) -> None:
    """Write codes over planned weights, and have what reads them compute with codes.

    Raises:
        QCompilerError: a product's scale is static, and the weight store has none.
    """
    for entry, quantized in codes.items():
        program.weights.put(entry, quantized)
        for node in planned[entry].nodes:
            scale = read_scale(program, node, planned[entry].scheme)
            static = {} if scale is None else {"input_scale": scale}
            node.target = QUANTIZED[node.target]
            node.kwargs = {"scheme": str(planned[entry].scheme), **node.kwargs, **static}
