"""A watched run gives what the plain one does, and the gradients of what products give and read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional

from passes.finite_weights import FiniteWeights
from passes.segments import segments
from passes.sensitivity.watched_run import watched_run
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.program import ModelInfo, Program

Samples = list[tuple[torch.Tensor, ...]]


def test_it_computes_the_same(llama: Callable[..., Program], samples: Samples) -> None:
    program = llama(biases="qg")
    plain = watched = segments(program)[0].order.inputs(samples[0])
    names = []
    with torch.no_grad():
        for part in segments(program):
            weights = FiniteWeights(program)
            plain = part.run(plain, weights)
            watched, readings = watched_run(part, watched, weights)
            names += [reading.weight for reading in readings]
            assert plain.keys() == watched.keys()
            for name, value in plain.items():
                torch.testing.assert_close(watched[name], value)
    assert [n for n in names if "embed" not in n] == [
        f"{name}.weight" for name, _ in program.linears() if "embed" not in name
    ]
    assert names[0] == names[-1] == "model.embed_tokens.weight"


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_at_the_product(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w, b, x = (torch.randn(s, generator=generator) for s in ((6, 8), (6,), (5, 8)))
    build = ProgramBuilder({"a.weight": w, "a.bias": b})
    arguments = [build.weight("a.bias")] if bias else []
    given = build.input("x", ("t", 8))
    y = build.call(
        ops.linear, given, build.weight("a.weight"), *arguments, activation="silu", gated=True
    )
    program = build.finish(y, ModelInfo(name="one", kind="module", architecture="one"))
    (part,) = segments(program)
    env, (reading,) = watched_run(part, {given.name: x}, FiniteWeights(program))
    probe = torch.randn(5, 3, generator=generator)
    found = torch.autograd.grad(env[y.name], [reading.change, reading.x], probe)

    leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
    gate, up = functional.linear(leaf, weight, b if bias else None).chunk(2, dim=-1)
    expected = torch.autograd.grad(functional.silu(gate) * up, [weight, leaf], probe)
    torch.testing.assert_close(found[0].T @ x, expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_products_of_one_input_have_gradients_of_their_own(
    llama: Callable[..., Program], samples: Samples
) -> None:
    program = llama()
    prologue, block, *_ = segments(program)
    weights = FiniteWeights(program)
    values = prologue.run(prologue.order.inputs(samples[0]), weights)
    env, readings = watched_run(block, values, weights)
    end = next(v for n, v in env.items() if isinstance(v, torch.Tensor) and v.requires_grad)
    found = torch.autograd.grad(end.sum(), [reading.x for reading in readings[:3]])
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])
