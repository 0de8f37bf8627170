"""Key and value caches that grow with what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.core.artifact import CacheSpec
from qcompiler.runtime.device import Device, Processor
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.tensors import aligned_zeros

SMALLEST = 256
"""Tokens that a new cache has room for."""


class KVCache:
    """The cache tensors of one sequence, [1, heads, capacity, row] each."""

    def __init__(
        self, specs: tuple[CacheSpec, ...], max_context: int, device: Device | None = None
    ) -> None:
        """Keep caches as `specs` says on a device, the processor if not given."""
        self._specs = specs
        self._max_context = max_context
        self._device = device or Processor()
        self.arrays: list[np.ndarray] = []
        """The caches as arrays, where the device is the processor."""
        self.capacity = 0
        self.tensors: Any = None
        """The tensors as compiled functions take them."""

    @property
    def nbytes(self) -> int:
        return self.capacity * sum(spec.token_bytes for spec in self._specs)

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
                before = self._device.download(self.tensors[index])
                array[:, :, :used] = before[:, :, :used]
            grown.append(array)
        self.arrays = grown if isinstance(self._device, Processor) else []
        self.tensors = bindings().Array([self._device.upload(array) for array in grown])
        self.capacity = capacity
        return True
