"""Schedule what no kernel of ours covers: elementwise work, reductions, reshapes, softmax.

Elementwise producers are folded into their consumers, outer loops are fused and run in parallel,
and the innermost loop is vectorised where its extent is known and divides.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from qcompiler.core.target import Target

KERNEL = "qcompiler.kernel"
"""Attribute of functions that come with a schedule of their own."""

SERIAL_BELOW = 4096
"""Elements under which starting the other threads costs more than it saves."""


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
        # Work shared by several consumers stays shared.
        if _reduces(schedule, block) or len(schedule.get_consumers(block)) != 1:
            continue
        try:
            schedule.compute_inline(block)
        except ScheduleError:
            continue
    for block in schedule.get_child_blocks(root):
        _schedule_block(schedule, block, target.lanes)
    return schedule.mod["main"].with_attrs(dict(function.attrs) | {KERNEL: "generic"})


def _reduces(schedule: Schedule, block: object) -> bool:
    return any(axis.iter_type != tirx.IterVar.DataPar for axis in schedule.get(block).iter_vars)


def _schedule_block(schedule: Schedule, block: object, lanes: int) -> None:
    loops = schedule.get_loops(block)
    axes = schedule.get(block).iter_vars
    if len(loops) != len(axes) or not loops:
        return  # a scalar, or loops that are shared already
    spatial = [
        loop
        for loop, axis in zip(loops, axes, strict=True)
        if axis.iter_type == tirx.IterVar.DataPar
    ]
    if not spatial or loops[: len(spatial)] != spatial:
        return
    extents = [_known(schedule, loop) for loop in spatial]
    if _reduces(schedule, block):
        fused = schedule.fuse(*spatial) if len(spatial) > 1 else spatial[0]
        if None in extents or prod(e or 1 for e in extents) >= 64:
            schedule.parallel(fused)
        return
    outer, inner = spatial[:-1], spatial[-1]
    shared_out = prod(e or SERIAL_BELOW for e in extents[:-1])
    small = shared_out * (extents[-1] or SERIAL_BELOW) < SERIAL_BELOW
    if shared_out < 4:
        # Too little outside the last loop to share out: divide the last one.
        chunk, inner = schedule.split(inner, factors=[None, 16 * lanes])
        outer = [*outer, chunk]
    last = _known(schedule, inner)
    if last is not None and last % lanes == 0:
        _, vector = schedule.split(inner, factors=[None, lanes])
        schedule.vectorize(vector)
    fused = schedule.fuse(*outer) if len(outer) > 1 else outer[0]
    if not small:
        schedule.parallel(fused)


def _known(schedule: Schedule, loop: object) -> int | None:
    extent = schedule.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None
