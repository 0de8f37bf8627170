"""Words for GPU kernels, beside those of `codegen.kernels.builder`: threads, shared memory, warps.

A kernel is one function with one launch or several, which run one after the other:

    with kernel("double") as built:
        rows = size("m")
        x, y = (argument(name, (rows, 64), "float32") for name in "xy")
        with launch(rows, threads=64) as (row, thread):
            store(y, load(x, row, thread) * 2.0, row, thread)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as script
from tvm.tirx import op

from codegen.kernels.builder import Buffer, Expr, bind, ceil_div, load, store, when

WARP = 32
"""Threads that run together, on every GPU of this maker."""


@contextmanager
def launch(*blocks: Expr, threads: int) -> Iterator[tuple[Expr, ...]]:
    """Start `threads` threads in each of a grid of blocks; yield the block's place and the thread.

    blocks: one to three extents, sizes or numbers. The last of what is yielded is the thread.
    """
    extents = [tirx.IntImm("int64", b) if isinstance(b, int) else b for b in blocks]
    axes = [
        script.launch_thread(f"blockIdx.{axis}", extent)
        for axis, extent in zip("xyz", extents, strict=False)
    ]
    frames = [*axes, script.launch_thread("threadIdx.x", tirx.IntImm("int64", threads))]
    places = [frame.__enter__() for frame in frames]
    try:
        yield tuple(places)
    finally:
        for frame in reversed(frames):
            frame.__exit__(None, None, None)


def shared(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """Allocate memory that all threads of a block see."""
    return script.alloc_buffer(_shape(shape), dtype, scope="shared")


def registers(count: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """Allocate memory of each thread's own: registers, as long as indices are known numbers."""
    return script.alloc_buffer(_shape(count), dtype, scope="local")


def device_scratch(shape: tuple[Expr, ...], dtype: str = "float32") -> Buffer:
    """Allocate device memory for what one launch of a kernel leaves to the next."""
    return script.alloc_buffer(_shape(shape), dtype, scope="global")


def _shape(shape: Any) -> tuple[Expr, ...]:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    return tuple(tirx.IntImm("int64", s) if isinstance(s, int) else s for s in sizes)


def sync() -> None:
    """Wait until all threads of the block are here, and see what they have written.

    TVM puts more of these where it finds that one is missing, and refuses to in a branch. It does
    not know that a warp may wait for itself alone, so there is no word for that.
    """
    script.evaluate(op.tvm_storage_sync("shared"))


def strided(count: int, thread: Expr, threads: int, body: Callable[[Expr], None]) -> None:
    """Share `count` items among threads: each takes every `threads`-th one."""
    whole, rest = divmod(count, threads)
    if whole == 1:
        body(thread)
    elif whole:
        with script.serial(tirx.IntImm("int64", whole)) as step:
            body(bind(step * threads + thread))
    if rest:
        when(thread < rest, lambda: body(thread + whole * threads))


def call(dtype: str, name: str, *values: Expr) -> Expr:
    """Call a function that CUDA has, which depends on its arguments alone."""
    return tirx.call_pure_extern(dtype, name, *values)


def keep(value: Expr) -> Expr:
    """Compute a value here, once, and have TVM forget how: it copies what it knows to every use."""
    place = registers(1, str(value.ty.dtype))
    store(place, value, 0)
    return script.bind(load(place, 0))


def uint(value: int) -> Expr:
    """Return an unsigned 32-bit constant."""
    return tirx.const(value, "uint32")


def int32(value: Expr) -> Expr:
    """Return a number as a 32-bit integer."""
    return tirx.const(value, "int32") if isinstance(value, int) else value.astype("int32")


def shuffle_xor(value: Expr, distance: int) -> Expr:
    """Return the value of the thread whose place in the warp differs by these bits."""
    # Not pure: all threads of the warp have to make the call, wherever the result is used.
    dtype = str(value.ty.dtype)
    return script.bind(
        tirx.call_extern(dtype, "__shfl_xor_sync", uint(0xFFFFFFFF), value, int32(distance))
    )


def warp_reduce(
    value: Expr, combine: Callable[[Expr, Expr], Expr], lanes: int = WARP, first: int = 1
) -> Expr:
    """Combine the values of threads `first` apart, in groups of `lanes`; each gets the result."""
    distance = first
    value = keep(value)
    while distance < lanes:
        value = keep(combine(value, shuffle_xor(value, distance)))
        distance *= 2
    return value


def block_reduce(
    value: Expr, combine: Callable[[Expr, Expr], Expr], thread: Expr, threads: int
) -> Expr:
    """Combine the values of all threads of a block; each gets the result."""
    dtype = str(value.ty.dtype)
    warps = ceil_div(threads, WARP)
    value = warp_reduce(value, combine)
    if warps == 1:
        return value
    partial = shared(warps, dtype)
    when((thread % WARP).equal(0), lambda: store(partial, value, thread // WARP))
    sync()
    total = load(partial, 0)
    for warp in range(1, warps):
        total = combine(total, load(partial, warp))
    total = keep(total)
    sync()  # the memory may be used again
    return total


def plus(a: Expr, b: Expr) -> Expr:
    """Add; to reduce with."""
    return a + b


def larger(a: Expr, b: Expr) -> Expr:
    """The larger one; to reduce with."""
    return tirx.max(a, b)


def smaller(a: Expr, b: Expr) -> Expr:
    """The smaller one; to reduce with."""
    return tirx.min(a, b)
