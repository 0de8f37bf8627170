"""The kernels of a machine: what builds each, for processors and for GPUs.

Both take the same specifications and the same tensors, so that lowering need not know which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from codegen import cuda_selection, selection
from codegen.kernels import (
    attention,
    dense_attention,
    embedding,
    norm,
    quantize,
    rope_attention,
    rotary,
    top_k,
)
from codegen.kernels.cuda import cached_attention, lookup
from codegen.kernels.cuda import dense_attention as cuda_dense_attention
from codegen.kernels.cuda import rows as cuda_rows
from codegen.selection import Rule
from qcompiler.core.target import Target

Build = Callable[..., PrimFunc]


@dataclass(frozen=True, kw_only=True)
class KernelSet:
    """What builds the kernel of each operator, and the rules that pick one for products."""

    norm: Build
    norm_quantize: Build
    quantize: Build
    embedding: Build
    rotary: Build
    top_k: Build
    attention: Build
    rope_attention: Build
    dense_attention: Build
    products: tuple[Rule, ...]
    asks_ahead: bool
    """Whether attention of one token asks for the weights that are read next."""


PROCESSOR = KernelSet(
    norm=norm.norm,
    norm_quantize=norm.norm_quantize,
    quantize=quantize.quantize,
    embedding=embedding.embedding,
    rotary=rotary.rotary,
    top_k=lambda spec, target, rows: top_k.top_k(spec, rows),
    attention=attention.attention,
    rope_attention=rope_attention.rope_attention,
    dense_attention=dense_attention.dense_attention,
    products=selection.PRODUCT_RULES,
    asks_ahead=True,
)

CUDA = KernelSet(
    norm=cuda_rows.norm,
    norm_quantize=cuda_rows.norm_quantize,
    quantize=cuda_rows.quantize,
    embedding=lookup.embedding,
    rotary=lookup.rotary,
    top_k=lookup.top_k,
    attention=cached_attention.attention,
    rope_attention=cached_attention.rope_attention,
    dense_attention=cuda_dense_attention.dense_attention,
    products=cuda_selection.PRODUCT_RULES,
    asks_ahead=False,
)


def kernel_set(target: Target) -> KernelSet:
    """Return the kernels of a target."""
    return PROCESSOR if target.gpu is None else CUDA
