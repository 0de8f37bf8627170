"""The lowerings of the operators of ours: which function calls the kernel of each."""

from __future__ import annotations

from typing import Any

from codegen.lowerings.arguments import Lowering
from codegen.lowerings.attention import attention, dense_attention, rope_attention, rotary
from codegen.lowerings.norms import norm, norm_quantize, quantize
from codegen.lowerings.products import embedding, linear, quantized_linear, quantized_matmul
from qcompiler.core import ops

OPERATORS: dict[Any, Lowering] = {
    ops.linear: linear,
    ops.quantized_linear: quantized_linear,
    ops.quantized_matmul: quantized_matmul,
    ops.embedding: embedding,
    ops.quantized_embedding: embedding,
    ops.quantize: quantize,
    ops.rms_norm: norm("rms"),
    ops.layer_norm: norm("layer"),
    ops.rms_norm_quantize: norm_quantize("rms"),
    ops.layer_norm_quantize: norm_quantize("layer"),
    ops.rotary: rotary,
    ops.attention: attention,
    ops.rope_attention: rope_attention,
    ops.dense_attention: dense_attention,
}
