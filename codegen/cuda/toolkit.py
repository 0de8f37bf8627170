"""NVIDIA's compiler and libraries, wherever they are installed; found without loading TVM."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from codegen.linker import find_linker
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import host_arch

INSTALL = "pip install 'qcompiler[compiler,cuda]'"

_CUDA_RUNTIME = "libcudart.so.13"
_DRIVER = "libcuda.so.1"

# What TVM's CUDA runtime calls of the driver. Where there is no GPU nothing calls these; the
# runtime cannot be loaded without them, and code generation needs the runtime.
_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Toolkit:
    """The compiler, and the library that programs call."""

    nvcc: Path
    runtime: Path


def find_toolkit() -> Toolkit:
    """Return the toolkit: that of the Python packages, or else the one on PATH.

    Raises:
        UnsupportedError: the compiler or its library is not installed.
    """
    nvcc = next((p for p in _compilers() if p.is_file()), None)
    if nvcc is None:
        raise UnsupportedError(
            "compiling for an NVIDIA GPU needs nvcc, and none is installed; "
            f'install it with "{INSTALL}", or put a CUDA 13 toolkit\'s bin folder on PATH'
        )
    found = (nvcc.parents[1] / folder / _CUDA_RUNTIME for folder in ("lib", "lib64"))
    runtime = next((p for p in found if p.is_file()), None)
    if runtime is None:
        raise UnsupportedError(
            f"{nvcc} has no {_CUDA_RUNTIME} beside it, so it is not of CUDA 13, which TVM's "
            f'runtime is built for; install one that is with "{INSTALL}"'
        )
    return Toolkit(nvcc, runtime)


def find_tool(name: str) -> Path | None:
    """Return a program of the toolkit, such as cuobjdump, or None where it is not installed."""
    places = [folder / "bin" / name for folder in _package_folders()]
    found = next((p for p in places if p.is_file()), None)
    on_path = shutil.which(name)
    return found or (Path(on_path) if on_path else None)


def _package_folders() -> list[Path]:
    """Return where the `nvidia-cuda-*` packages put what they hold."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    return [Path(folder) / "cu13" for folder in folders or ()]


def _compilers() -> list[Path]:
    """Return where nvcc may be, the best place first; a wrapper's toolkit lies elsewhere."""
    places = [folder / "bin" / "nvcc" for folder in _package_folders()]
    if on_path := shutil.which("nvcc"):
        places.append(_behind(Path(on_path)))
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return [*places, Path(home) / "bin" / "nvcc"]


def _behind(nvcc: Path) -> Path:
    """Return the compiler that a script or a link called nvcc stands for."""
    done = subprocess.run(
        [os.fspath(nvcc), "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True
    )
    top = [line.partition("TOP=")[2] for line in done.stderr.splitlines() if "TOP=" in line]
    return Path(top[0].strip()) / "bin" / "nvcc" if top else nvcc.resolve()


@cache
def load_tvm_runtime(toolkit: Toolkit) -> None:
    """Load the CUDA part of TVM's runtime, with a driver that does nothing where there is none."""
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        _load_idle_driver()
    ctypes.CDLL(os.fspath(toolkit.runtime), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(os.fspath(tvm_cuda_library()), ctypes.RTLD_GLOBAL)


def tvm_cuda_library() -> Path:
    """Return the CUDA part of TVM's runtime, which travels with an artifact."""
    spec = importlib.util.find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib" / "libtvm_runtime_cuda.so"


def _load_idle_driver() -> None:
    """Compile and load a library whose every function says that there is no device."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as scratch:
        code, library = Path(scratch) / "driver.c", Path(scratch) / _DRIVER
        code.write_text(
            "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _DRIVER_FUNCTIONS)
        )
        linker = find_linker(host_arch())
        options = ["-shared", "-fPIC", f"-Wl,-soname,{_DRIVER}", "-x", "c"]
        subprocess.run([linker, *options, "-o", str(library), str(code)], check=True)
        ctypes.CDLL(os.fspath(library), ctypes.RTLD_GLOBAL)
