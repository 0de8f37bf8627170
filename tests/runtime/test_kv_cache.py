"""Caches that grow with what they hold."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.core.artifact import CacheSpec
from qcompiler.runtime import kv_cache
from qcompiler.runtime.kv_cache import KVCache

SPECS = (
    CacheSpec(heads=2, head_dim=3),
    CacheSpec(heads=1, head_dim=5, dtype="int8"),
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SMALLEST", 8)


def arrays(cache: KVCache) -> list[np.ndarray]:
    return [np.from_dlpack(tensor) for tensor in cache.tensors]


def test_tensors_are_as_specified() -> None:
    cache = KVCache(SPECS, 100)
    cache.reserve(3, 0)
    assert [(a.shape, a.dtype.name) for a in arrays(cache)] == [
        ((1, 2, 8, 3), "float32"),
        ((1, 1, 8, 5), "int8"),
    ]
    assert all(a.ctypes.data % 64 == 0 for a in arrays(cache))
    assert cache.nbytes == 8 * (2 * 3 * 4 + 5)


def test_room_is_doubled_up_to_the_context() -> None:
    cache = KVCache(SPECS, 50)
    capacities = []
    for used in range(50):
        cache.reserve(used + 1, used)
        capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [8, 16, 32, 50]
    assert all(used < capacity <= max(8, 2 * used) for used, capacity in enumerate(capacities))


def test_a_long_prompt_makes_room_at_once() -> None:
    cache = KVCache(SPECS, 1000)
    cache.reserve(300, 0)
    assert cache.capacity == 512


def test_small_contexts_take_no_more_than_they_need() -> None:
    cache = KVCache(SPECS, 5)
    cache.reserve(1, 0)
    assert cache.capacity == 5


def test_growing_keeps_what_is_used() -> None:
    cache = KVCache(SPECS, 100)
    cache.reserve(8, 0)
    before = [np.random.default_rng().integers(0, 100, a.shape) for a in arrays(cache)]
    for array, values in zip(arrays(cache), before, strict=True):
        array[...] = values
    cache.reserve(9, 6)
    for array, values in zip(arrays(cache), before, strict=True):
        np.testing.assert_array_equal(array[:, :, :6], values[:, :, :6])
        assert not array[:, :, 6:].any()
