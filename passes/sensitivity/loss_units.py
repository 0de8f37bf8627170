"""What a loss is the mean of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcompiler.core.program import Program


def loss_units(program: Program, samples: Sequence[tuple[torch.Tensor, ...]]) -> int:
    """Return how many tokens a language model's samples have, or how many samples there are."""
    if program.info.kind == "causal-lm":
        return sum(tokens.numel() for (tokens,) in samples)
    return len(samples)
