"""Compile a lowered module to a shared library that runs without the compiler."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

from codegen.generic_schedule import schedule_module
from codegen.linker import find_linker
from codegen.shape_functions import OrderShapeFunctions
from qcompiler.core.target import Target


def build(module: tvm.IRModule, target: Target, path: Path) -> None:
    """Compile `module` for `target` and link it to the shared library `path`.

    Raises:
        UnsupportedError: no linker is installed.
    """
    linker = find_linker()
    executable = compile_module(module, target)
    # No build id, no symbols: the same input gives the same bytes.
    executable.export_library(
        str(path), cc=linker, options=["-shared", "-fPIC", "-s", "-Wl,--build-id=none"]
    )


def compile_module(module: tvm.IRModule, target: Target) -> tvm.runtime.Executable:
    """Compile `module` in memory."""
    tvm_target = tvm.target.Target(dict(target.tvm))
    with tvm_target:
        module = schedule_module(_fuse(module), target)
        return relax.build(module, tvm_target, relax_pipeline=_pipeline())


def runtime_library() -> Path:
    """Return the small runtime library that travels with an artifact."""
    return Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"


def _fuse(module: tvm.IRModule) -> tvm.IRModule:
    """Merge chains of generic operators; kernels of ours are opaque and stay as they are."""
    return tvm.transform.Sequential(
        [
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def _pipeline() -> tvm.transform.Pass:
    transform = relax.transform
    return tvm.transform.Sequential(
        [
            transform.ToNonDataflow(),
            transform.RemovePurityChecking(),
            transform.CallTIRRewrite(),
            transform.StaticPlanBlockMemory(),
            transform.LowerAllocTensor(),
            transform.KillAfterLastUse(),
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            OrderShapeFunctions,
            transform.AttachGlobalSymbol(),
        ]
    )
