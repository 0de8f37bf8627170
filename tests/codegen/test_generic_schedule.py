"""Which loops the generic schedule makes, how much it folds, and that results stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
import tvm_ffi  # noqa: E402
from tvm import te, tirx, topi  # noqa: E402

from codegen.generic_schedule import (  # noqa: E402
    KERNEL,
    SERIAL_BELOW,
    schedule_function,
    schedule_module,
)
from qcompiler.core.target import Target  # noqa: E402
from targets import PROCESSORS, cpu_features, find  # noqa: E402

pytestmark = pytest.mark.tvm

M = te.var("m", "int64")
KINDS = {tirx.ForKind.SERIAL: "serial", tirx.ForKind.PARALLEL: "parallel"} | {
    tirx.ForKind.VECTORIZED: "vector"
}


@pytest.fixture(params=PROCESSORS, ids=lambda machine: machine.name)
def target(request: pytest.FixtureRequest) -> Target:
    """A machine that this one can stand in for."""
    missing = request.param.features - cpu_features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return request.param


def tensor(*shape: Any, dtype: str = "float32", name: str = "x") -> te.Tensor:
    """Return an input; its sizes are int64, as those of compiled models are."""
    sizes = [tirx.const(size, "int64") if isinstance(size, int) else size for size in shape]
    return te.placeholder(sizes, dtype, name)


def scheduled(target: Target, *tensors: te.Tensor) -> tirx.PrimFunc:
    return schedule_function(te.create_prim_func(list(tensors)), target)


def found(function: tirx.PrimFunc, kind: type) -> list[Any]:
    nodes: list[Any] = []
    tvm_ffi.structural_walk(function.body, ((kind, nodes.append),), order="pre")
    return nodes


def loops(function: tirx.PrimFunc) -> list[tuple[str, int | None]]:
    """Every loop's kind and extent, outer loops first."""
    return [
        (KINDS[loop.kind], int(loop.extent) if isinstance(loop.extent, tirx.IntImm) else None)
        for loop in found(function, tirx.For)
    ]


def kinds(function: tirx.PrimFunc) -> list[str]:
    return [kind for kind, _ in loops(function)]


def longest_expression(function: tirx.PrimFunc) -> int:
    """The most loads and calls that one store has."""

    def size(store: Any) -> int:
        parts: list[Any] = []
        tvm_ffi.structural_walk(store.value, ((tvm.ir.TensorLoad, parts.append),))
        tvm_ffi.structural_walk(store.value, ((tvm.ir.Call, parts.append),))
        return len(parts)

    return max(map(size, found(function, tirx.BufferStore)))


def stores(function: tirx.PrimFunc) -> int:
    return len(found(function, tirx.BufferStore))


# -- elementwise -----------------------------------------------------------------------------------


