"""Caches in few bits: what kernels store is what the reference stores, and they read it back."""

from dataclasses import replace

import pytest
import torch
import tvm

from codegen.kernels.attention import AttentionSpec, attention
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.kv_format import KvFormat, pair
from qcompiler.core.kv_rows import rotate_heads, stored
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

SPECS = {
    "kv8": AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=0.125),
    "kv8g32r": AttentionSpec(heads=4, kv_heads=2, head_size=96, scale=0.1, window=20),
    "kv8r": AttentionSpec(heads=5, kv_heads=1, head_size=72, scale=0.1, window=3, softcap=5.0),
    "kv8/kv8g32": AttentionSpec(heads=6, kv_heads=2, head_size=96, scale=0.1, softcap=20.0),
    "kv8r/kv4": AttentionSpec(heads=3, kv_heads=3, head_size=32, scale=0.2),
    "kv4g32r": AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=0.125),
    "kv4g16/kv8g64": AttentionSpec(heads=2, kv_heads=2, head_size=128, scale=0.1, softcap=50.0),
}


def _tensor(t):
    return tvm.runtime.tensor(t.numpy())


def _with_caches(kv):
    keys, values = map(KvFormat.parse, pair(kv))
    return replace(SPECS[kv], keys=keys, values=values)


def _check(function, spec, s, position, context):
    """Run a kernel on random input; compare the output, and every byte of both caches."""
    kv = f"{spec.keys}/{spec.values}"
    q = torch.randn(1, s, spec.heads, spec.head_size)
    k, v = torch.randn(2, 1, s, spec.kv_heads, spec.head_size).unbind(0)
    k[0, 0, 0] = 0.0
    v[0, -1] *= 1e-3
    before = torch.randn(2, 1, spec.kv_heads, context, spec.head_size)
    k_cache, v_cache = (stored(t, form) for t, form in zip(before, pair(kv), strict=True))
    place = torch.tensor([position])
    given = [_tensor(t) for t in (q, k, v, k_cache, v_cache, place)]
    out = _tensor(torch.full_like(q, 99.0))
    function(*given, out)
    options = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap, "kv": kv}
    expected = ops.attention(q, k, v, k_cache, v_cache, place, **options)
    assert sqnr(expected, torch.from_numpy(out.numpy())) > 90
    for cache, actual in ((k_cache, given[3]), (v_cache, given[4])):
        assert torch.equal(cache, torch.from_numpy(actual.numpy()))


@pytest.mark.parametrize("kv", SPECS)
def test_one_token(kv, target, compile_kernel):
    spec = _with_caches(kv)
    function = compile_kernel(attention(spec, target, "one"), target)
    for position, context in ((0, 1), (1, 2), (7, 16), (130, 131), (1400, 1500)):
        _check(function, spec, 1, position, context)


@pytest.mark.parametrize("kv", SPECS)
def test_many_tokens(kv, target, compile_kernel):
    spec = _with_caches(kv)
    function = compile_kernel(attention(spec, target, "many"), target)
    for s, position, context in ((1, 9, 20), (5, 3, 8), (17, 40, 64), (130, 75, 300)):
        _check(function, spec, s, position, context)


@pytest.mark.parametrize("d", [64, 96, 72, 8])
def test_rotation_is_orthogonal_and_its_own_inverse(d):
    x = torch.randn(5, d)
    assert sqnr(x, rotate_heads(rotate_heads(x))) > 120
    assert sqnr(x @ x.T, rotate_heads(x) @ rotate_heads(x).T) > 110


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(UnsupportedError, match="multiple of 32 features, and these have 80"):
        AttentionSpec(heads=2, kv_heads=2, head_size=80, scale=1.0, keys=KvFormat.parse("kv4"))
