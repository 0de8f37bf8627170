"""Predict losses from the variance of weights, in closed form: rate-distortion theory.

A weight of variance σ² with b bits is off by a mean square of σ²·c·2^(−2b), where c depends on the
largest of the weights that share a scale. An operator passes that on multiplied by how much its
inputs are: its sensitivity s, their mean square. The loss of a model is Σ size·s·σ²·c·2^(−2b), and
for a given mean of bits b̄ it is least where every weight adds as much as any other (reverse
water-filling; Cover and Thomas, "Elements of Information Theory", 10.3): an operator then has
b̄ + ½·log₂(s·σ² / geometric mean of s·σ²) bits, which is what the allocator "closed-form" gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch

from passes.activations import Activations
from passes.finite_weights import FiniteWeights
from passes.quantizable import Quantizable
from passes.segments import segments
from qcompiler.core.formats import TensorFormat
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.progress import NO_PROGRESS, Progress


def weight_variance(
    program: Program,
    weights: Sequence[Quantizable],
    choices: tuple[str, ...],
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    budget: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Return the predicted squared error of outputs per token, by operator and scheme.

    Without samples every s is 1. A token reads one row of a table, and each row of a product's
    weight.
    """
    squares = mean_squares(program, samples, budget=budget, progress=progress) if samples else {}
    read = FiniteWeights(program)
    loss: dict[str, dict[str, float]] = {}
    for weight in weights:
        variance = float(read(weight.entry).var(correction=0))
        n, k = weight.shape
        rows = len(weight.tables) + n * squares.get(weight.operator, 1.0) * len(weight.products)
        loss[weight.operator] = {
            text: rows * k * variance * distortion(scheme.weight, k)
            for text, scheme in weight.schemes(choices).items()
        }
    return loss


def distortion(form: TensorFormat, k: int) -> float:
    """Return the mean squared error of rounding Gaussian weights of variance 1 to nearest.

    >>> from qcompiler.core.formats import PerGroup
    >>> four, eight = (TensorFormat(bits=bits, granularity=PerGroup(64)) for bits in (4, 8))
    >>> round(distortion(four, 576), 4), round(distortion(four, 576) / distortion(eight, 576))
    (0.0085, 256)
    """
    size = form.group_size(k)
    # The median of the largest of `size` magnitudes; a step is twice that over the number of codes.
    largest = NormalDist().inv_cdf((1 + 0.5 ** (1 / size)) / 2)
    return float(largest**2 / 3 * 4.0**-form.bits)


def mean_squares(
    program: Program,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    budget: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, float]:
    """Return the mean square of what each product reads in the float model, by operator."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    operators = {
        name: operator_name(program.weights.resolve(str(weight_of(node))))
        for name, node in program.linears()
    }

    def tap(name: str, x: torch.Tensor) -> None:
        operator = operators[name]
        sums[operator] = sums.get(operator, 0.0) + float(x.pow(2).sum(dtype=torch.float64))
        counts[operator] = counts.get(operator, 0) + x.numel()

    parts = segments(program)
    with torch.no_grad(), Activations(map(parts[0].order.inputs, samples), budget=budget) as live:
        for done, part in enumerate(parts, start=1):
            weights = FiniteWeights(program)
            for index, values in enumerate(live):
                live[index] = part.run(values, weights, tap=tap)
            progress.advance(done, len(parts))
    return {operator: total / counts[operator] for operator, total in sums.items()}
