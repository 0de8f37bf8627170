"""The groups of a weight's rows that share a scale, and scales as they are stored.

Shape letters: `n` rows (output features), `k` entries in a row, `g` groups of them.
"""

from __future__ import annotations

import torch

from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import TensorFormat

SMALLEST_NORMAL = torch.finfo(torch.float16).smallest_normal
SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
LARGEST = torch.finfo(torch.float16).max


def group_rows(rows: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Split rows [n, k] into groups [n, g, size], a short last one filled with zeros."""
    k = rows.shape[1]
    size, groups = form.group_size(k), form.groups(k)
    if groups * size != k:
        rows = torch.nn.functional.pad(rows, (0, groups * size - k))
    return rows.reshape(-1, groups, size)


def full_scale(low: torch.Tensor, high: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Return the scales at which codes just reach all of groups between `low` and `high`, [n, g].

    Where codes are symmetric, the entry of largest magnitude becomes the code that has no positive
    twin; where they are not, zero is one of them.
    """
    if form.symmetric:
        return torch.where(high > -low, high, low) / form.code_range[0]
    return (high.clamp(min=0) - low.clamp(max=0)) / form.code_range[1]


def to_float16(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to float16 so that dividing by them is safe.

    A scale of zero, or too small for float16, becomes 1: all codes of its group are then 0. One
    below the normal numbers of float16, which has few digits there, is rounded away from zero lest
    entries be clamped.

    Raises:
        QCompilerError: a scale is larger than float16 can say.
    """
    if bool((scale.abs() > LARGEST).any()):
        raise QCompilerError(
            f"it has entries so large that their scale passes {LARGEST:.0f}, the most that float16 "
            "can say"
        )
    # Below half of the smallest number, every entry of a group rounds to code 0.
    scale = torch.where(scale.abs() < SMALLEST / 2, torch.ones_like(scale), scale)
    rounded = scale.to(torch.float16)
    short = (rounded.to(torch.float32).abs() < scale.abs()) & (scale.abs() < SMALLEST_NORMAL)
    away = rounded.to(torch.float32) + SMALLEST * scale.sign()
    return torch.where(short, away.to(torch.float16), rounded)
