"""What it costs to run operators on a target: bytes and seconds."""

from __future__ import annotations

from typing import Protocol

from qcompiler.core.formats import QuantScheme


class KernelTimer(Protocol):
    """Times the kernels that code generation has, on the machine it runs on."""

    def linear_seconds(self, n: int, k: int, scheme: QuantScheme | None, tokens: int) -> float:
        """Return the seconds of a product [tokens, k] × [n, k]ᵀ with weights from main memory.

        A scheme of None is the float product.

        Raises:
            UnsupportedError: the target has no kernel for the scheme, or is another machine.
        """
