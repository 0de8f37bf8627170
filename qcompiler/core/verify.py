"""One verifier per stage, run after every pass; docs/ir.md says the same in prose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.errors import VerifyError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.legal import PYTHON_OPS, has_lowering
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program, fake_weight_name, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage


def verify(program: Program) -> None:
    """Check a program against the rules of its stage.

    Raises:
        VerifyError: naming the node and the rule it breaks.
    """
    VERIFIERS[program.stage](program)


def verify_float(program: Program) -> None:
    """Check that the graph is well formed, that its operators are known and its weights stored."""
    program.graph.lint()
    outputs = [n for n in program.graph.nodes if n.op == "output"]
    _require(len(outputs) == 1, "the graph", "must have one output")
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            _require(
                str(node.target) in program.weights, f"@{node.target}", "is not in the weight store"
            )
            continue
        _require(
            node.op == "call_function", node.name, f"is a {node.op}; only functions may be called"
        )
        _require(
            _known(node),
            node.name,
            f"calls {target_name(node)}, which is no operator of the compiler",
        )
        _require("val" in node.meta, node.name, "has no shape (meta['val'])")
    for node in program.graph.nodes:
        if node.target in (ops.attention, ops.rope_attention):
            first = 3
            for cache in node.args[first : first + 2]:
                _require(
                    isinstance(cache, fx.Node) and cache.op == "placeholder",
                    node.name,
                    "must change caches that are inputs of the graph",
                )


def verify_planned(program: Program) -> None:
    """Check in addition that every planned operator exists and is a product or a table."""
    verify_float(program)
    known = {operator_name(str(n.target)) for n in program.graph.nodes if n.op == "get_attr"}
    for name in program.plan:
        _require(name in known, f"the plan for {name}", "names no operator of the graph")


def verify_fake_quantized(program: Program) -> None:
    """Check in addition that what is planned reads weights that are rounded as the plan says."""
    verify_planned(program)
    for node in program.graph.nodes:
        if node.target in (ops.linear, ops.embedding):
            name = weight_of(node)
            planned = name is not None and operator_name(name) in program.plan
            _require(not planned, node.name, f"reads @{name} as it is, though it is planned")
        if node.target is ops.fake_quantize_weight:
            name = fake_weight_name(node)
            if name is None:
                raise VerifyError(f"{node.name} rounds what is no stored weight")
            scheme = program.plan.get(operator_name(name))
            _require(scheme is not None, node.name, f"rounds @{name}, which is not planned")
            form = node.kwargs["form"]
            _require(
                scheme is not None and scheme.weight == form,
                node.name,
                f"rounds to {form}, but the plan says {scheme}",
            )


def verify_quantized(program: Program) -> None:
    """Check in addition that planned operators are quantised, as planned, and no others are."""
    verify_planned(program)
    for node in program.graph.nodes:
        if node.target in (ops.linear, ops.embedding):
            name = operator_name(str(weight_of(node)))
            _require(name not in program.plan, node.name, f"is float, but the plan names {name}")
        if node.target not in (ops.quantized_linear, ops.quantized_matmul, ops.quantized_embedding):
            continue
        stored = weight_of(node)
        if stored is None:
            raise VerifyError(f"{node.name} multiplies by a computed weight")
        weight = program.weights.get(stored)
        if not isinstance(weight, QuantizedTensor):
            raise VerifyError(f"{node.name} reads @{stored}, which is not quantised")
        scheme = QuantScheme.parse(str(node.kwargs["scheme"]))
        _require(
            weight.format == scheme.weight,
            node.name,
            f"says {scheme}, but @{stored} is {weight.format}",
        )
        planned = program.plan.get(operator_name(stored))
        _require(planned == scheme, node.name, f"says {scheme}, but the plan says {planned}")


def verify_legal(program: Program) -> None:
    """Check in addition that only operators with a lowering are left, activations quantised."""
    verify_quantized(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            why = f"calls {target_name(node)}, which legalize should have replaced or refused"
            _require(has_lowering(node.target), node.name, why)
            if node.target is ops.quantized_linear:
                scheme = QuantScheme.parse(str(node.kwargs["scheme"]))
                _require(scheme.activation is None, node.name, why)


VERIFIERS: dict[Stage, Callable[[Program], None]] = {
    Stage.FLOAT: verify_float,
    Stage.PLANNED: verify_planned,
    Stage.FAKE_QUANTIZED: verify_fake_quantized,
    Stage.QUANTIZED: verify_quantized,
    Stage.LEGAL: verify_legal,
}


def _known(node: fx.Node) -> bool:
    target: Any = node.target
    return target in ops.OPS or target in PYTHON_OPS or isinstance(target, torch._ops.OpOverload)


def _require(condition: bool, what: str, why: str) -> None:
    if not condition:
        raise VerifyError(f"{what} {why}")
