"""Offsets and factors follow the loss; what is frozen is what was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from passes.rounding import round_to_nearest
from passes.scale_search import Scales, round_searched
from passes.signround import Learned, LearnedScales, LearnedWeight, Training, learn_rounding
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.groups import group_rows
from qcompiler.core.qtensor import QuantizedTensor

TRAINING = Training(iterations=60, batch=4)
FORMS = ["w2g32", "w3g16z", "w4g32", "w4g24", "w4", "w4g32z", "w8g32"]


def form_of(scheme: str) -> TensorFormat:
    return QuantScheme.parse(scheme).weight


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clamping(weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
    """Return the nearest codes under scales that clamp the largest entries."""
    narrow = round_to_nearest(0.7 * weight, form)
    scales = Scales(narrow.scale, narrow.zero_point)
    codes = scales.codes(group_rows(weight, form), form).flatten(1)
    return QuantizedTensor(codes, narrow.scale, narrow.zero_point, form)


def correlated(samples: int, tokens: int, k: int) -> torch.Tensor:
    """Return inputs [samples, tokens, k] that lie near a space of fewer dimensions."""
    mix = random(k // 4, k, seed=1)
    return random(samples, tokens, k // 4, seed=2) @ mix + 0.1 * random(samples, tokens, k, seed=3)


def product_loss(
    inputs: torch.Tensor, weight: torch.Tensor
) -> Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]:
    def loss(sample: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = inputs[sample]
        return (x @ weights["w"].T - x @ weight.T).square().mean()

    return loss


def learn(
    scheme: str, start: QuantizedTensor | None = None, training: Training = TRAINING
) -> Learned:
    weight, inputs = random(24, 72), correlated(20, 16, 72)
    begin = round_to_nearest(weight, form_of(scheme)) if start is None else start
    learned = {"w": LearnedWeight(weight, begin)}
    return learn_rounding(learned, product_loss(inputs, weight), len(inputs), training)


@pytest.mark.parametrize("scheme", FORMS)
def test_it_starts_from_the_codes_it_is_given(scheme: str) -> None:
    weight = random(5, 72)
    start = round_to_nearest(weight, form_of(scheme))
    learned = LearnedWeight(weight, start)
    frozen = learned.freeze()
    assert torch.equal(frozen.codes, start.codes)
    assert torch.equal(frozen.scale, start.scale)
    assert torch.equal(learned.value(), start.dequantize())


@pytest.mark.parametrize("scheme", ["w4g32", "w4g32z"])
def test_codes_that_are_not_the_nearest_are_kept(scheme: str) -> None:
    weight = random(5, 72)
    near = round_to_nearest(weight, form_of(scheme))
    first, last = near.format.code_range
    moved = near.codes.to(torch.int16) + torch.randint(
        -2, 3, near.codes.shape, generator=torch.Generator().manual_seed(1)
    )
    codes = moved.clamp(first, last).to(near.codes.dtype)
    start = QuantizedTensor(codes, near.scale, near.zero_point, near.format)
    assert torch.equal(LearnedWeight(weight, start).freeze().codes, codes)


@pytest.mark.parametrize("scheme", FORMS)
def test_what_is_frozen_is_what_was_evaluated(scheme: str) -> None:
    learned = LearnedWeight(random(6, 72), round_to_nearest(random(6, 72), form_of(scheme)))
    for seed in range(4):
        learned.value()
        learned.step(random(6, 72, seed=seed), 0.1, 0.1)
    frozen = learned.freeze()
    first, last = frozen.format.code_range
    assert torch.equal(frozen.dequantize(), learned.value())
    assert first <= int(frozen.codes.min())
    assert int(frozen.codes.max()) <= last
    assert not torch.equal(frozen.scale, round_to_nearest(random(6, 72), frozen.format).scale)


@pytest.mark.parametrize("scheme", ["w3g24", "w3g24z"])
def test_steps_have_the_signs_of_autograd(scheme: str) -> None:
    weight, form = random(4, 48), form_of(scheme)
    start = clamping(weight, form)
    learned = LearnedWeight(weight, start)
    slope = random(4, 48, seed=5)
    scale = start.scale.to(torch.float32).repeat_interleave(24, 1)
    offsets = torch.zeros(4, 48, requires_grad=True)
    factors = torch.ones(2, 4, 2, requires_grad=True)
    first, last = form.code_range

    def straight(x: torch.Tensor) -> torch.Tensor:
        return x + (x.round() - x).detach()

    spread = factors.repeat_interleave(24, 2)
    if start.zero_point is None:
        s, zero = scale * spread[0], torch.zeros(())
    else:
        z = start.zero_point.to(torch.float32).repeat_interleave(24, 1)
        low, high = -z * scale, (last - z) * scale
        s = (high * spread[1] - low * spread[0]) / last
        s = s + (s.to(torch.float16).to(torch.float32) - s).detach()
        zero = straight(-low * spread[0] / s)
    value = s * (straight(weight / s + offsets) + zero).clamp(first, last) - s * zero
    assert torch.allclose(value, learned.value())
    torch.autograd.backward((value * slope).sum())
    learned.step(slope, 0.25, 0.125)
    assert offsets.grad is not None
    assert factors.grad is not None
    assert torch.equal(learned.offsets.flatten(1), -0.25 * offsets.grad.sign())
    ends = len(learned.factors)
    assert torch.equal(learned.factors.squeeze(3), 1 - 0.125 * factors.grad.sign()[:ends])


@pytest.mark.parametrize(("scheme", "share"), [("w4g32", 0.5), ("w3g16z", 0.6), ("w2g32", 0.6)])
def test_the_loss_falls_well_below_that_of_the_nearest_codes(scheme: str, share: float) -> None:
    learned = learn(scheme)
    assert learned.after < share * learned.before
    weight, inputs = random(24, 72), correlated(20, 16, 72)
    loss = product_loss(inputs, weight)

    def total(codes: QuantizedTensor) -> float:
        return sum(float(loss(i, {"w": codes.dequantize()})) for i in range(len(inputs)))

    assert total(learned.codes["w"]) < share * total(round_to_nearest(weight, form_of(scheme)))


def test_it_goes_on_from_searched_scales() -> None:
    start = round_searched(random(24, 72), form_of("w4g32"))
    assert learn("w4g32", start).after < learn("w4g32", start).before


def test_the_best_iterate_is_never_worse_than_the_start() -> None:
    learned = learn("w4g32", training=Training(iterations=3, batch=4, learning_rate=5.0))
    assert learned.after <= learned.before
    if learned.best == 0:
        start = round_to_nearest(random(24, 72), form_of("w4g32"))
        assert torch.equal(learned.codes["w"].codes, start.codes)


def test_a_second_run_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = learn("w4g32"), learn("w4g32")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.codes["w"].codes, other.codes["w"].codes)
    assert torch.equal(one.codes["w"].scale, other.codes["w"].scale)
    third = learn("w4g32", training=replace(TRAINING, seed=1))
    assert not torch.equal(one.codes["w"].codes, third.codes["w"].codes)


def test_few_samples_are_trained_on_and_judged_by_alike() -> None:
    weight, inputs = random(8, 32), correlated(1, 16, 32)
    learned = {"w": LearnedWeight(weight, round_to_nearest(weight, form_of("w4g32")))}
    shares: list[float] = []
    found = learn_rounding(
        learned,
        product_loss(inputs, weight),
        1,
        Training(iterations=4, batch=3),
        watch=shares.append,
    )
    assert found.after <= found.before
    assert shares == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("scheme", ["w4g32", "w4g24", "w3g16z"])
def test_scales_alone_lower_the_loss_and_codes_stay(scheme: str) -> None:
    weight, inputs = random(24, 72), correlated(20, 16, 72)
    start = round_to_nearest(weight, form_of(scheme))
    learned = LearnedScales(start)
    assert torch.equal(learned.value(), start.dequantize())
    training = Training(iterations=100, batch=2, scale_learning_rate=0.01)
    found = learn_rounding({"w": learned}, product_loss(inputs, weight), len(inputs), training)
    assert found.after < 0.95 * found.before
    assert torch.equal(found.codes["w"].codes, start.codes)
    assert not torch.equal(found.codes["w"].scale, start.scale)
    assert torch.equal(found.codes["w"].dequantize(), learned.value())
