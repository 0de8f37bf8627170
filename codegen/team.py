"""Make of a kernel one part of a step that every thread runs from its beginning to its end.

A kernel shares out its parallel loops by starting all threads, and waits for them: two microseconds
and more each time, hundreds of times for a token. In a team all threads have been started once.
Each calls the kernel, does its share of every parallel loop, and waits for the others behind it;
what is not in a parallel loop each does for itself, in memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx

from codegen.generic_schedule import KERNEL
from codegen.kernels.builder import STACK_BYTES

GENERIC = "generic"


class NotForATeam(Exception):
    """A kernel cannot be turned into one for a team; the message says why."""


@dataclass(frozen=True)
class TeamKernel:
    """A kernel for a team.

    `function` takes a pointer for each tensor, a number for each of `sizes`, the number of the
    thread and of all threads, what barriers are made with, and a pointer for each of `scratch`.
    Its results are seen by all threads if `meets`, which says that threads wait for one another at
    its end; otherwise each thread makes its own.
    """

    function: tirx.PrimFunc
    shapes: tuple[tuple[Any, ...], ...]
    """Those of its tensors."""
    sizes: tuple[tirx.Var, ...]
    scratch: tuple[Scratch, ...]
    meets: bool


@dataclass(frozen=True)
class Scratch:
    """Memory for what a kernel keeps while it runs: of each thread, or one that all see."""

    bytes: int
    shared: bool


def team_kernel(function: tirx.PrimFunc) -> TeamKernel:
    """Turn a scheduled function into one for a team.

    Raises:
        NotForATeam: it has intermediate results for which there would be no place.
    """
    # The generic schedule puts intermediate results where a team would not find them; what is left
    # to it in a step of one row is small, and each thread does it whole.
    alone = str((function.attrs or {}).get(KERNEL)) == GENERIC
    task, workers = tirx.Var("task", "int64"), tirx.Var("workers", "int64")
    barrier = tirx.Var("barrier", ir.PointerType(ir.PrimType("void")))
    wait = tirx.Evaluate(
        tirx.call_extern("int32", "TVMBackendParallelBarrier", task.astype("int32"), barrier)
    )
    scratch = _scratch(function.body)
    pointers = {buffer: _pointer(buffer) for buffer in scratch}

    def share(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        if alone:
            return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
        step = tirx.truncdiv(loop.extent + workers - 1, workers)
        begin = task * step
        count = tirx.Max(tirx.const(0, "int64"), tirx.Min(step, loop.extent - begin))
        part = tirx.For(loop.loop_var, begin, count, tirx.ForKind.SERIAL, loop.body)
        return tirx.SeqStmt([part, wait])

    def declare(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        pointer = pointers.get(allocation.buffer)
        return allocation if pointer is None else tirx.DeclBuffer(allocation.buffer, data=pointer)

    meets = not alone and bool(_parallel_loops(function.body))
    body = tvm_ffi.structural_map(function.body, ((tirx.For, share), (tirx.AllocBuffer, declare)))
    parameters, declarations = [], []
    for parameter in function.params:
        if tirx.buffer.is_buffer_var(parameter):
            pointer = _pointer(parameter)
            declarations.append(tirx.DeclBuffer(parameter, data=pointer))
            parameters.append(pointer)
        else:
            parameters.append(parameter)
    sizes = _sizes(function)
    whole = tirx.PrimFunc(
        [*parameters, *sizes, task, workers, barrier, *pointers.values()],
        tirx.SeqStmt([*declarations, body, *([wait] if meets else [])]),
        attrs=function.without_attr("global_symbol").attrs,
    )
    shapes = tuple(tuple(p.ty.shape) for p in function.params if tirx.buffer.is_buffer_var(p))
    return TeamKernel(whole, shapes, sizes, tuple(scratch.values()), meets)


def _pointer(buffer: tirx.Buffer) -> tirx.Var:
    kind = ir.PointerType(ir.PrimType(str(buffer.ty.dtype)), "global")
    return tirx.Var(f"{buffer.name}_at", kind)


def _sizes(function: tirx.PrimFunc) -> tuple[tirx.Var, ...]:
    """Return the symbolic sizes of a function's tensors, each once."""
    found: dict[Any, None] = {}
    for parameter in function.params:
        if tirx.buffer.is_buffer_var(parameter):
            for extent in parameter.ty.shape:
                if isinstance(extent, tirx.Var):
                    found[extent] = None
    return tuple(found)


def _parallel_loops(body: tirx.Stmt) -> list[tirx.For]:
    found: list[tirx.For] = []

    def see(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            found.append(loop)

    tvm_ffi.structural_walk(body, (tirx.For, see))
    return found


def _scratch(body: tirx.Stmt) -> dict[tirx.Buffer, Scratch]:
    """Return what is not to be allocated on a thread's stack.

    That is what is too large for it, which would be asked for and given back in every call, and
    what is allocated outside of a parallel loop and written inside: all threads are to see it.
    """
    inside: set[Any] = set()
    written: set[Any] = set()
    for loop in _parallel_loops(body):
        tvm_ffi.structural_walk(
            loop.body,
            (
                (tirx.AllocBuffer, lambda made: inside.add(made.buffer)),
                (tirx.BufferStore, lambda store: written.add(store.buffer)),
            ),
        )
    # What is wrong is said out here: an error that passes through TVM's walk becomes another.
    allocated: list[tirx.Buffer] = []
    blocks: list[tirx.Buffer] = []
    tvm_ffi.structural_walk(
        body,
        (
            (tirx.AllocBuffer, lambda made: allocated.append(made.buffer)),
            (s_tir.SBlock, lambda block: blocks.extend(block.alloc_buffers)),
        ),
    )
    if any(_bytes(buffer) > STACK_BYTES for buffer in blocks):
        raise NotForATeam("its intermediate results are large")
    found = {}
    for buffer in allocated:
        scratch = Scratch(_bytes(buffer), buffer in written and buffer not in inside)
        if scratch.shared or scratch.bytes > STACK_BYTES:
            found[buffer] = scratch
    return found


def _bytes(buffer: tirx.Buffer) -> int:
    if not all(isinstance(extent, tirx.IntImm) for extent in buffer.ty.shape):
        raise NotForATeam("the size of an intermediate result varies")
    count = prod(int(extent) for extent in buffer.ty.shape)
    return count * ir.PrimType(str(buffer.ty.dtype)).dtype.itemsize
