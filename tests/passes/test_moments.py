"""Second moments of what products read are those of the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.activations import Activations
from passes.moments import Moment, moments
from passes.segments import SegmentWeights, segments
from qcompiler.core import ops
from qcompiler.core.blocks import find_blocks
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import QCompilerError
from qcompiler.core.program import ModelInfo, Program

Make = Callable[..., Program]

SAMPLES = [(torch.tensor([3, 1, 4, 1, 5]),), (torch.tensor([9, 2, 6]),)]


def llama(make: Make) -> Program:
    program = make(layers=2)
    program.blocks = find_blocks(program.graph)
    return program


def inputs_of(program: Program) -> dict[str, torch.Tensor]:
    """Return what every product reads on all samples, [t, k] float64."""
    seen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for sample in SAMPLES:
            values = segments(program)[0].order.inputs(sample)
            for part in segments(program):
                values = part.run(
                    values,
                    SegmentWeights(program),
                    tap=lambda name, x: seen.setdefault(name, []).append(x.flatten(0, -2)),
                )
    return {name: torch.cat(x).double() for name, x in seen.items()}


def test_moments_are_means_over_all_samples(tiny_llama: Make) -> None:
    program = llama(tiny_llama)
    seen = inputs_of(program)
    found = [
        (operator, moment)
        for part in moments(program, SAMPLES)
        for moment in part.values()
        for operator in moment.operators
    ]
    assert [operator for operator, _ in found] == list(seen)
    for operator, moment in found:
        x = seen[operator]
        assert moment.tokens == len(x) == 8
        torch.testing.assert_close(moment.matrix.double(), x.T @ x / 8, rtol=1e-4, atol=1e-6)


def test_products_of_one_input_share_a_moment(tiny_llama: Make) -> None:
    parts = list(moments(llama(tiny_llama), SAMPLES))
    shared = [[o.rpartition(".")[2] for o in m.operators] for m in parts[1].values()]
    assert shared == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_double_precision_is_nearer_the_truth() -> None:
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) + 100
    exact = x.double().T @ x.double() / len(x)
    errors = []
    for dtype in (torch.float32, torch.float64):
        moment = Moment(torch.zeros(8, 8, dtype=dtype))
        for part in x.split(7):
            moment.add(part)
        errors.append(float((moment.matrix - exact).abs().max()))
    assert errors[1] < 1e-9 < errors[0]


def test_moments_of_two_sets_merge() -> None:
    x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = []
    for rows in (x[:3], x[3:]):
        parts.append(Moment(torch.zeros(4, 4, dtype=torch.float64)))
        parts[-1].add(rows)
    both = parts[0].merge(parts[1])
    assert both.tokens == 10
    torch.testing.assert_close(both.matrix, x.T @ x / 10)


def test_files_give_the_same_bits(tiny_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled = 0
    keep = Activations._keep

    def count(self: Activations, values: object) -> object:
        nonlocal spilled
        kept = keep(self, values)  # type: ignore[arg-type]
        spilled += hasattr(kept, "suffix")
        return kept

    monkeypatch.setattr(Activations, "_keep", count)
    program = llama(tiny_llama)
    plain, filed = (
        [m.matrix for part in moments(program, SAMPLES, budget=budget) for m in part.values()]
        for budget in (None, 0)
    )
    assert spilled
    assert all(torch.equal(a, b) for a, b in zip(plain, filed, strict=True))


def test_a_damaged_weight_is_named(tiny_llama: Make) -> None:
    program = llama(tiny_llama)
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = program.weights.tensor(name).clone()
    damaged[3, 5] = float("nan")
    program.weights.put(name, damaged)
    with pytest.raises(QCompilerError, match=f"'{name}' has entries that are infinite"):
        list(moments(program, SAMPLES))


def test_inputs_that_overflow_are_named() -> None:
    build = ProgramBuilder({"a.weight": torch.full((8, 8), 3e38), "b.weight": torch.eye(8)})
    y = build.call(ops.linear, build.input("x", ("t", 8)), build.weight("a.weight"))
    y = build.call(ops.linear, y, build.weight("b.weight"))
    program = build.finish(y, ModelInfo(name="two", kind="module", architecture="two"))
    with pytest.raises(QCompilerError, match="what 'b' reads is infinite"):
        list(moments(program, [(torch.ones(2, 8),)]))
