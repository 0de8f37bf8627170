"""GPTQ through the block loop: inputs of what is quantised, records, resuming, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from passes import block_loop, gptq_block
from passes.block_loop import BlockRun
from passes.gptq import gptq
from passes.quantize_gptq import QuantizeGptq
from passes.quantize_rtn import QuantizeRtn
from passes.scale_search import round_searched
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, QCompilerError, UsageError
from qcompiler.core.fake_quant import fake_quantize
from qcompiler.core.formats import QuantScheme
from qcompiler.core.interpreter import ProgramInterpreter, TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.progress import NoProgress
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from tests.machine import machine

Make = Callable[..., Program]
Quantized = Callable[..., tuple[Program, PassContext]]

UP = "model.layers.1.mlp.up_proj"

TARGET = machine("w*")


def calibration(count: int = 12, length: int = 24) -> Calibration:
    """Tokens of which some are far more frequent than others."""
    generator = torch.Generator().manual_seed(4)
    chances = 1 / torch.arange(1.0, 41.0)
    tokens = torch.multinomial(chances, count * length, replacement=True, generator=generator)
    samples = tuple((part,) for part in tokens.reshape(count, length))
    return Calibration(samples=samples, source="a test")


@pytest.fixture
def quantized(tiny_llama: Make) -> Quantized:
    def make(
        step: Pass | None = None,
        scheme: str = "w4a8g32",
        *,
        tied: bool = True,
        rules: tuple[Rule, ...] = (),
        **given: Any,
    ) -> tuple[Program, PassContext]:
        """Quantise a small Llama; `given` goes into the context."""
        program = tiny_llama(layers=2, tied=tied)
        given.setdefault("calibration", calibration())
        context = PassContext(target=TARGET, **given)
        plan = SetBits(rules=(Rule(scheme=scheme), Rule(kind="head", scheme="w8a8g32"), *rules))
        Pipeline((plan, step or QuantizeGptq())).run(program, context)
        return program, context

    return make


@pytest.fixture(scope="module")
def usual() -> dict[str, tuple[Program, PassContext]]:
    """What the usual options give, once it has been made; to be looked at only."""
    return {}


@pytest.fixture
def result(
    usual: dict[str, tuple[Program, PassContext]], quantized: Quantized
) -> tuple[Program, PassContext]:
    if not usual:
        usual["made"] = quantized()
    return usual["made"]


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


@pytest.mark.parametrize(
    ("scheme", "tied"), [("w4a8g32", True), ("w3g32z", True), ("w2a8g8", False)]
)
def test_the_model_comes_nearer_to_the_float_one_than_by_rounding(
    scheme: str, tied: bool, quantized: Quantized, tiny_llama: Make
) -> None:
    tokens = torch.cat([sample for (sample,) in calibration().samples]).tolist()[:64]
    wanted = TorchLanguageModel(tiny_llama(layers=2, tied=tied)).logits(tokens)

    def distance(program: Program) -> float:
        assert program.stage is Stage.QUANTIZED
        return float((TorchLanguageModel(program).logits(tokens) - wanted).square().mean())

    ours = distance(quantized(QuantizeGptq(), scheme, tied=tied)[0])
    assert ours < 0.7 * distance(quantized(QuantizeRtn(), scheme, tied=tied)[0])


def test_a_product_is_quantised_from_what_the_quantised_ones_before_it_give(
    quantized: Quantized, tiny_llama: Make
) -> None:
    program, _ = quantized(QuantizeGptq(correction=0.0))
    inputs: list[torch.Tensor] = []

    class Watch(ProgramInterpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is ops.quantized_linear and args[1] is codes:
                inputs.append(args[0])
            return super().call_function(target, args, kwargs)

    codes = program.weights.get(f"{UP}.weight")
    for (tokens,) in calibration().samples:
        caches = TorchLanguageModel(program).new_caches(len(tokens))
        rows = torch.arange(len(tokens))
        with torch.no_grad():
            Watch(program, keep_weights=True).run(
                tokens.unsqueeze(0), torch.tensor([0]), rows, *caches
            )
    scheme = QuantScheme.parse("w4a8g32")
    x = fake_quantize(torch.cat(inputs, 1)[0], form=scheme.activation)
    weight = tiny_llama(layers=2).weights.tensor(f"{UP}.weight")
    expected = gptq(weight, x.T @ x, scheme.weight, QuantizeGptq().settings)
    assert isinstance(codes, QuantizedTensor)
    # The sums of floats are in another order here.
    assert (codes.codes == expected.weight.codes).float().mean() > 0.99


def test_a_tied_table_is_rounded_at_searched_scales(
    result: tuple[Program, PassContext], tiny_llama: Make
) -> None:
    program, _ = result
    table = program.weights.get("model.embed_tokens.weight")
    weight = tiny_llama(layers=2).weights.tensor("model.embed_tokens.weight")
    assert isinstance(table, QuantizedTensor)
    expected = round_searched(weight, QuantScheme.parse("w8a8g32").weight)
    assert torch.equal(table.codes, expected.codes)


def test_operators_that_are_not_planned_stay_float(quantized: Quantized) -> None:
    program, _ = quantized(rules=(Rule(pattern="*.v_proj", scheme="float"),))
    assert isinstance(program.weights.get("model.layers.0.self_attn.v_proj.weight"), torch.Tensor)
    assert isinstance(program.weights.get(f"{UP}.weight"), QuantizedTensor)


def test_products_of_one_input_may_have_schemes_of_their_own(quantized: Quantized) -> None:
    program, context = quantized(rules=(Rule(pattern="*.k_proj", scheme="w8g8"),))
    key = program.weights.get("model.layers.1.self_attn.k_proj.weight")
    assert isinstance(key, QuantizedTensor)
    assert key.format == QuantScheme.parse("w8g8").weight
    operators = context.records["quantize-gptq"]["operators"]
    found = operators["model.layers.1.self_attn.k_proj"]
    assert 0 < found["after"] < 1e-4


def test_the_report_has_every_operator(result: tuple[Program, PassContext]) -> None:
    _, context = result
    operators = context.records["quantize-gptq"]["operators"]
    assert len(operators) == 2 * 7
    for found in operators.values():
        assert found["after"] < found["before"]
        assert found["damping"] == QuantizeGptq().damping
        assert found["dead_columns"] <= 1


def test_a_second_run_gives_the_same_bits_with_activations_in_files_too(
    result: tuple[Program, PassContext], quantized: Quantized
) -> None:
    assert same(result[0], quantized(max_ram=10_000)[0])


def test_sums_in_float64_give_nearly_the_same_codes(
    result: tuple[Program, PassContext], quantized: Quantized
) -> None:
    single = codes_of(result[0])
    double = codes_of(quantized(QuantizeGptq(accumulate="float64", precision="float64"))[0])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (single[name].codes == double[name].codes).float().mean() > 0.98


def test_what_was_stopped_goes_on_to_the_same_codes(
    result: tuple[Program, PassContext],
    quantized: Quantized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, _ = result
    calls = []

    def stops(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return gptq(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(gptq_block, "gptq", stops)
        with pytest.raises(KeyboardInterrupt):
            quantized(work=tmp_path)
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(gptq_block, "gptq", lambda *a, **o: (done.append(1), gptq(*a, **o))[1])
        program, context = quantized(work=tmp_path)
    assert len(done) == 7
    assert same(program, expected)
    assert len(context.records["quantize-gptq"]["operators"]) == 2 * 7


def test_progress_only_grows(quantized: Quantized) -> None:
    shares: list[float] = []

    class Watcher(NoProgress):
        def advance(self, part: int, total: int) -> None:
            shares.append(part / total)

    quantized(progress=Watcher())
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(set(shares)) > 20


def test_inputs_that_are_always_zero_and_raised_damping_are_noted(
    tiny_llama: Make,
) -> None:
    program = tiny_llama(layers=2)
    norm = "model.layers.0.post_attention_layernorm.weight"
    scale = program.weights.tensor(norm).clone()
    scale[:3] = 0
    program.weights.put(norm, scale)
    context = PassContext(target=TARGET, calibration=calibration(1, 8))
    plan = SetBits(rules=(Rule(scheme="w4g32"), Rule(kind="head", scheme="w8g32")))
    Pipeline((plan, QuantizeGptq(damping=0.0))).run(program, context)
    notes = context.notes["quantize-gptq"]
    assert "model.layers.0.mlp.up_proj: 3 inputs were always zero" in notes
    assert any("model.layers.0.mlp.down_proj: damping raised to 0.0001" in note for note in notes)


def test_a_weight_that_is_no_number_is_named(run_pass: Callable[..., PassContext]) -> None:
    build = ProgramBuilder({"layer.fc.weight": torch.full((8, 8), float("nan"))})
    x = build.input("x", (1, "s", 8))
    program = build.finish(build.call(ops.linear, x, build.weight("layer.fc.weight")))
    context = PassContext(
        target=TARGET,
        calibration=Calibration(samples=((torch.randn(1, 5, 8),),), source="a test"),
    )
    steps = (SetBits(rules=(Rule(scheme="w8a8"),)), QuantizeGptq())
    with pytest.raises(
        QCompilerError,
        match=r"^'layer\.fc\.weight' cannot be quantised: it has entries that are infinite or not "
        r"a number; leave it float with \{pattern = 'layer\.fc', scheme = 'float'\}$",
    ):
        Pipeline(steps).run(program, context)


def test_weights_make_up_for_what_their_inputs_lost(quantized: Quantized, tiny_llama: Make) -> None:
    tokens = torch.cat([sample for (sample,) in calibration().samples]).tolist()[:64]
    wanted = TorchLanguageModel(tiny_llama(layers=2)).logits(tokens)
    lost = []
    for correction in (0.0, QuantizeGptq().correction):
        step = QuantizeGptq(correction=correction)
        program, _ = quantized(step, "w2a8g8")
        logits = TorchLanguageModel(program).logits(tokens)
        lost.append(float((logits - wanted).square().mean()))
    assert lost[1] < lost[0]


def test_samples_are_needed(quantized: Quantized) -> None:
    assert QuantizeGptq().calibrates
    with pytest.raises(UsageError, match="pass 'quantize-gptq' runs the model on samples"):
        quantized(calibration=None)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="damping 3 is not between 0 and 1"):
        QuantizeGptq(damping=3)
    with pytest.raises(ConfigError, match="correction 2 is not a share between 0 and 1"):
        QuantizeGptq(correction=2)


def test_the_float_model_runs_on_the_first_samples_only_where_there_are_many(
    quantized: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    run = gptq_block.GptqOfBlocks.quantize_block

    def watch(self: Any, block: BlockRun) -> Any:
        assert block.float_inputs is not None
        counts.append((len(block.inputs), len(block.float_inputs)))
        return run(self, block)

    monkeypatch.setattr(gptq_block.GptqOfBlocks, "quantize_block", watch)
    monkeypatch.setattr(block_loop, "FLOAT_TOKENS", 3 * 24)
    quantized()
    assert set(counts) == {(12, 3)}


def test_a_drift_seen_on_some_inputs_stands_for_all() -> None:
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(1))
    moments = gptq_block._Moments.zeros(x, drift=True)
    moments.add_inputs(x)
    moments.add_inputs(x)
    moments.add_drift(0.5 * x, x)
    moments.complete()
    torch.testing.assert_close(moments.hessian, 2 * x.T @ x)
    torch.testing.assert_close(moments.drift, x.T @ x)
