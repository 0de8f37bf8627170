"""Intervals hold the truth as often as they say, also where neighbouring tokens are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.uncertainty import cut_blocks, estimate


def correlated(rng: np.random.Generator, windows: int, tokens: int) -> list[np.ndarray]:
    """Windows of tokens with a mean of zero, each with a level of its own."""
    return [rng.normal() + rng.normal(size=tokens) for _ in range(windows)]


@pytest.mark.parametrize("windows", [12, 40])
def test_intervals_hold_the_truth_in_95_of_100_cases(windows: int) -> None:
    rng = np.random.default_rng(3)
    held, naive = 0, 0
    for _ in range(1000):
        values = correlated(rng, windows, 64)
        low, high = estimate(values).interval
        held += low <= 0 <= high
        tokens = np.concatenate(values)
        naive += abs(tokens.mean()) < 1.96 * tokens.std() / math.sqrt(len(tokens))
    assert 930 <= held <= 970
    assert naive < 500  # as if each token were alone: far too sure


def test_equal_windows_give_the_error_of_a_mean_of_means() -> None:
    values = correlated(np.random.default_rng(0), 20, 32)
    means = np.array([one.mean() for one in values])
    found = estimate(values)
    assert found.mean == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(20))
    assert found.blocks == 20


def test_windows_count_by_their_tokens() -> None:
    found = estimate([np.zeros(300), np.ones(100)])
    assert found.mean == 0.25


@pytest.mark.parametrize(
    ("sizes", "blocks"), [([512] * 12, 12), ([512] * 5, 10), ([512], 10), ([40], 2), ([8], 1)]
)
def test_few_windows_are_cut(sizes: list[int], blocks: int) -> None:
    cut = cut_blocks([np.arange(size) for size in sizes])
    assert len(cut) == blocks
    assert sum(map(len, cut)) == sum(sizes)


def test_one_block_tells_nothing_of_the_error() -> None:
    found = estimate([np.ones(8)])
    assert found.mean == 1
    assert found.error == math.inf
    assert found.interval == (-math.inf, math.inf)