def test_small_work_stays_on_one_thread(target: Target) -> None:
    x = tensor(SERIAL_BELOW // 64 - 1, 64)
    function = scheduled(target, x, topi.exp(x))
    assert loops(function) == [
        ("serial", SERIAL_BELOW // 64 - 1),
        ("serial", 64 // target.lanes),
        ("vector", target.lanes),
    ]


def test_large_work_is_shared(target: Target) -> None:
    x = tensor(2, SERIAL_BELOW // 64, 64)
    function = scheduled(target, x, topi.exp(x))
    assert loops(function) == [
        ("parallel", 2 * SERIAL_BELOW // 64),
        ("serial", 64 // target.lanes),
        ("vector", target.lanes),
    ]


def test_work_of_unknown_size_is_shared(target: Target) -> None:
    x = tensor(1, M, 64)
    function = scheduled(target, x, topi.exp(x))
    assert kinds(function) == ["parallel", "serial", "vector"]


def test_a_long_row_is_cut_into_whole_vectors(target: Target) -> None:
    x = tensor(1, 9 * 1024)
    function = scheduled(target, x, topi.exp(x))
    assert loops(function) == [
        ("parallel", 9 * 1024 // target.lanes),
        ("vector", target.lanes),
    ]


@pytest.mark.parametrize("last", [100, M], ids=["not divisible", "unknown"])
def test_what_does_not_divide_is_left_to_llvm(last: Any, target: Target) -> None:
    x = tensor(64, last)
    function = scheduled(target, x, topi.exp(x))
    assert kinds(function) == ["parallel", "serial"]
    assert not found(function, tirx.IfThenElse)


def test_a_transpose_writes_vectors(target: Target) -> None:
    x = tensor(1, M, 4, 16)
    function = scheduled(target, x, topi.transpose(x, (0, 2, 1, 3)))
    assert kinds(function)[0] == "parallel"
    assert kinds(function)[-1] == "vector"


def test_a_number_alone_has_no_loops(target: Target) -> None:
    x = tensor(1)
    assert "parallel" not in kinds(scheduled(target, x, topi.exp(x)))


# -- folding ---------------------------------------------------------------------------------------


def test_a_chain_becomes_one_loop(target: Target) -> None:
    x, y = tensor(M, 64), tensor(M, 64, name="y")
    out = topi.multiply(topi.negative(topi.add(topi.exp(x), y)), x)
    assert stores(scheduled(target, x, y, out)) == 1


def chained(x: te.Tensor, step: Callable[[Any], Any], count: int) -> te.Tensor:
    for _ in range(count):
        x = applied(x, step)
    return x


def applied(x: te.Tensor, step: Callable[[Any], Any]) -> te.Tensor:
    return te.compute(x.shape, lambda *at: step(x(*at)), name="step")


@pytest.mark.parametrize(
    "step",
    [
        lambda v: v * v + 1.0,
        lambda v: v / (1 + tirx.exp(-v)),
        lambda v: 0.5 * v * (1 + tirx.tanh(0.8 * (v + 0.04 * v * v * v))),
    ],
    ids=["squares", "silu", "gelu"],
)
def test_expressions_do_not_grow_with_the_chain(step: Callable[[Any], Any], target: Target) -> None:
    x = tensor(M, 64)
    function = scheduled(target, x, chained(x, step, 12))
    # Folded as long as anything is, the last of twelve would read x four thousand times.
    assert longest_expression(function) < 32


def test_what_costs_much_is_not_computed_again_along_a_new_axis(target: Target) -> None:
    x, y = tensor(M, 1), tensor(M, 64, name="y")
    costly = scheduled(target, x, y, topi.multiply(topi.exp(x), y))
    cheap = scheduled(target, x, y, topi.multiply(topi.add(x, 1.0), y))
    assert stores(costly) == 2
    assert stores(cheap) == 1


def test_what_two_read_is_computed_once(target: Target) -> None:
    x = tensor(M, 64)
    both = topi.exp(x)
    assert stores(scheduled(target, x, topi.negative(both), topi.add(both, 1.0))) == 3


def test_indices_that_divide_stay_small_when_folded(target: Target) -> None:
    """Packed codes, unpacked by arithmetic on indices, squared again and again."""
    ids, codes = tensor(M, dtype="int64", name="ids"), tensor(1 << 16, dtype="uint8", name="codes")

    def code(row: Any, k: Any) -> Any:
        byte = codes((ids(row) // 64 * 72 + k // 8) * 256 + ids(row) % 64 * 4 + k % 4)
        return tirx.if_then_else(k // 4 % 2 == 0, byte & 15, byte >> 4).astype("float32") - 8.0

    x = te.compute((M, tirx.const(576, "int64")), code, name="unpack")
    out = chained(x, lambda v: v * v + 1.0, 10)
    function = scheduled(target, ids, codes, out)
    assert longest_expression(function) < 64
    tvm.compile(
        function.with_attr("global_symbol", "main"), target=tvm.target.Target(dict(target.tvm))
    )


# -- reductions ------------------------------------------------------------------------------------


def test_rows_are_summed_in_vectors(target: Target) -> None:
    x = tensor(M, 96)
    function = scheduled(target, x, topi.sum(x, axis=-1))
    assert kinds(function)[0] == "parallel"
    assert ("vector", target.lanes) in loops(function)


def test_columns_are_summed_in_vectors(target: Target) -> None:
    x = tensor(M, 64)
    function = scheduled(target, x, topi.sum(x, axis=0))
    assert loops(function)[-1] == ("vector", target.lanes)


def test_a_small_reduction_stays_on_one_thread(target: Target) -> None:
    x = tensor(4, 64)
    assert "parallel" not in kinds(scheduled(target, x, topi.sum(x, axis=-1)))


def test_products_are_vectorised_and_shared(target: Target) -> None:
    x, y = tensor(M, 48), tensor(48, 32, name="y")
    function = scheduled(target, x, y, topi.matmul(x, y))
    assert kinds(function)[0] == "parallel"
    assert loops(function)[-1] == ("vector", target.lanes)


# -- results ---------------------------------------------------------------------------------------


def run(
    function: tirx.PrimFunc, target: Target, out: np.ndarray, *inputs: np.ndarray
) -> np.ndarray:
    named = function.with_attr("global_symbol", "main")
    compiled = tvm.compile(named, target=tvm.target.Target(dict(target.tvm)))["main"]
    result = tvm.runtime.tensor(out)
    compiled(*map(tvm.runtime.tensor, inputs), result)
    return result.numpy()


@pytest.mark.parametrize("k", [8, 16, 48, 100, 256])
@pytest.mark.parametrize("m", [1, 3, 70])
def test_sums_extremes_and_products_are_right(m: int, k: int, target: Target) -> None:
    x, y = tensor(M, k), tensor(k, 24, name="y")
    random = np.random.default_rng(k + m)
    a = random.standard_normal((m, k)).astype("float32")
    b = random.standard_normal((k, 24)).astype("float32")
    rows = np.zeros(m, "float32")
    close = {"rtol": 1e-4, "atol": 1e-5}
    got = run(scheduled(target, x, topi.sum(x, axis=-1)), target, rows, a)
    np.testing.assert_allclose(got, a.sum(-1), **close)
    got = run(scheduled(target, x, topi.max(x, axis=-1)), target, rows, a)
    np.testing.assert_array_equal(got, a.max(-1))
    got = run(scheduled(target, x, topi.sum(x, axis=0)), target, np.zeros(k, "float32"), a)
    np.testing.assert_allclose(got, a.sum(0), **close)
    out = np.zeros((m, 24), "float32")
    got = run(scheduled(target, x, y, topi.matmul(x, y)), target, out, a, b)
    np.testing.assert_allclose(got, a @ b, **close)


@pytest.mark.parametrize("k", [16, 20, 128])
def test_softmax_is_right(k: int, target: Target) -> None:
    x = tensor(M, k)
    a = np.random.default_rng(k).standard_normal((37, k)).astype("float32") * 5
    got = run(scheduled(target, x, topi.nn.softmax(x)), target, np.zeros_like(a), a)
    exact = np.exp(a - a.max(-1, keepdims=True))
    np.testing.assert_allclose(got, exact / exact.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_a_chain_that_is_not_folded_is_right(target: Target) -> None:
    x = tensor(M, 32)
    function = scheduled(target, x, chained(x, lambda v: v / (1 + tirx.exp(-v)), 5))
    a = np.random.default_rng(1).standard_normal((300, 32)).astype("float32") * 4
    got = run(function, target, np.zeros_like(a), a)
    for _ in range(5):
        a = a / (1 + np.exp(-a))
    np.testing.assert_allclose(got, a, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_vectorised_is_right_all_the_same() -> None:
    """Sizes of two integer types, which TVM's schedule primitives do not take together."""
    target = find("x86-64-v3")
    x, y = te.placeholder((M, 48), name="x"), te.placeholder((48, 21), name="y")
    random = np.random.default_rng(0)
    a = random.standard_normal((5, 48)).astype("float32")
    b = random.standard_normal((48, 21)).astype("float32")
    function = scheduled(target, x, y, topi.matmul(x, y))
    assert "vector" not in kinds(function)
    got = run(function, target, np.zeros((5, 21), "float32"), a, b)
    np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-5)


# -- modules ---------------------------------------------------------------------------------------


def test_kernels_keep_the_schedule_they_come_with() -> None:
    x = tensor(64, 128)
    plain = te.create_prim_func([x, topi.exp(x)])
    module = tvm.IRModule({"ours": plain.with_attr(KERNEL, "exp"), "plain": plain})
    done = schedule_module(module, find("native"))
    assert "parallel" not in kinds(done["ours"])
    assert "parallel" in kinds(done["plain"])
    assert done["plain"].attrs[KERNEL] == "generic"
