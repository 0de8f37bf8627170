"""The operators that code generation takes; `legalize` refuses a program with others."""

from __future__ import annotations

import operator

import torch

from qcompiler.core import ops

aten = torch.ops.aten

PYTHON_OPS = frozenset(
    {
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.getitem,
    }
)
"""Arithmetic on symbolic sizes, and picking one of several results."""

FUSED_AWAY = ops.TRAINED_AWAY
"""Operators that code generation never sees: training ends before."""

LEGAL_ATEN = frozenset(
    {
        # arithmetic, one number at a time
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.rsub.Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Tensor,
        aten.div.Scalar,
        aten.maximum.default,
        aten.minimum.default,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.abs.default,
        aten.neg.default,
        aten.rsqrt.default,
        aten.sqrt.default,
        aten.exp.default,
        aten.log.default,
        aten.cos.default,
        aten.sin.default,
        aten.tanh.default,
        aten.erf.default,
        aten.floor.default,
        aten.sigmoid.default,
        aten.silu.default,
        aten.gelu.default,
        aten.relu.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        # comparisons, logic and choices
        aten.eq.Scalar,
        aten.eq.Tensor,
        aten.ne.Scalar,
        aten.ne.Tensor,
        aten.lt.Tensor,
        aten.lt.Scalar,
        aten.le.Tensor,
        aten.le.Scalar,
        aten.gt.Tensor,
        aten.gt.Scalar,
        aten.ge.Tensor,
        aten.ge.Scalar,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_not.default,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.__and__.Tensor,
        aten.__and__.Scalar,
        aten.__or__.Tensor,
        aten.__or__.Scalar,
        aten.bitwise_not.default,
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.where.Scalar,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        # shapes, copies and casts
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.transpose.int,
        aten.permute.default,
        aten.t.default,
        aten.expand.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten._to_copy.default,
        # parts and places
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.cat.default,
        aten.stack.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        # made from nothing
        aten.arange.default,
        aten.arange.start,
        aten.arange.start_step,
        aten.full.default,
        aten.full_like.default,
        aten.zeros.default,
        aten.ones.default,
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        # reductions and products
        aten.mean.default,
        aten.mean.dim,
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.amax.default,
        aten.amin.default,
        aten.softmax.int,
        aten._softmax.default,
        aten.topk.default,
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        # sizes
        aten.sym_size.int,
    }
)
"""Kept in step with the table of lowerings, which a test compares."""


def has_lowering(target: object) -> bool:
    """Tell whether code generation takes calls of `target`."""
    if target in FUSED_AWAY:
        return False
    return target in ops.OPS or target in PYTHON_OPS or target in LEGAL_ATEN
