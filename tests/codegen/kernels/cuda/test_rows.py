"""Norms and quantisation of rows, rows of tables, rotation and top-k, against the operators."""

from __future__ import annotations

import pytest
import torch

from codegen.kernels.cuda.lookup import embedding, rotary, top_k
from codegen.kernels.cuda.rows import norm, norm_quantize, quantize
from codegen.kernels.embedding import EmbeddingSpec
from codegen.kernels.norm import NormSpec
from codegen.kernels.quantize import QuantizeSpec
from codegen.kernels.rotary import RotarySpec
from codegen.kernels.top_k import TopKSpec
from codegen.packing import float_packing, pack_float
from qcompiler.core import ops, reference
from qcompiler.core.formats import PerGroup, PerTensor, PerToken, TensorFormat
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

NORMS = {
    "rms": NormSpec(kind="rms", k=576, eps=1e-5),
    "rms-plain": NormSpec(kind="rms", k=70, eps=1e-6, weight=False),
    "rms-offset": NormSpec(kind="rms", k=200, eps=1e-6, offset=1.0),
    "layer": NormSpec(kind="layer", k=384, eps=1e-12, bias=True),
    "layer-odd": NormSpec(kind="layer", k=27, eps=1e-5, bias=True),
}
QUANTIZED = {
    "group-32": (PerGroup(32), 32),
    "group-24": (PerGroup(24), 24),
    "group-1024": (PerGroup(1024), 1024),
    "token": (PerToken(), 10**6),
    "token-group-64": (PerToken(), 64),
    "tensor": (PerTensor(), 128),
}


def _normed(spec, m):
    x = torch.randn(m, spec.k) * 3 + 0.5
    weight = torch.randn(spec.k) if spec.weight else None
    bias = torch.randn(spec.k) if spec.bias else None
    if spec.kind == "rms":
        y = ops.rms_norm(x, weight, eps=spec.eps, offset=spec.offset)
    else:
        y = ops.layer_norm(x, weight, bias, eps=spec.eps)
    return [t for t in (x, weight, bias) if t is not None], y


def _outputs(m, spec):
    return (
        torch.full((m, spec.padded_k), 77, dtype=torch.int8),
        torch.full((m, spec.scale_groups), 77.0),
        torch.full((m, spec.sum_groups), 77, dtype=torch.int32),
    )


def _sums(codes, spec):
    size = min(spec.weight_group, spec.k)
    padded = torch.nn.functional.pad(codes.int(), (0, spec.sum_groups * size - spec.k))
    return padded.reshape(len(codes), -1, size).sum(-1, dtype=torch.int32)


@pytest.mark.parametrize("spec", NORMS.values(), ids=NORMS)
def test_norm(spec, target, run_kernel):
    for rows, counts in (("one", (1,)), ("many", (1, 7))):
        function = run_kernel(norm(spec, target, rows))
        for m in counts:
            given, expected = _normed(spec, m)
            y = torch.full((m, spec.k), float("nan"))
            function(*given, y)
            assert sqnr(expected, y) > 120


@pytest.mark.parametrize("k", [576, 2100, 77])
@pytest.mark.parametrize(("granularity", "group"), QUANTIZED.values(), ids=QUANTIZED)
def test_quantize_is_exact(k, granularity, group, target, run_kernel):
    form = TensorFormat(bits=8, granularity=granularity, scale_bits=32)
    spec = QuantizeSpec(k=k, form=form, weight_group=min(group, k))
    function = run_kernel(quantize(spec, target, "many"))
    for m in (1, 6):
        x = torch.randn(m, k) * torch.rand(m, 1)
        x[-1, : k // 2] = 0.0
        scale = torch.tensor([0.01]) if form.is_static else None
        codes, scales = reference.quantize_activation(x, form, scale)
        got = _outputs(m, spec)
        function(x, *([] if scale is None else [scale]), *got)
        assert torch.equal(got[0][:, :k], codes)
        assert not got[0][:, k:].any()
        assert torch.equal(got[1], scales)
        assert torch.equal(got[2], _sums(codes, spec))


@pytest.mark.parametrize("spec", NORMS.values(), ids=NORMS)
def test_norm_quantize(spec, target, run_kernel):
    form = TensorFormat(bits=8, granularity=PerGroup(32), scale_bits=32)
    out = QuantizeSpec(k=spec.k, form=form, weight_group=min(32, spec.k))
    function = run_kernel(norm_quantize(spec, out, target, "many"))
    given, y = _normed(spec, 5)
    codes, scales = reference.quantize_activation(y, form)
    got = _outputs(5, out)
    function(*given, *got)
    # Sums are added up in another order, so that a number on the edge may round the other way.
    differences = (got[0][:, : spec.k].int() - codes.int()).abs()
    assert differences.max() <= 1
    assert differences.float().mean() < 1e-2
    assert sqnr(scales, got[1]) > 110
    assert torch.equal(got[2], _sums(got[0][:, : spec.k], out))


@pytest.mark.parametrize("scheme", ["w4a8g32", "w4a8g24z", "w8a8", "w8a8g64z"])
def test_rows_of_a_quantised_table(scheme, target, run_kernel, product_of):
    table = product_of(scheme, 70, 100)
    function = run_kernel(embedding(EmbeddingSpec(packing=table.packing), target))
    ids = torch.randint(0, 70, (9,))
    out = torch.full((9, 100), float("nan"))
    function(ids, *table.arrays(), out)
    assert torch.equal(ops.quantized_embedding(ids, table.weight, scheme=scheme), out)


def test_rows_of_a_float_table(target, run_kernel):
    weight = torch.randn(40, 33)
    packing = float_packing(40, 33, lanes=target.lanes, most_vectors=1)
    (packed,) = pack_float(packing, weight.numpy()).values()
    ids, out = torch.randint(0, 40, (5,)), torch.full((5, 33), float("nan"))
    function = run_kernel(embedding(EmbeddingSpec(packing=packing), target))
    function(ids, torch.from_numpy(packed), out)
    assert torch.equal(weight[ids], out)


@pytest.mark.parametrize(("rotated", "interleaved"), [(24, False), (16, False), (24, True)])
def test_rotary(rotated, interleaved, target, run_kernel):
    spec = RotarySpec(heads=5, head_size=24, rotated=rotated, interleaved=interleaved)
    x, angles = torch.randn(2, 7, 5, 24), torch.rand(2, 7, rotated // 2) * 6
    y = torch.full_like(x, float("nan"))
    run_kernel(rotary(spec, target))(x, angles.cos(), angles.sin(), y)
    expected = ops.rotary(x, angles.cos(), angles.sin(), interleaved=interleaved)
    assert sqnr(expected, y) > 120


@pytest.mark.parametrize("largest", [True, False])
def test_top_k(largest, target, run_kernel):
    x = torch.randn(37, 19)
    values, places = torch.empty(37, 3), torch.empty(37, 3, dtype=torch.int64)
    spec = TopKSpec(k=3, dtype="float32", largest=largest)
    run_kernel(top_k(spec, target, "many"))(x, values, places)
    expected = x.topk(3, largest=largest)
    assert torch.equal(expected.values, values)
    assert torch.equal(expected.indices, places)
