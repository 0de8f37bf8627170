"""Second moments of what products read, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from passes.activations import Activations
from passes.finite_weights import FiniteWeights
from passes.segments import Segment, segments
from qcompiler.core.errors import QCompilerError
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.progress import NO_PROGRESS, Progress


@dataclass
class Moment:
    """H = Σ x xᵀ / tokens, [k, k], of one value, and the operators that read it.

    Operators are named after the entries of their weights.
    """

    matrix: torch.Tensor
    tokens: int = 0
    operators: list[str] = field(default_factory=list)

    def add(self, x: torch.Tensor) -> None:
        """Take more inputs [..., k] into the mean."""
        flat = x.reshape(-1, x.shape[-1]).to(self.matrix.dtype)
        total = self.tokens + len(flat)
        self.matrix.mul_(self.tokens / max(total, 1)).addmm_(flat.T, flat, alpha=1 / max(total, 1))
        self.tokens = total

    def merge(self, other: Moment) -> Moment:
        """Return the moment of the inputs of both."""
        total = self.tokens + other.tokens
        share = self.tokens / max(total, 1)
        return Moment(self.matrix * share + other.matrix * (1 - share), total)


def moments(
    program: Program,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    budget: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress = NO_PROGRESS,
) -> Iterator[dict[str, Moment]]:
    """Run the float model on samples; yield each segment's moments, by the name of the value.

    budget: bytes of activations kept in memory. dtype: what is summed in.

    Raises:
        QCompilerError: a weight, or what a product reads, is not finite.
    """
    parts = segments(program)
    with Activations(map(parts[0].order.inputs, samples), budget=budget) as live:
        for done, part in enumerate(parts, start=1):
            with torch.no_grad():
                found = _advance(program, part, live, dtype)
            yield found
            progress.advance(done, len(parts))


def _advance(
    program: Program, part: Segment, live: Activations, dtype: torch.dtype
) -> dict[str, Moment]:
    """Run a segment on what is live, in place; return the moments of its inputs."""
    products = part.linears()
    found: dict[str, Moment] = {}
    first: set[int] = set()
    for place, (_, node) in enumerate(products):
        weight, x = str(weight_of(node)), _input_name(node)
        if x not in found:
            k = program.weights.shape(weight)[1]
            found[x] = Moment(torch.zeros(k, k, dtype=dtype))
            first.add(place)
        name = operator_name(program.weights.resolve(weight))
        if name not in found[x].operators:
            found[x].operators.append(name)
    weights = FiniteWeights(program)
    for index, values in enumerate(live):
        places = iter(range(len(products)))

        def tap(_: str, x: torch.Tensor, places: Iterator[int] = places) -> None:
            place = next(places)
            if place in first:
                found[_input_name(products[place][1])].add(x)

        live[index] = part.run(values, weights, tap=tap)
    for moment in found.values():
        if not bool(torch.isfinite(moment.matrix).all()):
            raise QCompilerError(
                f"what '{moment.operators[0]}' reads is infinite or not a number on a calibration "
                "sample, so it cannot be measured; look for damaged weights before it"
            )
    return found


def _input_name(node: fx.Node) -> str:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x.name
