"""The pass keeps one matrix for each input, in memory or in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from passes.measure_hessian import MeasureHessian
from passes.moments import moments
from qcompiler.core import ops
from qcompiler.core.blocks import find_blocks
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, UsageError
from qcompiler.core.facts import Hessians
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import ModelInfo, Program
from targets import TARGETS

Make = Callable[..., Program]

SAMPLES = ((torch.tensor([3, 1, 4, 1, 5]),), (torch.tensor([9, 2, 6]),))
TEXT = Calibration(samples=SAMPLES, source="a test")


def measure(program: Program, step: MeasureHessian, **options: object) -> Hessians:
    program.blocks = find_blocks(program.graph)
    context = PassContext(target=TARGETS[0], calibration=TEXT, **options)  # type: ignore[arg-type]
    Pipeline((step,)).run(program, context)
    found = program.facts[Hessians]
    assert isinstance(found, Hessians)
    return found


def test_every_product_has_a_matrix_named_after_its_entry(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    found = measure(program, MeasureHessian())
    entries = {program.weights.resolve(f"{name}.weight") for name, _ in program.linears()}
    assert {f"{operator}.weight" for operator in found.inputs} == entries
    assert len(found.matrices) == len(list(found.matrices)) == 2 * 4 + 1
    block = "model.layers.1"
    for part in moments(program, SAMPLES):
        for moment in part.values():
            for operator in moment.operators:
                assert torch.equal(found.of(operator), moment.matrix)
    assert found.inputs[f"{block}.self_attn.q_proj"] == found.inputs[f"{block}.self_attn.v_proj"]
    assert set(found.tokens.values()) == {8}


def test_a_tied_head_is_measured_under_the_name_of_the_table(tiny_llama: Make) -> None:
    found = measure(tiny_llama(layers=2), MeasureHessian())
    assert found.of("model.embed_tokens").shape == (64, 64)


def test_fewer_samples_and_matrices_in_files(tiny_llama: Make, tmp_path: Path) -> None:
    program = tiny_llama(layers=2)
    whole = measure(program, MeasureHessian(samples=1))
    assert set(whole.tokens.values()) == {5}
    filed = measure(program, MeasureHessian(samples=1), max_ram=0, work=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(filed.matrices)
    assert all(torch.equal(whole.matrices[n], m) for n, m in filed.matrices.items())


def test_doubles_are_kept_as_floats_and_are_near(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    plain = measure(program, MeasureHessian())
    double = measure(program, MeasureHessian(precision="float64"))
    for name, matrix in double.matrices.items():
        assert matrix.dtype == torch.float32
        torch.testing.assert_close(matrix, plain.matrices[name])


def test_a_weight_that_is_used_twice_has_the_mean_of_both() -> None:
    w = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    build = ProgramBuilder({"a.weight": w})
    x = build.input("x", ("t", 8))
    y = build.call(ops.linear, x, build.weight("a.weight"))
    y = build.call(ops.linear, y, build.weight("a.weight"))
    program = build.finish(y, ModelInfo(name="two", kind="module", architecture="two"))
    sample = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    context = PassContext(
        target=TARGETS[0], calibration=Calibration(samples=((sample,),), source="a test")
    )
    MeasureHessian().run(program, context)
    found = program.facts[Hessians]
    seen = torch.cat((sample, sample @ w.T))
    torch.testing.assert_close(found.of("a"), seen.T @ seen / 10, rtol=1e-4, atol=1e-5)
    assert found.tokens[found.inputs["a"]] == 10


def test_it_needs_samples(tiny_llama: Make) -> None:
    with pytest.raises(ConfigError, match="samples = 0 measures nothing"):
        MeasureHessian(samples=0)
    with pytest.raises(UsageError, match="'measure-hessian' runs the model on samples"):
        MeasureHessian().run(tiny_llama(), PassContext(target=TARGETS[0]))
