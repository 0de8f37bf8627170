"""Losses in closed form, and the bits that make their sum least."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.quantizable import Quantizable
from passes.sensitivity.hessian import hessian
from passes.sensitivity.rounding_error import rounding_error
from passes.sensitivity.weight_variance import distortion, water_filling_bits, weight_variance
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program

Make = Callable[..., Program]
Weights = Callable[[Program], list[Quantizable]]
Samples = list[tuple[torch.Tensor, ...]]


@pytest.mark.parametrize("scheme", ["w4g32", "w4g64", "w6g64", "w8", "w4g128z"])
def test_distortion_is_that_of_rounding_gaussian_weights(scheme: str) -> None:
    form = QuantScheme.parse(scheme).weight
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    measured = float(rounding_error("w", weight, form).square().mean())
    assert distortion(form, 512) == pytest.approx(measured, rel=0.25)


def test_it_is_near_the_error_that_is_measured(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    program = llama()
    choices = ("w4g32", "w8g32")
    found = weight_variance(program, weights(program), choices, samples)
    measured = hessian(program, weights(program), choices, samples)
    for operator, of in found.items():
        for choice, loss in of.items():
            assert 0.3 < loss / measured[operator][choice] < 3


def test_without_samples_inputs_are_taken_to_be_alike(llama: Make, weights: Weights) -> None:
    program = llama(tied=False)
    found = weight_variance(program, weights(program), ("w4",), [])
    for weight in weights(program):
        n, k = weight.shape
        variance = float(program.weights.tensor(weight.entry).var(correction=0))
        form = QuantScheme.parse("w4").weight
        rows = 1 if weight.tables else n
        expected = rows * k * variance * distortion(form, k)
        assert found[weight.operator]["w4"] == pytest.approx(expected, rel=1e-5)


def test_bits_follow_the_closed_form() -> None:
    energy = {"a": 0.5, "b": 3.0, "c": 20.0}
    size = {"a": 100, "b": 300, "c": 50}
    mean = sum(size[n] * math.log2(e) for n, e in energy.items()) / sum(size.values())
    bits = water_filling_bits(energy, size, 5.0)
    for name, e in energy.items():
        assert bits[name] == pytest.approx(5 + 0.5 * (math.log2(e) - mean), abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 1000)), min_size=1, max_size=8),
    st.floats(2, 8),
)
def test_no_other_bits_have_a_smaller_loss(layers: list[tuple[float, int]], mean: float) -> None:
    energy = {str(i): e for i, (e, _) in enumerate(layers)}
    size = {str(i): n for i, (_, n) in enumerate(layers)}
    bits = water_filling_bits(energy, size, mean, least=2, most=8)
    total = sum(size.values())
    assert sum(bits[n] * size[n] for n in bits) / total == pytest.approx(mean, abs=1e-6)
    assert all(2 <= b <= 8 for b in bits.values())

    def slope(name: str) -> float:
        return energy[name] * 4 ** -bits[name]

    # Where bits could be moved, from a to b, the last one is worth no more in b.
    for a in bits:
        for b in bits:
            if bits[a] > 2 + 1e-6 and bits[b] < 8 - 1e-6:
                assert slope(a) >= slope(b) * (1 - 1e-5)


def test_a_weight_of_zeros_gets_the_least() -> None:
    bits = water_filling_bits({"a": 0.0, "b": 1.0}, {"a": 5, "b": 5}, 4, least=2, most=8)
    assert bits == {"a": 2, "b": pytest.approx(6)}
