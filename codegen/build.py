"""Compile a lowered module to a shared library that runs without the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import ir, relax, tirx

from codegen.call_costs import Operators, UnknownCost, function_costs
from codegen.cuda.build import build_for_gpu
from codegen.cuda.toolkit import tvm_cuda_library
from codegen.generic_schedule import schedule_module
from codegen.limits import limit_functions
from codegen.linker import find_linker
from codegen.runtime_libraries import runtime_library
from codegen.shape_functions import OrderShapeFunctions
from codegen.step import make_step
from codegen.team import NotForATeam
from qcompiler.core.artifact import FunctionCosts, LimitFacts, StepFacts
from qcompiler.core.target import Target

STEPS = ("decode",)
"""Functions that are called for every token, and are made steps where that can be done."""


@dataclass(frozen=True)
class Compiled:
    """A module in memory.

    `steps` has the layout of those functions that became one, `costs` what the kernels of functions
    take, where their operators were given, and `limits` how what measures limits is called.
    """

    executable: tvm.runtime.Executable
    steps: dict[str, StepFacts]
    costs: dict[str, FunctionCosts]
    limits: dict[str, LimitFacts]
    notes: tuple[str, ...]
    """What did not go as wanted."""


def build(
    module: tvm.IRModule, target: Target, path: Path, operators: Mapping[str, Operators]
) -> Compiled:
    """Compile `module` for `target` and link it to the shared library `path`.

    operators: those that each function serves whose costs are wanted.

    Raises:
        UnsupportedError: no linker is installed.
    """
    linker = find_linker(target.arch)
    compiled = compile_module(module, target, operators=operators)
    # No build id, no symbols: the same input gives the same bytes.
    compiled.executable.export_library(
        str(path), cc=linker, options=["-shared", "-fPIC", "-s", "-Wl,--build-id=none"]
    )
    return compiled


def compile_module(
    module: tvm.IRModule,
    target: Target,
    *,
    steps: Sequence[str] = STEPS,
    operators: Mapping[str, Operators] | None = None,
) -> Compiled:
    """Compile `module` in memory, those of its functions that are named in `steps` as steps.

    With `operators`, say what those functions take, and add what measures the machine's limits.
    """
    tvm_target = described(target)
    facts: dict[str, StepFacts] = {}
    notes: list[str] = []
    added: dict[ir.GlobalVar, tirx.PrimFunc] = {}
    costs: dict[str, FunctionCosts] = {}
    limits: dict[str, LimitFacts] = {}
    with tvm_target:
        module = _fuse(module)
        for name, served in (operators or {}).items():
            try:
                costs[name] = function_costs(module, name, served)
            except UnknownCost as problem:
                notes.append(f"what {name} takes of the machine is not known: {problem}")
        if target.gpu is not None:
            executable = build_for_gpu(module, tvm_target, target.gpu, _pipeline())
            return Compiled(executable, facts, costs, limits, tuple(notes))
        if operators:
            added, limits = limit_functions(target)
        module = schedule_module(module, target)
        for name in steps:
            if name not in {var.name_hint for var in module.get_global_vars()}:
                continue
            try:
                step = make_step(module, name, target)
            except NotForATeam as problem:
                notes.append(f"{name} runs kernel by kernel, and not as a whole: {problem}")
                continue
            added |= step.functions
            facts[name] = step.facts
            del module[name]
        # Kernels that only a step calls are not needed by themselves.
        module = relax.transform.DeadCodeElimination()(module)
        pipeline = tvm.transform.Sequential([_pipeline(), _adding(added)])
        executable = relax.build(module, tvm_target, relax_pipeline=pipeline)
    return Compiled(executable, facts, costs, limits, tuple(notes))


def described(target: Target) -> tvm.target.Target:
    """Return a target as TVM takes it; what drives a GPU is any machine of its architecture."""
    if target.gpu is None:
        return tvm.target.Target(dict(target.tvm))
    host = {"kind": "llvm", "mcpu": target.arch.replace("_", "-")}
    return tvm.target.Target(dict(target.tvm), host=host)


def _adding(functions: dict[ir.GlobalVar, tirx.PrimFunc]) -> tvm.transform.Pass:
    def add(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for var, function in functions.items():
            module[var] = function
        return module

    return tvm.transform.module_pass(add, opt_level=0, name="AddSteps")


def runtime_libraries(target: Target) -> list[Path]:
    """Return the small runtime libraries that travel with an artifact."""
    common = runtime_library(target.arch)
    return [common] if target.gpu is None else [common, tvm_cuda_library()]


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
