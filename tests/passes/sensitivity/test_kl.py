"""The KL metric is the divergence that is measured when one operator is quantised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantizable import Quantizable, quantizable
from passes.sensitivity.kl import kl
from passes.sensitivity.rounding_error import rounding_error
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.program import ModelInfo, Program

Make = Callable[..., Program]
Weights = Callable[[Program], list[Quantizable]]
Samples = list[tuple[torch.Tensor, ...]]

BLOCK = "model.layers.1"


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_divergence(
    tied: bool,
    llama: Make,
    weights: Weights,
    samples: Samples,
    divergence: Callable[..., float],
) -> None:
    program = llama(tied=tied)
    found = kl(program, weights(program), ("w4a8g32", "w4"), samples)
    assert list(found) == [weight.operator for weight in weights(program)]
    names = ["model.embed_tokens", f"{BLOCK}.self_attn.o_proj", f"{BLOCK}.mlp.down_proj"]
    for name in names if tied else [*names, "lm_head"]:
        for choice in ("w4a8g32", "w4"):
            expected = divergence(program, {f"{name}.weight": choice})
            assert found[name][choice] == pytest.approx(expected, rel=1e-3)


def test_products_of_one_input_are_measured_together(
    llama: Make, weights: Weights, samples: Samples, divergence: Callable[..., float]
) -> None:
    program = llama()
    found = kl(program, weights(program), ("w4a8g32",), samples)
    for part, names in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
        group = [f"{BLOCK}.{part}.{name}_proj" for name in names]
        together = divergence(program, {f"{name}.weight": "w4a8g32" for name in group})
        assert sum(found[name]["w4a8g32"] for name in group) == pytest.approx(together, rel=1e-3)
        assert all(found[name]["w4a8g32"] > 0 for name in group)


def test_files_change_nothing_and_progress_ends(
    llama: Make, weights: Weights, samples: Samples
) -> None:
    program = llama()
    seen: list[tuple[int, int]] = []

    class Watch:
        def step(self, name: str) -> None:
            raise NotImplementedError

        def advance(self, done: int, total: int) -> None:
            seen.append((done, total))

    plain = kl(program, weights(program), ("w8a8g32",), samples, progress=Watch())  # type: ignore[arg-type]
    assert kl(program, weights(program), ("w8a8g32",), samples, budget=0) == plain
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_of_an_encoder_it_is_half_the_relative_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, 32, generator=generator)
    build = ProgramBuilder({"a.weight": w})
    y = build.call(ops.linear, build.input("x", ("t", 32)), build.weight("a.weight"))
    program = build.finish(y, ModelInfo(name="one", kind="module", architecture="one"))
    x = torch.randn(9, 32, generator=generator)
    found = kl(program, list(quantizable(program).values()), ("w4",), [(x,)])
    error = rounding_error("a.weight", w, QuantScheme.parse("w4").weight)
    expected = (x @ error.T).square().sum() / (2 * (x @ w.T).square().sum())
    assert found["a"]["w4"] == pytest.approx(float(expected), rel=1e-4)


def test_a_damaged_weight_is_named(llama: Make, weights: Weights, samples: Samples) -> None:
    program = llama()
    name = f"{BLOCK}.mlp.down_proj.weight"
    damaged = program.weights.tensor(name).clone()
    damaged[0, 0] = float("nan")
    program.weights.put(name, damaged)
    with pytest.raises(QCompilerError, match=f"'{name}' has entries that are infinite"):
        kl(program, weights(program), ("w4a8g32",), samples)
