"""The C compiler that links what was compiled; found without loading TVM."""

from __future__ import annotations

import shutil

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import host_arch

COMPILERS: tuple[str, ...] = ("g++", "gcc", "clang++", "clang")


def find_linker(arch: str) -> str:
    """Return a C compiler that can link a shared library for an architecture.

    Raises:
        UnsupportedError: there is none.
    """
    names, package = COMPILERS, "g++"
    if arch != host_arch():
        # As Debian and most others name what compiles for another architecture.
        names = tuple(f"{arch}-linux-gnu-{name}" for name in ("g++", "gcc"))
        package = f"g++-{arch.replace('_', '-')}-linux-gnu"
    for name in names:
        if found := shutil.which(name):
            return found
    raise UnsupportedError(
        f"linking the compiled model needs a C compiler for {arch}, and none is installed; "
        f"install one, for instance with 'apt-get install {package}'"
    )
