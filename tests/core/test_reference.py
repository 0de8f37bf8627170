"""The reference arithmetic against versions of it written with numpy, in the simplest way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import quantize_activation, quantized_matmul, sqnr

SCHEMES = ("w8a8", "w4a8g8", "w4a8g32", "w4a8g32z", "w8a8g64t", "w3a8g16zt", "w8a8z")


def activation_form(scheme: str) -> TensorFormat:
    form = QuantScheme.parse(scheme).activation
    assert form is not None
    return form


def numpy_quantize(row: np.ndarray, size: int) -> tuple[list[int], list[float]]:
    codes: list[int] = []
    scales = []
    for start in range(0, len(row), size):
        group = row[start : start + size].astype(np.float32)
        largest = np.abs(group).max()
        inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
        codes += [int(c) for c in np.clip(np.rint(group * inverse), -127, 127)]
        scales.append(largest / np.float32(127))
    return codes, scales


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("k", [8, 40, 200])
def test_activations_are_quantised_as_by_hand(scheme: str, k: int) -> None:
    torch.manual_seed(k)
    x = torch.randn(2, 3, k) * torch.tensor([1e-20, 1.0, 1e6]).reshape(1, 3, 1)
    x[0, 0] = 0
    form = activation_form(scheme)
    codes, scales = quantize_activation(x, form)
    assert codes.dtype == torch.int8
    assert scales.shape == (2, 3, form.groups(k))
    for row, row_codes, row_scales in zip(
        x.reshape(-1, k), codes.reshape(-1, k), scales.reshape(6, -1), strict=True
    ):
        expected, expected_scales = numpy_quantize(row.numpy(), form.group_size(k))
        assert row_codes.tolist() == expected
        assert row_scales.tolist() == [float(s) for s in expected_scales]


@given(st.integers(1, 80), st.sampled_from(SCHEMES), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_an_activation_is_at_most_half_a_step_off(k: int, scheme: str, random: object) -> None:
    torch.manual_seed(random.getrandbits(30))  # type: ignore[attr-defined]
    x = torch.randn(4, k)
    form = activation_form(scheme)
    codes, scales = quantize_activation(x, form)
    steps = scales.repeat_interleave(form.group_size(k), -1)[:, :k]
    # Half a step, and a little for float arithmetic.
    assert ((codes * steps - x).abs() <= steps * 0.5001).all()
    assert codes.abs().amax() == 127


def test_static_scales_are_given_and_clip() -> None:
    torch.manual_seed(0)
    form = activation_form("w4a8g32s")
    x = torch.randn(2, 3, 40) * 3
    x[0, 0, :5] = torch.tensor([0.5, 1.5, -2.5, 1e30, -1e30]) * 0.01
    scale = torch.tensor([0.01])
    codes, scales = quantize_activation(x, form, scale)
    inverse = np.float32(1) / np.float32(0.01)
    expected = np.clip(np.rint(x.numpy() * inverse), -127, 127)
    assert codes.dtype == torch.int8
    assert codes.tolist() == expected.astype(int).tolist()
    assert codes[0, 0, :5].tolist() == [0, 2, -2, 127, -127]
    assert scales.shape == (2, 3, 1)
    assert (scales == scale).all()


@given(st.integers(1, 80), st.floats(2.0**-126, 1e30), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_what_a_static_scale_reaches_is_at_most_half_a_step_off(
    k: int, scale: float, random: object
) -> None:
    torch.manual_seed(random.getrandbits(30))  # type: ignore[attr-defined]
    step = torch.tensor([scale])
    x = (torch.rand(4, k) * 2 - 1) * 127 * step
    codes, scales = quantize_activation(x, activation_form("w8a8s"), step)
    assert ((codes * scales - x).abs() <= step * 0.5001).all()


def test_a_static_format_needs_its_scale() -> None:
    x, scale = torch.ones(1, 8), torch.ones(1)
    with pytest.raises(ValueError, match="a scale is needed for int8 per tensor"):
        quantize_activation(x, activation_form("w8a8s"))
    with pytest.raises(ValueError, match="a scale is of no use for int8 per token"):
        quantize_activation(x, activation_form("w8a8"), scale)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "k"), [(3, 8), (5, 40), (2, 1000)])
def test_products_are_exact_sums_scaled_group_by_group(scheme: str, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n * k)
    form = QuantScheme.parse(scheme).weight
    low, high = form.code_range
    kind = torch.int8 if form.symmetric else torch.uint8
    weight = QuantizedTensor(
        torch.randint(low, high + 1, (n, k), generator=generator).to(kind),
        (torch.rand(n, form.groups(k), generator=generator) - 0.5).to(torch.float16),
        None
        if form.symmetric
        else torch.randint(0, high + 1, (n, form.groups(k)), generator=generator).to(kind),
        form,
    )
    x = torch.randn(2, 2, k, generator=generator)
    codes, scales = quantize_activation(x, activation_form(scheme))
    actual = quantized_matmul(codes, scales, weight)
    assert actual.shape == (2, 2, n)
    assert actual.dtype == torch.float32

    size, groups = form.group_size(k), form.groups(k)
    a, s = codes.reshape(4, k).long(), scales.reshape(4, -1)
    w = weight.codes.long()
    for t in range(4):
        for i in range(n):
            total = np.float32(0)
            for g in range(groups):
                part = slice(g * size, (g + 1) * size)
                z = 0 if weight.zero_point is None else int(weight.zero_point[i, g])
                integer = int((a[t, part] * (w[i, part] - z)).sum())
                scale = np.float32(weight.scale[i, g])
                product = np.float32(integer)
                if s.shape[1] > 1:
                    product = product * np.float32(s[t, g])
                total = np.float32(total + np.float32(product * scale))
            if s.shape[1] == 1:
                total = np.float32(total * np.float32(s[t, 0]))
            assert float(actual.reshape(4, n)[t, i]) == pytest.approx(float(total), rel=1e-6)


def test_long_sums_are_rounded_once() -> None:
    # Random odd products add up to far more than 2^24, past which float32 skips integers.
    generator = torch.Generator().manual_seed(3)
    k, form = 65536, QuantScheme.parse("w8a8").weight
    w = torch.randint(-63, 64, (4, k), generator=generator) * 2 + 1
    codes = torch.where(torch.rand(1, k, generator=generator) < 0.5, w[:1].sign() * 127, 3)
    weight = QuantizedTensor(w.to(torch.int8), torch.ones(4, 1).half(), None, form)
    actual = quantized_matmul(codes.to(torch.int8), torch.ones(1, 1), weight)
    exact = (codes.long() * w.long()).sum(1)
    assert int(exact.abs().max()) > 1 << 26
    assert actual.flatten().tolist() == exact.to(torch.float32).tolist()


def test_sqnr_is_in_decibels() -> None:
    x = torch.randn(1000)
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x * 1.1) == pytest.approx(20, abs=1e-3)
    assert sqnr(x, x * 1.01) == pytest.approx(40, abs=1e-2)
    assert sqnr(x, torch.zeros(1000)) == pytest.approx(0)
