"""Attention with a cache against the operator."""

from dataclasses import replace

import pytest
import torch
import tvm

from codegen.kernels.attention import AttentionSpec, attention
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

SPECS = {
    "grouped": AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=0.125),
    "plain": AttentionSpec(heads=3, kv_heads=3, head_size=32, scale=0.2),
    "one-key-head": AttentionSpec(heads=8, kv_heads=1, head_size=16, scale=0.25),
    "pairs-window": AttentionSpec(heads=4, kv_heads=2, head_size=80, scale=0.1, window=20),
    "softcap": AttentionSpec(heads=4, kv_heads=2, head_size=96, scale=0.2, softcap=50.0),
    "all": AttentionSpec(heads=5, kv_heads=1, head_size=72, scale=0.1, window=3, softcap=5.0),
    "wide": AttentionSpec(heads=2, kv_heads=2, head_size=256, scale=0.06),
    "ahead": AttentionSpec(heads=6, kv_heads=2, head_size=64, scale=0.1, ahead=(6400, 640)),
    "narrow": AttentionSpec(heads=12, kv_heads=12, head_size=8, scale=0.3),
}


def _tensor(t):
    return tvm.runtime.tensor(t.numpy())


def _check(function, spec, s, position, context):
    """Run a kernel on random input and compare the output and both caches with the operator's."""
    q = torch.randn(1, s, spec.heads, spec.head_size)
    k, v = torch.randn(2, 1, s, spec.kv_heads, spec.head_size).unbind(0)
    k_cache, v_cache = torch.randn(2, 1, spec.kv_heads, context, spec.head_size).unbind(0)
    # What has not been written yet must not be used.
    k_cache[:, :, position + s :] = v_cache[:, :, position + s :] = float("nan")
    place = torch.tensor([position])
    given = [_tensor(t) for t in (q, k, v, k_cache, v_cache, place)]
    ahead = [_tensor(torch.zeros(size, dtype=torch.uint8)) for size in spec.ahead]
    out = _tensor(torch.full_like(q, 99.0))
    function(*given, *ahead, out)
    double = (t.double() for t in (q, k, v, k_cache, v_cache))
    options = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
    expected = ops.attention(*double, place, **options)
    assert sqnr(expected, torch.from_numpy(out.numpy())) > 105
    k_cache[:, :, position : position + s] = k.transpose(1, 2)
    v_cache[:, :, position : position + s] = v.transpose(1, 2)
    for cache, actual in ((k_cache, given[3]), (v_cache, given[4])):
        assert torch.equal(cache.nan_to_num(7.0), torch.from_numpy(actual.numpy()).nan_to_num(7.0))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_token(spec, target, compile_kernel):
    function = compile_kernel(attention(spec, target, "one"), target)
    # 1400 is long enough for two threads and for more than one run of kept scores.
    for position, context in ((0, 1), (1, 2), (7, 16), (100, 130), (129, 130), (1400, 1500)):
        _check(function, spec, 1, position, context)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_many_tokens(spec, target, compile_kernel):
    spec = replace(spec, ahead=())
    function = compile_kernel(attention(spec, target, "many"), target)
    for s, position, context in (
        (1, 0, 1),
        (1, 9, 20),
        (2, 0, 8),
        (5, 3, 8),
        (17, 40, 64),
        (130, 0, 130),
        (130, 75, 300),
    ):
        _check(function, spec, s, position, context)


def test_threads_do_not_change_the_result(target, compile_kernel):
    spec = SPECS["grouped"]
    threads = tvm.get_global_func("runtime.config_threadpool")
    for rows, s in (("one", 1), ("many", 70)):
        function = compile_kernel(attention(spec, target, rows), target)
        q = torch.randn(1, s, spec.heads, spec.head_size)
        k, v = torch.randn(2, 1, s, spec.kv_heads, spec.head_size).unbind(0)
        k_cache, v_cache = torch.randn(2, 1, spec.kv_heads, 600, spec.head_size).unbind(0)
        results = []
        for count in (1, 2, 2):
            threads(1, count)
            out = _tensor(torch.zeros_like(q))
            function(*(_tensor(t) for t in (q, k, v, k_cache, v_cache, torch.tensor([500]))), out)
            results.append(torch.from_numpy(out.numpy()))
        assert all(torch.equal(results[0], other) for other in results[1:])


def test_large_scores_do_not_overflow(target, compile_kernel):
    spec = AttentionSpec(heads=2, kv_heads=1, head_size=16, scale=1.0)
    for rows, s in (("one", 1), ("many", 40)):
        function = compile_kernel(attention(spec, target, rows), target)
        q = torch.randn(1, s, 2, 16) * 100
        k, v = torch.randn(2, 1, s, 1, 16).unbind(0)
        k_cache, v_cache = torch.randn(2, 1, 1, 64, 16).unbind(0)
        place = torch.tensor([20])
        out = _tensor(torch.zeros_like(q))
        function(*(_tensor(t) for t in (q, k, v, k_cache, v_cache, place)), out)
        expected = ops.attention(
            *(t.double() for t in (q, k, v, k_cache, v_cache)), place, scale=1.0
        )
        # Scores of a thousand leave their float32 rounding in the weights.
        assert sqnr(expected, torch.from_numpy(out.numpy())) > 70


def test_unsupported():
    with pytest.raises(UnsupportedError, match="7 query heads cannot share 2 key heads"):
        AttentionSpec(heads=7, kv_heads=2, head_size=64, scale=1.0)
    with pytest.raises(UnsupportedError, match="heads of 20 features; pad them"):
        AttentionSpec(heads=2, kv_heads=2, head_size=20, scale=1.0)
