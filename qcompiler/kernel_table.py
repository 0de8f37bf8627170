"""How far each kind of operator is from what the machine can do: times against a roofline.

What a kernel takes at least is the longer of two times: that of its bytes, as fast as the machine
reads as many as a token takes, and that of its operations, at the machine's best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.core.artifact import FunctionCosts, KernelCost


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes read and operations done in a second, by all threads together."""

    bytes: float
    int8: float
    float32: float

    def seconds(self, cost: KernelCost, size: float, operations: float) -> float:
        """Return what a kernel takes at least that reads `size` bytes."""
        on_bytes = 1.0 if cost.arithmetic == "int8" else cost.byte_share
        per_operation = on_bytes / self.int8 + (1 - on_bytes) / self.float32
        return max(size / self.bytes, operations * per_operation)


@dataclass(frozen=True, kw_only=True)
class KindTime:
    """What the kernels of one kind take in a call of a function; `limit_seconds`: at least."""

    kind: str
    arithmetic: str
    calls: int
    seconds: float
    bytes: float
    operations: float
    limit_seconds: float

    @property
    def limit_share(self) -> float:
        """How much of the machine's limit is reached, up to 1."""
        return self.limit_seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class FunctionTime:
    """What a call of a function takes that reads `tokens`, after which there are `context`.

    `seconds` are those of the call as a whole; `kinds` come in the order of their times.
    """

    name: str
    tokens: int
    context: int
    seconds: float
    kinds: tuple[KindTime, ...]

    @property
    def total(self) -> KindTime:
        """All kernels, and what passes outside of them."""
        return KindTime(
            kind="total",
            arithmetic="",
            calls=sum(each.calls for each in self.kinds),
            seconds=self.seconds,
            bytes=sum(each.bytes for each in self.kinds),
            operations=sum(each.operations for each in self.kinds),
            limit_seconds=sum(each.limit_seconds for each in self.kinds),
        )

    @property
    def outside_seconds(self) -> float:
        """What passes outside of kernels: to start threads, and between one call and the next."""
        return max(0.0, self.seconds - sum(each.seconds for each in self.kinds))


def function_time(
    name: str,
    costs: FunctionCosts,
    limits: Limits,
    *,
    tokens: int,
    context: int,
    seconds: float,
    kernels: Sequence[float],
) -> FunctionTime:
    """Put the seconds of a function's kernels, in order, beside what they take at least."""
    kinds: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for place, taken in zip(costs.calls, kernels, strict=True):
        cost = costs.kernels[place]
        size, operations = cost.evaluate(tokens, context)
        least = limits.seconds(cost, size, operations)
        row = (taken, size, operations, least)
        kinds.setdefault((cost.kind, cost.arithmetic), []).append(row)
    rows = []
    for (kind, arithmetic), found in kinds.items():
        taken, size, operations, least = map(sum, zip(*found, strict=True))
        rows.append(
            KindTime(
                kind=kind,
                arithmetic=arithmetic,
                calls=len(found),
                seconds=taken,
                bytes=size,
                operations=operations,
                limit_seconds=least,
            )
        )
    rows.sort(key=lambda row: -row.seconds)
    return FunctionTime(
        name=name, tokens=tokens, context=context, seconds=seconds, kinds=tuple(rows)
    )
