"""Find how far a static scale is to reach: what activations were seen, and where to clip them.

What is seen of a value is kept as a histogram of its sizes |x|, so that samples need not be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

Observer = Literal["min-max", "moving-average", "percentile", "mse", "kl"]

Counts = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

TOP = 127
"""The largest code; the smallest is its negative."""

BINS = 1 << 16
"""Bins of a histogram. Its limit is a power of two, so that at least half of them are in use."""

KL_BINS, KL_LEVELS = 2048, 128
"""What the divergence is found on, and how many different sizes there are among codes."""

_EMPTY = 1e-4
"""Numbers that an empty bin is taken to have where what was clipped would be infinitely far off."""

_LEAST_EXPONENT = -100  # of a limit; sizes below 2^-116 all count as the smallest there is


@dataclass
class Seen:
    """The sizes |x| of one value, on all samples so far.

    `average` is the moving average of each sample's largest size, in which what was before counts
    `momentum`. `counts` are those of bins of equal width from 0 to `limit`.
    """

    momentum: float = 0.9
    numbers: int = 0
    largest: float = 0.0
    average: float | None = None
    limit: float = 0.0
    counts: Integers = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, x: torch.Tensor) -> None:
        """Count what one sample has, of any shape.

        Raises:
            ValueError: a number is infinite or no number.
        """
        if not x.numel():
            return
        # Numpy counts in a tenth of the time that torch takes.
        sizes = np.abs(x.detach().to(torch.float32).contiguous().numpy()).ravel()
        largest = float(sizes.max())
        if not math.isfinite(largest):
            raise ValueError("a number is infinite or no number")
        before = largest if self.average is None else self.average
        self.average = self.momentum * before + (1 - self.momentum) * largest
        self.numbers += sizes.size
        self.largest = max(self.largest, largest)
        self._grow(_limit(largest))
        sizes *= np.float32(BINS / self.limit)
        self.counts += np.bincount(sizes.astype(np.int64), minlength=BINS)

    def merge(self, other: Seen) -> None:
        """Count what another value has as well, which is to have the same scale."""
        if other.average is None:
            return
        self.average = other.average if self.average is None else max(self.average, other.average)
        self.numbers += other.numbers
        self.largest = max(self.largest, other.largest)
        self._grow(other.limit)
        self.counts += _coarser(other.counts, self.limit / other.limit)

    def clipped(self, clip: float) -> float:
        """Return the share of numbers that are larger than `clip`, to the width of a bin."""
        if clip >= self.largest:
            return 0.0
        first = math.ceil(clip * BINS / self.limit)
        return int(self.counts[first:].sum()) / max(1, self.numbers)

    def _grow(self, limit: float) -> None:
        """Have the bins reach up to `limit` at least."""
        if limit > self.limit:
            if self.limit:
                self.counts = _coarser(self.counts, limit / self.limit)
            self.limit = limit


def find_clip(seen: Seen, observer: Observer, *, percentile: float = 99.99) -> float:
    """Return the largest size that is to keep its value; 0 where there are only zeros.

    - "min-max": the largest there was;
    - "moving-average": of the largest of each sample;
    - "percentile": the size that so many per cent of all numbers do not exceed;
    - "mse": the one at which the squared error is least;
    - "kl": the one at which codes tell most of the distribution (`least_divergence`).
    """
    if not seen.largest:
        return 0.0
    match observer:
        case "min-max":
            return seen.largest
        case "moving-average":
            return seen.average or seen.largest
        case "percentile":
            return _percentile(seen, percentile)
        case "mse":
            return _least_error(seen)
        case "kl":
            return least_divergence(_rebinned(seen)) * seen.largest / KL_BINS


def scale_of(clip: float) -> torch.Tensor:
    """Return the scale [1] float32 at which the largest code means `clip`, which may be 0.

    It is never so small that its reciprocal would be infinite; that of zeros is 1.
    """
    least = torch.finfo(torch.float32).tiny
    return torch.tensor([max(clip / TOP, least) if clip else 1.0], dtype=torch.float32)


def _limit(largest: float) -> float:
    """Return the least power of two above a size, or the least there is."""
    exponent = math.frexp(largest)[1] if largest else _LEAST_EXPONENT
    return math.ldexp(1.0, max(exponent, _LEAST_EXPONENT))


def _coarser(counts: Integers, times: float) -> Integers:
    """Return the counts of as many bins that are `times`, a power of two, as wide."""
    joined = int(min(times, BINS))
    coarse = np.zeros_like(counts)
    coarse[: BINS // joined] = counts.reshape(-1, joined).sum(1)
    return coarse


def _percentile(seen: Seen, percentile: float) -> float:
    wanted = math.ceil(percentile / 100 * seen.numbers)
    place = int(np.searchsorted(seen.counts.cumsum(), wanted))
    return min((place + 1) * seen.limit / BINS, seen.largest)


def _centers(seen: Seen) -> tuple[Counts, Counts]:
    """Return the sizes that bins stand for, and their counts, of those that are not empty."""
    places = np.flatnonzero(seen.counts)
    sizes = (places + 0.5) * (seen.limit / BINS)
    return np.minimum(sizes, seen.largest), seen.counts[places].astype(np.float64)


def _least_error(seen: Seen) -> float:
    """Try clips an eighth of an octave apart, ten octaves down, then finer around the best."""
    sizes, counts = _centers(seen)
    # Of all sizes up to one: how many, their sum, and that of their squares.
    totals = [np.concatenate(([0.0], (counts * sizes**i).cumsum())) for i in range(3)]
    codes = np.arange(TOP + 1)

    def error(octaves: float) -> float:
        step = seen.largest * 2.0**-octaves / TOP
        ends = np.searchsorted(sizes, (codes[:-1] + 0.5) * step)
        ends = np.concatenate(([0], ends, [len(sizes)]))
        n, x, x2 = (np.diff(total[ends]) for total in totals)
        values = codes * step
        return float(np.sum(x2 - 2 * values * x + values**2 * n))

    best = min((i / 8 for i in range(81)), key=error)
    best = min((max(0.0, best + i / 64) for i in range(-7, 8)), key=error)
    return float(seen.largest * 2.0**-best)


def _rebinned(seen: Seen) -> Counts:
    """Return the counts of `KL_BINS` bins from 0 to the largest size."""
    sizes, counts = _centers(seen)
    places = np.minimum((sizes * (KL_BINS / seen.largest)).astype(np.int64), KL_BINS - 1)
    return np.bincount(places, counts, KL_BINS).astype(np.float64)


def least_divergence(counts: Counts, levels: int = KL_LEVELS) -> int:
    """Return how many of the first bins to keep, `levels` at least (TensorRT's calibration).

    For each number of bins the distribution, what lies above them clipped to the last, is compared
    with what is left of it when only `levels` sizes are told apart: the divergence
    Σ p · log(p / q) is to be least. Of equals the one that keeps more is taken. Zeros, which every
    scale keeps, would drown the others: the first bin counts as the second does.
    """
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    above = counts.sum() - counts.cumsum()
    best, least = len(counts), math.inf
    for kept in range(len(counts), levels - 1, -1):
        part = counts[:kept]
        if not part.any():
            break
        whole = part.copy()
        whole[-1] += above[kept - 1]
        divergence = _divergence(whole, part, levels)
        if divergence < least:
            best, least = kept, divergence
    return best


def _divergence(whole: Counts, part: Counts, levels: int) -> float:
    level = np.arange(len(part)) * levels // len(part)
    filled = part > 0
    sums = np.bincount(level, part, levels)
    spread = np.where(filled, (sums / np.maximum(np.bincount(level, filled, levels), 1))[level], 0)
    if whole[-1] > 0:
        spread[-1] = max(spread[-1], _EMPTY)
    told = whole > 0
    p, q = whole[told] / whole.sum(), spread[told] / spread.sum()
    return float(np.sum(p * np.log(p / q)))
