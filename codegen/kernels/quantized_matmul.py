"""Products of int8 activations and packed integer weights.

The arithmetic is that of `qcompiler.core.reference.quantized_matmul`: exact integer sums per group,
which one activation and one weight scale turn into a float term each, added up in order. Arguments:

    codes [m, k rounded up to 8] int8, padding zero; scales [m, groups or 1] float32;
    sums [m, groups of the weight] int32: the sums of the codes;
    weights, weight scales, zero points if asymmetric: as `codegen.packing` lays them out;
    bias [n], residual [m, outputs] float32 if asked for; out [m, outputs] float32.
"""

from __future__ import annotations

from tvm.tirx import PrimFunc

from codegen.kernels.builder import kernel, size, when
from codegen.kernels.quantized_operands import Operands, QuantizedMatmul
from codegen.kernels.quantized_row import emit_few_rows, emit_one_row, few_rows
from codegen.kernels.quantized_rows import emit_many_rows
from qcompiler.core.target import Target

__all__ = ["QuantizedMatmul", "many_rows", "one_row"]


def one_row(spec: QuantizedMatmul, target: Target) -> PrimFunc:
    """Build the product for m = 1."""
    with kernel("quantized_matmul_one_row") as built:
        emit_one_row(spec, target, Operands.arguments(spec, 1))
    return built.get()


def many_rows(spec: QuantizedMatmul, target: Target) -> PrimFunc:
    """Build the product for any number m of rows; few are as fast as reading the weight allows."""
    with kernel("quantized_matmul_many_rows") as built:
        rows = size("m")
        operands = Operands.arguments(spec, rows)
        when(
            rows <= few_rows(target),
            lambda: emit_few_rows(spec, target, operands, rows),
            lambda: emit_many_rows(spec, target, operands, rows),
        )
    return built.get()
