"""A quantised tensor: integer codes, their scales and zero points, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler.core.formats import TensorFormat


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A weight of `n` output and `k` input features in `g` groups per row.

    codes: [n, k] int8 (symmetric) or uint8 (asymmetric); scale: [n, g] float16;
    zero_point: [n, g] uint8, or None when symmetric.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    format: TensorFormat

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """Return the float32 weight that the codes stand for, [n, k]."""
        k = self.codes.shape[1]
        size = self.format.group_size(k)
        codes = self.codes.to(torch.float32)
        if self.zero_point is not None:
            codes = codes - self.zero_point.to(torch.float32).repeat_interleave(size, 1)[:, :k]
        return self.scale.to(torch.float32).repeat_interleave(size, 1)[:, :k] * codes

    @staticmethod
    def hollow(n: int, k: int, form: TensorFormat) -> QuantizedTensor:
        """Return a weight [n, k] that has a shape and a format, and no values, on torch's meta."""
        groups = form.groups(k)
        kind = torch.int8 if form.symmetric else torch.uint8
        zero = torch.empty(n, groups, dtype=torch.uint8, device="meta")
        return QuantizedTensor(
            torch.empty(n, k, dtype=kind, device="meta"),
            torch.empty(n, groups, dtype=torch.float16, device="meta"),
            None if form.symmetric else zero,
            form,
        )

    @staticmethod
    def concatenate(parts: list[QuantizedTensor]) -> QuantizedTensor:
        """Stack weights of one format that read the same inputs, along their outputs."""
        zero = [p.zero_point for p in parts if p.zero_point is not None]
        return QuantizedTensor(
            torch.cat([p.codes for p in parts]),
            torch.cat([p.scale for p in parts]),
            torch.cat(zero) if zero else None,
            parts[0].format,
        )
