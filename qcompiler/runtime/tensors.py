"""Arrays that machine code can use where they lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from qcompiler.core.artifact import ALIGNMENT
from qcompiler.runtime.ffi import bindings


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return zeros at a 64-byte boundary, which vector loads need and numpy does not promise."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """Return `array`, or a copy of it that is contiguous, writable and 64-byte aligned."""
    # Read-only arrays cannot be passed on without a copy: DLPack has no word for them.
    if array.flags.c_contiguous and array.flags.writeable and not array.ctypes.data % ALIGNMENT:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def to_ffi(array: np.ndarray) -> Any:
    """Wrap an aligned array for a compiled function; both share the memory."""
    return bindings().from_dlpack(array)


def from_ffi(tensor: Any) -> np.ndarray:
    """View a result of a compiled function as an array."""
    return np.from_dlpack(tensor)
