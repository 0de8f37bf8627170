"""The emulated device finds what would go wrong on a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from codegen.cuda.compiler import compiling_by
from codegen.cuda.emulation.device import compile_for_host
from codegen.cuda.emulation.translate import to_cpp
from codegen.kernels.builder import argument, kernel, load, store, when
from codegen.kernels.cuda.threads import launch, shuffle_xor
from targets.cuda import CUDA_SM80

pytestmark = pytest.mark.tvm


def compiled(emit: Callable[[Any, Any, Any], None], device: Any) -> Callable[[], np.ndarray]:
    """Build a kernel of 64 threads over x [64] → y [64]; return what runs it."""
    with kernel("test") as built:
        x, y = (argument(name, (64,), "float32") for name in "xy")
        with launch(1, threads=64) as (_, thread):
            emit(x, y, thread)
    machine = tvm.target.Target(dict(CUDA_SM80.tvm), host="llvm")
    module = tvm.IRModule({"main": built.get().with_attr("global_symbol", "main")})
    with machine, compiling_by(compile_for_host):
        library = tvm.compile(module, target=machine)

    def run() -> np.ndarray:
        given = tvm.runtime.tensor(np.arange(64, dtype=np.float32), device)
        out = tvm.runtime.tensor(np.zeros(64, np.float32), device)
        library["main"](given, out)
        result: np.ndarray = out.numpy()
        return result

    return run


def test_threads_of_a_warp_exchange_values(device: Any) -> None:
    run = compiled(lambda x, y, t: store(y, shuffle_xor(load(x, t), 5), t), device)
    assert np.array_equal(run(), np.arange(64) ^ 5)


def test_a_barrier_that_some_threads_do_not_reach(device: Any) -> None:
    def emit(x: Any, y: Any, thread: Any) -> None:
        def wait() -> None:
            script.evaluate(tirx.call_extern("void", "__syncthreads"))

        when(thread < 40, wait)
        store(y, load(x, thread), thread)

    with pytest.raises(Exception, match="threads wait for ever in syncthreads"):
        compiled(emit, device)()


def test_a_shuffle_that_some_threads_of_the_warp_do_not_make(device: Any) -> None:
    def emit(x: Any, y: Any, thread: Any) -> None:
        when(thread < 40, lambda: store(y, shuffle_xor(load(x, thread), 1), thread))

    with pytest.raises(Exception, match=r"threads wait for ever in shfl\.xor"):
        compiled(emit, device)()


def test_operands_of_an_instruction_are_taken_in_the_order_of_its_text() -> None:
    source = 'asm("sub.rn.f16x2 %0, %2, %1;" : "=r"(d) : "r"(a[1]), "r"((int)b));'
    assert "ptx_sub_rn_f16x2(d, (int)b, a[1]);" in to_cpp(source)
