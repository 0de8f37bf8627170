"""Have TVM's CUDA C compiled: by nvcc, or by whatever a test puts in its place."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm
import tvm_ffi

from codegen.cuda.toolkit import Toolkit, find_toolkit, load_tvm_runtime
from qcompiler.core.target import Gpu

Compiler = Callable[[str], bytes]
"""Takes CUDA C and returns what the driver will load."""

_ours: list[Compiler] = []


@contextmanager
def compiling_for(gpu: Gpu) -> Iterator[None]:
    """Have CUDA C that TVM makes inside compiled for a GPU.

    Raises:
        UnsupportedError: the toolkit is not installed.
    """
    if _ours:  # somebody has put another compiler in place
        yield
        return
    toolkit = find_toolkit()
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        load_tvm_runtime(toolkit)
    with compiling_by(lambda source: compile_with_nvcc(source, gpu, toolkit)):
        yield


@contextmanager
def compiling_by(compiler: Compiler) -> Iterator[None]:
    """Have CUDA C that TVM makes inside compiled by `compiler`."""
    _ours.append(compiler)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compiler, override=True)
    try:
        yield
    finally:
        _ours.remove(compiler)


def compile_with_nvcc(source: str, gpu: Gpu, toolkit: Toolkit) -> bytes:
    """Return machine code for a GPU, and PTX from which drivers make code for later ones."""
    level = gpu.level
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as scratch:
        code, binary = Path(scratch) / "kernels.cu", Path(scratch) / "kernels.fatbin"
        code.write_text(source)
        command = [
            str(toolkit.nvcc),
            "--fatbin",
            "-O3",
            "-gencode",
            f"arch=compute_{level},code=[sm_{level},compute_{level}]",
            "--diag-suppress=177",  # what a kernel computes and does not use, TVM leaves in
            "-o",
            str(binary),
            str(code),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc refuses generated code:\n{done.stdout}{done.stderr}")
        return binary.read_bytes()
