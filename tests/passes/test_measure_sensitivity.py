"""The pass measures with any metric, on samples cut short, and says what its figures mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from passes.canonicalize import Canonicalize
from passes.measure_sensitivity import SAMPLES, MeasureSensitivity
from qcompiler.core.blocks import find_blocks
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, UsageError
from qcompiler.core.facts import Sensitivity
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.frontend.capture import capture
from targets import TARGETS
from tests.families import tiny_model

Make = Callable[..., Program]


def text(count: int = 3, length: int = 6) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 40, (count, length), generator=generator)
    return Calibration(samples=tuple((row,) for row in samples), source="a test")


def measure(
    program: Program, calibration: Calibration | None = None, **options: Any
) -> tuple[Sensitivity, PassContext]:
    program.blocks = find_blocks(program.graph)
    context = PassContext(target=TARGETS[0], calibration=calibration or text())
    Pipeline((MeasureSensitivity(**options),)).run(program, context)
    found = program.facts[Sensitivity]
    assert isinstance(found, Sensitivity)
    return found, context


@pytest.mark.parametrize("metric", list(SAMPLES))
def test_every_metric_measures_every_operator(metric: str, tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    choices = ("w4a8g32", "w8a8g32")
    found, context = measure(program, metric=metric, choices=choices)
    entries = {program.weights.resolve(f"{name}.weight") for name, _ in program.linears()}
    assert {f"{operator}.weight" for operator in found.loss} == entries
    for of in found.loss.values():
        assert list(of) == list(choices)
        assert 0 < of["w8a8g32"] < of["w4a8g32"]
    assert found.metric == metric
    assert found.relative == (metric not in ("fisher", "kl"))
    record = json.loads(json.dumps(context.records["measure-sensitivity"]))
    assert record["loss"] == found.loss
    assert record["metric"] == metric
    assert (record["unit"] == "nats per token") != found.relative


def test_samples_are_cut(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    short, context = measure(program, text(3, 6), tokens=4, samples=2)
    long = text(3, 6)
    cut = Calibration(samples=tuple((ids[:4],) for (ids,) in long.samples[:2]), source="a test")
    assert measure(program, cut)[0].loss == short.loss
    assert context.records["measure-sensitivity"]["samples"] == 2
    assert measure(program, text(3, 6))[0].loss != short.loss


def test_weights_alone_need_no_samples(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    program.blocks = find_blocks(program.graph)
    step = MeasureSensitivity(metric="weight-variance", samples=0)
    assert not step.calibrates
    assert MeasureSensitivity().calibrates
    Pipeline((step,)).run(program, PassContext(target=TARGETS[0]))
    assert program.facts[Sensitivity].loss


def test_float_costs_nothing(tiny_llama: Make) -> None:
    found, _ = measure(tiny_llama(layers=2), metric="hessian", choices=("w4a8g32", "float"))
    assert all(of["w4a8g32"] > of["float"] == 0 for of in found.loss.values())


def test_mistakes_are_found_early(tiny_llama: Make) -> None:
    with pytest.raises(ConfigError, match="there are no choices"):
        MeasureSensitivity(choices=())
    with pytest.raises(ConfigError, match="44 bits are not supported"):
        MeasureSensitivity(choices=("w44",))
    with pytest.raises(ConfigError, match=r"samples = 0 measures nothing.*weight-variance"):
        MeasureSensitivity(samples=0)
    with pytest.raises(ConfigError, match="samples = -1 measures nothing"):
        MeasureSensitivity(metric="weight-variance", samples=-1)
    with pytest.raises(ConfigError, match="tokens = 1 predicts nothing"):
        MeasureSensitivity(tokens=1)
    with pytest.raises(UsageError, match="'measure-sensitivity' runs the model on samples"):
        MeasureSensitivity().run(tiny_llama(), PassContext(target=TARGETS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["falcon-grouped", "gemma2", "gpt2", "opt-350m-like"])
def test_families_are_predicted_as_they_are_measured(family: str) -> None:
    program = capture(tiny_model(family))
    Pipeline((Canonicalize(),)).run(program, PassContext(target=TARGETS[0]))
    program.blocks = find_blocks(program.graph)
    calibration = text(12, 12)
    rises = []
    for metric in ("fisher", "kl"):
        found, _ = measure(program, calibration, metric=metric, choices=("w8a8g32",), samples=12)
        rises.append(sum(of.get("w8a8g32", 0.0) for of in found.loss.values()))
    assert rises[0] == pytest.approx(rises[1], rel=0.35)
