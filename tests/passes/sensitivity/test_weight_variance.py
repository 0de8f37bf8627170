"""Losses in closed form are near those that are measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantizable import Quantizable
from passes.sensitivity.hessian import hessian
from passes.sensitivity.rounding_error import rounding_error
from passes.sensitivity.weight_variance import distortion, weight_variance
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
