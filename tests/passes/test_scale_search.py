"""Searched scales: never worse than the full range, near the best there is, weighted as asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import scale_search
from passes.rounding import round_to_nearest
from passes.scale_search import column_shares, round_searched
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.groups import group_rows
from qcompiler.core.qtensor import QuantizedTensor

SCHEMES = ["w4g16", "w4g16z", "w3", "w2g32", "w2g8z", "w8g32", "w6z", "w4g32"]


def parse(text: str) -> TensorFormat:
    return QuantScheme.parse(text).weight


def errors(
    weight: torch.Tensor, codes: QuantizedTensor, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted squared errors of groups, [n, g]."""
    squares = (codes.dequantize() - weight).double().square()
    if importance is not None:
        squares = squares * importance
    return group_rows(squares, codes.format).sum(2)


@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.sampled_from(SCHEMES), st.booleans(), st.floats(1e-6, 1e3))
def test_no_group_is_worse_than_at_full_range(
    seed: int, scheme: str, weighted: bool, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 40, generator=generator) * size
    weight[0] = weight[0].abs()
    weight[1] = -weight[1].abs()
    weight[2] = 0
    weight[3, ::9] *= 20
    importance = torch.rand(40, generator=generator).square() if weighted else None
    found = round_searched(weight, parse(scheme), importance=importance)
    nearest = round_to_nearest(weight, parse(scheme))
    before, after = errors(weight, nearest, importance), errors(weight, found, importance)
    assert (after <= before * (1 + 1e-5)).all()
    assert (found.dequantize()[2] == 0).all()
    assert torch.isfinite(found.scale).all()
    assert (found.scale != 0).all()
    low, high = parse(scheme).code_range
    assert low <= int(found.codes.min())
    assert int(found.codes.max()) <= high


@pytest.mark.parametrize(
    ("scheme", "most"),
    [("w2", 0.78), ("w3", 0.85), ("w4", 0.91), ("w4z", 0.95), ("w3z", 0.9), ("w8", 1.0)],
)
def test_normal_entries_err_less(scheme: str, most: float) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    form = parse(scheme)
    before = errors(weight, round_to_nearest(weight, form)).sum()
    assert errors(weight, round_searched(weight, form)).sum() < most * before


@pytest.mark.parametrize("weighted", [False, True])
def test_the_scale_is_near_the_best_of_all(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, 32, generator=generator)
    importance = torch.rand(32, generator=generator).square() if weighted else None
    form = parse("w4")
    found = errors(weight, round_searched(weight, form, importance=importance), importance)
    largest = weight.abs().amax(1, keepdim=True)
    best = torch.full_like(found, torch.inf)
    for part in torch.linspace(0.04, 0.16, 1500):
        for sign in (1, -1):
            scale = (sign * part * largest).half()
            codes = torch.round(weight / scale.float()).clamp(-8, 7).to(torch.int8)
            tried = errors(weight, QuantizedTensor(codes, scale, None, form), importance)
            best = torch.minimum(best, tried)
    assert (found <= 1.3 * best).all()
    assert found.sum() <= 1.02 * best.sum()


def test_important_columns_are_nearer() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(200, 32, generator=generator)
    importance = torch.ones(32)
    importance[:4] = 100
    plain = round_searched(weight, parse("w3")).dequantize() - weight
    weighted = round_searched(weight, parse("w3"), importance=importance).dequantize() - weight
    assert weighted[:, :4].square().sum() < 0.6 * plain[:, :4].square().sum()
    assert weighted.square().sum() > plain.square().sum()


def test_the_size_of_the_importance_does_not_matter() -> None:
    weight = torch.randn(5, 32)
    importance = torch.rand(32)
    for factor in (1e-30, 1e20):
        one = round_searched(weight, parse("w4g16"), importance=importance)
        other = round_searched(weight, parse("w4g16"), importance=importance * factor)
        assert torch.equal(one.scale, other.scale)


def test_a_group_without_input_counts_its_columns_alike() -> None:
    importance = torch.cat([torch.zeros(16), torch.rand(16)])
    assert (column_shares(importance, parse("w4g16"))[0] == 1).all()
    weight = torch.randn(5, 32)
    found = round_searched(weight, parse("w4g16"), importance=importance)
    plain = round_searched(weight, parse("w4g16"))
    assert torch.equal(found.scale[:, 0], plain.scale[:, 0])


@pytest.mark.parametrize("scheme", ["w4g32", "w4g32z", "w8"])
def test_rows_are_worked_on_in_chunks(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(13, 40)
    whole = round_searched(weight, parse(scheme))
    monkeypatch.setattr(scale_search, "CHUNK", 100)
    chunked = round_searched(weight, parse(scheme))
    assert torch.equal(whole.codes, chunked.codes)
    assert torch.equal(whole.scale, chunked.scale)


def test_what_is_no_number_is_refused() -> None:
    weight = torch.zeros(2, 8)
    weight[1, 3] = float("nan")
    with pytest.raises(QCompilerError, match="it has entries that are infinite or not a number"):
        round_searched(weight, parse("w4"))
    importance = torch.full((8,), float("inf"))
    with pytest.raises(QCompilerError, match="its inputs on the calibration samples are infinite"):
        round_searched(torch.zeros(2, 8), parse("w4"), importance=importance)


def test_entries_near_the_most_that_float16_can_say() -> None:
    weight = torch.full((1, 8), 5e5)
    found = round_searched(weight, parse("w4"))
    assert torch.isfinite(found.dequantize()).all()
    assert found.dequantize() == pytest.approx(weight, rel=0.01)
    with pytest.raises(QCompilerError, match="scale passes 65504"):
        round_searched(torch.full((1, 8), 3e6), parse("w4"))
