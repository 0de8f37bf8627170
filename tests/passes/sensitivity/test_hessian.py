"""The Hessian metric is the mean squared error of what operators give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantizable import Quantizable
from passes.segments import SegmentWeights, segments
from passes.sensitivity.hessian import hessian
from passes.sensitivity.rounding_error import rounding_error
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import Program

Make = Callable[..., Program]
Weights = Callable[[Program], list[Quantizable]]
Samples = list[tuple[torch.Tensor, ...]]


def test_it_is_the_squared_error_of_outputs(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    program = llama(tied=False)
    found = hessian(program, weights(program), ("w4a8g32", "w3"), samples)
    seen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for sample in samples:
            values = segments(program)[0].order.inputs(sample)
            for part in segments(program):
                values = part.run(
                    values,
                    SegmentWeights(program),
                    tap=lambda name, x: seen.setdefault(name, []).append(x[0]),
                )
    for choice in ("w4a8g32", "w3"):
        form = QuantScheme.parse(choice).weight
        for name, x in seen.items():
            entry = f"{name}.weight"
            error = rounding_error(entry, program.weights.tensor(entry), form)
            expected = (torch.cat(x) @ error.T).square().sum(1).mean()
            assert found[name][choice] == pytest.approx(float(expected), rel=1e-3)
        # A table gives one row for each token.
        table = "model.embed_tokens.weight"
        error = rounding_error(table, program.weights.tensor(table), form)
        expected = error[torch.cat([ids for (ids,) in samples])].square().sum(1).mean()
        assert found["model.embed_tokens"][choice] == pytest.approx(float(expected), rel=1e-3)


def test_a_tied_weight_has_the_errors_of_both(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    program = llama()
    found = hessian(program, weights(program), ("w4",), samples)
    assert "lm_head" not in found
    assert found["model.embed_tokens"]["w4"] > 0


def test_schemes_that_do_not_fit_are_left_out(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    found = hessian(llama(), weights(llama()), ("w4g96", "w4"), samples)
    fitting = {name for name, of in found.items() if "w4g96" in of}
    assert fitting == {name for name in found if name.endswith("down_proj")}
    assert all("w4" in of for of in found.values())
