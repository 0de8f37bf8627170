"""The C compiler that links what was compiled; found without loading TVM."""

from __future__ import annotations

import shutil

from qcompiler.core.errors import UnsupportedError

COMPILERS = ("g++", "gcc", "clang++", "clang")


def find_linker() -> str:
    """Return a C compiler that can link a shared library.

    Raises:
        UnsupportedError: there is none.
    """
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise UnsupportedError(
        "linking the compiled model needs a C compiler, and none is installed; "
        "install one, for instance with 'apt-get install g++'"
    )
