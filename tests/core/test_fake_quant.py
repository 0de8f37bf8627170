"""Fake quantisers give what is deployed to the bit, and the gradients that they promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.rounding import round_to_nearest
from qcompiler.core import kv_rows
from qcompiler.core.fake_quant import (
    fake_quantize,
    fake_quantize_weight,
    fake_query,
    fake_store,
    quantize_weight,
    range_scale,
    stored_scale,
)
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.groups import group_rows
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import quantize_activation, quantized_matmul, sqnr

FORMS = ["w2g32", "w3g16z", "w4g32", "w4g24", "w4", "w4g32z", "w8g32"]


def form_of(text: str) -> TensorFormat:
    return QuantScheme.parse(text).weight


def started(
    text: str, seed: int = 0, n: int = 12, k: int = 72
) -> tuple[torch.Tensor, QuantizedTensor]:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return weight, round_to_nearest(weight, form_of(text))


@pytest.mark.parametrize("text", FORMS)
@given(seed=st.integers(0, 1000), spread=st.floats(0.3, 2.0))
@settings(max_examples=15)
def test_the_value_is_that_of_the_codes_to_the_bit(text: str, seed: int, spread: float) -> None:
    weight, start = started(text, seed)
    scale = start.scale.float() * spread
    codes = quantize_weight(weight, scale, start.zero_point, form_of(text))
    value = fake_quantize_weight(weight, scale, start.zero_point, form=form_of(text))
    assert torch.equal(value, codes.dequantize())
    first, last = form_of(text).code_range
    assert int(codes.codes.min()) >= first
    assert int(codes.codes.max()) <= last


@pytest.mark.parametrize("text", FORMS)
def test_at_its_own_scales_a_weight_is_rounded_to_nearest(text: str) -> None:
    weight, start = started(text)
    codes = quantize_weight(weight, start.scale.float(), start.zero_point, form_of(text))
    assert torch.equal(codes.codes, start.codes)
    assert torch.equal(codes.scale, start.scale)


@pytest.mark.parametrize("text", FORMS)
def test_codes_that_are_held_stay(text: str) -> None:
    _, start = started(text)
    scale = (start.scale.float() * 1.3).requires_grad_()
    value = fake_quantize_weight(start.codes, scale, start.zero_point, form=form_of(text))
    found = quantize_weight(start.codes, scale, start.zero_point, form_of(text))
    assert torch.equal(found.codes, start.codes)
    assert torch.equal(value.detach(), found.dequantize())


@pytest.mark.parametrize("text", FORMS)
def test_scales_of_held_codes_have_the_gradient_of_a_product(text: str) -> None:
    _, start = started(text)
    form, slope = form_of(text), torch.randn(12, 72)
    scale = start.scale.float().requires_grad_()
    fake_quantize_weight(start.codes, scale, start.zero_point, form=form).mul(
        slope
    ).sum().backward()
    levels = group_rows(start.codes.float(), form)
    if start.zero_point is not None:
        levels = levels - start.zero_point.float().unsqueeze(2)
    expected = (levels * group_rows(slope, form)).sum(2)
    assert torch.allclose(scale.grad, expected, atol=1e-4)


@pytest.mark.parametrize("text", FORMS)
def test_gradients_are_those_of_learned_step_sizes(text: str) -> None:
    """Against the straight-through formula written with torch's own rounding and clamping."""
    weight, start = started(text)
    form, slope = form_of(text), torch.randn(12, 72)
    first, last = form.code_range
    scale = stored_scale(start.scale.float() * 0.7)
    zero = None if start.zero_point is None else start.zero_point.float().unsqueeze(2)

    w, s = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    steps = group_rows(w, form) / s.unsqueeze(2)
    low, high = (first, last) if zero is None else (first - zero, last - zero)
    limits = torch.as_tensor(low), torch.as_tensor(high)
    rounded = steps + (steps.round() - steps).detach()
    inside = (steps.round() >= limits[0]) & (steps.round() <= limits[1])
    levels = torch.where(inside, rounded, torch.clamp(steps.round(), *limits).detach())
    ((levels * s.unsqueeze(2)).flatten(1)[:, :72] * slope).sum().backward()

    mine, size = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    (fake_quantize_weight(mine, size, start.zero_point, form=form) * slope).sum().backward()
    assert torch.allclose(size.grad, s.grad, atol=1e-3, rtol=1e-3)
    assert torch.allclose(mine.grad, w.grad, atol=1e-5)
    assert bool((mine.grad == 0).any()), "nothing was clamped, which was to be seen"


@pytest.mark.parametrize("text", ["w4g32", "w4g32z", "w2"])
def test_a_range_follows_the_weight_and_its_clip_learns(text: str) -> None:
    weight, start = started(text)
    form = form_of(text)
    assert torch.equal(stored_scale(range_scale(weight, form=form)), start.scale.float())
    clip = torch.full(start.scale.shape, 0.8, requires_grad=True)
    scale = range_scale(weight, clip, form=form)
    fake_quantize_weight(weight, scale, start.zero_point, form=form).square().sum().backward()
    assert clip.grad is not None
    assert bool(clip.grad.abs().sum() > 0)


@pytest.mark.parametrize("scheme", ["w4a8g32", "w8a8", "w4a8g64t", "w8a8g128"])
def test_activations_are_what_integers_stand_for(scheme: str) -> None:
    form = QuantScheme.parse(scheme).activation
    assert form is not None
    x = torch.randn(2, 5, 200)
    weight = round_to_nearest(torch.randn(7, 200), form_of(scheme))
    expected = quantized_matmul(*quantize_activation(x, form), weight)
    assert sqnr(expected, fake_quantize(x, form=form) @ weight.dequantize().T) > 120


def test_gradients_of_dynamic_activations_pass_straight_through() -> None:
    form = QuantScheme.parse("w8a8g32").activation
    assert form is not None
    x = torch.randn(3, 64, requires_grad=True)
    fake_quantize(x, form=form).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 64))


@pytest.mark.parametrize("kv", ["kv8", "kv4", "kv4g16r", "kv8r", "kv4r"])
def test_rows_of_a_cache_are_read_as_they_are_stored(kv: str) -> None:
    x = torch.randn(2, 5, 3, 64, requires_grad=True)
    read = fake_store(x, kv)
    assert torch.equal(read, kv_rows.seen(kv_rows.stored(x.detach(), kv), kv, 64))
    read.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("kv", ["kv8", "kv4", "kv4g16r", "kv8r"])
def test_queries_are_asked_as_the_cache_wants_them(kv: str) -> None:
    q = torch.randn(2, 5, 3, 64, requires_grad=True)
    asked = fake_query(q, kv)
    assert torch.equal(asked, kv_rows.asked(q.detach(), kv))
    asked.square().sum().backward()
    assert bool(q.grad.abs().sum() > 0)
