"""What it costs to run operators on a target: bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from qcompiler.core.formats import QuantScheme

if TYPE_CHECKING:
    from qcompiler.core.program import Program


class KernelTimer(Protocol):
    """Times the kernels that code generation has, on the machine it runs on."""

    def linear_seconds(
        self,
        n: int,
        k: int,
        scheme: QuantScheme | None,
        tokens: int,
        *,
        gated: bool = False,
        stream_bytes: int = 0,
    ) -> float:
        """Return the seconds of a product [tokens, k] × [n, k]ᵀ.

        A scheme of None is the float product; `gated`: the rows are those of a gate, then those of
        what it scales. `stream_bytes` are the weights that are read before this one is read again,
        as all those of a model are from token to token: what has not been in a cache since then is
        read from main memory.

        Raises:
            UnsupportedError: the target has no kernel for the scheme, or is another machine.
        """


class ModelTimer(Protocol):
    """Times whole models, on the machine it runs on."""

    def model_seconds(
        self, programs: Sequence[Program], prompt_tokens: int
    ) -> list[tuple[float, float]]:
        """Return the seconds of one token after a prompt, and of the prompt, for each program.

        The programs are one LEGAL language model in several formats, whose matrices need no values:
        how fast they are multiplied by does not depend on them. They are timed in turns, so that
        their times compare.

        Raises:
            UnsupportedError: the target is another machine.
        """


class PackedBytes(Protocol):
    """Tells how many bytes a weight takes in an artifact."""

    def __call__(self, n: int, k: int, scheme: QuantScheme | None, *, gated: bool = False) -> int:
        """Return the bytes of codes, scales and zero points (or floats) of a weight [n, k]."""


def unpadded_bytes(n: int, k: int, scheme: QuantScheme | None, *, gated: bool = False) -> int:
    """Return the bytes of a weight [n, k] where no target pads it.

    >>> unpadded_bytes(576, 576, QuantScheme.parse("w4a8g64"))
    176256
    """
    bits = 32.0 if scheme is None else scheme.weight.bits_per_weight(k)
    return round(n * k * bits) // 8
