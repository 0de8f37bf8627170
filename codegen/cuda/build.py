"""Build a lowered module for a GPU: schedule what has no kernel of ours, and compile."""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.s_tir import dlight

from codegen.cuda.compiler import compiling_for
from codegen.generic_schedule import KERNEL
from qcompiler.core.target import Gpu

_SCHEDULED = "tirx.is_scheduled"


def build_for_gpu(
    module: tvm.IRModule, target: tvm.target.Target, gpu: Gpu, pipeline: tvm.transform.Pass
) -> tvm.runtime.Executable:
    """Compile a lowered module, whose kernels of ours are scheduled already.

    Raises:
        UnsupportedError: NVIDIA's compiler is not installed.
    """
    with target, compiling_for(gpu):
        return relax.build(schedule(module), target, relax_pipeline=pipeline)


def schedule(module: tvm.IRModule) -> tvm.IRModule:
    """Give threads to every function that has none, by TVM's default schedules for GPUs.

    The target must be in scope.
    """
    for var, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and KERNEL in (function.attrs or {}):
            module.update_func(var, function.with_attr(_SCHEDULED, True))
    return dlight.ApplyDefaultSchedule(
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )(module)
