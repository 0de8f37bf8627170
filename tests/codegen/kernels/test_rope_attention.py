"""Rotary attention from a fused product against the operator."""

import pytest
import torch
import tvm

from codegen.kernels.attention import AttentionSpec
from codegen.kernels.rope_attention import RopeAttentionSpec, rope_attention
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

GROUPED = AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=0.125)
PLAIN = AttentionSpec(heads=2, kv_heads=2, head_size=80, scale=0.1, window=12)
SPECS = {
    "llama": RopeAttentionSpec(attention=GROUPED, rotated=64),
    "interleaved": RopeAttentionSpec(attention=GROUPED, rotated=64, interleaved=True),
    "partial": RopeAttentionSpec(attention=PLAIN, rotated=32),
    "partial-odd": RopeAttentionSpec(attention=PLAIN, rotated=20),
    "centred": RopeAttentionSpec(attention=GROUPED, rotated=64, centred=True),
    "partial-centred": RopeAttentionSpec(attention=PLAIN, rotated=20, centred=True),
    "partial-interleaved": RopeAttentionSpec(attention=PLAIN, rotated=20, interleaved=True),
}


def _tensor(t):
    return tvm.runtime.tensor(t.numpy())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_prompt_and_what_follows(spec, target, compile_kernel):
    prompt = compile_kernel(rope_attention(spec, target, "many"), target)
    single = compile_kernel(rope_attention(spec, target, "one"), target)
    shape = spec.attention
    heads, shared, d = shape.heads, shape.kv_heads, shape.head_size
    caches = [torch.full((1, shared, 64, d), float("nan")) for _ in range(2)]
    kept = [_tensor(cache) for cache in caches]
    expected_caches = [cache.double() for cache in caches]
    means = [torch.randn(shared, d)] if spec.centred else []
    place = 0
    for s in (19, 1, 1, 2, 1):
        qkv = torch.randn(1, s, (heads + 2 * shared) * d)
        angles = torch.randn(1, s, spec.rotated // 2)
        out = _tensor(torch.full((1, s, heads * d), 99.0))
        position = torch.tensor([place])
        given = [_tensor(t) for t in (qkv, angles.cos(), angles.sin(), *means)]
        (single if s == 1 else prompt)(*given, *kept, _tensor(position), out)
        expected = ops.rope_attention(
            *(t.double() for t in (qkv, angles.cos(), angles.sin())),
            *expected_caches,
            position,
            *(mean.double() for mean in means),
            heads=heads,
            scale=shape.scale,
            window=shape.window,
            softcap=shape.softcap,
            interleaved=spec.interleaved,
        )
        assert sqnr(expected, torch.from_numpy(out.numpy())) > 115
        place += s
    for cache, actual in zip(expected_caches, kept, strict=True):
        written = torch.from_numpy(actual.numpy())
        assert sqnr(cache[:, :, :place], written[:, :, :place]) > 130
        assert written[:, :, place:].isnan().all()


def test_unsupported():
    with pytest.raises(UnsupportedError, match="cannot turn in pairs"):
        RopeAttentionSpec(attention=GROUPED, rotated=66)
