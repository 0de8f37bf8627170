"""Schedule what no kernel of ours covers: elementwise work, reductions, transposes, softmax.

Elementwise producers are folded into their consumer, as long as that repeats little work; outer
loops are fused and run in parallel where there is enough to share; the innermost loop is vectorised
where its extent is known and divides. LLVM vectorises what it can of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from qcompiler.core.target import Target

KERNEL = "qcompiler.kernel"
"""Attribute of functions that come with a schedule of their own."""

SERIAL_BELOW = 4096
"""Elements under which starting the other threads costs more than it saves."""

# Iterations of the outer loops from which they are enough for all threads.
_SHARED = 16
# What an expression costs: a load one, a call such as exp so much. Folding may repeat so much.
_CALL_COST = 16
_REPEATED_COST = 8
_CHEAP_CALLS = frozenset(
    f"tirx.{name}"
    for name in ("if_then_else", "bitwise_and", "bitwise_or", "bitwise_not", "fabs", "likely")
)

Block = Any
Loop = Any


def schedule_module(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Schedule every unscheduled PrimFunc of `module` for `target`."""
    for var, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and KERNEL not in (function.attrs or {}):
            module.update_func(var, schedule_function(function, target))
    return module


def schedule_function(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Return `function` with parallel, vectorised loops; its results do not change."""
    schedule = Schedule(function)
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        _fold(schedule, block)
    for block in schedule.get_child_blocks(root):
        # What TVM refuses stays as it was: every step leaves a schedule that computes the same.
        with suppress(ScheduleError):
            _schedule_block(schedule, block, target.lanes)
    return schedule.mod["main"].with_attrs(dict(function.attrs) | {KERNEL: "generic"})


# -- folding ---------------------------------------------------------------------------------------


def _fold(schedule: Schedule, block: Block) -> None:
    """Compute a block where its result is used, in place of storing it, if that is no more work.

    An expression that is read twice is computed twice when it is folded: a chain of ten would grow
    a thousandfold, and the compiler with it.
    """
    consumers = schedule.get_consumers(block)
    if _reduces(schedule, block) or len(consumers) != 1:
        return
    (consumer,) = consumers
    work, _ = _cost(schedule, block)
    _, reads = _cost(schedule, consumer, schedule.get(block).writes[0].source)
    if _repeats(schedule, block, consumer):
        # Once for every element along new axes; what is cheap is cheaper than to store and read.
        affordable = work < _CALL_COST
    else:
        affordable = (reads - 1) * work <= _REPEATED_COST
    if not affordable:
        return
    with suppress(ScheduleError):  # an output of the function cannot be folded
        schedule.compute_inline(block)


def _cost(schedule: Schedule, block: Block, tensor: Any = None) -> tuple[int, int]:
    """Return what one element of a block costs, and how often it reads `tensor`."""
    cost = reads = 0

    def on_load(load: Any) -> None:
        nonlocal cost, reads
        cost += 1
        reads += tensor is not None and load.source.same_as(tensor)

    def on_call(call: Any) -> None:
        nonlocal cost
        cost += 1 if call.op.name in _CHEAP_CALLS else _CALL_COST

    tvm_ffi.structural_walk(
        schedule.get(block).body, ((tvm.ir.TensorLoad, on_load), (tvm.ir.Call, on_call))
    )
    return cost, reads


def _repeats(schedule: Schedule, block: Block, consumer: Block) -> bool:
    """Tell whether a consumer has more elements than a block."""
    extents = [
        prod((axis.dom.extent for axis in schedule.get(b).iter_vars), start=tirx.const(1, "int64"))
        for b in (block, consumer)
    ]
    return not tvm.sym.Analyzer().can_prove_equal(*extents)


# -- loops -----------------------------------------------------------------------------------------


def _reduces(schedule: Schedule, block: Block) -> bool:
    return any(axis.iter_type != tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


def _schedule_block(schedule: Schedule, block: Block, lanes: int) -> None:
    loops = schedule.get_loops(block)
    axes = schedule.get(block).iter_vars
    if len(loops) != len(axes):
        return  # loops that are shared already
    spatial: list[Loop] = []
    reduced: list[Loop] = []
    for loop, axis in zip(loops, axes, strict=True):
        (spatial if axis.iter_type == tirx.IterVar.DataPar else reduced).append(loop)
    if not spatial or loops != [*spatial, *reduced]:
        return  # a single number, or an order that nothing of ours gives
    extents = [_extent(schedule, loop) for loop in loops]
    large = None in extents or prod(e or 1 for e in extents) >= SERIAL_BELOW
    if reduced:
        _schedule_reduction(schedule, block, spatial, reduced, lanes=lanes, large=large)
    else:
        _schedule_elementwise(schedule, spatial, lanes=lanes, large=large)


def _schedule_elementwise(
    schedule: Schedule, loops: Sequence[Loop], *, lanes: int, large: bool
) -> None:
    *outer, inner = loops
    if _divides(schedule, inner, lanes):
        inner, vector = schedule.split(inner, factors=[None, lanes])
        schedule.vectorize(vector)
    if large:
        _share(schedule, outer, inner)


def _share(schedule: Schedule, outer: Sequence[Loop], inner: Loop) -> None:
    """Run the outer loops in parallel, and the inner one with them where they are too few."""
    extents = [_extent(schedule, loop) for loop in outer]
    enough = None in extents or prod(e or 1 for e in extents) >= _SHARED
    shared = list(outer) if enough and outer else [*outer, inner]
    schedule.parallel(schedule.fuse(*shared) if len(shared) > 1 else shared[0])


def _schedule_reduction(
    schedule: Schedule,
    block: Block,
    spatial: Sequence[Loop],
    reduced: Sequence[Loop],
    *,
    lanes: int,
    large: bool,
) -> None:
    """Vectorise along the results, or else along the last reduced axis, in as many partial sums."""
    *outer, inner = spatial
    if _divides(schedule, inner, lanes):
        inner, vector = schedule.split(inner, factors=[None, lanes])
        schedule.reorder(*reduced, vector)
        schedule.vectorize(vector)
        if large:
            _share(schedule, outer, inner)
        # Last, because the other primitives take only blocks that are whole.
        schedule.decompose_reduction(block, reduced[0])
        return
    rows = schedule.fuse(*spatial) if len(spatial) > 1 else inner
    if large:
        schedule.parallel(rows)
    # A single vector would leave one step, and nothing to add up lane by lane.
    if _divides(schedule, reduced[-1], lanes) and _extent(schedule, reduced[-1]) != lanes:
        _, lane = schedule.split(reduced[-1], factors=[None, lanes])
        partial = schedule.rfactor(lane, factor_axis=len(schedule.get(block).writes[0].region))
        schedule.compute_at(partial, rows)
        _, lane, *steps = schedule.get_loops(partial)
        schedule.reorder(*steps, lane)
        schedule.vectorize(lane)
        schedule.decompose_reduction(partial, steps[0])


def _divides(schedule: Schedule, loop: Loop, lanes: int) -> bool:
    extent = _extent(schedule, loop)
    return extent is not None and extent % lanes == 0


def _extent(schedule: Schedule, loop: Loop) -> int | None:
    extent = schedule.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None
