"""The builder's words, each in a kernel that runs."""

import numpy as np
import pytest
import tvm

from codegen.kernels.builder import (
    Registers,
    argument,
    bind,
    broadcast,
    cast,
    fma,
    kernel,
    load,
    load_first,
    load_half,
    maximum,
    minimum,
    parallel,
    prefetch,
    quotient,
    scratch,
    serial,
    size,
    splat,
    store,
    store_first,
    when,
)

pytestmark = pytest.mark.tvm


def _run(built, target, compile_kernel, *arrays):
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    compile_kernel(built.get(), target)(*tensors)
    return tensors[-1].numpy()


def test_rows_of_a_symbolic_matrix(target, compile_kernel):
    lanes = target.lanes
    with kernel() as built:
        rows = size("m")
        x = argument("x", (rows, 4 * lanes), "float32")
        half = argument("half", (4 * lanes,), "float16")
        out = argument("out", (rows, 4 * lanes), "float32")
        with parallel(rows) as row, serial(4) as j:
            prefetch(half, j * lanes + 100_000)
            value = load(x, row, j * lanes, lanes=lanes)
            value = minimum(maximum(value, splat(-1.0, lanes)), splat(1.0, lanes))
            scaled = fma(value, splat(2.0, lanes), load_half(half, j * lanes, lanes=lanes))
            store(out, bind(scaled), row, j * lanes)
    x = np.random.default_rng().standard_normal((5, 4 * lanes)).astype(np.float32)
    half = np.arange(4 * lanes).astype(np.float16)
    actual = _run(built, target, compile_kernel, x, half, np.zeros_like(x))
    np.testing.assert_array_equal(actual, np.clip(x, -1, 1) * 2 + half)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_part_of_a_vector(count, target, compile_kernel):
    with kernel() as built:
        x = argument("x", (count,), "float32")
        out = argument("out", (count + 1,), "float32")
        value = load_first(x, 0, count=count, lanes=8)
        store_first(out, value + splat(1.0, 8), 0, count=count)
    x = np.arange(count, dtype=np.float32)
    actual = _run(built, target, compile_kernel, x, np.full(count + 1, 9, np.float32))
    np.testing.assert_array_equal(actual, [*(x + 1), 9])


@pytest.mark.parametrize("count", [4, 40])
def test_registers_and_scratch(count, target, compile_kernel):
    """Few registers fit the stack's limit, many are divided; scratch memory may be indexed."""
    lanes = target.lanes
    with kernel() as built:
        out = argument("out", (count, lanes), "int32")
        file = Registers(count, lanes, "int32")
        kept = scratch(count * lanes, "int32")
        for i in range(count):
            file[i] = splat(i, lanes, "int32")
        with serial(3):
            for i in range(count):
                file[i] = file[i] + file[(i + 1) % count]
        for i in range(count):
            store(kept, file[i], i * lanes)
        with serial(count) as i:
            store(out, load(kept, i * lanes, lanes=lanes), i, 0)
    numbers = list(range(count))
    for _ in range(3):
        for i in range(count):
            numbers[i] += numbers[(i + 1) % count]
    actual = _run(built, target, compile_kernel, np.zeros((count, lanes), np.int32))
    np.testing.assert_array_equal(actual, np.tile(np.array(numbers)[:, None], lanes))


def test_branches(target, compile_kernel):
    with kernel() as built:
        rows = size("m")
        out = argument("out", (rows,), "int32")
        with serial(rows) as row:
            when(
                quotient(row, 3) == 1,
                lambda: store(out, cast(row, "int32"), row),
                lambda: store(out, broadcast(cast(row * -1, "int32"), 1), row),
            )
            when(row == 7, lambda: store(out, cast(row * 100, "int32"), row))
    actual = _run(built, target, compile_kernel, np.zeros(8, np.int32))
    np.testing.assert_array_equal(actual, [0, -1, -2, 3, 4, 5, -6, 700])
