"""Round the entries of a weight to the nearest code: pure functions from matrix to codes.

Shape letters: `n` rows (output features), `k` entries in a row, `g` groups of them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.groups import full_scale, group_rows, to_float16
from qcompiler.core.qtensor import QuantizedTensor

Span = Literal["full", "restricted"]

CHUNK = 1 << 21
"""Entries worked on at a time: 8 MiB of float32, so that temporaries stay small."""


def round_to_nearest(
    weight: torch.Tensor, form: TensorFormat, *, span: Span = "full"
) -> QuantizedTensor:
    """Quantise a weight [n, k], every entry to its nearest code.

    The scales are float16 and the codes are found against them as they are stored. An asymmetric
    format covers zero, which has a code of its own, and what the group holds. In a symmetric one

    - "full": the entry of largest magnitude becomes the code −2^(bits−1), of which there is no
      positive twin, so that the scale may be negative;
    - "restricted": it becomes ±(2^(bits−1) − 1).

    Raises:
        QCompilerError: an entry is not finite, or a scale is too large for float16.

    >>> from qcompiler.core.formats import PerChannel
    >>> q = round_to_nearest(
    ...     torch.tensor([[0.1, 0.2, 0.8]]), TensorFormat(bits=4, granularity=PerChannel())
    ... )
    >>> q.codes.tolist(), round(q.scale.item(), 4)
    ([[-1, -2, -8]], -0.1)
    """
    n, k = weight.shape
    groups = form.groups(k)
    codes = torch.empty(n, k, dtype=torch.int8 if form.symmetric else torch.uint8)
    scale = torch.empty(n, groups, dtype=torch.float16)
    zero = None if form.symmetric else torch.empty(n, groups, dtype=torch.uint8)
    step = max(1, CHUNK // max(1, k))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        grouped = group_rows(weight[rows].to(torch.float32), form)
        low, high = grouped.amin(2), grouped.amax(2)
        if not (math.isfinite(low.min()) and math.isfinite(high.max())):
            raise QCompilerError("it has entries that are infinite or not a number")
        if zero is None:
            scale[rows] = symmetric_scale(low, high, form, span=span)
            chunk = symmetric_codes(grouped, scale[rows], form)
        else:
            scale[rows], zero[rows] = asymmetric_scale(low, high, form)
            chunk = asymmetric_codes(grouped, scale[rows], zero[rows], form)
        codes[rows] = chunk.flatten(1)[:, :k]
    return QuantizedTensor(codes, scale, zero, form)


def symmetric_scale(
    low: torch.Tensor, high: torch.Tensor, form: TensorFormat, *, span: Span
) -> torch.Tensor:
    """Return the scales, float16, of groups whose entries lie between `low` and `high`."""
    if span == "full":
        return to_float16(full_scale(low, high, form))
    return to_float16(torch.maximum(high, -low) / form.code_range[1])


def symmetric_codes(grouped: torch.Tensor, scale: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Return the code nearest to each entry, [n, g, size] int8."""
    codes = torch.round(grouped / scale.to(torch.float32).unsqueeze(2))
    return codes.clamp_(*form.code_range).to(torch.int8)


def asymmetric_scale(
    low: torch.Tensor, high: torch.Tensor, form: TensorFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales, float16, and zero points, uint8, of groups between `low` and `high`."""
    scale = to_float16(full_scale(low, high, form))
    zero = torch.round(-low.clamp(max=0) / scale.to(torch.float32)).clamp_(*form.code_range)
    return scale, zero.to(torch.uint8)


def asymmetric_codes(
    grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, form: TensorFormat
) -> torch.Tensor:
    """Return the code nearest to each entry, [n, g, size] uint8."""
    codes = torch.round(grouped / scale.to(torch.float32).unsqueeze(2))
    codes += zero.to(torch.float32).unsqueeze(2)
    return codes.clamp_(*form.code_range).to(torch.uint8)
