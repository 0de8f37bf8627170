"""What rounding to nearest changes in a weight."""

from __future__ import annotations

import torch

from passes.rounding import round_to_nearest
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import TensorFormat


def rounded(entry: str, weight: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Return what the codes nearest to a weight [n, k] stand for.

    Raises:
        QCompilerError: naming the `entry`, which cannot be rounded.
    """
    try:
        return round_to_nearest(weight, form).dequantize()
    except QCompilerError as error:
        raise QCompilerError(f"'{entry}' cannot be measured in {form}: {error}") from None


def rounding_error(entry: str, weight: torch.Tensor, form: TensorFormat) -> torch.Tensor:
    """Return what rounding adds to a weight [n, k]; see `rounded`."""
    return rounded(entry, weight, form) - weight
