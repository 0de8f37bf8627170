"""Modules that are no language models: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.core.errors import UsageError
from qcompiler.runtime import CompiledModule, load

pytestmark = pytest.mark.tvm
X = np.ones((3, 4), np.float32)
K = np.arange(3)


@pytest.fixture
def module(module_folder: Path) -> Iterator[CompiledModule]:
    with load(module_folder) as loaded:
        assert isinstance(loaded, CompiledModule)
        yield loaded


def check(outputs: Any, x: np.ndarray, k: np.ndarray) -> None:
    y, z = outputs
    np.testing.assert_array_equal(y, x + np.arange(4, dtype=np.float32), strict=True)
    np.testing.assert_array_equal(z, k + 1, strict=True)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_call(module: CompiledModule, size: int) -> None:
    rng = np.random.default_rng()
    for _ in range(3):
        x, k = rng.normal(size=(size, 4)).astype(np.float32), rng.integers(0, 99, size)
        check(module(x, k), x, k)


def test_one_output_comes_without_a_tuple(one_output_folder: Path) -> None:
    with load(one_output_folder) as module:
        assert isinstance(module, CompiledModule)
        y = module(X, K)
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, X + np.arange(4, dtype=np.float32), strict=True)


def test_inputs_by_name(module: CompiledModule) -> None:
    check(module(k=K, x=X), X, K)
    check(module(X, k=K), X, K)


def test_lists_are_numbers_of_the_right_kind(module: CompiledModule) -> None:
    check(module([[1, 1, 1, 1]] * 3, [0, 1, 2]), X, K)


def test_any_memory_will_do(module: CompiledModule) -> None:
    wide = np.random.default_rng().normal(size=(6, 9)).astype(np.float32)
    frozen = K.copy()
    frozen.flags.writeable = False
    check(module(wide[::2, 1:8:2], frozen), wide[::2, 1:8:2], K)
    check(module(wide[:4, :3].T, K), wide[:4, :3].T, K)


def test_inputs_are_left_alone_and_outputs_are_new(module: CompiledModule) -> None:
    x, k = X.copy(), K.copy()
    first = module(x, k)
    second = module(x + 1, k)
    check(first, X, K)
    check(second, X + 1, K)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((X,), {}, "adder takes x, k, but k was not given"),
        ((), {}, "but x and k was not given"),
        ((X, K, K), {}, "adder takes x, k, but 3 inputs were given"),
        ((X,), {"k": K, "z": K}, "there is no input 'z': adder takes x, k"),
        ((X, K), {"x": X}, "the input 'x' was given twice"),
        (
            (X.astype(np.float64), K),
            {},
            r"'x' is float64, and adder takes float32; convert it with .astype\('float32'\)",
        ),
        ((X, K.astype(np.int32)), {}, "'k' is int32, and adder takes int64"),
        ((X[:, :3], K), {}, r"'x' has the shape \[3, 3\], and adder takes \[b, 4\]"),
        ((X[0], K), {}, r"'x' has the shape \[4\], and adder takes \[b, 4\]"),
        ((X, K[:2]), {}, r"'k' has the shape \[2\], and adder takes \[b\], b being 3"),
        ((X[:0], K[:0]), {}, "'x' has b = 0, and adder takes 1 to 64"),
        ((np.ones((65, 4), np.float32), np.zeros(65, int)), {}, "b = 65, and adder takes 1 to 64"),
        ((X, K + 98), {}, "'k' holds 100, and adder takes numbers from 0 to 99 there"),
        ((X, K - 1), {}, "'k' holds -1, and adder takes numbers from 0 to 99 there"),
    ],
)
def test_wrong_inputs(
    module: CompiledModule, args: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        module(*args, **named)


def test_facts(module: CompiledModule) -> None:
    assert repr(module) == ("<CompiledModule adder for here, takes x float32 [b, 4], k int64 [b]>")
    assert [spec.name for spec in module.inputs] == ["x", "k"]
    assert [spec.name for spec in module.outputs] == ["y", "z"]
    assert module.name == "adder"
    assert module.threads >= 1


def test_closed_module(module_folder: Path) -> None:
    module = load(module_folder)
    assert isinstance(module, CompiledModule)
    module.close()
    with pytest.raises(UsageError, match="has been closed"):
        module(X, K)
