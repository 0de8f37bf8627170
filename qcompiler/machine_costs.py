"""What passes may ask of this machine and of code generation: times of kernels, packed bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

import targets
from codegen.kernel_timer import MachineKernelTimer, packed_bytes
from codegen.model_timer import MachineModelTimer
from qcompiler.core.target import Target, host_arch
from qcompiler.runtime.step import Step
from qcompiler.runtime.workers import Workers


def cost_services(target: Target) -> dict[str, Any]:
    """Return the fields of a pass's context that say what things cost on `target`.

    There are timers only where this machine can run the target's code.
    """
    services: dict[str, Any] = {"packed_bytes": partial(packed_bytes, target)}
    same = host_arch() == target.arch and target.features <= targets.cpu_features()
    if same and target.gpu is None:
        prepare = Workers().prepare
        services["kernel_timer"] = MachineKernelTimer(target, prepare)
        services["model_timer"] = MachineModelTimer(target, prepare, Step)
    return services
