"""Planned weights become codes; the program computes with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.quantize_rtn import QuantizeRtn
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from passes.segments import GraphOrder, SegmentWeights, segments
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, QCompilerError, UsageError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.progress import NoProgress
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import sqnr
from qcompiler.core.stage import Stage
from targets import TARGETS

Make = Callable[..., Program]
Run = Callable[..., PassContext]
Logits = Callable[[Program], torch.Tensor]

MIXED = SetBits(
    rules=(
        Rule(scheme="w4a8g32"),
        Rule(pattern="*.down_proj", scheme="w8a8g32z"),
        Rule(pattern="*.v_proj", scheme="float"),
        Rule(kind="head", scheme="w8a8"),
    )
)


def test_planned_operators_become_quantised(
    tiny_llama: Make, run_pass: Run, golden: Callable[[Program], None]
) -> None:
    program = tiny_llama(biases="qo")
    run_pass(program, MIXED, QuantizeRtn())
    assert program.stage is Stage.QUANTIZED
    golden(program)


def test_weights_are_rounded_as_planned(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    name = "model.layers.0.mlp.down_proj.weight"
    float_weight = program.weights.tensor(name)
    run_pass(program, MIXED, QuantizeRtn())
    weight = program.weights.get(name)
    expected = round_to_nearest(float_weight, QuantScheme.parse("w8a8g32z").weight)
    assert isinstance(weight, QuantizedTensor)
    assert weight.format == expected.format
    assert torch.equal(weight.codes, expected.codes)
    assert torch.equal(weight.scale, expected.scale)
    assert isinstance(program.weights.get("model.layers.0.self_attn.v_proj.weight"), torch.Tensor)


def test_the_error_of_each_weight_is_recorded(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    weights = {name: program.weights.tensor(f"{name}.weight") for name, _ in program.linears()}
    context = run_pass(program, MIXED, QuantizeRtn())
    errors = context.records["quantize-rtn"]["operators"]
    assert context.records["quantize-rtn"]["measure"] == "relative weight error"
    assert "model.layers.0.self_attn.v_proj" not in errors  # it stays float
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        codes = program.weights.get(f"{name}.weight")
        assert isinstance(codes, QuantizedTensor)
        difference = (codes.dequantize() - weights[name]).norm() / weights[name].norm()
        assert errors[name] == {"after": pytest.approx(float(difference))}
    assert errors["model.layers.0.mlp.down_proj"]["after"] < 0.01  # 8 bits
    assert 0.05 < errors["model.layers.0.self_attn.q_proj"]["after"] < 0.15  # 4 bits


@pytest.mark.parametrize(
    ("scheme", "least"), [("w8a8g32", 28), ("w8a8", 28), ("w4a8g32", 9), ("w4a8g8z", 14)]
)
def test_the_result_is_near_the_float_one(
    scheme: str, least: float, tiny_llama: Make, run_pass: Run, logits: Logits
) -> None:
    program = tiny_llama(layers=2)
    before = logits(program)
    run_pass(program, SetBits(rules=(Rule(scheme=scheme),)), QuantizeRtn())
    assert least < sqnr(before, logits(program)) < least + 8


def test_the_range_is_an_option(tiny_llama: Make, run_pass: Run) -> None:
    codes = {}
    for span in ("full", "restricted"):
        program = tiny_llama()
        run_pass(program, MIXED, QuantizeRtn(range=span))
        weight = program.weights.get("model.layers.0.mlp.up_proj.weight")
        assert isinstance(weight, QuantizedTensor)
        codes[span] = int(weight.codes.min())
    assert codes == {"full": -8, "restricted": -7}


def test_scales_are_searched_by_weight_error(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama()
    name = "model.layers.0.mlp.up_proj.weight"
    expected = round_searched(program.weights.tensor(name), QuantScheme.parse("w4a8g32").weight)
    run_pass(program, MIXED, QuantizeRtn(search="weight"))
    found = program.weights.get(name)
    assert isinstance(found, QuantizedTensor)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)


def test_scales_are_searched_by_the_error_on_inputs(tiny_llama: Make) -> None:
    samples = tuple((torch.arange(i, i + 16) * 7 % 40,) for i in range(8))
    context = PassContext(
        target=TARGETS[0], calibration=Calibration(samples=samples, source="a test")
    )
    up = "model.layers.0.mlp.up_proj"
    lost = {}
    for search in ("none", "weight", "activation"):
        program = tiny_llama(tied=True)
        inputs: list[torch.Tensor] = []
        order = GraphOrder(program)
        plain = program.weights.tensor(f"{up}.weight")

        def tap(name: str, x: torch.Tensor, inputs: list[torch.Tensor] = inputs) -> None:
            if name == up:
                inputs.append(x[0])

        for sample in samples:
            values = order.inputs(sample)
            for part in segments(program):
                values = part.run(values, SegmentWeights(program), tap=tap)
        step = QuantizeRtn(search=search)
        assert step.calibrates == (search == "activation")
        Pipeline((MIXED, step)).run(program, context)
        found = program.weights.get(f"{up}.weight")
        assert isinstance(found, QuantizedTensor)
        importance = torch.cat(inputs).square().mean(0)
        lost[search] = float(((found.dequantize() - plain).square() * importance).sum())
    assert lost["activation"] < lost["weight"] < lost["none"]


def test_the_activation_search_needs_samples(tiny_llama: Make, run_pass: Run) -> None:
    with pytest.raises(UsageError, match="pass 'quantize-rtn' runs the model on samples"):
        run_pass(tiny_llama(), MIXED, QuantizeRtn(search="activation"))


def test_a_search_in_the_restricted_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="the search uses the full range of codes"):
        QuantizeRtn(range="restricted", search="weight")


def test_a_tied_weight_is_rounded_once_for_product_and_table(
    tiny_llama: Make, run_pass: Run
) -> None:
    done = []

    class Watcher(NoProgress):
        def advance(self, part: int, total: int) -> None:
            done.append((part, total))

    program = tiny_llama(tied=True)
    context = run_pass(program, SetBits(rules=(Rule(kind="head", scheme="w8a8"),)))
    context.progress = Watcher()
    QuantizeRtn().run(program, context)
    assert done == [(1, 1)]
    targets = {node.target for node in program.graph.nodes if "scheme" in node.kwargs}
    assert targets == {ops.quantized_embedding, ops.quantized_linear}


def test_a_weight_that_cannot_be_rounded_is_named(run_pass: Run) -> None:
    build = ProgramBuilder({"layer.fc.weight": torch.full((8, 8), float("nan"))})
    x = build.input("x", (1, "s", 8))
    program = build.finish(build.call(ops.linear, x, build.weight("layer.fc.weight")))
    with pytest.raises(
        QCompilerError,
        match=r"^'layer\.fc\.weight' cannot be quantised: it has entries that are infinite or not "
        r"a number; leave it float with \{pattern = 'layer\.fc', scheme = 'float'\}$",
    ):
        run_pass(program, SetBits(rules=(Rule(scheme="w8a8"),)), QuantizeRtn())
