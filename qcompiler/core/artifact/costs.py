"""What the kernels of an artifact take, for whoever compares it with what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["int8", "float32"]

Polynomial = tuple[tuple[float, int, int], ...]
"""Terms: a coefficient, the power of the tokens, the power of the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """What a call of a kernel takes: `bytes` from main memory, and `operations`.

    `kernel` is what the machine code calls it; `kind` the kind of operator that it serves.
    """

    kernel: str
    kind: str
    arithmetic: Arithmetic
    bytes: Polynomial
    operations: Polynomial
    byte_share: float = 0.0
    """How much of the operations is on bytes all the same, where they are on floats."""
    window: int = 0
    """Tokens that a token sees at most, where that is positive."""

    def evaluate(self, tokens: int, context: int) -> tuple[float, float]:
        """Return bytes and operations of a call for so many tokens.

        context: the tokens that there are when they have been read, themselves among them.

        >>> attention = KernelCost(
        ...     kernel="a", kind="attention", arithmetic="float32",
        ...     bytes=((512.0, 0, 1),), operations=((256.0, 1, 1),), window=10,
        ... )
        >>> attention.evaluate(1, 100)
        (5120.0, 2560.0)
        """
        # On average, the tokens of a prompt that is longer than the window see so many.
        seen = min(context, self.window + (tokens - 1) / 2) if self.window else context
        return _value(self.bytes, tokens, seen), _value(self.operations, tokens, seen)


def _value(polynomial: Polynomial, tokens: int, context: float) -> float:
    return float(sum(factor * tokens**i * context**j for factor, i, j in polynomial))


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCosts:
    """The kernels that a function calls; `calls` has the place of each in `kernels`, in order."""

    kernels: tuple[KernelCost, ...]
    calls: tuple[int, ...]

    def bytes(self, tokens: int, context: int) -> float:
        """Return what a call of the function reads; see `KernelCost.evaluate`."""
        return sum(self.kernels[place].evaluate(tokens, context)[0] for place in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """A function that does nothing but read, or nothing but operate, as fast as the machine can.

    It takes an array of numbers and gives `sums` numbers for each thread. Each thread does
    `operations` on the `numbers`, or, where there are none, reads as many times `numbers` as the
    array has of them: [threads, rounds, numbers].
    """

    symbol: str
    dtype: str
    numbers: int
    sums: int
    sums_dtype: str
    operations: int = 0
