"""Build the emulated driver, load it in place of a real one, and compile kernels for it."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import tvm

from codegen.cuda.emulation.translate import to_cpp
from codegen.cuda.toolkit import tvm_cuda_library
from codegen.linker import find_linker
from qcompiler.core.target import host_arch

HERE = Path(__file__).parent

_OPTIONS = ("-std=c++17", "-w", "-fPIC", "-shared", "-ffp-contract=off")
_VERSIONS = "libcudart.so.13 { global: cuda*; };\n"


def build_driver(folder: Path) -> list[Path]:
    """Compile the driver into `folder`; return its libraries in the order in which to load them."""
    versions, empty = folder / "versions", folder / "empty.cc"
    versions.write_text(_VERSIONS)
    empty.write_text("")
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    # One library has all functions; the other is there because TVM's runtime names it.
    script = f"-Wl,--version-script={versions}"
    _compile(HERE / "driver.cc", runtime, [f"-Wl,-soname,{runtime.name}", script])
    _compile(empty, driver, [f"-Wl,-soname,{driver.name}"])
    return [runtime, driver]


def load_driver(folder: Path) -> None:
    """Have TVM's runtime, which is loaded later, find this driver in place of a real one."""
    for library in build_driver(folder):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def compile_for_host(source: str) -> bytes:
    """Compile CUDA C as the emulated driver loads it."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as scratch:
        code, library = Path(scratch) / "kernels.cc", Path(scratch) / "kernels.so"
        code.write_text(to_cpp(source))
        _compile(code, library, [f"-I{HERE / 'include'}", "-O1", "-s"])
        return library.read_bytes()


def _compile(source: Path, library: Path, options: list[str]) -> None:
    command = [
        find_linker(host_arch()),
        *_OPTIONS,
        *options,
        "-o",
        str(library),
        str(source),
        "-ldl",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:4000]}")


@cache
def use_emulated_device() -> None:
    """Make TVM's runtime in this process, which has not met a GPU yet, run on the emulated one."""
    folder = Path(tempfile.mkdtemp(prefix="qcompiler-emulation-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    load_driver(folder)
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        ctypes.CDLL(str(tvm_cuda_library()), ctypes.RTLD_GLOBAL)
