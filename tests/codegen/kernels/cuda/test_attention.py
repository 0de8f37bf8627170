"""Attention, with a cache in any format and without, against the operators."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from codegen.kernels.attention import AttentionSpec
from codegen.kernels.cuda.cached_attention import PART, attention, rope_attention
from codegen.kernels.cuda.dense_attention import dense_attention
from codegen.kernels.dense_attention import DenseAttentionSpec
from codegen.kernels.rope_attention import RopeAttentionSpec
from qcompiler.core import kv_rows, ops
from qcompiler.core.kv_format import KvFormat, row_of
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

SPECS = {
    "grouped": AttentionSpec(heads=9, kv_heads=3, head_size=64, scale=0.125),
    "one-key-head": AttentionSpec(heads=8, kv_heads=1, head_size=16, scale=0.25),
    "all": AttentionSpec(heads=5, kv_heads=1, head_size=72, scale=0.1, window=3, softcap=5.0),
    "wide": AttentionSpec(heads=2, kv_heads=2, head_size=256, scale=0.06),
    "window": AttentionSpec(heads=4, kv_heads=2, head_size=40, scale=0.1, window=270),
}
FORMATS = ["kv8r", "kv8g16", "kv4g32r"]


def _caches(spec, context, position):
    """Return caches that hold rows up to `position`, and what no number is behind it."""
    caches = []
    for form in (spec.keys, spec.values):
        text = "" if form is None else str(form)
        rows, dtype = row_of(text, spec.head_size)
        x = torch.randn(1, spec.kv_heads, context, spec.head_size)
        cache = kv_rows.stored(x, text)
        assert cache.shape[-1] == rows
        cache[:, :, position:] = float("nan") if dtype == "float32" else 255
        caches.append(cache.contiguous())
    return caches


def _options(spec):
    kv = f"{spec.keys}/{spec.values}" if spec.keys else ""
    return {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap, "kv": kv}


def _check(function, spec, s, position, context, least=100):
    q = torch.randn(1, s, spec.heads, spec.head_size)
    k, v = torch.randn(2, 1, s, spec.kv_heads, spec.head_size).unbind(0)
    caches = _caches(spec, context, position)
    mine = [cache.clone() for cache in caches]
    place, out = torch.tensor([position]), torch.full_like(q, float("nan"))
    function(q, k, v, *mine, place, out)
    expected = ops.attention(q, k, v, *caches, place, **_options(spec))
    assert sqnr(expected, out) > least
    for cache, actual in zip(caches, mine, strict=True):
        assert torch.equal(cache.nan_to_num(7.0), actual.nan_to_num(7.0))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_token(spec, target, run_kernel):
    function = run_kernel(attention(spec, target, "one"))
    for position, context in ((0, 1), (7, 16), (PART - 1, PART), (2 * PART + 5, 700)):
        _check(function, spec, 1, position, context)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_many_tokens(spec, target, run_kernel):
    function = run_kernel(attention(spec, target, "many"))
    for s, position, context in ((1, 0, 1), (33, 0, 40), (18, 300, 330)):
        _check(function, spec, s, position, context)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", ["one", "many"])
def test_caches_in_few_bits(form, rows, target, run_kernel):
    kind = KvFormat.parse(form)
    spec = replace(SPECS["grouped"], heads=6, keys=kind, values=KvFormat.parse(form.rstrip("r")))
    function = run_kernel(attention(spec, target, rows))
    for position, context in ((0, 20), (40, 64)):
        _check(function, spec, 1 if rows == "one" else 20, position, context)


@pytest.mark.parametrize(
    ("rotated", "interleaved", "centred"),
    [(64, False, False), (32, False, True), (64, True, False)],
)
@pytest.mark.parametrize("rows", ["one", "many"])
def test_rotation_on_the_way(rotated, interleaved, centred, rows, target, run_kernel):
    shape = AttentionSpec(heads=6, kv_heads=2, head_size=64, scale=0.125)
    spec = RopeAttentionSpec(
        attention=shape, rotated=rotated, interleaved=interleaved, centred=centred
    )
    mean = [torch.randn(2, 64)] if centred else []
    function = run_kernel(rope_attention(spec, target, rows))
    for position in (0, 30):
        s = 1 if rows == "one" else 19
        qkv = torch.randn(1, s, 10 * 64)
        angles = torch.rand(1, s, rotated // 2) * 6
        caches = _caches(shape, 64, position)
        mine = [cache.clone() for cache in caches]
        place, out = torch.tensor([position]), torch.full((1, s, 6 * 64), float("nan"))
        given = (angles.cos(), angles.sin())
        function(qkv, *given, *mean, *mine, place, out)
        expected = ops.rope_attention(
            qkv, *given, *caches, place, *mean, heads=6, scale=0.125, interleaved=interleaved
        )
        assert sqnr(expected, out) > 100
        written = slice(position, position + s)
        assert sqnr(caches[0][:, :, written], mine[0][:, :, written]) > 120
        assert torch.equal(caches[1][:, :, written], mine[1][:, :, written])


@pytest.mark.parametrize("mask", ["none", "added", "seen"])
def test_without_a_cache(mask, target, run_kernel):
    spec = DenseAttentionSpec(heads=3, head_size=32, scale=0.2, mask=mask, mask_queries=True)
    function = run_kernel(dense_attention(spec, target))
    for b, s in ((1, 5), (2, 41)):
        q, k, v = torch.randn(3, b, s, 3, 32).unbind(0)
        seen = torch.rand(b, 1, s, s) < 0.6
        seen |= torch.eye(s, dtype=torch.bool)
        given = {
            "none": None,
            "added": torch.where(seen, torch.randn(b, 1, s, s), -math.inf),
            "seen": seen,
        }[mask]
        out = torch.full_like(q, float("nan"))
        function(q, k, v, *([] if given is None else [given]), out)
        assert sqnr(ops.dense_attention(q, k, v, given, scale=0.2), out) > 100
