"""The machines kernels are tested for, and a builder of functions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tvm

from qcompiler.core.target import Target

MACHINES = (
    Target(
        name="x86-64-v4-vnni",
        summary="x86-64 with AVX-512 and VNNI",
        tvm={"kind": "llvm", "mcpu": "cascadelake", "num-cores": 2},
        arch="x86_64",
        features=frozenset(
            {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "fma", "f16c"}
        ),
        vector_bits=512,
        vector_registers=32,
        dot="vpdpbusd",
        l2_bytes=1 << 20,
        schemes=("w4a8*", "w8a8*"),
    ),
    Target(
        name="x86-64-v3",
        summary="x86-64 with AVX2",
        tvm={"kind": "llvm", "mcpu": "haswell", "num-cores": 2},
        arch="x86_64",
        features=frozenset({"avx2", "fma", "f16c"}),
        vector_bits=256,
        vector_registers=16,
        dot="vpmaddubsw",
        l2_bytes=1 << 18,
        schemes=("w4a8*", "w8a8*"),
    ),
)


def _features() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (frozenset(line.split()[2:]) for line in lines if line.startswith("flags")), frozenset()
    )


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.name)
def target(request: pytest.FixtureRequest) -> Target:
    """A machine that this one can stand in for."""
    missing = request.param.features - _features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return request.param


@pytest.fixture(scope="session")
def compile_kernel() -> Callable[[tvm.tirx.PrimFunc, Target], Callable[..., None]]:
    """Build one PrimFunc and return it as a function of tensors."""

    def build(function: tvm.tirx.PrimFunc, machine: Target) -> Callable[..., None]:
        module = tvm.compile(function, target=tvm.target.Target(dict(machine.tvm)))
        return module[str(function.attrs["global_symbol"])]

    return build
