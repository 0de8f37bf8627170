"""How far the values after a part of a model are from those that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from passes.activations import Values

SMALLEST = 1e-12
"""The least power that an error is divided by."""

POINTS = 25
"""How many points of a curve are kept for the report."""


def values_error(outputs: Values, wanted: Values, made: Collection[str]) -> torch.Tensor:
    """Return the sum of the errors of the float values that are wanted and among `made`."""
    errors = [value_error(outputs[name], wanted[name]) for name in wanted if name in made]
    return torch.stack([found for found in errors if found is not None]).sum()


def value_error(output: object, target: object) -> torch.Tensor | None:
    """Return the error of one value [..., n] relative to its power, None if it is no float tensor.

    Each token counts alike: what reads a residual stream normalises it first, and a few tokens,
    such as the first, may be a thousand times as large as all others.
    """
    if not isinstance(target, torch.Tensor) or not isinstance(output, torch.Tensor):
        return None
    if not target.is_floating_point():
        return None
    power = target.square().mean(-1, keepdim=True).clamp(min=SMALLEST)
    return ((output - target).square() / power).mean()


def thinned(curve: Sequence[float]) -> list[float]:
    """Return the means of consecutive parts of a curve, of which there are few enough to draw.

    >>> thinned([4.0, 2.0, 1.0])
    [4.0, 2.0, 1.0]
    """
    size = -(-len(curve) // POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [sum(part) / len(part) for part in parts]
