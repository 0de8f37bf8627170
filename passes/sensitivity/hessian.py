"""Predict losses from the squared error of each product's output: tr(ΔW·H·ΔWᵀ).

H = Σ x xᵀ / tokens are the second moments of the product's inputs, so that this is the mean over
tokens of ‖ΔW·x‖² = ‖ΔW·H^½‖². What an error of one operator's output does further on is left out,
and so are errors of quantised activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from passes.finite_weights import FiniteWeights
from passes.moments import moments
from passes.quantizable import Quantizable
from passes.sensitivity.rounding_error import rounding_error
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress


def hessian(
    program: Program,
    weights: Sequence[Quantizable],
    choices: tuple[str, ...],
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    budget: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, dict[str, float]]:
    """Return the mean squared error of outputs per token, by operator and scheme.

    Moments of one segment are in memory at a time. budget: bytes of activations kept in memory.
    """
    loss = {weight.operator: _of_tables(program, weight, choices, samples) for weight in weights}
    measured = {weight.operator: weight for weight in weights}
    for found in moments(program, samples, budget=budget, progress=progress):
        read = FiniteWeights(program)
        for moment in found.values():
            for operator in moment.operators:
                if operator not in measured:
                    continue
                entry = measured[operator].entry
                weight = read(entry)
                for text, scheme in measured[operator].schemes(choices).items():
                    error = rounding_error(entry, weight, scheme.weight)
                    loss[operator][text] += output_error(error, moment.matrix)
    return loss


def output_error(error: torch.Tensor, moment: torch.Tensor) -> float:
    """Return tr(E·H·Eᵀ) for an error E [n, k] and a moment H [k, k].

    >>> output_error(torch.tensor([[1.0, 2.0]]), torch.eye(2))
    5.0
    """
    return float(torch.mm(error, moment.to(error.dtype)).mul_(error).sum(dtype=torch.float64))


def _of_tables(
    program: Program,
    weight: Quantizable,
    choices: tuple[str, ...],
    samples: Sequence[tuple[torch.Tensor, ...]],
) -> dict[str, float]:
    """Return the mean squared error of the rows that tables give, by scheme."""
    loss = dict.fromkeys(weight.schemes(choices), 0.0)
    if weight.tables:
        shares = torch.stack([_row_shares(program, weight, t, samples) for t in weight.tables]).sum(
            0
        )
        values = FiniteWeights(program)(weight.entry)
        for text, scheme in weight.schemes(choices).items():
            rows = rounding_error(weight.entry, values, scheme.weight).square_().sum(1)
            loss[text] = float((rows * shares).sum(dtype=torch.float64))
    return loss


def _row_shares(
    program: Program,
    weight: Quantizable,
    table: fx.Node,
    samples: Sequence[tuple[torch.Tensor, ...]],
) -> torch.Tensor:
    """Return how often each row is read, [n]: as samples do, or alike where that is computed."""
    rows = weight.shape[0]
    inputs = program.placeholders()
    numbers = table.args[0]
    if not isinstance(numbers, fx.Node) or numbers not in inputs:
        return torch.full((rows,), 1 / rows)
    place = inputs.index(numbers)
    read = torch.cat([sample[place].flatten() for sample in samples])
    return torch.bincount(read, minlength=rows) / len(read)
