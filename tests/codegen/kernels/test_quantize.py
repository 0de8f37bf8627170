"""Quantisation of activations, bit for bit."""

import pytest
import torch
import tvm

from codegen.kernels.quantize import QuantizeSpec, quantize
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerChannel, PerGroup, PerTensor, PerToken, TensorFormat
from qcompiler.core.reference import quantize_activation

pytestmark = pytest.mark.tvm


def _form(group):
    granularity = PerToken() if group is None else PerGroup(group)
    return TensorFormat(bits=8, granularity=granularity, scale_bits=32)


STATIC = TensorFormat(bits=8, granularity=PerTensor(), scale_bits=32)


def _outputs(m, spec):
    """Outputs full of what must not be left in them."""
    return (
        tvm.runtime.tensor(torch.full((m, spec.padded_k), 99, dtype=torch.int8).numpy()),
        tvm.runtime.tensor(torch.full((m, spec.scale_groups), -1.0).numpy()),
        tvm.runtime.tensor(torch.full((m, spec.sum_groups), -1, dtype=torch.int32).numpy()),
    )


def _sums(codes, weight_group):
    groups = -(-codes.shape[1] // weight_group)
    padded = torch.nn.functional.pad(codes.int(), (0, groups * weight_group - codes.shape[1]))
    return padded.unflatten(1, (groups, weight_group)).sum(-1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("k", "group", "weight_group"),
    [
        (64, 32, 32),
        (576, 32, 32),
        (576, 128, 128),
        (576, None, 576),
        (576, None, 64),
        (100, 32, 32),
        (100, None, 40),
        (13, None, 13),
        (13, 8, 8),
        (1000, 512, 512),
        (5, None, 5),
    ],
)
def test_codes_are_exact(k, group, weight_group, target, compile_kernel):
    spec = QuantizeSpec(k=k, form=_form(group), weight_group=weight_group)
    for rows, counts in (("one", (1, 1)), ("many", (1, 7, 33))):
        function = compile_kernel(quantize(spec, target, rows), target)
        for m in counts:
            x = torch.randn(m, k) * torch.logspace(-3, 3, k)
            x[0, : min(k, 32)] = 0
            x[-1] *= 1e-20
            out = _outputs(m, spec)
            function(tvm.runtime.tensor(x.numpy()), *out)
            codes, scales, sums = (torch.from_numpy(t.numpy()) for t in out)
            expected, expected_scales = quantize_activation(x, spec.form)
            assert torch.equal(codes[:, :k], expected)
            assert (codes[:, k:] == 0).all()
            assert torch.equal(scales, expected_scales)
            assert torch.equal(sums, _sums(expected, weight_group))


@pytest.mark.parametrize(
    ("k", "weight_group"),
    [(64, 32), (576, 576), (576, 64), (576, 128), (100, 40), (13, 13), (1000, 512), (5, 5)],
)
def test_static_codes_are_exact(k, weight_group, target, compile_kernel):
    spec = QuantizeSpec(k=k, form=STATIC, weight_group=weight_group)
    for rows, counts in (("one", (1, 1)), ("many", (1, 7, 33))):
        function = compile_kernel(quantize(spec, target, rows), target)
        for m in counts:
            # Most is within reach, the ends are clipped, some by so much that no integer holds it.
            x = torch.randn(m, k) * torch.logspace(-3, 3, k)
            x[0, :4] = torch.tensor([1e30, -1e30, 0.0, -0.0])
            scale = torch.rand(1) + 0.01
            out = _outputs(m, spec)
            function(tvm.runtime.tensor(x.numpy()), tvm.runtime.tensor(scale.numpy()), *out)
            codes, scales, sums = (torch.from_numpy(t.numpy()) for t in out)
            expected, expected_scales = quantize_activation(x, spec.form, scale)
            assert torch.equal(codes[:, :k], expected)
            assert (codes[:, k:] == 0).all()
            assert torch.equal(scales, expected_scales)
            assert torch.equal(sums, _sums(expected, weight_group))


@pytest.mark.parametrize("exponent", [-126, -20, 0, 90])
def test_static_scales_of_any_size(exponent, target, compile_kernel):
    spec = QuantizeSpec(k=600, form=STATIC, weight_group=600)
    scale = torch.tensor([1.37 * 2.0**exponent])
    x = (torch.rand(1, 600) - 0.5) * 300 * scale
    out = _outputs(1, spec)
    given = [tvm.runtime.tensor(t.numpy()) for t in (x, scale)]
    compile_kernel(quantize(spec, target, "one"), target)(*given, *out)
    expected, _ = quantize_activation(x, spec.form, scale)
    assert torch.equal(torch.from_numpy(out[0].numpy()), expected)


def test_ties_round_to_even(target, compile_kernel):
    spec = QuantizeSpec(k=64, form=_form(None), weight_group=64)
    x = (torch.arange(64) - 32.0).unsqueeze(0) / 2
    x[0, 0] = 127.0
    out = _outputs(1, spec)
    compile_kernel(quantize(spec, target, "one"), target)(tvm.runtime.tensor(x.numpy()), *out)
    assert torch.equal(torch.from_numpy(out[0].numpy()), x.round().to(torch.int8))


@pytest.mark.parametrize(
    ("form", "weight_group", "message"),
    [
        (_form(64), 32, "groups of 64 cannot meet a weight in groups of 32"),
        (TensorFormat(bits=4, granularity=PerToken()), 32, "8 symmetric bits only"),
        (
            TensorFormat(bits=8, granularity=PerChannel()),
            32,
            "one per token, per group or per tensor",
        ),
    ],
)
def test_unsupported(form, weight_group, message):
    with pytest.raises(UnsupportedError, match=message):
        QuantizeSpec(k=576, form=form, weight_group=weight_group)
