"""How far a mean over tokens may be off by chance, when tokens that stand together are alike.

Tokens of one window share a topic and a context, so their losses are correlated, and the textbook
error of a mean (the spread over √tokens) is too small. And so, less, do windows of one text: an
article is longer than a window. Windows are taken as observations of unequal size (Cochran,
Sampling Techniques, 1977, section 9A), and what neighbours have in common is added to their
variance with Bartlett's weights (Newey and West, 1987), over 1.3·√windows of them and with critical
values for so many (Kiefer and Vogelsang, 2005; Lazarus, Lewis, Stock and Watson, 2018). Of this and
of the interval that windows with nothing in common would give, with Student's t, the wider counts.
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

Windows = Sequence[np.ndarray]
"""A value for each token of the windows of one text, in order."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, its standard error over blocks of tokens, and the interval that holds it in 95 %.

    One block alone tells nothing of the error, which is then infinite.
    """

    mean: float
    error: float
    interval: tuple[float, float]
    blocks: int


def estimate(texts: Sequence[Windows]) -> Estimate:
    """Estimate the mean over all tokens of texts, each given as its windows.

    >>> estimate([[np.array([1.0, 1.0]), np.array([3.0, 3.0])]]).mean
    2.0
    """
    windows = sum(map(len, texts))
    blocks = [cut_blocks(text, windows) for text in texts]
    tokens = sum(len(block) for text in blocks for block in text)
    mean = math.fsum(float(block.sum(dtype=np.float64)) for t in blocks for block in t) / tokens
    # How far the sum of each block is from what the mean would make it.
    excess = [np.array([(block - mean).sum(dtype=np.float64) for block in t]) for t in blocks]
    count = sum(map(len, excess))
    if count < 2:
        return Estimate(mean=mean, error=math.inf, interval=(-math.inf, math.inf), blocks=count)
    apart = math.sqrt(_variance(excess, 1) * count / (count - 1)) / tokens
    neighbours = min(count, math.ceil(1.3 * math.sqrt(count)))
    together = math.sqrt(_variance(excess, neighbours)) / tokens
    share = neighbours / count
    reach = max(
        float(stdtrit(count - 1, 0.975)) * apart,
        (1.96 + 2.9694 * share + 0.416 * share**2 - 0.5324 * share**3) * together,
    )
    return Estimate(
        mean=mean,
        error=max(apart, together),
        interval=(mean - reach, mean + reach),
        blocks=count,
    )


def _variance(excess: Sequence[np.ndarray], neighbours: int) -> float:
    """Return the variance of the sum, from products of blocks less than `neighbours` apart."""
    total = 0.0
    for text in excess:
        for lag in range(min(neighbours, len(text))):
            products = float(text[lag:] @ text[: len(text) - lag])
            total += products * (1 - lag / neighbours) * (1 if lag == 0 else 2)
    return max(total, 0.0)


def cut_blocks(windows: Windows, total: int) -> list[np.ndarray]:
    """Return a text's windows, or, where there are fewer than ten in `total`, equal parts of each.

    >>> [len(block) for block in cut_blocks([np.zeros(100), np.zeros(40)], 2)]
    [20, 20, 20, 20, 20, 20, 20]
    """
    wanted = -(-LEAST_BLOCKS // total)
    return [
        block
        for window in windows
        for block in np.array_split(window, max(1, min(wanted, len(window) // LEAST_TOKENS)))
    ]
