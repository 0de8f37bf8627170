"""Search the scales at which rounding to nearest errs least: pure functions from matrix to codes.

Shrinking a group's range clamps its few largest entries and brings all others nearer to their
codes; below 5 bits that is most often worth it. The error is Σ m·(w − ŵ)², m = 1 or the mean square
of the input that meets the entry (the diagonal of the layer's Hessian, called importance matrix by
llama.cpp). Shape letters: `n` rows (output features), `k` entries in a row, `g` groups of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from passes.rounding import asymmetric_codes, asymmetric_scale, symmetric_codes, symmetric_scale
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.groups import LARGEST, group_rows, to_float16
from qcompiler.core.qtensor import QuantizedTensor

CHUNK = 1 << 17
"""Entries worked on at a time: half a MiB of float32, which stays in cache over the candidates."""

STEPS = 16
LEAST = 0.5
"""How many shares of the range are tried, and the smallest of them at 4 bits and under."""

REFITS = 2


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales and zero points of groups [n, g], as they are stored."""

    scale: torch.Tensor
    zero_point: torch.Tensor | None

    def codes(self, grouped: torch.Tensor, form: TensorFormat) -> torch.Tensor:
        """Return the code nearest to each entry of [n, g, size]."""
        if self.zero_point is None:
            return symmetric_codes(grouped, self.scale, form)
        return asymmetric_codes(grouped, self.scale, self.zero_point, form)


def round_searched(
    weight: torch.Tensor,
    form: TensorFormat,
    *,
    importance: torch.Tensor | None = None,
    steps: int = STEPS,
) -> QuantizedTensor:
    """Quantise a weight [n, k] to the nearest codes of the best scales found.

    `importance` [k] weighs the squared errors of the columns. The error of no group is above that
    of `round_to_nearest` with the full range.

    Raises:
        QCompilerError: an entry or the importance is not finite, or a scale passes float16.
    """
    check_importance(importance)
    n, k = weight.shape
    codes = torch.empty(n, k, dtype=torch.int8 if form.symmetric else torch.uint8)
    scale = torch.empty(n, form.groups(k), dtype=torch.float16)
    zero = None if form.symmetric else torch.empty(n, form.groups(k), dtype=torch.uint8)
    step = max(1, CHUNK // max(1, k))
    shares = None if importance is None else column_shares(importance, form)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        grouped = group_rows(weight[rows].to(torch.float32), form)
        if not torch.isfinite(grouped).all():
            raise QCompilerError("it has entries that are infinite or not a number")
        found = search_scales(grouped, form, shares=shares, steps=steps)
        scale[rows] = found.scale
        if zero is not None and found.zero_point is not None:
            zero[rows] = found.zero_point
        codes[rows] = found.codes(grouped, form).flatten(1)[:, :k]
    return QuantizedTensor(codes, scale, zero, form)


def check_importance(importance: torch.Tensor | None) -> None:
    """Refuse an importance that is no number.

    Raises:
        QCompilerError: it is infinite or not a number somewhere.
    """
    if importance is not None and not torch.isfinite(importance).all():
        raise QCompilerError("its inputs on the calibration samples are infinite or not a number")


def column_shares(importance: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Spread the importance of columns [k] over groups, [g, size], each of mean 1.

    A group whose inputs are all zero counts its columns alike.
    """
    shares = group_rows(importance.to(torch.float32).reshape(1, -1), form)[0]
    largest = shares.amax(1, keepdim=True)
    shares = torch.where(largest > 0, shares / largest.clamp(min=1e-38), torch.ones_like(shares))
    return shares / shares.mean(1, keepdim=True)


def search_scales(
    grouped: torch.Tensor,
    form: TensorFormat,
    *,
    shares: torch.Tensor | None = None,
    steps: int = STEPS,
) -> Scales:
    """Return the scales of least weighted error for groups [n, g, size] float32.

    `shares` [g, size] weighs the columns. Tried are `steps` shares of the range; for symmetric
    codes with either sign of the scale, since there is one code more on the negative side; for
    asymmetric ones with both ends moved. The best is refitted to its codes by least squares, which
    is kept where, rounded to float16 and with codes of its own, it errs less still.
    """
    low, high = grouped.amin(2), grouped.amax(2)
    best = _Best(grouped, form, shares)
    if form.symmetric:
        best.offer(symmetric_scale(low, high, form, span="full"), None)
        last, first = form.code_range[1], form.code_range[0]
        # The negative scale gives the positive entries the side with one code more.
        for whole in (
            torch.maximum(low / first, high / last),
            torch.minimum(low / last, high / first),
        ):
            for share in _shares(form, steps):
                best.offer(to_float16((whole * share).clamp(-LARGEST, LARGEST)), None)
    else:
        best.offer(*asymmetric_scale(low, high, form))
        ends = _shares(form, max(2, round(steps**0.5)))
        for below in ends:
            for above in ends:
                best.offer(*asymmetric_scale(low * below, high * above, form))
    for _ in range(REFITS):
        best.refit()
    return Scales(best.scale, best.zero)


class _Best:
    """The best scales so far of groups [n, g, size], and their errors."""

    def __init__(
        self, grouped: torch.Tensor, form: TensorFormat, shares: torch.Tensor | None
    ) -> None:
        self.grouped, self.form, self.shares = grouped, form, shares
        n, g, _ = grouped.shape
        self.scale = torch.ones(n, g, dtype=torch.float16)
        self.zero = None if form.symmetric else torch.zeros(n, g, dtype=torch.uint8)
        self.error = torch.full((n, g), math.inf)
        self.buffer = torch.empty_like(grouped)

    def offer(self, scale: torch.Tensor, zero: torch.Tensor | None) -> None:
        """Take scales, float16, in the groups where they are better."""
        error = self._levels(scale, zero).mul_(scale.to(torch.float32).unsqueeze(2))
        error = self._sum(error.sub_(self.grouped).square_())
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)

    def refit(self) -> None:
        """Offer the scales that fit the codes of the best ones."""
        levels = self._levels(self.scale, self.zero)
        now = self.scale.to(torch.float32)
        fitted = self._sum(levels * self.grouped) / self._sum(levels.square()).clamp(min=1e-30)
        fitted = torch.where(fitted * now > 0, fitted, now).clamp(-LARGEST, LARGEST)
        self.offer(to_float16(fitted), self.zero)

    def _levels(self, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Return the nearest codes less their zero points, in the buffer."""
        torch.div(self.grouped, scale.to(torch.float32).unsqueeze(2), out=self.buffer)
        first, last = self.form.code_range
        if zero is None:
            return self.buffer.round_().clamp_(first, last)
        offset = zero.to(torch.float32).unsqueeze(2)
        return self.buffer.round_().clamp_(first - offset, last - offset)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum [n, g, size] over each group, weighted."""
        return values.sum(2) if self.shares is None else (values * self.shares).sum(2)


def _shares(form: TensorFormat, steps: int) -> list[float]:
    """Return the shares of the range to try; with more bits, less clamping is worth it."""
    least = 1 - (1 - LEAST) * 2.0 ** -max(0, form.bits - 4)
    return [1 - (1 - least) * i / (steps - 1) for i in range(steps)]
