"""How far a mean over tokens may be off by chance, when tokens that stand together are alike.

Tokens of one window share a topic and a context, so their losses are correlated, and the textbook
error of a mean (the spread over √tokens) is too small. Windows are read from a fresh start and are
nearly independent. So each window is one observation: the error is that of a mean over clusters of
unequal size (Cochran, Sampling Techniques, 1977, section 9A), with Student's t for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEAST_BLOCKS = 10
LEAST_TOKENS = 16
"""Where there are few windows they are cut, into blocks that are no shorter than this."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, its standard error over blocks of tokens, and the interval that holds it in 95 %.

    One block alone tells nothing of the error, which is then infinite.
    """

    mean: float
    error: float
    interval: tuple[float, float]
    blocks: int


def estimate(windows: Sequence[np.ndarray]) -> Estimate:
    """Estimate the mean over all tokens from the values of each window's tokens.

    >>> estimate([np.array([1.0, 1.0]), np.array([3.0, 3.0])]).mean
    2.0
    """
    blocks = cut_blocks(windows)
    sums = np.array([block.sum(dtype=np.float64) for block in blocks])
    sizes = np.array([len(block) for block in blocks], np.float64)
    total, count = float(sizes.sum()), len(blocks)
    mean = float(sums.sum()) / total
    if count < 2:
        return Estimate(mean=mean, error=math.inf, interval=(-math.inf, math.inf), blocks=count)
    spread = float(((sums - sizes * mean) ** 2).sum())
    error = math.sqrt(spread * count / (count - 1)) / total
    reach = float(stdtrit(count - 1, 0.975)) * error
    return Estimate(mean=mean, error=error, interval=(mean - reach, mean + reach), blocks=count)


def cut_blocks(windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the windows, or where there are fewer than ten, each cut into equal parts.

    >>> [len(block) for block in cut_blocks([np.zeros(100), np.zeros(40)])]
    [20, 20, 20, 20, 20, 20, 20]
    """
    if len(windows) >= LEAST_BLOCKS:
        return list(windows)
    wanted = -(-LEAST_BLOCKS // len(windows))
    return [
        block
        for window in windows
        for block in np.array_split(window, max(1, min(wanted, len(window) // LEAST_TOKENS)))
    ]
