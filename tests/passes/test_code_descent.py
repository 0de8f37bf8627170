"""Descent over codes and scales: never worse, a fixed point is a minimum, blocks do not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.code_descent import descend, refit_scales, row_errors
from passes.rounding import round_to_nearest
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.qtensor import QuantizedTensor

SCHEMES = st.sampled_from(["w4g16", "w4g16z", "w3", "w2g24z", "w8g32", "w3z"])


def parse(text: str) -> TensorFormat:
    return QuantScheme.parse(text).weight


def problem(seed: int, n: int = 6, k: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(300, k, generator=generator).double()
    inputs = inputs @ torch.randn(k, k, generator=generator).double()
    weight = torch.randn(n, k, generator=generator).double()
    return weight, inputs.T @ inputs


def rounded(weight: torch.Tensor, scheme: str) -> QuantizedTensor:
    return round_to_nearest(weight.float(), parse(scheme))


@settings(max_examples=30)
@given(st.integers(0, 1 << 30), SCHEMES)
def test_no_row_gets_worse(seed: int, scheme: str) -> None:
    weight, hessian = problem(seed)
    codes = rounded(weight, scheme)
    errors = row_errors(weight, codes, hessian)
    for step in (descend, refit_scales, descend, refit_scales):
        codes = step(weight, codes, hessian)
        after = row_errors(weight, codes, hessian)
        assert (after <= errors * (1 + 1e-9)).all()
        errors = after
    first, last = codes.format.code_range
    assert first <= int(codes.codes.min())
    assert int(codes.codes.max()) <= last
    assert errors.sum() < 0.8 * row_errors(weight, rounded(weight, scheme), hessian).sum()


@pytest.mark.parametrize("scheme", ["w3g8", "w3g8z"])
def test_in_the_end_no_single_code_can_be_bettered(scheme: str) -> None:
    weight, hessian = problem(3, n=3, k=16)
    codes = rounded(weight, scheme)
    for _ in range(30):
        codes = descend(weight, codes, hessian)
    best = row_errors(weight, codes, hessian)
    first, last = codes.format.code_range
    for j in range(16):
        for code in range(first, last + 1):
            other = codes.codes.clone()
            other[:, j] = code
            changed = QuantizedTensor(other, codes.scale, codes.zero_point, codes.format)
            assert (row_errors(weight, changed, hessian) >= best * (1 - 1e-9)).all()


@pytest.mark.parametrize("scheme", ["w4g16", "w4g16z"])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_blocks_change_nothing(scheme: str, block: int) -> None:
    weight, hessian = problem(4)
    start = rounded(weight, scheme)
    expected = descend(weight, start, hessian, 56)
    assert torch.equal(descend(weight, start, hessian, block).codes, expected.codes)


def test_scales_solve_the_least_squares_of_a_row() -> None:
    weight, hessian = problem(5, n=2, k=24)
    codes = rounded(weight, "w3g8")
    found = refit_scales(weight, codes, hessian)
    root = torch.linalg.cholesky(hessian).T
    for row in range(2):
        columns = torch.zeros(24, 3).double()
        for g in range(3):
            columns[8 * g : 8 * g + 8, g] = codes.codes[row, 8 * g : 8 * g + 8].double()
        best = torch.linalg.lstsq(root @ columns, root @ weight[row].unsqueeze(1)).solution
        assert found.scale[row].double() == pytest.approx(best[:, 0], rel=1e-3)


def test_groups_of_zeros_keep_their_scales() -> None:
    weight, hessian = problem(6, n=2, k=32)
    weight[:, :16] = 0
    codes = rounded(weight, "w4g16")
    found = refit_scales(weight, codes, hessian)
    assert torch.equal(found.scale[:, 0], codes.scale[:, 0])
    assert torch.isfinite(found.scale).all()


def test_columns_without_input_stay() -> None:
    weight, hessian = problem(7, n=3, k=16)
    hessian[5] = 0
    hessian[:, 5] = 0
    codes = rounded(weight, "w4g8")
    assert torch.equal(descend(weight, codes, hessian).codes[:, 5], codes.codes[:, 5])
