"""The two shared libraries of TVM that a runner is linked with, for the machine it is to run on."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from codegen.runtime_libraries import ffi_library
from qcompiler.core.artifact import Manifest
from qcompiler.core.errors import UnsupportedError, UsageError

RUNTIME = "libtvm_runtime.so"
FFI = "libtvm_ffi.so"

_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def libraries_for(artifact: Path, manifest: Manifest, given: Path | None) -> dict[str, Path]:
    """Return where the libraries lie, by their names.

    The artifact carries libtvm_runtime.so. libtvm_ffi.so is looked for in the folder `given`, or
    else beside it in the artifact, in the installed apache-tvm-ffi, and in the wheel of that for
    another machine, which is downloaded once. Whichever is found has to be for the architecture of
    the artifact.

    Raises:
        UnsupportedError: libtvm_ffi.so for this architecture cannot be had.
        UsageError: the folder given has it for another one.
    """
    arch = manifest.target.arch
    runtime = artifact / "lib" / RUNTIME
    if given is not None and (given / RUNTIME).is_file():
        runtime = given / RUNTIME
    places = [given] if given is not None else [artifact / "lib", _wheel_libraries()]
    for place in places:
        ffi = None if place is None else place / FFI
        if ffi is None or not ffi.is_file():
            continue
        if machine_of(ffi) == machine_of(runtime) == arch:
            return {RUNTIME: runtime, FFI: ffi}
        if given is not None:
            raise UsageError(
                f"the libraries in {given} are for {machine_of(ffi)}, and the artifact is for "
                f"{arch}; give those of apache-tvm and apache-tvm-ffi for {arch}"
            )
    if given is not None:
        raise UsageError(f"there is no {FFI} in {given}; name the folder it lies in")
    return {RUNTIME: runtime, FFI: ffi_library(arch)}


def machine_of(library: Path) -> str:
    """Return the architecture that a shared library is for, as Linux names it."""
    with library.open("rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF":
        return "no machine"
    number = int.from_bytes(head[18:20], "little")
    return _ELF_MACHINES.get(number, f"machine {number}")


def headers() -> dict[str, Path]:
    """Return the header files of TVM's C interface, by the names they are included by."""
    names = ("tvm/ffi/c_api.h", "dlpack/dlpack.h")
    return {name: _package() / "include" / name for name in names}


def licences() -> dict[str, Path]:
    """Return the licence files that go with the headers and libraries."""
    try:
        files = distribution("apache-tvm-ffi").files or []
    except PackageNotFoundError:
        raise _not_installed() from None
    found = [file for file in files if file.parent.name == "licenses"]
    return {file.name: Path(str(file.locate())) for file in found}


def _wheel_libraries() -> Path:
    return _package() / "lib"


def _package() -> Path:
    # Found but not imported: that would load torch where it is installed.
    found = importlib.util.find_spec("tvm_ffi")
    for folder in found.submodule_search_locations or () if found else ():
        return Path(folder)
    raise _not_installed()


def _not_installed() -> UnsupportedError:
    return UnsupportedError(
        "exporting a runner needs the package apache-tvm-ffi, which is not installed; install it "
        "with 'pip install apache-tvm-ffi'"
    )
