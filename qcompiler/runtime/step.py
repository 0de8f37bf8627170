"""A function that runs a whole step of a model at once, called with addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qcompiler.core.artifact import LINE_BYTES, StepFacts
from qcompiler.runtime.tensors import aligned_zeros


class Step:
    """A step with tensors of its own: they are found by address, so nothing is looked at in a call.

    One thread calls at a time.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        facts: StepFacts,
        tensors: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        threads: int,
    ) -> None:
        """Take the inputs and outputs, in order, and the weights; `use_caches` follows.

        The weights are not kept: they have to be there in every call. threads: the most there will
        be in a call.
        """
        size = LINE_BYTES * (1 + threads) + facts.shared_bytes + threads * facts.thread_bytes
        self._function = function
        self._facts = facts
        self._tensors = [aligned_zeros((size,), np.uint8), *tensors]
        self._weights = [array.ctypes.data for array in weights]
        self._caches: list[np.ndarray] = []
        self._sizes: tuple[int, ...] = ()
        self._threads = 0

    def use_caches(self, caches: Sequence[np.ndarray], capacity: int) -> None:
        """Take other caches, with room for `capacity` tokens."""
        self._caches = list(caches)
        given = [array.ctypes.data for array in (*self._tensors, *self._caches)]
        self._table = np.array([*given, *self._weights], np.int64)
        self._address = ctypes.c_void_p(self._table.ctypes.data)
        self._sizes = (capacity,) if caches else ()

    def __call__(self, threads: int) -> None:
        self._threads = threads
        self._function(self._address, *self._sizes, threads)

    def stamps(self) -> np.ndarray:
        """Return what the first thread's cycle counter said in the last call, int64.

        That is once before the first kernel, and once behind each; nothing if nothing was noted.
        """
        start = LINE_BYTES * (1 + self._threads) + self._facts.shared_bytes
        memory = self._tensors[0]
        return memory[start : start + 8 * self._facts.stamps].view(np.int64).copy()
