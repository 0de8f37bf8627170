"""What holds for every pass: names, tests, options that come back, presets that can be built."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from passes import PASSES
from passes.allocate_bits import AllocateBits
from passes.bit_choices import Budget
from passes.quantize_kv import QuantizeKv
from passes.set_bits import Rule, SetBits
from passes.train_fake_quant import TrainFakeQuant
from qcompiler.core.calibration import Calibration
from qcompiler.core.instruments import CheckShapes, Drift, probe_tokens
from qcompiler.core.options import build_pass, pass_table, spec
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from qcompiler.presets import find_pipeline, preset_names
from targets import TARGETS

CALIBRATION = Calibration(
    samples=tuple((torch.arange(i, i + 16) * 7 % 40,) for i in range(8)), source="a test"
)
EXAMPLES: dict[str, Pass] = {
    "set-bits": SetBits(rules=(Rule(scheme="w4a8g32"),)),
    "allocate-bits": AllocateBits(budget=Budget(bits_per_weight=4.5)),
}
"""Passes with options that have no default."""

SMALL: dict[str, Pass] = {
    "quantize-kv": QuantizeKv(),  # its heads are too small for 4 bits
    "train-fake-quant": TrainFakeQuant(block_steps=2, steps=2),
}
"""Steps of presets as a small model wants them."""


def example(step: type[Pass]) -> Pass:
    return EXAMPLES.get(step.name) or step()


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_has_one_name_in_four_spellings(step: type[Pass]) -> None:
    snake = step.name.replace("-", "_")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", step.name)
    assert step.__module__ == f"passes.{snake}"
    assert step.__name__ == "".join(word.capitalize() for word in step.name.split("-"))
    assert (Path(__file__).parent / f"test_{snake}.py").is_file()


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_is_frozen_and_says_what_it_does(step: type[Pass]) -> None:
    assert step.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (inspect.getdoc(step) or "").partition("\n")[0].endswith(".")
    assert step.accepts
    assert step.yields is None or isinstance(step.yields, Stage)
    for field in dataclasses.fields(step):
        assert field.kw_only
        assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_comes_back_from_its_spec(step: type[Pass]) -> None:
    said = spec(example(step))
    assert build_pass(said.pop("name"), said, pass_table(PASSES)) == example(step)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_the_page_on_passes_has_a_pass_with_its_stages_and_options(step: type[Pass]) -> None:
    page = Path(__file__).parents[2] / "docs" / "passes.md"
    row = next(line for line in page.read_text().splitlines() if f"| `{step.name}` |" in line)
    stages, options = [cell.strip() for cell in row.split("|")][2:5:2]
    accepted, _, left = stages.partition(" → ")
    if accepted == "any but legal":
        accepted = "float, planned, quantized"
    assert set(accepted.split(", ")) == {str(stage) for stage in step.accepts}
    assert left == ("" if step.yields is None else str(step.yields))
    for field in dataclasses.fields(step):
        assert f"`{field.name}`" in options


def test_names_are_unique() -> None:
    assert len(pass_table(PASSES)) == len(PASSES)


@pytest.fixture(params=preset_names())
def preset(request: pytest.FixtureRequest) -> Pipeline:
    table = pass_table(PASSES)
    steps = find_pipeline(request.param, passes=table).steps
    return Pipeline(tuple(build_pass(step.name, step.options, table) for step in steps))


def test_presets_end_legal(preset: Pipeline) -> None:
    assert preset.yields is Stage.LEGAL


def test_presets_fuse_a_small_llama_and_lose_little(
    preset: Pipeline, tiny_llama: Callable[..., Program]
) -> None:
    program = tiny_llama(layers=2)
    context = PassContext(target=TARGETS[0], calibration=CALIBRATION)
    drift = Drift(probe_tokens([3, 1, 4, 1, 5, 9, 2, 6]))
    preset = Pipeline(tuple(SMALL.get(step.name, step) for step in preset.steps))
    preset.run(program, context, [CheckShapes(), drift])
    decibels = dict(drift.decibels)
    assert decibels["canonicalize"] > 100
    assert decibels["legalize"] > 8
    # After rounding, no pass changes what is computed but for the last bits.
    for step in preset.steps:
        if step.yields is Stage.QUANTIZED:
            assert decibels["legalize"] == pytest.approx(decibels[step.name], abs=1)
    called = {getattr(n.target, "__name__", "") for n in program.graph.nodes}
    assert "rope_attention" in called
    assert {"rotary", "attention", "quantized_linear"}.isdisjoint(called)
    assert len(list(program.linears())) == 4 * 2 + 1
    assert len(program.blocks) == 2


@pytest.mark.parametrize("seed", range(4))
def test_fusing_passes_may_come_in_any_order(
    seed: int,
    tiny_llama: Callable[..., Program],
    logits: Callable[[Program], torch.Tensor],
) -> None:
    table = pass_table(PASSES)
    names = ["fuse-qkv", "fuse-gate-up", "fuse-epilogue", "fuse-norm"]
    order = [names[i] for i in torch.randperm(4, generator=torch.Generator().manual_seed(seed))]
    steps = [example(table[n]) for n in ("set-bits", "quantize-rtn", *order, "fuse-rope")]
    program = tiny_llama(biases="qg")
    context = PassContext(target=TARGETS[0])
    Pipeline((*steps[:2],)).run(program, context)
    before = logits(program)
    Pipeline((*steps[2:], table["legalize"]()), start=Stage.QUANTIZED).run(
        program, context, [CheckShapes()]
    )
    assert len(list(program.linears())) == 4 + 1
    torch.testing.assert_close(logits(program), before, rtol=1e-4, atol=1e-4)
