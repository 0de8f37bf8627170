"""Attention of encoders against the operator."""

import pytest
import torch
import tvm

from codegen.kernels.dense_attention import DenseAttentionSpec, dense_attention
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize(
    ("heads", "head_size", "mask", "batch", "by_head", "by_query"),
    [
        (12, 32, "none", True, False, False),
        (12, 32, "added", True, False, False),
        (2, 64, "seen", True, False, False),
        (3, 24, "added", True, True, True),
        (3, 24, "seen", True, False, True),
        (2, 16, "added", False, True, True),
        (2, 80, "seen", False, False, True),
    ],
)
def test_dense_attention(heads, head_size, mask, batch, by_head, by_query, target, compile_kernel):
    spec = DenseAttentionSpec(
        heads=heads,
        head_size=head_size,
        scale=0.17,
        mask=mask,
        mask_batch=batch,
        mask_heads=by_head,
        mask_queries=by_query,
    )
    function = compile_kernel(dense_attention(spec, target), target)
    for b, s in ((1, 1), (2, 5), (3, 17), (1, 130)):
        q, k, v = torch.randn(3, b, s, heads, head_size).unbind(0)
        given, bias = [q, k, v], None
        if mask != "none":
            shape = (b if batch else 1, heads if by_head else 1, s if by_query else 1, s)
            seen = torch.rand(shape) > 0.4
            seen[..., 0] = True
            lowest = torch.finfo(torch.float32).min
            bias = seen if mask == "seen" else torch.randn(shape).masked_fill(~seen, lowest)
            given.append(bias)
        out = tvm.runtime.tensor(torch.full_like(q, 99.0).numpy())
        function(*(tvm.runtime.tensor(t.numpy()) for t in given), out)
        bias = bias.double() if mask == "added" else bias
        expected = ops.dense_attention(q.double(), k.double(), v.double(), bias, scale=spec.scale)
        assert sqnr(expected, torch.from_numpy(out.numpy())) > 115


def test_unsupported():
    with pytest.raises(UnsupportedError, match="heads of 20 features; pad them"):
        DenseAttentionSpec(heads=2, head_size=20, scale=1.0)
