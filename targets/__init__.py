"""The machines qcompiler compiles for, each as plain data, and the search for one by name."""

from __future__ import annotations

from qcompiler.core.errors import UsageError, suggest
from qcompiler.core.target import Target
from targets.aarch64_dotprod import AARCH64_DOTPROD
from targets.aarch64_i8mm import AARCH64_I8MM
from targets.cuda import CUDA_SM80, CUDA_SM90
from targets.native import best, cpu_features
from targets.x86_64_v3 import X86_64_V3
from targets.x86_64_v4_vnni import X86_64_V4_VNNI

TARGETS: tuple[Target, ...] = (
    X86_64_V4_VNNI,
    X86_64_V3,
    AARCH64_I8MM,
    AARCH64_DOTPROD,
    CUDA_SM80,
    CUDA_SM90,
)
"""Every target; of those for one kind of machine, the most capable first."""

PROCESSORS: tuple[Target, ...] = tuple(target for target in TARGETS if target.gpu is None)
"""Those whose kernels run on the processor itself."""

NATIVE = "native"
"""The name that stands for the best target the machine at hand can run."""

__all__ = ["NATIVE", "PROCESSORS", "TARGETS", "best", "cpu_features", "find"]


def find(name: str) -> Target:
    """Return the target of that name; `native` is the best one that this machine can run.

    Raises UsageError for an unknown name, UnsupportedError where no target fits this machine.
    """
    if name == NATIVE:
        return best(TARGETS, cpu_features())
    for target in TARGETS:
        if target.name == name:
            return target
    raise UsageError(suggest("target", name, [NATIVE, *(target.name for target in TARGETS)]))
