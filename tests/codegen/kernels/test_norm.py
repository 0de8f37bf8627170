"""Norms against the operators, as floats and as codes."""

import pytest
import torch
import tvm

from codegen.kernels.norm import NormSpec, norm, norm_quantize
from codegen.kernels.quantize import QuantizeSpec
from qcompiler.core import ops
from qcompiler.core.errors import UsageError
from qcompiler.core.formats import PerGroup, PerTensor, PerToken, TensorFormat
from qcompiler.core.reference import sqnr

pytestmark = pytest.mark.tvm

SPECS = {
    "rms": NormSpec(kind="rms", k=576, eps=1e-5),
    "rms-plain": NormSpec(kind="rms", k=576, eps=1e-6, weight=False),
    "rms-offset": NormSpec(kind="rms", k=200, eps=1e-6, offset=1.0),
    "rms-odd": NormSpec(kind="rms", k=13, eps=1e-6),
    "layer": NormSpec(kind="layer", k=384, eps=1e-12, bias=True),
    "layer-plain": NormSpec(kind="layer", k=384, eps=1e-5, weight=False),
    "layer-no-bias": NormSpec(kind="layer", k=72, eps=1e-5),
    "layer-odd": NormSpec(kind="layer", k=27, eps=1e-5, bias=True),
}


def _inputs(spec, m):
    x = torch.randn(m, spec.k) * 3 + 0.5
    weight = torch.randn(spec.k) if spec.weight else None
    bias = torch.randn(spec.k) if spec.bias else None
    if spec.kind == "rms":
        y = ops.rms_norm(x, weight, eps=spec.eps, offset=spec.offset)
    else:
        y = ops.layer_norm(x, weight, bias, eps=spec.eps)
    given = [tvm.runtime.tensor(t.numpy()) for t in (x, weight, bias) if t is not None]
    return given, y


def _empty(*shape, dtype=torch.float32):
    return tvm.runtime.tensor(torch.full(shape, 77, dtype=dtype).numpy())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_norm(spec, target, compile_kernel):
    for rows, counts in (("one", (1,)), ("many", (1, 2, 17))):
        function = compile_kernel(norm(spec, target, rows), target)
        for m in counts:
            given, expected = _inputs(spec, m)
            y = _empty(m, spec.k)
            function(*given, y)
            assert sqnr(expected, torch.from_numpy(y.numpy())) > 120


@pytest.mark.parametrize(
    "granularity", [PerGroup(32), PerToken(), PerTensor()], ids=["group", "token", "tensor"]
)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_norm_quantize(spec, granularity, target, compile_kernel):
    form = TensorFormat(bits=8, granularity=granularity, scale_bits=32)
    out = QuantizeSpec(k=spec.k, form=form, weight_group=form.group_size(spec.k))
    static = torch.tensor([0.02]) if form.is_static else None
    scale = [] if static is None else [tvm.runtime.tensor(static.numpy())]
    for rows, counts in (("one", (1,)), ("many", (1, 9))):
        function = compile_kernel(norm_quantize(spec, out, target, rows), target)
        for m in counts:
            given, y = _inputs(spec, m)
            codes = _empty(m, out.padded_k, dtype=torch.int8)
            scales = _empty(m, out.scale_groups)
            sums = _empty(m, out.sum_groups, dtype=torch.int32)
            function(*given, *scale, codes, scales, sums)
            codes, scales, sums = (torch.from_numpy(t.numpy()) for t in (codes, scales, sums))
            expected, expected_scales = ops.quantize(y, static, form=form)
            # The norm's last bit depends on the order of its sum, and turns a code now and then.
            turned = (codes[:, : spec.k].int() - expected.int()).abs()
            assert turned.max() <= 1
            assert turned.float().mean() < 1e-2
            assert sqnr(expected_scales, scales) > 120
            size = out.weight_group
            padded = torch.nn.functional.pad(
                codes[:, : spec.k], (0, out.sum_groups * size - spec.k)
            )
            assert torch.equal(padded.unflatten(1, (-1, size)).sum(-1, dtype=torch.int32), sums)


def test_large_mean_is_no_trouble(target, compile_kernel):
    spec = NormSpec(kind="layer", k=768, eps=1e-5, weight=False)
    x = torch.randn(4, 768) + 1000
    y = _empty(4, 768)
    compile_kernel(norm(spec, target, "many"), target)(tvm.runtime.tensor(x.numpy()), y)
    expected = ops.layer_norm(x.double(), None, None, eps=spec.eps)
    assert sqnr(expected, torch.from_numpy(y.numpy())) > 75


def test_bad_specs():
    with pytest.raises(UsageError, match="unknown norm 'rsm'; did you mean 'rms'"):
        NormSpec(kind="rsm", k=8, eps=1e-5)
    with pytest.raises(UsageError, match="an rms norm has no bias"):
        NormSpec(kind="rms", k=8, eps=1e-5, bias=True)
