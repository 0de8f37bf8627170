"""Where each observer clips, against plain versions of it and distributions whose clip is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.observers import (
    BINS,
    KL_BINS,
    KL_LEVELS,
    Observer,
    Seen,
    find_clip,
    least_divergence,
    scale_of,
)

ALL: tuple[Observer, ...] = ("min-max", "moving-average", "percentile", "mse", "kl")

samples = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.integers(1, 300), st.floats(-20, 20)),
    min_size=1,
    max_size=5,
)


def drawn(kinds: list[tuple[int, int, float]]) -> list[torch.Tensor]:
    """Return samples of these seeds, lengths and sizes in octaves."""
    return [
        torch.randn(length, generator=torch.Generator().manual_seed(seed)) * 2.0**octaves
        for seed, length, octaves in kinds
    ]


def seen(*parts: torch.Tensor, momentum: float = 0.9) -> Seen:
    found = Seen(momentum)
    for part in parts:
        found.add(part)
    return found


def bin_of(found: Seen) -> float:
    return found.limit / BINS


@given(samples)
@settings(deadline=None)
def test_all_numbers_are_counted_where_they_lie(kinds: list[tuple[int, int, float]]) -> None:
    parts = drawn(kinds)
    found = seen(*parts)
    sizes = torch.cat(parts).abs()
    assert found.numbers == int(found.counts.sum()) == len(sizes)
    assert found.largest == float(sizes.max()) < found.limit <= 2 * found.largest
    places = (sizes.double() / bin_of(found)).long()
    assert np.array_equal(found.counts, torch.bincount(places, minlength=BINS).numpy())


@given(samples, samples)
@settings(deadline=None)
def test_two_values_together_are_as_one(
    kinds: list[tuple[int, int, float]], others: list[tuple[int, int, float]]
) -> None:
    both = seen(*drawn(kinds))
    both.merge(seen(*drawn(others)))
    whole = seen(*drawn(kinds), *drawn(others))
    assert (both.numbers, both.largest, both.limit) == (whole.numbers, whole.largest, whole.limit)
    assert np.array_equal(both.counts, whole.counts)


def test_nothing_is_merged_as_nothing() -> None:
    found, other = seen(torch.ones(3)), seen(torch.zeros(0))
    found.merge(other)
    assert (found.numbers, found.largest, found.average) == (3, 1.0, 1.0)
    other.merge(found)
    assert (other.numbers, other.largest, other.average) == (3, 1.0, 1.0)


def test_small_numbers_after_zeros_are_told_apart() -> None:
    x = torch.linspace(1e-9, 1e-6, 1000)
    found = seen(torch.zeros(10), x)
    assert find_clip(found, "percentile", percentile=50.0) == pytest.approx(5e-7, rel=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="infinite or no number"):
        seen(torch.tensor([1.0, bad, 2.0]))


def test_the_moving_average_is_of_each_samples_largest() -> None:
    parts = [torch.tensor([1.0, -4.0]), torch.tensor([2.0]), torch.tensor([-8.0, 0.0])]
    found = seen(*parts, momentum=0.75)
    average = 0.75 * (0.75 * 4 + 0.25 * 2) + 0.25 * 8
    assert find_clip(found, "moving-average") == pytest.approx(average)
    assert find_clip(seen(*parts, momentum=0.0), "moving-average") == 8
    assert find_clip(found, "min-max") == 8


@given(samples, st.floats(0.1, 100))
@settings(deadline=None)
def test_a_percentile_is_that_of_all_sizes(
    kinds: list[tuple[int, int, float]], percentile: float
) -> None:
    parts = drawn(kinds)
    found = seen(*parts)
    sizes = torch.cat(parts).abs().double().sort().values
    rank = math.ceil(percentile / 100 * len(sizes)) - 1
    expected = float(sizes[rank])
    clip = find_clip(found, "percentile", percentile=percentile)
    assert expected <= clip * (1 + 1e-9)
    assert clip <= expected + bin_of(found)
    assert find_clip(found, "percentile", percentile=100.0) == found.largest


def squared_error(x: torch.Tensor, clip: float) -> float:
    numbers, scale = x.double().numpy(), clip / 127
    return float(np.sum((np.clip(np.rint(numbers / scale), -127, 127) * scale - numbers) ** 2))


@pytest.mark.parametrize("octaves", [0, -30, 40])
def test_the_squared_error_is_as_small_as_a_search_on_the_numbers_finds(octaves: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100_000, generator=generator)
    x[7] = -10
    x *= 2.0**octaves
    found = seen(x)
    clip = find_clip(found, "mse")
    # Not the largest: an outlier is cheaper to clip than everything else is to coarsen.
    assert clip < found.largest * 0.8
    tried = [squared_error(x, found.largest * i / 400) for i in range(4, 401, 3)]
    assert squared_error(x, clip) <= min(tried) * 1.01
    assert squared_error(x, clip) < squared_error(x, found.largest) * 0.7


@given(samples)
@settings(deadline=None, max_examples=20)
def test_no_clip_goes_beyond_what_was_seen(kinds: list[tuple[int, int, float]]) -> None:
    found = seen(*drawn(kinds))
    for observer in ALL:
        assert 0 < find_clip(found, observer) <= found.largest * (1 + 1e-6)


def test_evenly_spread_numbers_are_not_clipped() -> None:
    x = torch.linspace(-3, 3, 100_001)
    found = seen(x)
    for observer in ALL:
        assert find_clip(found, observer) == pytest.approx(3, rel=0.02)


def plain_divergences(counts: np.ndarray, levels: int) -> dict[int, float]:
    """TensorRT's calibration as its slides have it, one step after the other."""
    counts = counts.astype(float)
    counts[0] = counts[1]
    divergences = {}
    for kept in range(levels, len(counts) + 1):
        reference = counts[:kept].copy()
        reference[kept - 1] += counts[kept:].sum()
        candidate = np.zeros(kept)
        for level in range(levels):
            inside = [i for i in range(kept) if i * levels // kept == level and counts[i] > 0]
            for i in inside:
                candidate[i] = sum(counts[j] for j in inside) / len(inside)
        if candidate[-1] == 0 and reference[-1] > 0:
            candidate[-1] = 1e-4
        p, q = reference / reference.sum(), candidate / candidate.sum()
        terms = [p[i] * math.log(p[i] / q[i]) for i in range(kept) if p[i] > 0]
        divergences[kept] = sum(terms)
    return divergences


@given(st.integers(0, 1 << 30), st.floats(1.0, 6.0))
@settings(deadline=None, max_examples=25)
def test_the_divergence_is_that_of_the_plain_version(seed: int, tail: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.abs(rng.standard_normal(3000)) ** tail
    counts, _ = np.histogram(sizes, 64, (0, sizes.max()))
    divergences = plain_divergences(counts, 8)
    best = least_divergence(counts, 8)
    assert divergences[best] == pytest.approx(min(divergences.values()), abs=1e-12)


def test_the_divergence_leaves_outliers_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator)
    x[:5] = 100.0
    clip = find_clip(seen(x), "kl")
    assert 3 < clip < 30
    assert clip >= KL_LEVELS * 100 / KL_BINS


@pytest.mark.parametrize("observer", ALL)
def test_zeros_and_equal_numbers(observer: Observer) -> None:
    assert find_clip(seen(torch.zeros(7)), observer) == 0
    assert find_clip(seen(), observer) == 0
    assert find_clip(seen(torch.full((9,), -0.3)), observer) == pytest.approx(0.3, rel=0.02)


def test_the_share_that_is_clipped() -> None:
    found = seen(torch.arange(1000) / 1000.0)
    assert found.clipped(found.largest) == 0
    assert found.clipped(0.75) == pytest.approx(0.25, abs=0.001)
    assert found.clipped(1e-9) == pytest.approx(0.999, abs=0.001)
    assert seen(torch.zeros(5)).clipped(0.0) == 0


@given(st.floats(0, 3e38))
def test_scales_have_reciprocals(clip: float) -> None:
    scale = scale_of(clip)
    assert scale.shape == (1,)
    assert scale.dtype == torch.float32
    assert 0 < float(1 / scale) < math.inf
    assert float(scale) == 1 if not clip else float(scale) >= clip / 127 * 0.999999
