"""Key and value caches that grow with what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.core.artifact import CacheSpec
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.tensors import aligned_zeros, to_ffi

SMALLEST = 256
"""Tokens that a new cache has room for."""


class KVCache:
    """The cache tensors of one sequence, [1, heads, capacity, row] each."""

    def __init__(self, specs: tuple[CacheSpec, ...], max_context: int) -> None:
        self._specs = specs
        self._max_context = max_context
        self.arrays: list[np.ndarray] = []
        self.capacity = 0
        self.tensors: Any = None
        """The tensors as compiled functions take them."""

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def reserve(self, tokens: int, used: int) -> bool:
        """Make room for `tokens` in all, at most the largest context; the first `used` are kept.

        Room is doubled until it is enough, so that growing token by token copies each token about
        once and memory stays in proportion to what is held. Return whether there are new tensors.
        """
        if tokens <= self.capacity:
            return False
        capacity = max(self.capacity, SMALLEST)
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, self._max_context)
        grown = []
        for index, spec in enumerate(self._specs):
            array = aligned_zeros((1, spec.heads, capacity, spec.row), spec.dtype)
            if used:
                array[:, :, :used] = self.arrays[index][:, :, :used]
            grown.append(array)
        self.arrays = grown
        self.tensors = bindings().Array([to_ffi(array) for array in grown])
        self.capacity = capacity
        return True
