"""The machines kernels are tested for, and a builder of functions."""

import os
from collections.abc import Callable

import pytest

from qcompiler.core.target import Target
from targets import TARGETS, cpu_features

# Read when TVM starts its threads; parallel kernels are to be tested with more than one.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import tvm


@pytest.fixture(params=[t for t in TARGETS if t.gpu is None], ids=lambda machine: machine.name)
def target(request: pytest.FixtureRequest) -> Target:
    """A machine that this one can stand in for."""
    missing = request.param.features - cpu_features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return request.param


@pytest.fixture(scope="session")
def compile_kernel() -> Callable[[tvm.tirx.PrimFunc, Target], Callable[..., None]]:
    """Build one PrimFunc and return it as a function of TVM tensors."""

    def build(function: tvm.tirx.PrimFunc, machine: Target) -> Callable[..., None]:
        named = function.with_attr("global_symbol", "main")
        return tvm.compile(named, target=tvm.target.Target(dict(machine.tvm)))["main"]

    return build
