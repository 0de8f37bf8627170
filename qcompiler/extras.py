"""What to say where a part of qcompiler is used that is not installed."""

from __future__ import annotations

COMPILER = frozenset({"gguf", "networkx", "scipy", "sympy", "torch", "transformers", "tvm"})
"""Modules that the extra `compiler` installs; running an artifact needs none of them."""


def explain(error: ModuleNotFoundError) -> str | None:
    """Return the sentence for a module that an extra would bring; None if none would.

    >>> explain(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "this needs the compiler, and torch is not installed; run: pip install 'qcompiler[compiler]'"
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in COMPILER:
        return None
    return (
        f"this needs the compiler, and {missing} is not installed; "
        "run: pip install 'qcompiler[compiler]'"
    )
