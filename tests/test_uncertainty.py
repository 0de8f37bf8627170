"""Intervals hold the truth as often as they say, also where neighbouring tokens are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompiler.uncertainty import cut_blocks, estimate


def levels(rng: np.random.Generator, windows: int, memory: float) -> np.ndarray:
    """The level of each window: `memory` is how much it has of that of the one before."""
    found = [rng.normal()]
    while len(found) < windows:
        found.append(memory * found[-1] + math.sqrt(1 - memory**2) * rng.normal())
    return np.array(found)


def text(rng: np.random.Generator, windows: int, tokens: int, memory: float) -> list[np.ndarray]:
    """Windows of tokens with a mean of zero, each with a level of its own."""
    return [level + rng.normal(size=tokens) for level in levels(rng, windows, memory)]


@pytest.mark.parametrize(
    ("windows", "memory", "least", "most"),
    [(12, 0, 940, 995), (60, 0, 940, 985), (60, 0.5, 915, 970)],
)
def test_intervals_hold_the_truth_in_95_of_100_cases(
    windows: int, memory: float, least: int, most: int
) -> None:
    rng = np.random.default_rng(3)
    held, naive = 0, 0
    for _ in range(1000):
        values = text(rng, windows, 32, memory)
        low, high = estimate([values]).interval
        held += low <= 0 <= high
        tokens = np.concatenate(values)
        naive += abs(tokens.mean()) < 1.96 * tokens.std() / math.sqrt(len(tokens))
    assert least <= held <= most
    assert naive < 600  # as if each token were alone: far too sure


def test_windows_with_nothing_in_common_have_the_error_of_a_mean_of_means() -> None:
    """Levels that alternate leave the neighbours nothing to add."""
    values = [np.full(32, level) for level in (1.0, -1.0) * 10]
    found = estimate([values])
    means = np.array([one.mean() for one in values])
    assert found.mean == pytest.approx(0)
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(20))
    assert found.blocks == 20


def test_what_neighbours_have_in_common_widens_the_interval() -> None:
    one, two = (np.array([sign] * 10 + [-sign] * 10) for sign in (1.0, -1.0))
    alternating = estimate([[np.full(32, level) for level in (1.0, -1.0) * 10]])
    together = estimate([[np.full(32, level) for level in one]])
    assert together.error > 2 * alternating.error
    # But where one text ends and the next begins nothing is in common.
    apart = estimate([[np.full(32, level)] for level in (*one, *two)])
    assert apart.error == pytest.approx(1 / math.sqrt(39))


def test_windows_count_by_their_tokens() -> None:
    found = estimate([[np.zeros(300), np.ones(100)]])
    assert found.mean == 0.25


@pytest.mark.parametrize(
    ("sizes", "blocks"), [([512] * 12, 12), ([512] * 5, 10), ([512], 10), ([40], 2), ([8], 1)]
)
def test_few_windows_are_cut(sizes: list[int], blocks: int) -> None:
    cut = cut_blocks([np.arange(size) for size in sizes], len(sizes))
    assert len(cut) == blocks
    assert sum(map(len, cut)) == sum(sizes)


def test_one_block_tells_nothing_of_the_error() -> None:
    found = estimate([[np.ones(8)]])
    assert found.mean == 1
    assert found.error == math.inf
    assert found.interval == (-math.inf, math.inf)
