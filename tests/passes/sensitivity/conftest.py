"""A small Llama, samples of its tokens, and what it predicts with some weights quantised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantizable import Quantizable, quantizable
from passes.rounding import round_to_nearest
from passes.segments import SegmentWeights, segments
from qcompiler.core.blocks import find_blocks
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program, operator_name, weight_of

SAMPLES = [(torch.tensor([3, 1, 4, 1, 5]),), (torch.tensor([9, 2, 6]),)]


@pytest.fixture
def samples() -> list[tuple[torch.Tensor, ...]]:
    return list(SAMPLES)


@pytest.fixture
def llama(tiny_llama: Callable[..., Program]) -> Callable[..., Program]:
    """Return a function that builds a small Llama whose blocks are found."""

    def make(**options: object) -> Program:
        program = tiny_llama(**{"layers": 2, **options})
        program.blocks = find_blocks(program.graph)
        return program

    return make


@pytest.fixture
def weights() -> Callable[[Program], list[Quantizable]]:
    return lambda program: list(quantizable(program).values())


@pytest.fixture
def divergence() -> Callable[..., float]:
    """Return a function that measures the KL divergence when some entries are quantised."""
    return lambda program, schemes: float(
        (_predict(program, {}).exp() * (_predict(program, {}) - _predict(program, schemes)))
        .sum(-1)
        .mean()
    )


def _predict(program: Program, schemes: dict[str, str]) -> torch.Tensor:
    """Return the log-probabilities after all tokens of all samples, [t, vocab] float64."""
    codes, products = {}, {}
    for entry, text in schemes.items():
        scheme = QuantScheme.parse(text)
        codes[entry] = round_to_nearest(program.weights.tensor(entry), scheme.weight)
        for node in quantizable(program)[entry].products:
            products[operator_name(str(weight_of(node)))] = scheme
    out = program.graph.output_node().all_input_nodes[0].name
    logits = []
    with torch.no_grad():
        for sample in SAMPLES:
            values = segments(program)[0].order.inputs(sample)
            for part in segments(program):
                values = part.run(values, SegmentWeights(program, codes), products)
            logits.append(values[out][0])
    return torch.cat(logits).double().log_softmax(-1)
