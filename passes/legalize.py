"""Bring a program down to the operators that code generation has kernels for."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import fx

from passes.fuse_norm import WantedCodes, feed_quantized, wanted_codes
from passes.planned import planned_weights
from passes.products import Product
from passes.rewrite import emit
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.legal import has_lowering
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.printer import target_name
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.support import check_supported, has_kernels, widened


@dataclass(frozen=True, kw_only=True)
class Legalize(Pass):
    """Quantise activations where they are used, and refuse what has no kernel on the target.

    What is left of `quantized_linear` becomes `quantize`, shared by products of one value that want
    it alike, and `quantized_matmul`. With `widen`, codes of 2 or 3 bits are stored in 4, and of 5
    to 7 in 8, where the target has no kernel for them as they are; the results are the same.
    """

    name: ClassVar[str] = "legalize"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.QUANTIZED})
    yields: ClassVar[Stage] = Stage.LEGAL

    widen: bool = False

    def check_program(self, program: Program, context: PassContext) -> None:
        """Refuse schemes without kernels before weights are quantised, which may take long."""
        for weight in planned_weights(program).values():
            is_table = all(node.target is ops.embedding for node in weight.nodes)
            self._fitting(weight.operator, weight.scheme, context, is_table=is_table)

    def run(self, program: Program, context: PassContext) -> None:
        self._fit_schemes(program, context)
        _quantize_activations(program)
        _check_operators(program)

    def _fit_schemes(self, program: Program, context: PassContext) -> None:
        """See that every scheme has kernels, widening codes where that is asked for."""
        for node in program.graph.nodes:
            if node.op != "call_function" or "scheme" not in node.kwargs:
                continue
            weight = str(weight_of(node))
            name, scheme = operator_name(weight), QuantScheme.parse(str(node.kwargs["scheme"]))
            is_table = node.target is ops.quantized_embedding
            wide = self._fitting(name, scheme, context, is_table=is_table)
            if wide == scheme:
                continue
            node.kwargs = {**node.kwargs, "scheme": str(wide)}
            program.plan[name] = wide
            _store_wider(program, weight, wide)
            context.note(self.name, f"{name}: {scheme} stored as {wide}")

    def _fitting(
        self, name: str, scheme: QuantScheme, context: PassContext, *, is_table: bool
    ) -> QuantScheme:
        """Return the scheme that an operator will have, itself or a wider one."""
        target = context.target
        check_supported(scheme, target, f"'{name}'", storage_only=is_table)
        if has_kernels(scheme, target, storage_only=is_table):
            return scheme
        wide = widened(scheme)
        if not self.widen:
            raise UnsupportedError(
                f"{target.name} has no kernels for {scheme}, wanted for '{name}'; "
                f"use {wide}, or give legalize the option widen = true to store the same codes "
                f"in {wide.weight.bits} bits"
            )
        return wide


def _store_wider(program: Program, weight: str, scheme: QuantScheme) -> None:
    """Give a weight the format of a wider scheme, in which its codes mean the same."""
    stored = program.weights.get(weight)
    if isinstance(stored, QuantizedTensor):
        program.weights.put(weight, replace(stored, format=scheme.weight))


def _quantize_activations(program: Program) -> None:
    """Split every `quantized_linear` of quantised activations in two, sharing the first part.

    Products share it if they want one value in one format, with one scale if that is static.
    """
    made: dict[tuple[fx.Node, WantedCodes], tuple[fx.Node, fx.Node]] = {}
    for node in list(program.graph.nodes):
        product = Product.of(node)
        wanted = wanted_codes(program, product)
        if product is None or wanted is None:
            continue
        (x,) = product.inputs
        key = (x, wanted)
        if key not in made:
            given = [x] if product.input_scale is None else [x, product.input_scale]
            quantized = emit(node, ops.quantize, *given, form=wanted.form)
            made[key] = (
                emit(node, operator.getitem, quantized, 0),
                emit(node, operator.getitem, quantized, 1),
            )
        feed_quantized(node, product, made[key])
        if product.input_scale is not None and not product.input_scale.users:
            program.graph.erase_node(product.input_scale)


def _check_operators(program: Program) -> None:
    for node in program.graph.nodes:
        if node.op == "call_function" and not has_lowering(node.target):
            raise UnsupportedError(
                f"operator {target_name(node)} ({_origin(node)}) has no kernel yet; write that "
                "part of the model with operators that have one: qcompiler.core.legal lists them"
            )


def _origin(node: fx.Node) -> str:
    """Say where in the model a node comes from, as far as the capture noted it."""
    parts = [node.name]
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if modules and modules[-1][0]:
        parts.append(f"from module {modules[-1][0]}")
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if lines:
        parts.append(f"{Path(lines[-1][0]).name} line {lines[-1][1]}")
    return ", ".join(parts)
