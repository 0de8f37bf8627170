"""Run what is compiled for 64-bit Arm on this machine, in the emulator QEMU."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tvm_ffi import libinfo

from codegen.linker import find_linker
from codegen.runtime_libraries import LIBRARIES, ffi_library, has_library, runtime_library
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Target

ARCH = "aarch64"
PROGRAM = "qemu-aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
SOURCES = Path(__file__).parent / "emulated"
CMAKE = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    f"-DCMAKE_SYSTEM_PROCESSOR={ARCH}",
    f"-DCMAKE_C_COMPILER={ARCH}-linux-gnu-gcc",
    f"-DCMAKE_CXX_COMPILER={ARCH}-linux-gnu-g++",
)
"""Options that build for aarch64."""

_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # of DLPack


@cache
def lacking() -> str | None:
    """Say what is lacking to link for aarch64 and to run it; None if nothing is."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed (apt-get install qemu-user)"
    try:
        find_linker(ARCH)
    except UnsupportedError as problem:
        return str(problem)
    for library in LIBRARIES:
        if not has_library(library, ARCH):
            return f"{library.name} is not there (qcompiler targets --install {ARCH})"
    if platform.machine() != ARCH and not SYSROOT.is_dir():
        return f"{SYSROOT} is missing (apt-get install libc6-dev-arm64-cross)"
    return None


def processor(target: Target) -> str:
    """The emulated processor that has what a target needs, and as little else as there is."""
    return "max" if "i8mm" in target.features else "cortex-a76"


def build_program(source: Path, folder: Path) -> Path:
    """Compile a C++ program that calls compiled models; return it."""
    program = folder / source.stem
    libraries = [runtime_library(ARCH), ffi_library(ARCH)]
    subprocess.run(
        [
            *(find_linker(ARCH), "-std=c++17", "-O1", "-w", str(source), "-o", str(program)),
            *(
                f"-I{path}"
                for path in {libinfo.find_include_path(), libinfo.find_dlpack_include_path()}
            ),
            # The runtime is only called by what is loaded later.
            "-Wl,--no-as-needed",
            *(str(library) for library in libraries),
            *(f"-Wl,-rpath,{library.parent}" for library in libraries),
        ],
        check=True,
    )
    return program


def command(program: Path, *arguments: str, cpu: str, threads: int = 2) -> list[str]:
    """Return what runs a program on an emulated processor."""
    settings = ["-cpu", cpu, "-E", f"TVM_NUM_THREADS={threads}"]
    if platform.machine() != ARCH:
        settings += ["-L", str(SYSROOT)]
    return [PROGRAM, *settings, str(program), *arguments]


class KernelServer:
    """A process in the emulator that calls kernels."""

    def __init__(self, program: Path, cpu: str) -> None:
        # Names of the emulator's own are taken from the environment.
        given = {name: value for name, value in os.environ.items() if not name.startswith("QEMU_")}
        self._process = subprocess.Popen(
            command(program, cpu=cpu), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given
        )

    def call(self, library: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Call the function `main` of a library; return the arrays as it left them."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        path = str(library).encode()
        process.stdin.write(struct.pack("<i", len(path)) + path + struct.pack("<i", len(arrays)))
        for array in arrays:
            code, bits = _TYPE_CODES[array.dtype.kind], 8 * array.dtype.itemsize
            process.stdin.write(struct.pack("<iii", code, bits, array.ndim))
            process.stdin.write(struct.pack(f"<{array.ndim}q", *array.shape) + array.tobytes())
        process.stdin.flush()
        if self._int() != 0:
            raise RuntimeError(process.stdout.read(self._int()).decode())
        return [
            np.frombuffer(process.stdout.read(array.nbytes), array.dtype).reshape(array.shape)
            for array in arrays
        ]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def _int(self) -> int:
        assert self._process.stdout is not None
        data = self._process.stdout.read(4)
        if len(data) < 4:
            raise RuntimeError(f"the emulator ended with status {self._process.wait(timeout=30)}")
        (value,) = struct.unpack("<i", data)
        return int(value)
