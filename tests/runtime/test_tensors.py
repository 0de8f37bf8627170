"""Arrays that machine code can use where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.runtime.tensors import aligned, aligned_zeros


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (7, 1, 64)])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "int64"])
def test_zeros_are_aligned(shape: tuple[int, ...], dtype: str) -> None:
    array = aligned_zeros(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.size == 0 or array.ctypes.data % 64 == 0
    assert not array.any()


def test_aligned_array_is_not_copied() -> None:
    array = aligned_zeros((4, 4), "float32")
    assert aligned(array) is array


def test_other_arrays_are_copied() -> None:
    whole = aligned_zeros((8, 8), "float32")
    whole[...] = np.random.default_rng().normal(size=(8, 8))
    frozen = whole.copy()
    frozen.flags.writeable = False
    for array in (whole[1:, 1:], whole.T, frozen, whole[::2]):
        copy = aligned(array)
        np.testing.assert_array_equal(copy, array)
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        assert copy.flags.writeable
        assert not np.shares_memory(copy, array)
