"""The Fisher metric predicts what small changes of weights do to a model's predictions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantizable import Quantizable, quantizable
from passes.sensitivity.fisher import fisher, probe
from passes.sensitivity.rounding_error import rounding_error
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import ModelInfo, Program

Make = Callable[..., Program]
Weights = Callable[[Program], list[Quantizable]]
Samples = list[tuple[torch.Tensor, ...]]


def test_probes_have_the_fisher_information_as_their_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator) * 2
    z = probe(logits.expand(200_000, 5), generator)
    p = logits.softmax(-1)
    # A shift of all logits changes nothing.
    assert float(z.sum(-1).abs().max()) < 1e-5
    torch.testing.assert_close(
        z.T @ z / len(z), torch.diag(p) - torch.outer(p, p), atol=3e-3, rtol=0
    )


def test_it_predicts_the_divergence(
    llama: Make, weights: Weights, samples: Samples, divergence: Callable[..., float]
) -> None:
    program = llama(biases="qd")
    choices = ("w8a8g32", "w8")
    # One probe says little of eight tokens; many are a mean.
    found = fisher(program, weights(program), choices, samples * 15)
    ratios = [
        found[weight.operator][choice] / divergence(program, {weight.entry: choice})
        for weight in weights(program)
        for choice in choices
    ]
    ratio = torch.tensor(ratios).log()
    assert float(ratio.mean().exp()) == pytest.approx(1, abs=0.3)
    assert float(ratio.std()) < 0.6


def test_quantised_activations_add_to_the_loss(
    llama: Make, weights: Weights, samples: Samples, divergence: Callable[..., float]
) -> None:
    program = llama()
    found = fisher(program, weights(program), ("w8g32", "w8a8g32", "w8a8"), samples * 8)
    for of in found.values():
        assert 0 < of["w8g32"] < of["w8a8g32"]
    # What reads nothing but rows of a table has no activations, but the tied head has.
    assert found["model.embed_tokens"]["w8a8"] > found["model.embed_tokens"]["w8g32"]


def test_a_table_of_its_own_is_measured(llama: Make, weights: Weights, samples: Samples) -> None:
    found = fisher(llama(tied=False), weights(llama(tied=False)), ("w8a8g32", "w8g32"), samples)
    table, head = found["model.embed_tokens"], found["lm_head"]
    assert table["w8a8g32"] == table["w8g32"] > 0
    assert head["w8a8g32"] > head["w8g32"] > 0


def test_it_repeats_itself_and_files_change_nothing(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    program = llama()
    state = torch.get_rng_state()
    measure = lambda **options: fisher(  # noqa: E731
        program, weights(program), ("w4a8g32",), samples, **options
    )
    assert measure() == measure() == measure(budget=0)
    assert measure(seed=1) != measure()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_is_measured_by_the_relative_error_of_its_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, 32, generator=generator)
    build = ProgramBuilder({"a.weight": w, "a.bias": torch.randn(16, generator=generator)})
    given = build.input("x", ("t", 32))
    y = build.call(ops.linear, given, build.weight("a.weight"), build.weight("a.bias"))
    program = build.finish(y, ModelInfo(name="one", kind="module", architecture="one"))
    samples = [(torch.randn(9, 32, generator=generator),) for _ in range(300)]
    found = fisher(program, list(quantizable(program).values()), ("w8",), samples)
    error = rounding_error("a.weight", w, QuantScheme.parse("w8").weight)
    exact = [
        float(
            (s @ error.T).square().sum() / (s @ w.T + build.weights.tensor("a.bias")).square().sum()
        )
        for (s,) in samples
    ]
    assert found["a"]["w8"] == pytest.approx(sum(exact) / len(exact) / 2, rel=0.1)


def test_a_damaged_weight_is_named(llama: Make, weights: Weights, samples: Samples) -> None:
    program = llama()
    name = "model.layers.1.self_attn.o_proj.weight"
    damaged = program.weights.tensor(name).clone()
    damaged[0, 0] = float("inf")
    program.weights.put(name, damaged)
    with pytest.raises(QCompilerError, match=f"'{name}' has entries that are infinite"):
        fisher(program, weights(program), ("w4a8g32",), samples)


def test_scales_that_overflow_are_named(llama: Make, weights: Weights, samples: Samples) -> None:
    program = llama()
    name = "model.layers.1.self_attn.o_proj.weight"
    large = program.weights.tensor(name).clone()
    large[0, 0] = 1e30
    program.weights.put(name, large)
    with pytest.raises(QCompilerError, match="o_proj"):
        fisher(program, weights(program), ("w4a8g32",), samples)
