"""A corrected weight gives on drifted inputs what the weight gives on the true ones."""

from __future__ import annotations

import pytest
import torch

from passes.drift_correction import corrected_weight


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 24, generator=generator).double()
    x = x @ torch.randn(24, 24, generator=generator).double()
    drifted = x * 0.9 + 0.3 * torch.randn(500, 24, generator=generator)
    return torch.randn(5, 24, generator=generator).double(), x, drifted


def test_it_solves_the_least_squares() -> None:
    weight, x, drifted = problem()
    found = corrected_weight(
        weight, drifted.T @ drifted, (x - drifted).T @ drifted, share=1.0, damping=0.0
    )
    expected = torch.linalg.lstsq(drifted, x @ weight.T).solution.T
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1])
def test_a_share_of_it_is_on_the_way(damping: float) -> None:
    weight, x, drifted = problem()
    hessian, drift = drifted.T @ drifted, (x - drifted).T @ drifted

    def lost(share: float) -> float:
        found = corrected_weight(weight, hessian, drift, share=share, damping=damping)
        return float((drifted @ found.T - x @ weight.T).square().sum())

    assert lost(0.0) > lost(0.5) > lost(1.0)


def test_inputs_without_drift_change_nothing() -> None:
    weight, x, _ = problem()
    found = corrected_weight(weight, x.T @ x, torch.zeros(24, 24).double(), share=1.0, damping=0.01)
    assert torch.equal(found, weight)


def test_inputs_that_are_always_zero_keep_their_columns() -> None:
    weight, x, drifted = problem()
    drifted[:, 3] = 0
    found = corrected_weight(
        weight, drifted.T @ drifted, (x - drifted).T @ drifted, share=1.0, damping=0.0
    )
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, 3], weight[:, 3])
    zero = torch.zeros(24, 24).double()
    assert torch.equal(corrected_weight(weight, zero, zero, share=1.0, damping=0.0), weight)


def test_damping_is_raised_for_a_singular_matrix() -> None:
    weight, x, drifted = problem()
    few = drifted[:5]
    found = corrected_weight(weight, few.T @ few, (x[:5] - few).T @ few, share=1.0, damping=0.0)
    assert torch.isfinite(found).all()
    assert (found - weight).abs().max() < 10 * weight.abs().max()


def test_a_hopeless_matrix_leaves_the_weight() -> None:
    weight, _, _ = problem()
    eye = torch.eye(24).double()
    assert torch.equal(
        corrected_weight(weight, eye - 3 * (1 - eye), eye, share=1.0, damping=0.01), weight
    )
