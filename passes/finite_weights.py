"""Weights of a segment that are known to be finite."""

from __future__ import annotations

import torch

from qcompiler.core.errors import QCompilerError
from qcompiler.core.program import Program


class FiniteWeights:
    """The float32 weights of a segment, each read, and looked at, once."""

    def __init__(self, program: Program) -> None:
        self._store = program.weights
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        """Return a weight.

        Raises:
            QCompilerError: an entry is infinite or not a number.
        """
        entry = self._store.resolve(name)
        if entry not in self._kept:
            weight = self._store.tensor(entry)
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise QCompilerError(
                    f"'{entry}' has entries that are infinite or not a number; such a model cannot "
                    "be measured: mend its weights"
                )
            self._kept[entry] = weight
        return self._kept[entry]
