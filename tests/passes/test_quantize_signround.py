"""Blocks are trained one after the other towards what the float model gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passes.quantize_gptq import QuantizeGptq
from passes.quantize_rtn import QuantizeRtn
from passes.quantize_signround import Learn, QuantizeSignround, Start
from passes.scale_search import round_searched
from passes.set_bits import Rule, SetBits
from passes.signround import learn_rounding
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, QCompilerError, UsageError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.progress import NoProgress
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from tests.machine import machine

Make = Callable[..., Program]

QUICK = QuantizeSignround(iterations=8, start="search", learn="rounding")
UP = "model.layers.1.mlp.up_proj.weight"


TARGET = machine("w2a8*", "w4a8*", "w8a8*", "w4g*", "w3g*")


def plan(scheme: str) -> SetBits:
    return SetBits(rules=(Rule(scheme=scheme), Rule(kind="head", scheme="w8a8g32")))


def calibration() -> Calibration:
    """Return tokens of which some are far more frequent than others."""
    generator = torch.Generator().manual_seed(4)
    chances = 1 / torch.arange(1.0, 41.0)
    tokens = torch.multinomial(chances, 12 * 24, replacement=True, generator=generator)
    return Calibration(samples=tuple((part,) for part in tokens.reshape(12, 24)), source="a test")


@pytest.fixture
def quantized(tiny_llama: Make) -> Callable[..., tuple[Program, PassContext]]:
    def make(
        step: Pass = QUICK, scheme: str = "w4a8g32", **given: object
    ) -> tuple[Program, PassContext]:
        program = tiny_llama(layers=2)
        context = PassContext(target=TARGET, calibration=calibration(), **given)  # type: ignore[arg-type]
        Pipeline((plan(scheme), step)).run(program, context)
        return program, context

    return make


def codes_of(program: Program) -> dict[str, QuantizedTensor]:
    found = {name: program.weights.get(name) for name in program.weights}
    return {name: weight for name, weight in found.items() if isinstance(weight, QuantizedTensor)}


def same(one: Program, other: Program) -> bool:
    ours, theirs = codes_of(one), codes_of(other)
    assert ours.keys() == theirs.keys()
    return all(
        torch.equal(ours[name].codes, theirs[name].codes)
        and torch.equal(ours[name].scale, theirs[name].scale)
        for name in ours
    )


@pytest.mark.parametrize(("scheme", "learn"), [("w4a8g32", "rounding"), ("w3g32z", "scales")])
def test_the_model_comes_nearer_to_the_float_one_than_by_rounding(
    scheme: str,
    learn: Learn,
    quantized: Callable[..., tuple[Program, PassContext]],
    tiny_llama: Make,
) -> None:
    tokens = torch.cat([sample for (sample,) in calibration().samples]).tolist()[:64]
    wanted = TorchLanguageModel(tiny_llama(layers=2)).logits(tokens)

    def distance(program: Program) -> float:
        assert program.stage is Stage.QUANTIZED
        return float((TorchLanguageModel(program).logits(tokens) - wanted).square().mean())

    step = QuantizeSignround(iterations=60, learn=learn)
    assert distance(quantized(step, scheme)[0]) < 0.6 * distance(
        quantized(QuantizeRtn(), scheme)[0]
    )


def test_the_report_says_how_each_block_fared(
    quantized: Callable[..., tuple[Program, PassContext]],
) -> None:
    _, context = quantized()
    records = context.records["quantize-signround"]["blocks"]
    assert len(records) == 2
    assert all(record["after"] <= record["before"] for record in records)


@pytest.mark.parametrize("start", ["rtn", "search", "gptq"])
def test_it_starts_from_any_of_three(
    start: Start, quantized: Callable[..., tuple[Program, PassContext]]
) -> None:
    _, context = quantized(QuantizeSignround(iterations=8, batch=1, start=start))
    records = context.records["quantize-signround"]["blocks"]
    assert all(record["after"] <= record["before"] for record in records)


def test_eight_bits_are_rounded_at_searched_scales(
    quantized: Callable[..., tuple[Program, PassContext]], tiny_llama: Make
) -> None:
    program, _ = quantized()
    table = program.weights.get("model.embed_tokens.weight")
    assert isinstance(table, QuantizedTensor)
    expected = round_searched(
        tiny_llama(layers=2).weights.tensor("model.embed_tokens.weight"), table.format
    )
    assert table.format.bits == 8
    assert torch.equal(table.codes, expected.codes)
    _, context = quantized(scheme="w8a8g32")
    assert context.records["quantize-signround"]["blocks"] == []


def test_a_second_run_gives_the_same_bits_and_another_seed_others(
    quantized: Callable[..., tuple[Program, PassContext]],
) -> None:
    first, _ = quantized()
    assert same(first, quantized()[0])
    other, _ = quantized(replace(QUICK, seed=1))
    assert not torch.equal(codes_of(first)[UP].codes, codes_of(other)[UP].codes)


def test_it_goes_on_where_it_was_stopped(
    quantized: Callable[..., tuple[Program, PassContext]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = quantized()
    calls: list[object] = []

    def stop(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learn_rounding(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("passes.quantize_signround.learn_rounding", stop)
    with pytest.raises(KeyboardInterrupt):
        quantized(work=tmp_path)
    again, context = quantized(work=tmp_path)
    assert len(calls) == 3
    assert same(whole, again)
    assert len(context.records["quantize-signround"]["blocks"]) == 2


def test_a_weight_that_is_not_finite_is_named(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    broken = program.weights.tensor(UP).clone()
    broken[3, 5] = float("nan")
    program.weights.put(UP, broken)
    context = PassContext(target=TARGET, calibration=calibration())
    with pytest.raises(QCompilerError, match=r"model\.layers\.1\.mlp\.up_proj|infinite"):
        Pipeline((plan("w4a8g32"), QUICK)).run(program, context)


def test_it_starts_from_the_codes_of_quantize_gptq(
    quantized: Callable[..., tuple[Program, PassContext]],
) -> None:
    still = QuantizeSignround(iterations=1, scale_learning_rate=0.0)
    assert same(quantized(still)[0], quantized(QuantizeGptq())[0])


def test_progress_only_grows(quantized: Callable[..., tuple[Program, PassContext]]) -> None:
    shares: list[int] = []

    class Watch(NoProgress):
        def advance(self, part: int, total: int) -> None:
            shares.append(part)

    quantized(QuantizeSignround(iterations=4), progress=Watch())
    assert shares == sorted(shares)
    assert len(shares) > 10


def test_it_needs_samples(tiny_llama: Make) -> None:
    assert QUICK.calibrates
    with pytest.raises(UsageError, match="quantize-signround"):
        Pipeline((plan("w4a8g32"), QUICK)).run(tiny_llama(), PassContext(target=TARGET))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "0 iterations"),
        ({"batch": 0}, "batch of 0"),
        ({"learning_rate": 0.0}, "learning rate 0"),
        ({"learning_rate": 2.0}, "learning rate 2"),
        ({"scale_learning_rate": -1.0}, "scales -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizeSignround(**options)  # type: ignore[arg-type]
