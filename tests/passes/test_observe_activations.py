"""Static scales are found on samples, shared by what reads one value, and asked for in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from passes.allocate_bits import AllocateBits
from passes.bit_choices import Budget
from passes.fuse_qkv import FuseQkv
from passes.input_scales import scale_entry
from passes.insert_fake_quant import InsertFakeQuant
from passes.measure_sensitivity import MeasureSensitivity
from passes.observe_activations import ObserveActivations
from passes.observers import Observer
from passes.quantize_gptq import QuantizeGptq
from passes.quantize_rtn import QuantizeRtn
from passes.quantize_signround import QuantizeSignround
from passes.segments import SegmentWeights, segments
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.blocks import find_blocks
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, QCompilerError, UsageError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import ModelInfo, Program
from qcompiler.core.stage import Stage
from tests.machine import machine

Make = Callable[..., Program]
Logits = Callable[[Program], torch.Tensor]

SAMPLES = ((torch.tensor([3, 1, 4, 1, 5]),), (torch.tensor([9, 2, 6]),))
STATIC = SetBits(rules=(Rule(scheme="w8a8s"),))


def run(program: Program, *steps: Pass, samples: object = SAMPLES) -> PassContext:
    calibration = Calibration(samples=samples, source="a test") if samples else None  # type: ignore[arg-type]
    context = PassContext(target=machine("w4a8*", "w8a8*"), calibration=calibration)
    program.blocks = find_blocks(program.graph)
    Pipeline(steps, start=program.stage).run(program, context)
    return context


def inputs_of(program: Program) -> dict[str, list[torch.Tensor]]:
    """Return what every product reads of each sample."""
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for sample in SAMPLES:
            values = segments(program)[0].order.inputs(sample)
            for part in segments(program):
                values = part.run(
                    values,
                    SegmentWeights(program),
                    tap=lambda name, x: found.setdefault(name, []).append(x),
                )
    return found


def scales_of(program: Program) -> dict[str, float]:
    return {
        name.removesuffix(".input_scale"): float(program.weights.tensor(name))
        for name in program.weights
        if name.endswith(".input_scale")
    }


@pytest.mark.parametrize(("layers", "budget"), [(1, None), (3, None), (3, 0)])
def test_scales_reach_to_the_largest(layers: int, budget: int | None, tiny_llama: Make) -> None:
    program = tiny_llama(layers=layers)
    run(program, STATIC)
    context = PassContext(
        target=machine("w8a8*"),
        calibration=Calibration(samples=SAMPLES, source="a test"),
        max_ram=budget,
    )
    ObserveActivations(observer="min-max").run(program, context)
    seen = inputs_of(program)
    assert scales_of(program) == {
        name: float(torch.tensor(max(float(x.abs().max()) for x in parts) / 127))
        for name, parts in seen.items()
    }
    record = context.records["observe-activations"]
    assert record["observer"] == "min-max"
    assert all(r["clip"] == r["max"] and r["clipped"] == 0 for r in record["scales"].values())
    assert record["scales"].keys() == seen.keys()


def test_other_observers_clip(tiny_llama: Make) -> None:
    found: dict[Observer, dict[str, float]] = {}
    for observer in ("min-max", "moving-average", "percentile", "mse", "kl"):
        program = tiny_llama(layers=2)
        step = ObserveActivations(observer=observer, momentum=0.5, percentile=95.0)
        context = run(program, STATIC, step)
        found[observer] = scales_of(program)
        record = context.records["observe-activations"]["scales"]
        down = "model.layers.1.mlp.down_proj"
        if observer == "percentile":
            assert record[down]["clipped"] == pytest.approx(0.05, abs=0.01)
    largest = found.pop("min-max")
    for scales in found.values():
        assert scales.keys() == largest.keys()
        assert all(0 < scale <= largest[name] * 1.0001 for name, scale in scales.items())
        assert scales != largest


def test_products_of_one_value_share_a_scale(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    run(program, STATIC, ObserveActivations(observer="percentile", percentile=99.0))
    scales = scales_of(program)
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    assert len({scales[f"{attention}.{letter}_proj"] for letter in "qkv"}) == 1
    assert scales[f"{mlp}.gate_proj"] == scales[f"{mlp}.up_proj"]
    assert len(set(scales.values())) == 9  # four in a layer, and the head's


def test_only_what_is_static_is_observed(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    rules = (Rule(scheme="w8a8"), Rule(pattern="*.1.mlp.*", scheme="w4a8g32s"))
    run(program, SetBits(rules=rules), ObserveActivations())
    names = [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert sorted(scales_of(program)) == sorted(names)


def test_nothing_static_needs_no_samples(tiny_llama: Make) -> None:
    program = tiny_llama()
    context = PassContext(target=machine("w8a8*"))
    program.stage = Stage.PLANNED
    ObserveActivations().run(program, context)
    assert context.notes["observe-activations"] == [
        "no operator has a static scheme, so nothing was observed"
    ]


def test_the_first_samples_alone(tiny_llama: Make) -> None:
    all_, first = tiny_llama(), tiny_llama()
    run(all_, STATIC, ObserveActivations(samples=1))
    run(first, STATIC, ObserveActivations(), samples=SAMPLES[:1])
    assert scales_of(all_) == scales_of(first)


def twice() -> Program:
    """One weight that is multiplied by two values, the second a thousand times as large."""
    build = ProgramBuilder({"a.weight": torch.eye(8) * 1000})
    y = build.call(ops.linear, build.input("x", ("t", 8)), build.weight("a.weight"))
    y = build.call(ops.linear, y, build.weight("a.weight"))
    return build.finish(y, ModelInfo(name="two", kind="module", architecture="two"))


def test_a_weight_that_is_used_twice_has_one_scale() -> None:
    program = twice()
    step = ObserveActivations(observer="min-max")
    context = run(program, STATIC, step, samples=((torch.ones(3, 8),),))
    assert scales_of(program) == {"a": pytest.approx(1000 / 127)}
    assert context.records["observe-activations"]["scales"]["a"]["max"] == 1000


def test_zeros_have_the_scale_one() -> None:
    program = twice()
    context = run(program, STATIC, ObserveActivations(), samples=((torch.zeros(3, 8),),))
    assert scales_of(program) == {"a": 1.0}
    assert context.notes["observe-activations"] == ["a: only zeros were seen, so the scale is 1"]


def test_what_is_infinite_is_named() -> None:
    samples = ((torch.full((3, 8), 1e38),),)
    with pytest.raises(QCompilerError, match=r"^what 'a' reads is infinite or not a number on a "):
        run(twice(), STATIC, ObserveActivations(), samples=samples)


def test_it_needs_samples(tiny_llama: Make) -> None:
    with pytest.raises(UsageError, match="'observe-activations' runs the model on samples"):
        run(tiny_llama(), STATIC, ObserveActivations(), samples=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum 1 is no share below 1"),
        ({"momentum": -0.1}, "momentum -0.1 is no share"),
        ({"percentile": 0.0}, "percentile 0 is no share of numbers"),
        ({"percentile": 100.5}, "use more than 0 and at most 100"),
        ({"samples": 0}, "samples = 0 shows nothing; use 1 or more"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObserveActivations(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "step", [QuantizeRtn(), QuantizeGptq(), QuantizeSignround(), InsertFakeQuant()]
)
def test_a_pipeline_without_it_is_refused(step: Pass) -> None:
    message = (
        f"^step 2 '{step.name}': w8a8s has activations of a static scale, which nothing has found; "
        "put 'observe-activations' after 'set-bits'$"
    )
    with pytest.raises(ConfigError, match=message):
        Pipeline((STATIC, step))
    with pytest.raises(
        ConfigError, match=r"^step 4 .* put 'observe-activations' after 'set-bits'$"
    ):
        Pipeline((STATIC, ObserveActivations(), STATIC, step))
    Pipeline((STATIC, ObserveActivations(), step))
    Pipeline((SetBits(rules=(Rule(kind="embedding", scheme="w8a8s"),)), step))


def test_pins_may_be_static_but_choices_may_not() -> None:
    measure = MeasureSensitivity(choices=("w8a8",))
    allocate = AllocateBits(
        budget=Budget(bits_per_weight=8.5),
        choices=("w8a8",),
        pins=(Rule(kind="head", scheme="w8a8s"),),
    )
    with pytest.raises(ConfigError, match=r"put 'observe-activations' after 'allocate-bits'$"):
        Pipeline((measure, allocate, QuantizeRtn()))
    Pipeline((measure, allocate, ObserveActivations(), QuantizeRtn()))
    with pytest.raises(ConfigError, match=r"^the choice w8a8s has activations of a static scale"):
        MeasureSensitivity(choices=("w8a8", "w8a8s"))


@pytest.mark.parametrize("step", [QuantizeRtn(), QuantizeGptq(), QuantizeSignround(iterations=1)])
def test_a_plan_without_scales_is_refused(step: Pass, tiny_llama: Make) -> None:
    program = tiny_llama(tied=False)
    run(program, STATIC)
    message = (
        r"^'model\.layers\.0\.self_attn\.q_proj' is planned as w8a8s, but the scale of what it "
        "reads is not known; put 'observe-activations' before its weight is quantised$"
    )
    with pytest.raises(QCompilerError, match=message):
        run(program, step)


@pytest.mark.parametrize(
    "step", [QuantizeRtn(), QuantizeGptq(), QuantizeSignround(iterations=2, batch=1)]
)
def test_quantised_products_read_their_scales(step: Pass, tiny_llama: Make, logits: Logits) -> None:
    program = tiny_llama(layers=2)
    expected = logits(program)
    run(program, STATIC, ObserveActivations(), step)
    for operator, node in program.linears():
        scale = node.kwargs["input_scale"]
        assert getattr(scale, "target", None) == scale_entry(operator)
    # The sentence is not among the samples, so that some of it is clipped.
    error = (logits(program) - expected).norm() / expected.norm()
    assert error < 0.4


def test_fused_products_are_observed_too(tiny_llama: Make, logits: Logits) -> None:
    first, second = tiny_llama(), tiny_llama()
    run(first, STATIC, FuseQkv(), ObserveActivations(), QuantizeRtn())
    run(second, STATIC, ObserveActivations(), FuseQkv(), QuantizeRtn())
    assert scales_of(first) == pytest.approx(scales_of(second), rel=1e-5)
    torch.testing.assert_close(logits(first), logits(second), rtol=1e-2, atol=1e-2)
