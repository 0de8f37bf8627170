"""TVM's small foreign-function package, imported without dragging torch in."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import ModuleType

from qcompiler.core.errors import ArtifactError


@cache
def bindings() -> ModuleType:
    """Import and return `tvm_ffi`; ArtifactError when it is not installed.

    `tvm_ffi` imports torch if it can, only to convert torch's tensors faster, which takes a second
    and 200 MB. Its switch TVM_FFI_DISABLE_TORCH_C_DLPACK does not prevent that, so torch is hidden
    for the moment of the import, unless it is loaded already.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("tvm_ffi")
    except ImportError as error:
        raise ArtifactError(
            f"running an artifact needs the package apache-tvm-ffi, which cannot be imported "
            f"({error}); install it with 'pip install apache-tvm-ffi'"
        ) from None
    finally:
        if hidden:
            del sys.modules["torch"]
