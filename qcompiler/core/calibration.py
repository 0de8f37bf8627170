"""What a model is run on to be measured: samples of its inputs, and where they are from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Samples to run a program on, one after the other.

    A sample of a causal LM is its tokens alone, ([s] int64,); one of another module is its graph's
    inputs, in order. `source` says where they are from, for the report; `generated` that the model
    wrote them itself.
    """

    samples: tuple[tuple[torch.Tensor, ...], ...]
    source: str
    generated: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def first(self, count: int) -> Calibration:
        """Return the first `count` samples (all there are, when there are fewer)."""
        if count >= len(self.samples):
            return self
        return Calibration(
            samples=self.samples[:count], source=self.source, generated=self.generated
        )

    @cached_property
    def digest(self) -> str:
        """A hash of the samples: equal samples, equal digest.

        >>> one = Calibration(samples=((torch.tensor([1, 2]),),), source="a text")
        >>> other = Calibration(samples=((torch.tensor([1, 2]),),), source="another")
        >>> one.digest == other.digest
        True
        """
        digest = hashlib.sha256()
        for sample in self.samples:
            for tensor in sample:
                digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
