"""Compile PyTorch models to quantised kernels in a stand-alone artifact.

The public names below are loaded when they are first used, so that `import qcompiler` costs
nothing and running an artifact needs neither torch nor the compiler.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # as in typing, whose import takes as long as all the rest here
if TYPE_CHECKING:
    from qcompiler.api import compile, evaluate, plan, prepare_qat
    from qcompiler.benchmark import bench
    from qcompiler.comparison import compare
    from qcompiler.core.errors import (
        ArtifactError,
        CaptureError,
        ConfigError,
        QCompilerError,
        UnsupportedError,
        UsageError,
        VerifyError,
    )
    from qcompiler.runtime import load
    from qcompiler.text_generation import generate_text

__version__ = "0.1.0"

_HOMES = {
    "bench": "qcompiler.benchmark",
    "compare": "qcompiler.comparison",
    "compile": "qcompiler.api",
    "evaluate": "qcompiler.api",
    "generate_text": "qcompiler.text_generation",
    "load": "qcompiler.runtime",
    "plan": "qcompiler.api",
    "prepare_qat": "qcompiler.api",
    "ArtifactError": "qcompiler.core.errors",
    "CaptureError": "qcompiler.core.errors",
    "ConfigError": "qcompiler.core.errors",
    "QCompilerError": "qcompiler.core.errors",
    "UnsupportedError": "qcompiler.core.errors",
    "UsageError": "qcompiler.core.errors",
    "VerifyError": "qcompiler.core.errors",
}

__all__ = [
    "ArtifactError",
    "CaptureError",
    "ConfigError",
    "QCompilerError",
    "UnsupportedError",
    "UsageError",
    "VerifyError",
    "__version__",
    "bench",
    "compare",
    "compile",
    "evaluate",
    "generate_text",
    "load",
    "plan",
    "prepare_qat",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qcompiler' has no attribute '{name}'")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from qcompiler.core.errors import UnsupportedError
        from qcompiler.extras import explain

        if (sentence := explain(error)) is None:
            raise
        raise UnsupportedError(sentence) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _refuse_strangers() -> None:
    """Raise ImportError if one of our sibling packages is another distribution's.

    `passes`, `codegen` and `targets` are names that others use too. Whichever folder comes first on
    the path wins, and would be imported in place of ours; and pip lets one distribution write over
    the files of another.
    """
    root = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))  # noqa: PTH118, PTH120
    way_out = "install qcompiler in a virtual environment of its own"
    for name in ("passes", "codegen", "targets"):
        module = sys.modules.get(name)
        spec = module.__spec__ if module else PathFinder.find_spec(name)
        if spec is None:
            continue
        found = next(iter(spec.submodule_search_locations or ()), spec.origin or "")
        if os.path.realpath(found) != os.path.join(root, name):  # noqa: PTH118
            raise ImportError(
                f"the package '{name}' that qcompiler needs is hidden by another one of that name "
                f"in {found}; remove that one, or {way_out}"
            )
        if spec.origin is None:
            continue
        with open(spec.origin, "rb") as file:  # noqa: PTH123
            if b"qcompiler" not in file.read():
                raise ImportError(
                    f"another distribution has written over qcompiler's file {spec.origin}; "
                    + way_out
                )


_refuse_strangers()
