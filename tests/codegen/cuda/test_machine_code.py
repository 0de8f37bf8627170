"""What nvcc makes of kernels: tensor cores, wide loads, registers that suffice, PTX beside."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvm

import qcompiler
from codegen.cuda.compiler import compile_with_nvcc, compiling_by
from codegen.cuda.toolkit import find_tool, find_toolkit
from codegen.kernels.cuda.many_rows import half_rows, integer_rows
from codegen.kernels.cuda.one_row import FloatProduct, float_row, integer_row
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.quantized_operands import QuantizedMatmul
from codegen.packing import code_packing
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.formats import PerGroup, QuantScheme
from qcompiler.core.target import Target
from targets.cuda import CUDA_SM80, CUDA_SM90

pytestmark = pytest.mark.tvm

FATBIN = b"\x50\xed\x55\xba"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    try:
        find_toolkit()
    except UnsupportedError as lacking:
        pytest.skip(str(lacking))
    if find_tool("cuobjdump") is None or find_tool("nvdisasm") is None:
        pytest.skip("cuobjdump and nvdisasm are not installed; install the extra 'test'")


def dumped(binary: Path, *options: str) -> str:
    """Return what cuobjdump says of a file."""
    tool, disassembler = find_tool("cuobjdump"), find_tool("nvdisasm")
    assert tool is not None
    assert disassembler is not None
    path = f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [os.fspath(tool), *options, os.fspath(binary)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    assert not done.returncode, done.stderr
    return done.stdout


def machine_code(function: Any, target: Target, folder: Path) -> tuple[str, str, str]:
    """Return a kernel's instructions, what it takes of the GPU, and the list of its binaries."""
    assert target.gpu is not None
    gpu, binary = target.gpu, folder / "kernels.fatbin"

    def compiler(source: str) -> bytes:
        code = compile_with_nvcc(source, gpu, find_toolkit())
        binary.write_bytes(code)
        return code

    machine = tvm.target.Target(dict(target.tvm), host="llvm")
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with machine, compiling_by(compiler):
        tvm.compile(module, target=machine)
    listed = dumped(binary, "-lelf") + dumped(binary, "-lptx")
    return dumped(binary, "-sass"), dumped(binary, "-res-usage"), listed


def packed(scheme: str, *, gated: bool = False) -> Any:
    """Return the packing of a weight of some size."""
    form = QuantScheme.parse(scheme).weight
    return code_packing(1536, 576, form, lanes=32, gated=gated, most_vectors=1)


def of_codes(scheme: str, *, gated: bool = False) -> QuantizedMatmul:
    """Return what a product of codes is asked for."""
    activation = QuantScheme.parse(scheme).activation
    assert activation is not None
    return QuantizedMatmul(
        packing=packed(scheme, gated=gated),
        per_token=not isinstance(activation.granularity, PerGroup),
        epilogue=Epilogue(activation="silu" if gated else "none", residual=not gated),
    )


def of_floats(scheme: str) -> FloatProduct:
    """Return what a product of floats and codes is asked for."""
    return FloatProduct(packing=packed(scheme))


KERNELS: dict[str, tuple[Callable[[Target], Any], str, Target]] = {
    "w4a8g32-many": (lambda t: integer_rows(of_codes("w4a8g32"), t), "IMMA.16832", CUDA_SM80),
    "w4a8g32-gated": (
        lambda t: integer_rows(of_codes("w4a8g32", gated=True), t),
        "IMMA.16832",
        CUDA_SM80,
    ),
    "w8a8-many-sm90": (lambda t: integer_rows(of_codes("w8a8"), t), "IMMA.16832", CUDA_SM90),
    "w4g128-many": (lambda t: half_rows(of_floats("w4g128"), t), "HMMA.16816.F32", CUDA_SM80),
    "w4a8g32-one": (lambda t: integer_row(of_codes("w4a8g32"), t), "IDP.4A", CUDA_SM80),
    "w8g128-one": (lambda t: float_row(of_floats("w8g128"), t), "FFMA", CUDA_SM80),
}


@pytest.mark.parametrize(("build", "instruction", "target"), KERNELS.values(), ids=KERNELS)
def test_products(
    build: Callable[[Target], Any], instruction: str, target: Target, tmp_path: Path
) -> None:
    assert target.gpu is not None
    code, usage, listed = machine_code(build(target), target, tmp_path)
    assert instruction in code
    assert "LDG.E.128" in code
    # Nothing is spilled: the stack is what does not fit into registers.
    stacks = [int(found) for found in re.findall(r"STACK:(\d+)", usage)]
    assert stacks
    assert not any(stacks)
    assert f"sm_{target.gpu.level}.cubin" in listed
    assert f"sm_{target.gpu.level}.ptx" in listed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_model(tmp_path: Path) -> None:
    """SmolLM2-135M in four bits: what its library holds for the GPU."""
    artifact = qcompiler.compile("smollm2-135m", target="cuda-sm80", output=tmp_path / "m.qc")
    library = (artifact.path / "model.so").read_bytes()
    binary = tmp_path / "kernels.fatbin"
    start = library.index(FATBIN)
    header = library[start : start + 16]
    length = int.from_bytes(header[8:16], "little") + int.from_bytes(header[6:8], "little")
    binary.write_bytes(library[start : start + length])
    functions = dumped(binary, "-sass").split("Function : ")[1:]
    code = {text.split(maxsplit=1)[0]: text for text in functions}
    many = [text for name, text in code.items() if re.match(r"quantized_matmul_\w+_many", name)]
    one = [text for name, text in code.items() if re.match(r"quantized_matmul_\w+_one", name)]
    assert len(many) >= 5
    assert len(one) >= 5
    assert all("IMMA" in text for text in many)
    assert all("IDP.4A" in text for text in one)
    assert all("LDG.E.128" in text for text in [*many, *one])
    assert "sm_80.ptx" in dumped(binary, "-lptx")
    assert (artifact.path / "lib" / "libtvm_runtime_cuda.so").is_file()
