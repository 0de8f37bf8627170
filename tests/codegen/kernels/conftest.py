"""The machines kernels are tested for, and a builder of functions."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from codegen.linker import find_linker
from qcompiler.core.target import Target
from targets import PROCESSORS, cpu_features
from targets.aarch64_i8mm import AARCH64_I8MM
from tests import emulator

# Read when TVM starts its threads; parallel kernels are to be tested with more than one.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import tvm

Compile = Callable[[tvm.tirx.PrimFunc, Target], Callable[..., None]]


# All but one that differs from another in products of many rows only; tests of those ask for it.
MACHINES = tuple(machine for machine in PROCESSORS if machine is not AARCH64_I8MM)


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.name)
def target(request: pytest.FixtureRequest) -> Target:
    """A machine that this one can stand in for, by itself or in an emulator."""
    machine: Target = request.param
    missing = machine.features - cpu_features()
    if missing and machine.arch == emulator.ARCH:
        if reason := emulator.lacking():
            pytest.skip(reason)
    elif missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return machine


@pytest.fixture(scope="session")
def compile_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """Build one PrimFunc and return it as a function of TVM tensors."""
    folder = tmp_path_factory.mktemp("kernels")
    servers: dict[str, emulator.KernelServer] = {}
    numbers = count()

    @cache
    def server_program() -> Path:
        return emulator.build_program(emulator.SOURCES / "kernel_server.cc", folder)

    def build(function: tvm.tirx.PrimFunc, machine: Target) -> Callable[..., None]:
        named = function.with_attr("global_symbol", "main")
        compiled = tvm.compile(named, target=tvm.target.Target(dict(machine.tvm)))
        if machine.features <= cpu_features():
            return compiled["main"]
        library = folder / f"{next(numbers)}.so"
        options = ["-shared", "-fPIC"]
        compiled.export_library(str(library), cc=find_linker(machine.arch), options=options)
        return emulated(library, emulator.processor(machine))

    def emulated(library: Path, cpu: str) -> Callable[..., None]:
        if cpu not in servers:
            servers[cpu] = emulator.KernelServer(server_program(), cpu)

        def call(*tensors: tvm.runtime.Tensor) -> None:
            after = servers[cpu].call(library, [tensor.numpy() for tensor in tensors])
            for tensor, array in zip(tensors, after, strict=True):
                tensor.copyfrom(array)

        return call

    yield build
    for server in servers.values():
        server.close()
